"""Annealed Langevin dynamics against what is known in closed form for Gaussian scores."""

import math
import weakref

import pytest
import torch
from scores import point_mass

from ncsn_core.randomness import generator_for
from ncsn_core.samplers import annealed_langevin
from ncsn_core.schedules import geometric_ladder, langevin_step_sizes

LADDER = geometric_ladder(1.0, 0.1, 4)


def sample(x=None, sigmas=LADDER, *, score=point_mass, seed=0, **options):
    x = torch.zeros(3, 2) if x is None else x
    options = {"epsilon": 2e-3, "steps_per_level": 5} | options
    return annealed_langevin(score, x, sigmas, generator=generator_for(seed), **options)


# --- the distribution --------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 0.4, 1.5])
def test_stationary_variance_of_a_single_level(epsilon):
    """x ← (1 − α/2σ²) x + √α z settles at σ²/(1 − α/4σ²): 1.026 for ε = 0.1, and not at σ².

    The sample variance of n normal numbers has standard error v·√(2/n); four of them are allowed.
    """
    n = 200_000
    steps = math.ceil(math.log(1e-4) / math.log(abs(1 - epsilon / 2)))
    x = sample(torch.zeros(n, 1), torch.ones(1), epsilon=epsilon, steps_per_level=steps)
    expected = 1 / (1 - epsilon / 4)
    assert float(x.var()) == pytest.approx(expected, abs=4 * expected * (2 / n) ** 0.5)
    assert float(x.mean()) == pytest.approx(0, abs=4 * (expected / n) ** 0.5)


def test_variance_at_the_end_of_every_level_follows_the_recurrence():
    """v ← (1 − α/2σ²)² v + α from any start; n = 100,000, four standard errors."""
    n, steps, variance = 100_000, 3, 1 / 12
    seen = []

    def observe(state):
        if state.step == steps - 1:
            seen.append(float(state.x.var()))

    start = torch.rand(n, 1, generator=generator_for(1)) - 0.5
    sample(start, epsilon=2e-3, steps_per_level=steps, callback=observe)
    for sigma, alpha, got in zip(LADDER, langevin_step_sizes(LADDER, 2e-3), seen, strict=True):
        for _ in range(steps):
            variance = float((1 - alpha / (2 * sigma**2)) ** 2 * variance + alpha)
        assert got == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize(("epsilon", "ratio"), [(2e-5, 0.224), (4e-5, 0.316)])
def test_signal_to_noise_ratio_is_the_same_at_every_level(epsilon, ratio):
    """‖α/2 s‖/√(αD) at σ-sized samples: √(ε/σ_L²)/2, for Algorithm 1's ε and the code's."""
    sigmas, dimension = geometric_ladder(), 400
    ratios = []

    def observe(state):
        signal = (state.step_size / 2 * state.score).flatten(1).norm(dim=1).mean()
        ratios.append(float(signal) / (state.step_size * dimension) ** 0.5)

    def score(x, sigma):  # the samples are put where they should be: at σ z
        return point_mass(torch.randn(x.shape) * sigma[:, None], sigma)

    sample(
        torch.zeros(20, dimension),
        sigmas,
        score=score,
        epsilon=epsilon,
        steps_per_level=1,
        callback=observe,
    )
    assert ratios == pytest.approx([ratio] * 10, rel=0.05)


def test_one_step_is_algorithm_1():
    x = torch.rand(2, 3)
    got = sample(x, torch.tensor([0.5]), epsilon=0.1, steps_per_level=1)
    z = torch.randn(2, 3, generator=generator_for(0))
    torch.testing.assert_close(got, x + 0.1 / 2 * (-x / 0.25) + 0.1**0.5 * z)


# --- the final denoising -----------------------------------------------------------------------


def test_denoising_is_tweedies_formula():
    """x + σ_L² s(x, σ_L) after the same chain; for a point mass, the point."""

    def score(x, sigma):
        return (0.7 - x) / (0.2**2 + sigma[:, None] ** 2)

    noisy = sample(score=score)
    denoised = sample(score=score, denoise=True)
    sigma = LADDER[-1].expand(3)
    torch.testing.assert_close(denoised, noisy + LADDER[-1] ** 2 * score(noisy, sigma))
    torch.testing.assert_close(sample(denoise=True), torch.zeros(3, 2), atol=1e-6, rtol=0)


