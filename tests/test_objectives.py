"""Denoising over many noise levels against closed forms, and what every loss refuses."""

import math
from functools import partial

import pytest
import torch
from scores import points, within, without_type_checks

from ncsn_core.objectives import (
    denoising_floor,
    denoising_score_matching,
    finite_difference_score_matching,
    sliced_score_matching,
    sliced_score_matching_vr,
)
from ncsn_core.parametrizations import score_from_denoiser
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import (
    denoiser_weight,
    draw_levels,
    geometric_ladder,
    loss_weight,
    per_sample,
)

SIGMAS = geometric_ladder()
MEAN, SPREAD = 0.4, 0.3  # of the Gaussian data of this module


def zero(x, sigma):
    return torch.zeros_like(x)


def exact(x, sigma):
    """∇ log q_σ for data N(MEAN, SPREAD² I): q_σ is N(MEAN, (SPREAD² + σ²) I)."""
    return (MEAN - x) / (SPREAD**2 + per_sample(sigma, x) ** 2)


def gaussian_data(count, *shape, seed=0):
    return MEAN + SPREAD * torch.randn(count, *shape, generator=generator_for(seed, 0))


def inputs(count=12, shape=(2, 3, 3)):
    """Data, the noise levels of the ladder in turn, and noise."""
    x = gaussian_data(count, *shape)
    return x, SIGMAS[torch.arange(count) % 10], torch.randn(x.shape, generator=generator_for(0, 1))


# --- values ------------------------------------------------------------------------------------


def test_zero_score_has_the_loss_of_the_noise_itself():
    x, sigma, noise = inputs()
    loss = denoising_score_matching(zero, x, sigma, noise=noise)
    torch.testing.assert_close(loss, 0.5 * noise.square().flatten(1).sum(1))


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1e3, None])
def test_zero_score_has_half_the_dimension_in_expectation_at_every_sigma(sigma):
    x, generator = torch.rand(4000, 1, 14, 14), generator_for(0)
    levels = draw_levels(SIGMAS, 4000, generator) if sigma is None else torch.full((4000,), sigma)
    loss = denoising_score_matching(zero, x, levels, generator=generator)
    assert within(loss, 14 * 14 / 2)
    assert loss.std() == pytest.approx((14 * 14 / 2) ** 0.5, rel=0.05)


@pytest.mark.parametrize("power", [-2.0, 0.0, 1.0, 2.0])
def test_loss_is_its_formula(power):
    x, sigmas, noise = inputs()
    weight = partial(loss_weight, power=power)
    loss = denoising_score_matching(exact, x, sigmas, noise=noise, weight=weight)
    for i, sigma in enumerate(sigmas.double()):
        noised = x[i].double() + sigma * noise[i].double()
        score = (MEAN - noised) / (SPREAD**2 + sigma**2)
        residual = score + (noised - x[i].double()) / sigma**2
        expected = sigma**power * 0.5 * residual.square().sum()
        torch.testing.assert_close(loss[i].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("level", [0, 4, 9])
def test_exact_score_reaches_the_known_floor(level):
    """σ²·½(D/σ² − E‖∇ log q_σ‖²) = ½ D s²/(s² + σ²) for Gaussian data of standard deviation s."""
    dimension, count = 8, 20_000
    loss = denoising_score_matching(
        exact,
        gaussian_data(count, dimension),
        SIGMAS[level].expand(count),
        generator=generator_for(0, 2),
    )
    variance = float(SIGMAS[level]) ** 2
    assert within(loss, 0.5 * dimension * SPREAD**2 / (SPREAD**2 + variance))


@pytest.mark.parametrize("weight", [loss_weight, torch.ones_like, torch.sqrt])
def test_exact_score_has_the_weighted_floor_as_its_loss(weight):
    """λ(σ) times the mean of `denoising_floor`, whatever λ, over all levels."""
    count = 20_000
    x, generator = gaussian_data(count, 3), generator_for(0, 6)
    sigma, z = draw_levels(SIGMAS[:4], count, generator), torch.randn(count, 3, generator=generator)
    loss = denoising_score_matching(exact, x, sigma, noise=z, weight=weight)
    floor = weight(sigma) * denoising_floor(exact, x + per_sample(sigma, x) * z, sigma)
    assert floor.mean() > 0.1
    assert within(loss - floor, 0.0)


def test_exact_score_is_a_stationary_point():
    """The gradient of the expected loss along x̃-linear and constant changes is zero there."""
    count, generator = 20_000, generator_for(0, 3)
    slope, offset = (torch.full((count, 1), v, requires_grad=True) for v in (1.0, 0.0))
    denoising_score_matching(
        lambda x, sigma: slope * exact(x, sigma) + offset,
        gaussian_data(count, 4),
        draw_levels(SIGMAS, count, generator),
        generator=generator,
    ).sum().backward()
    assert within(slope.grad, 0.0)
    assert within(offset.grad, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, sigma: -exact(x, sigma),  # the sign of the score
        lambda x, sigma: 1.2 * exact(x, sigma),
        lambda x, sigma: exact(x, 1.2 * sigma),  # the score of another noise level
        lambda x, sigma: exact(x, 0 * sigma),  # ∇ log p instead of ∇ log q_σ
    ],
    ids=["sign", "scale", "level", "no noise"],
)
def test_every_other_score_has_a_larger_loss(wrong):
    x = gaussian_data(20_000, 4)
    sigma = draw_levels(SIGMAS, len(x), generator_for(0, 4))
    losses = [
        denoising_score_matching(score, x, sigma, generator=generator_for(0, 5))
        for score in (exact, wrong)
    ]
    excess = losses[1] - losses[0]
    assert excess.mean() > 4 * excess.std() / len(x) ** 0.5


