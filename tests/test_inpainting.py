"""Inpainting against what is known: noise of the known half, and conditional laws of a Gaussian."""

import math

import pytest
import torch
from scores import global_generator_untouched, point_mass, without_type_checks

from ncsn_core.randomness import generator_for
from ncsn_core.samplers import annealed_langevin, inpaint
from ncsn_core.schedules import geometric_ladder

LADDER = geometric_ladder(1.0, 0.1, 4)
HALF = torch.tensor([[True, False], [True, False]])


def fill(images=None, known=HALF, *, score=point_mass, x=None, seed=0, **options):
    images = torch.arange(12.0).reshape(3, 2, 2) if images is None else images
    x = torch.zeros_like(images) if x is None else x
    options = {"epsilon": 2e-3, "steps_per_level": 5} | options
    generator = generator_for(seed)
    return inpaint(score, x, LADDER, images=images, known=known, generator=generator, **options)


def test_known_pixels_get_the_noise_of_each_level_once():
    """Constant within a level, with standard deviation σᵢ over images; n = 20,000."""
    images, states = torch.rand(20_000, 2, 2, generator=generator_for(1)), []
    end = fill(images, steps_per_level=3, callback=states.append)
    for i, sigma in enumerate(LADDER.tolist()):
        noises = [(s.x - images)[:, HALF] for s in states[3 * i : 3 * i + 3]]
        assert all(torch.equal(noise, noises[0]) for noise in noises)
        assert float(noises[0].std()) == pytest.approx(sigma, rel=4 / (2 * 40_000) ** 0.5)
    first, second = (states[k].x - images for k in (2, 3))
    correlation = torch.corrcoef(torch.stack([first[:, HALF].flatten(), second[:, HALF].flatten()]))
    assert abs(float(correlation[0, 1])) < 4 / 40_000**0.5
    assert torch.equal(end, states[-1].x)


def test_known_pixels_get_fresh_noise_at_every_step():
    """Of the level's standard deviation, and never the same twice; n = 20,000."""
    images, seen = torch.rand(20_000, 2, 2, generator=generator_for(1)), []

    def score(x, sigma):
        seen.append((x - images)[:, HALF])
        return point_mass(x, sigma)

    end = fill(images, score=score, known_noise="step", steps_per_level=3)
    noises = torch.stack([*seen, (end - images)[:, HALF]])  # [13, images, pixels]
    expected = torch.cat([LADDER.repeat_interleave(3), LADDER[-1:]])
    torch.testing.assert_close(
        noises.std(dim=(1, 2)), expected, atol=0, rtol=4.5 / (2 * 40_000) ** 0.5
    )
    correlations = torch.corrcoef(noises.flatten(1)) - torch.eye(len(noises))
    assert correlations.abs().max() < 5 / 40_000**0.5


def test_known_pixels_without_noise_stay_as_they_are():
    images, seen = torch.rand(3, 2, 2, generator=generator_for(1)), []

    def score(x, sigma):
        seen.append(x)
        return point_mass(x, sigma)

    end = fill(images, score=score, known_noise="none")
    assert len(seen) == 20
    assert all(torch.equal(x[:, HALF], images[:, HALF]) for x in [*seen, end])
    assert not torch.equal(end[:, ~HALF], images[:, ~HALF])


def test_every_score_sees_the_noisy_known_pixels():
    """Also the first of a level: the known part is put in place before it."""
    images, seen = torch.full((1, 2, 2), 50.0), []

    def score(x, sigma):
        seen.append((x[:, HALF], float(sigma[0])))
        return point_mass(x, sigma)

    fill(images, score=score, x=torch.zeros(1, 2, 2))
    assert len(seen) == 20
    for pixels, sigma in seen:
        assert (pixels - 50).abs().max() < 6 * sigma