# --- evaluations -------------------------------------------------------------------------------


@pytest.mark.parametrize("denoise", [False, True])
def test_evaluations_are_levels_times_steps(denoise):
    asked = []

    def score(x, sigma):
        asked.append(sigma.tolist())
        return torch.zeros_like(x)

    sample(score=score, steps_per_level=7, denoise=denoise)
    expected = [[s] * 3 for s in LADDER.tolist() for _ in range(7)]
    assert asked == expected + [[LADDER[-1].item()] * 3] * denoise


def test_the_papers_setting_takes_1000_evaluations():
    calls = []

    def score(x, sigma):
        calls.append(1)
        return torch.zeros_like(x)

    annealed_langevin(score, torch.zeros(1, 1), geometric_ladder())
    assert len(calls) == 1000


# --- the callback ------------------------------------------------------------------------------


def test_callback_sees_every_update_in_order():
    states = []
    end = sample(callback=states.append, steps_per_level=2)
    alphas = langevin_step_sizes(LADDER, 2e-3).tolist()
    assert [(s.level, s.step) for s in states] == [(i, t) for i in range(4) for t in range(2)]
    assert [s.sigma for s in states[::2]] == LADDER.tolist()
    assert [s.step_size for s in states[::2]] == alphas
    assert torch.equal(states[-1].x, end)


def test_callback_gets_the_score_of_the_samples_before_the_update():
    states = []
    start = torch.rand(3, 2)
    sample(start, callback=states.append)
    before = [start] + [s.x for s in states[:-1]]
    for x, state in zip(before, states, strict=True):
        assert torch.equal(state.score, point_mass(x, torch.full((3,), state.sigma)))


def test_memory_does_not_grow_with_the_steps():
    """Earlier samples are freed: at every evaluation the start, x and one more live at most."""
    seen, alive = [], []

    def score(x, sigma):
        seen.append(weakref.ref(x))
        alive.append(sum(ref() is not None for ref in seen))
        return point_mass(x, sigma)

    sample(score=score, steps_per_level=20)
    assert len(alive) == 80
    assert max(alive) <= 3


def test_samples_may_be_single_numbers():
    end = sample(torch.zeros(4, dtype=torch.float64), denoise=True)
    assert end.shape == (4,)
    assert end.dtype == torch.float64


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_stops_with_evaluation_and_sigma(bad):
    calls = []

    def score(x, sigma):
        calls.append(1)
        s = point_mass(x, sigma)
        if len(calls) == 8:
            s[1, 0] = bad
        return s

    with pytest.raises(FloatingPointError, match=r"at evaluation 8 \(sigma = 0.4642\)"):
        sample(score=score)
    assert len(calls) == 8


def test_a_score_that_is_not_finite_stops_the_final_denoising_too():
    def score(x, sigma):
        calls.append(1)
        return torch.full_like(x, math.nan if len(calls) == 21 else 0.0)

    calls = []
    with pytest.raises(FloatingPointError, match=r"at evaluation 21 \(sigma = 0.1\)"):
        sample(score=score, denoise=True)


def test_a_score_that_is_not_finite_is_told_with_its_evaluation_and_sigma():
    def score(x, sigma):
        return torch.full_like(x, math.nan if float(sigma[0]) < float(LADDER[0]) else 0.0)

    with pytest.raises(FloatingPointError, match=r"evaluation 6 \(sigma = 0.4642\);"):
        sample(score=score)


def test_a_step_that_is_too_large_is_noticed():
    """α > 4σ² diverges: from 0 to beyond float32 within 200 steps of factor 4."""
    with pytest.raises(FloatingPointError, match="a smaller epsilon may help"):
        sample(epsilon=10 * float(LADDER[-1]) ** 2, steps_per_level=200)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be positive"),
        ({"steps_per_level": 0}, "steps_per_level must be at least 1"),
        ({"sigmas": torch.tensor([0.1, 1.0])}, "decrease"),
        ({"sigmas": torch.tensor([1.0, 0.0])}, "positive"),
    ],
)
def test_bad_settings_are_refused_before_the_first_evaluation(options, complaint):
    def never(x, sigma):
        pytest.fail("the score was evaluated")

    with pytest.raises(ValueError, match=complaint):
        sample(score=never, **options)
