"""Multi-level denoising score matching against closed forms for Gaussian data."""

import math

import pytest
import scipy.stats
import torch
from scores import column, within

from ncsn_core.objectives import (
    continuous_denoising_score_matching,
    multilevel_denoising_score_matching,
)
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import geometric_ladder

SIGMAS = geometric_ladder()
MEAN, SPREAD = 0.4, 0.3  # of the Gaussian data of this module


def zero(x, sigma):
    return torch.zeros_like(x)


def exact(x, sigma):
    """∇ log q_σ for data N(MEAN, SPREAD² I): q_σ is N(MEAN, (SPREAD² + σ²) I)."""
    return (MEAN - x) / (SPREAD**2 + column(sigma, x) ** 2)


def gaussian_data(count, *shape, seed=0):
    return MEAN + SPREAD * torch.randn(count, *shape, generator=generator_for(seed, 0))


def inputs(count=12, shape=(2, 3, 3)):
    x = gaussian_data(count, *shape)
    levels = torch.arange(count) % len(SIGMAS)
    noise = torch.randn(x.shape, generator=generator_for(0, 1))
    return x, {"levels": levels, "noise": noise}


# --- values ------------------------------------------------------------------------------------


def test_zero_score_has_the_loss_of_the_noise_itself():
    x, given = inputs()
    loss = multilevel_denoising_score_matching(zero, x, SIGMAS, **given)
    expected = 0.5 * given["noise"].square().flatten(1).sum(1)
    torch.testing.assert_close(loss, expected)


def test_zero_score_has_half_the_dimension_in_expectation():
    x = torch.rand(4000, 1, 14, 14)
    loss = multilevel_denoising_score_matching(zero, x, SIGMAS, generator=generator_for(0))
    assert within(loss, 14 * 14 / 2)
    assert loss.std() == pytest.approx((14 * 14 / 2) ** 0.5, rel=0.05)


@pytest.mark.parametrize("power", [-2.0, 0.0, 1.0, 2.0])
def test_loss_is_its_formula(power):
    x, given = inputs()
    loss = multilevel_denoising_score_matching(exact, x, SIGMAS, weight_power=power, **given)
    for i, level in enumerate(given["levels"]):
        sigma = SIGMAS[level].double()
        noised = x[i].double() + sigma * given["noise"][i].double()
        score = (MEAN - noised) / (SPREAD**2 + sigma**2)
        residual = score + (noised - x[i].double()) / sigma**2
        expected = sigma**power * 0.5 * residual.square().sum()
        torch.testing.assert_close(loss[i].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("level", [0, 4, 9])
def test_exact_score_reaches_the_known_floor(level):
    """σ²·½(D/σ² − E‖∇ log q_σ‖²) = ½ D s²/(s² + σ²) for Gaussian data of standard deviation s."""
    dimension, count = 8, 20_000
    loss = multilevel_denoising_score_matching(
        exact,
        gaussian_data(count, dimension),
        SIGMAS,
        levels=torch.full((count,), level),
        generator=generator_for(0, 2),
    )
    variance = float(SIGMAS[level]) ** 2
    assert within(loss, 0.5 * dimension * SPREAD**2 / (SPREAD**2 + variance))


def test_exact_score_is_a_stationary_point():
    """The gradient of the expected loss along x̃-linear and constant changes is zero there."""
    count = 20_000
    slope, offset = (torch.full((count, 1), v, requires_grad=True) for v in (1.0, 0.0))
    multilevel_denoising_score_matching(
        lambda x, sigma: slope * exact(x, sigma) + offset,
        gaussian_data(count, 4),
        SIGMAS,
        generator=generator_for(0, 3),
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
    losses = [
        multilevel_denoising_score_matching(score, x, SIGMAS, generator=generator_for(0, 4))
        for score in (exact, wrong)
    ]
    excess = losses[1] - losses[0]
    assert excess.mean() > 4 * excess.std() / len(x) ** 0.5


# --- what is drawn -----------------------------------------------------------------------------


def test_levels_are_uniform():
    seen = []

    def watched(x, sigma):
        seen.append(sigma)
        return torch.zeros_like(x)

    x = torch.zeros(20_000, 1)
    multilevel_denoising_score_matching(watched, x, SIGMAS, generator=generator_for(0))
    counts = torch.stack([(seen[0] == sigma).sum() for sigma in SIGMAS]).double()
    assert counts.sum() == len(x)
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_squared < 27.88  # 9 degrees of freedom, exceeded once in a thousand


def test_levels_and_noise_can_be_injected_alone():
    x, given = inputs()
    full = multilevel_denoising_score_matching(exact, x, SIGMAS, **given)
    torch.manual_seed(0)
    drawn = torch.randint(len(SIGMAS), (len(x),))
    torch.manual_seed(0)
    partly = multilevel_denoising_score_matching(exact, x, SIGMAS, noise=given["noise"])
    again = multilevel_denoising_score_matching(
        exact, x, SIGMAS, noise=given["noise"], levels=drawn
    )
    assert torch.equal(partly, again)
    assert not torch.equal(full, partly)


# --- every σ between two ends -------------------------------------------------------------------


def test_continuous_loss_is_its_formula():
    score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # noqa: E731
    x, noise = torch.randn(5, 3), torch.randn(5, 3)
    sigma = torch.tensor([2.0, 1.0, 0.5, 0.1, 0.02])
    got = continuous_denoising_score_matching(
        score, x, (2.0, 0.02), data_std=0.5, sigma=sigma, noise=noise
    )
    noised = x + sigma[:, None] * noise
    error = 0.5 * (score(noised, sigma) + noise / sigma[:, None]).square().sum(1)
    torch.testing.assert_close(got, error * sigma**2 * (sigma**2 + 0.25) / 0.25)


def test_log_sigma_is_uniform_between_the_ends():
    seen = []

    def watches(x, sigma):
        seen.append(sigma)
        return torch.zeros_like(x)

    continuous_denoising_score_matching(
        watches, torch.zeros(40_000, 1), (8.0, 0.01), data_std=0.5, generator=generator_for(0)
    )
    u = (seen[0] / 0.01).log() / math.log(800)
    assert u.min() >= 0
    assert u.max() <= 1
    assert scipy.stats.kstest(u.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"ends": (0.01, 8.0), "data_std": 0.5},
        {"ends": (1.0, 0.0), "data_std": 0.5},
        {"ends": (1.0, 0.1), "data_std": 0.0},
    ],
)
def test_impossible_ends_are_refused(settings):
    with pytest.raises(ValueError, match="first > last > 0"):
        continuous_denoising_score_matching(
            lambda x, sigma: x, torch.zeros(1, 1), settings["ends"], data_std=settings["data_std"]
        )