def pair(rho):
    """The scores of two normal pixels of correlation ρ and of their noised pairs."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
    return lambda x, sigma: -x @ torch.linalg.inv(covariance + sigma[0] ** 2 * torch.eye(2))


def test_unknown_pixels_follow_their_conditional_law():
    """Two correlated normal pixels: x₂ given x₁ is N(ρx₁, 1 − ρ²), up to the last level's noise.

    The score of the noised pair answers to a known pixel that is noised as well, so that the slope
    is ρ/(1 + σ_L²) and the variance that of the last level; both within five standard errors.
    """
    n, rho, last, epsilon = 10_000, 0.8, 0.1, 0.02
    ladder = geometric_ladder(4.0, last, 8)
    images = torch.randn(n, 2, generator=generator_for(1))
    got = inpaint(
        pair(rho),
        torch.rand(n, 2, generator=generator_for(2)),
        ladder,
        images=images,
        known=torch.tensor([True, False]),
        epsilon=epsilon,
        steps_per_level=150,
        generator=generator_for(0),
    )
    variance = 1 + last**2
    slope, residual = rho / variance, variance - rho**2 / variance
    given = got[:, 0]  # the known pixel as the last score saw it
    fitted = float((given * got[:, 1]).mean() / given.square().mean())
    spread = float((got[:, 1] - slope * given).var())
    assert fitted == pytest.approx(slope, abs=5 * (residual / variance / n) ** 0.5)
    step = 1 / (1 - epsilon / (4 * residual))  # what a finite ε adds
    assert spread == pytest.approx(residual * step, rel=5 * (2 / n) ** 0.5)


@pytest.mark.parametrize("known_noise", ["level", "step", "none"])
def test_variants_differ_in_the_spread_of_their_fills(known_noise):
    """At one level of a correlated normal pair, where the exact law of the fills is known.

    For known noise drawn once the fills are spread by the noise's draw too, ρ²σ²/(1 + σ²)²; for
    fresh noise the chain sees only its mean, and for none there is nothing to see.
    """
    n, rho, sigma, y = 20_000, 0.9, 1.0, 1.5
    got = inpaint(
        pair(rho),
        torch.randn(n, 2, generator=generator_for(2)),
        torch.tensor([sigma]),
        images=torch.full((n, 2), y),
        known=torch.tensor([True, False]),
        known_noise=known_noise,
        epsilon=0.02,
        steps_per_level=600,
        generator=generator_for(0),
    )[:, 1]
    wide = 1 + sigma**2
    variance = wide - rho**2 / wide
    if known_noise == "level":
        variance += (rho * sigma / wide) ** 2
    assert float(got.mean()) == pytest.approx(rho * y / wide, abs=5 * (variance / n) ** 0.5)
    assert float(got.var()) == pytest.approx(variance, rel=5 * (2 / n) ** 0.5 + 0.005)


def test_without_noise_nothing_known_is_annealed_langevin_exactly():
    x, nothing = torch.rand(3, 2, 2), torch.zeros(2, 2, dtype=torch.bool)
    options = {"epsilon": 2e-3, "steps_per_level": 5}
    expected = annealed_langevin(point_mass, x, LADDER, generator=generator_for(0), **options)
    got = fill(torch.zeros(3, 2, 2), nothing, x=x, known_noise="none", **options)
    assert torch.equal(got, expected)


def test_nothing_known_is_annealed_langevin():
    """The same chain, but for the noise of the known pixels, which is drawn all the same."""
    x, generator = torch.rand(3, 2, 2), generator_for(0)
    expected = x
    for sigma in LADDER:
        torch.randn(x.shape, generator=generator)
        epsilon = 2e-3 * float(sigma / LADDER[-1]) ** 2
        expected = annealed_langevin(
            point_mass,
            expected,
            sigma[None],
            epsilon=epsilon,
            steps_per_level=5,
            generator=generator,
        )
    got = fill(torch.zeros(3, 2, 2), torch.zeros(2, 2, dtype=torch.bool), x=x)
    torch.testing.assert_close(got, expected)


def test_denoising_returns_the_known_pixels_as_they_are():
    images = torch.rand(3, 2, 2)
    clean = fill(images, denoise=True)
    assert torch.equal(clean[:, HALF], images[:, HALF])
    torch.testing.assert_close(clean[:, ~HALF], torch.zeros(3, 2), atol=1e-6, rtol=0)
    assert not torch.equal(fill(images)[:, HALF], images[:, HALF])


def test_what_is_unknown_does_not_matter():
    images = torch.rand(3, 2, 2)
    other = torch.where(HALF, images, torch.full_like(images, math.nan))
    assert torch.equal(fill(images), fill(other))
    start = torch.where(HALF, torch.rand(3, 2, 2), torch.zeros(3, 2, 2))
    assert torch.equal(fill(images), fill(images, x=start))


def test_the_generator_decides_and_the_start_is_not_modified():
    start, images = torch.rand(3, 2, 2), torch.rand(3, 2, 2)
    before, truth = start.clone(), images.clone()
    with global_generator_untouched():
        first = fill(images, x=start, seed=5)
        assert not torch.equal(first, fill(images, x=start, seed=6))
    assert torch.equal(first, fill(images, x=start, seed=5, callback=lambda s: torch.rand(9)))
    assert torch.equal(start, before)
    assert torch.equal(images, truth)


def test_a_score_that_is_not_finite_stops_with_evaluation_and_sigma():
    def score(x, sigma):
        calls.append(1)
        return torch.full_like(x, math.nan) if len(calls) == 8 else point_mass(x, sigma)

    calls = []
    with pytest.raises(FloatingPointError, match=r"at evaluation 8 \(sigma = 0.4642\)"):
        fill(score=score)


def test_bad_settings_are_refused():
    for options, complaint in (
        ({"steps_per_level": 0}, "steps_per_level"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"images": torch.full((3, 2, 2), math.inf)}, "not finite"),
        ({"x": torch.zeros(2, 2, 2)}, "shape of x"),
        (
            {"known": torch.ones(2, 1, dtype=torch.bool)},
            "True where a pixel is known, .*shape of x",
        ),
        (
            {"known": torch.ones(2, 3, dtype=torch.bool)},
            "True where a pixel is known, .*shape of x",
        ),
        ({"known": HALF.float() * 0.7}, r"True \(or 1\) where a pixel is known and .*other values"),
        ({"known": HALF.byte() * 255}, r"True \(or 1\) where a pixel is known and .*other values"),
        ({"known": "half"}, "True where a pixel is known"),
        ({"known": HALF * math.nan}, r"True \(or 1\) where a pixel is known"),
        (
            {"images": torch.full((3, 2, 2), 9, dtype=torch.uint8), "x": torch.zeros(3, 2, 2)},
            "to_unit",
        ),
        ({"known_noise": "once"}, "unknown known_noise 'once'; known: level, step, none"),
    ):
        with without_type_checks(), pytest.raises(ValueError, match=complaint):
            fill(**options)


@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", "float32", "float16"])
def test_a_mask_of_zeros_and_ones_is_one_of_any_type(kind):
    images = torch.rand(3, 2, 2)
    expected = fill(images)
    known = HALF.to(getattr(torch, kind))
    assert torch.equal(fill(images, known), expected)
    assert torch.equal(fill(images, known.numpy()), expected)
    got = fill(images.numpy(), known.numpy(), x=torch.zeros(3, 2, 2))
    assert torch.equal(got, expected)


def test_a_mask_without_channels_is_for_all_of_them():
    images = torch.rand(2, 3, 2, 2)
    whole = fill(images, HALF.expand(3, 2, 2))
    assert torch.equal(fill(images, HALF), whole)
    assert torch.equal(fill(images, HALF[None]), whole)


def test_images_in_another_range_are_refused_for_a_network_of_images(record):
    score = record.score()
    images = torch.rand(1, 1, 28, 28)
    known = torch.ones(28, 28, dtype=torch.bool)
    for wrong, advice in ((255 * images, "divide by 255"), (2 * images - 1, r"\(x \+ 1\) / 2")):
        with pytest.raises(ValueError, match=advice):
            inpaint(score, images, score.sigmas, images=wrong, known=known)