# --- the weight --------------------------------------------------------------------------------


def test_without_a_weight_the_loss_is_that_of_equation_5():
    """½ ‖s(x̃, σ) + (x̃ − x)/σ²‖²."""
    x, sigma, noise = inputs()
    loss = denoising_score_matching(exact, x, sigma, noise=noise, weight=torch.ones_like)
    column = per_sample(sigma, x)
    noised = x + column * noise
    residual = (exact(noised, sigma) + (noised - x) / column**2).flatten(1)
    torch.testing.assert_close(loss, residual.square().sum(1) / 2, rtol=1e-4, atol=0)


def test_loss_with_the_denoisers_weight_is_its_formula():
    score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # noqa: E731
    x, noise = torch.randn(5, 3), torch.randn(5, 3)
    sigma = torch.tensor([2.0, 1.0, 0.5, 0.1, 0.02])
    got = denoising_score_matching(
        score, x, sigma, noise=noise, weight=partial(denoiser_weight, data_std=0.5)
    )
    noised = x + sigma[:, None] * noise
    error = 0.5 * (score(noised, sigma) + noise / sigma[:, None]).square().sum(1)
    torch.testing.assert_close(got, error * sigma**2 * (sigma**2 + 0.25) / 0.25)


def test_the_denoisers_weight_makes_the_loss_that_of_a_preconditioned_network():
    """½ ‖(D − x)/c‖² for a denoiser D = … + c F, c² = σ²s²/(σ² + s²) (Karras et al. 2022)."""
    x, noise = points(5, (3,)), points(5, (3,), seed=1)
    sigma = torch.tensor([8.0, 1.0, 0.5, 0.1, 0.01]).double()
    denoiser = lambda y, sigma: torch.sin(3 * y) * sigma[:, None]  # noqa: E731
    got = denoising_score_matching(
        score_from_denoiser(denoiser),
        x,
        sigma,
        noise=noise,
        weight=partial(denoiser_weight, data_std=0.5),
    )
    error = denoiser(x + sigma[:, None] * noise, sigma) - x
    scale = (sigma * 0.5 / (sigma**2 + 0.25).sqrt())[:, None]
    torch.testing.assert_close(got, (error / scale).square().sum(1) / 2)


# --- what every loss has in common ---------------------------------------------------------------

SLICED = {
    "sliced": sliced_score_matching,
    "reduced variance": sliced_score_matching_vr,
    "finite differences": finite_difference_score_matching,
}
AT_SIGMA = {"denoising": denoising_score_matching, "floor": denoising_floor, **SLICED}
at_sigma = pytest.mark.parametrize("loss", AT_SIGMA.values(), ids=AT_SIGMA)
sliced = pytest.mark.parametrize("loss", SLICED.values(), ids=SLICED)


def never(x, sigma=None):
    pytest.fail("the score was evaluated")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in AT_SIGMA if name != "floor"])
def test_noise_is_drawn_from_the_generator_before_anything_else_or_given(name, seed):
    x, sigma, noise = inputs()
    generator, again = generator_for(seed), generator_for(seed)
    drawn = AT_SIGMA[name](exact, x, sigma, generator=generator)
    z = torch.randn(x.shape, generator=again)
    assert torch.equal(AT_SIGMA[name](exact, x, sigma, noise=z, generator=again), drawn)
    assert torch.equal(generator.get_state(), again.get_state())
    again = generator_for(seed)
    assert not torch.equal(AT_SIGMA[name](exact, x, sigma, noise=noise, generator=again), drawn)


@sliced
@pytest.mark.parametrize("weight", [loss_weight, torch.ones_like])
def test_sliced_losses_at_sigma_are_those_of_the_noised_data_weighted(loss, weight):
    """λ(σ) times the loss of s(·, σ) at x + σz."""
    x, sigma, noise = inputs()
    v = torch.randn(2, *x.shape, generator=generator_for(0, 2))
    got = loss(exact, x, sigma, noise=noise, weight=weight, v=v)
    for i, level in enumerate(sigma):
        noised = (x[i] + level * noise[i]).unsqueeze(0)
        alone = loss(lambda y, s=level: exact(y, s.expand(len(y))), noised, v=v[:, i : i + 1])
        torch.testing.assert_close(got[i : i + 1], weight(level) * alone, rtol=1e-4, atol=1e-4)


@sliced
def test_sliced_losses_of_data_have_no_weight(loss):
    x, v = points(4, (3,)), points(2, (4, 3), seed=1)
    plain = loss(torch.sin, x, v=v)
    assert torch.equal(loss(torch.sin, x, v=v, weight=never), plain)


def test_directions_of_length_1_would_divide_the_sliced_loss_by_the_dimension():
    x, v = points(4, (5,)), points(2, (4, 5), seed=1)
    short = sliced_score_matching(torch.sin, x, v=v / 5**0.5)
    torch.testing.assert_close(short, sliced_score_matching(torch.sin, x, v=v) / 5)


@pytest.mark.parametrize("name", [name for name in AT_SIGMA if name != "sliced"])
def test_losses_are_summed_over_the_dimensions_and_not_averaged(name):
    """Two independent halves with the same numbers have twice the loss of one."""
    x, sigma, noise = inputs(shape=(4,))
    drawn = {} if name == "floor" else {"noise": noise}
    if name in SLICED:
        drawn |= {"v": torch.randn(1, *x.shape)}
    one = AT_SIGMA[name](exact, x, sigma, **drawn)
    drawn = {key: torch.cat([half, half], -1) for key, half in drawn.items()}
    two = AT_SIGMA[name](exact, torch.cat([x, x], 1), sigma, **drawn)
    torch.testing.assert_close(two, 2 * one, rtol=1e-4, atol=1e-4)


@at_sigma
@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1), (1, 4)])
def test_sigma_has_one_value_for_each_sample(loss, shape):
    """Some of them would broadcast silently."""
    message = rf"one value for each of the 4 samples; got shape \({', '.join(map(str, shape))}"
    with without_type_checks(), pytest.raises(ValueError, match=message):
        loss(never, torch.zeros(4, 3), torch.ones(shape))
    with without_type_checks(), pytest.raises(ValueError, match=message):
        loss(never, torch.zeros(4, 3), sigma=torch.ones(shape))


@at_sigma
@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
def test_sigma_is_positive_and_finite(loss, bad):
    sigma = torch.tensor([0.5, bad])
    for given in ((sigma,), ()):
        named = {} if given else {"sigma": sigma}
        with pytest.raises(ValueError, match=rf"must be positive and finite; got \[0.5, {bad}\]"):
            loss(never, torch.zeros(2, 3), *given, **named)


@at_sigma
def test_score_points_and_sigma_may_be_named(loss):
    x, sigma, _ = inputs()
    torch.manual_seed(1)
    named = loss(score=exact, x=x, sigma=sigma)
    torch.manual_seed(1)
    assert torch.equal(named, loss(exact, x, sigma))
