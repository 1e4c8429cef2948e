"""The ladder of noise levels, the loss weight and the step sizes."""

import math
from functools import partial

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from scores import global_generator_untouched, without_type_checks

from ncsn_core.randomness import generator_for
from ncsn_core.schedules import (
    denoiser_weight,
    draw_levels,
    draw_log_uniform,
    geometric_ladder,
    karras_ladder,
    langevin_step_sizes,
    loss_weight,
    matched_epsilon,
    matched_ratio,
    overlap,
    per_sample,
    validate_ladder,
    variance_left,
)

INF, NAN = math.inf, math.nan

# Noise levels that float32 holds without loss.
positive = st.floats(2.0**-13, 2.0**13, width=32)


def test_the_papers_ladder():
    sigmas = geometric_ladder()
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (10,)
    assert sigmas[0] == 1.0
    assert sigmas[-1] == torch.tensor(0.01)
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, torch.full((9,), 0.01 ** (1 / 9)))
    assert float(ratios[0]) == pytest.approx(0.5995, abs=5e-5)


@given(ends=st.tuples(positive, positive), levels=st.integers(2, 60))
def test_a_ladder_falls_evenly_from_end_to_end(ends, levels):
    first, last = max(ends), min(ends)
    if last > 0.99 * first:
        first = 2 * last
    sigmas = geometric_ladder(first, last, levels)
    assert sigmas[0] == torch.tensor(first)
    assert sigmas[-1] == torch.tensor(last)
    assert torch.equal(validate_ladder(sigmas), sigmas)
    ratio = (last / first) ** (1 / (levels - 1))
    torch.testing.assert_close(
        sigmas[1:] / sigmas[:-1], torch.full((levels - 1,), ratio), rtol=1e-5, atol=0
    )


def test_a_single_level_is_a_ladder_when_its_ends_agree():
    assert geometric_ladder(0.01, 0.01, 1).tolist() == pytest.approx([0.01])
    with pytest.raises(ValueError, match="sigma_max == sigma_min"):
        geometric_ladder(1.0, 0.01, 1)


@pytest.mark.parametrize(
    ("first", "last", "levels", "complaint"),
    [
        (1.0, 0.01, 0, "1 to 100,000"),
        (1.0, 0.01, -3, "1 to 100,000"),
        (0.01, 1.0, 10, "decrease"),
        (1.0, 1.0, 2, "sigma_max > sigma_min"),
        (1.0, 0.0, 10, "positive"),
        (1.0, -0.01, 10, "positive"),
        (0.0, 0.01, 10, "positive"),
        (-1.0, -2.0, 10, "positive"),
        (INF, 0.01, 10, "finite"),
        (NAN, 0.01, 10, "finite"),
        (1.0, NAN, 10, "finite"),
        (1e39, 0.01, 10, "level 1 is inf"),  # beyond float32
        (1.0, 1e-60, 10, "level 8 is 0"),
        (1.0, 0.9999999, 10, "strictly"),  # closer than float32 can tell apart
    ],
)
def test_ladders_that_are_refused(first, last, levels, complaint):
    with pytest.raises(ValueError, match=complaint):
        geometric_ladder(first, last, levels)


def test_a_number_of_levels_is_whole():
    with without_type_checks(), pytest.raises(ValueError, match="whole number of levels"):
        geometric_ladder(1.0, 0.01, 2.5)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([], "shape"),
        ([[1.0, 0.1]], "shape"),
        (0.1, "shape"),
        ([1.0, 0.0], "level 2 is 0"),
        ([1.0, -0.1], "level 2 is -0.1"),
        ([INF, 1.0], "level 1 is inf"),
        ([1.0, NAN], "level 2 is nan"),
        ([1.0, 0.1, 0.2], "level 3 is 0.2"),
        ([1.0, 1.0], "strictly"),
    ],
)
def test_validation_names_the_level_at_fault(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        validate_ladder(torch.tensor(values))


@given(st.lists(st.floats(width=32), min_size=1, max_size=6))
def test_what_passes_validation_is_positive_finite_and_decreasing(values):
    sigmas = torch.tensor(values)
    good = bool(torch.isfinite(sigmas).all() and (sigmas > 0).all() and (sigmas.diff() < 0).all())
    try:
        validate_ladder(sigmas)
        passed = True
    except ValueError:
        passed = False
    assert passed == good


@pytest.mark.parametrize(("power", "expected"), [(2.0, 0.25), (0.0, 1.0), (-2.0, 4.0)])
def test_loss_weight_is_a_power_of_sigma(power, expected):
    assert loss_weight(torch.tensor([0.5]), power).tolist() == [expected]


def test_loss_weight_of_the_paper_is_the_square():
    sigmas = geometric_ladder()
    assert torch.equal(loss_weight(sigmas), sigmas**2)


def test_step_sizes_are_proportional_to_the_variance_and_end_at_epsilon():
    sigmas = geometric_ladder()
    alphas = langevin_step_sizes(sigmas, 2e-5)
    assert float(alphas[-1]) == pytest.approx(2e-5)
    assert float(alphas[0]) == pytest.approx(2e-5 * 1e4, rel=1e-5)
    torch.testing.assert_close(alphas / sigmas**2, torch.full((10,), 0.2), rtol=1e-5, atol=0)


@given(epsilon=st.floats(1e-8, 1e2), factor=st.sampled_from([2.0, 0.5, 8.0]))
def test_step_sizes_do_not_depend_on_the_unit_of_the_data(epsilon, factor):
    sigmas = geometric_ladder()
    torch.testing.assert_close(
        langevin_step_sizes(factor * sigmas, epsilon), langevin_step_sizes(sigmas, epsilon)
    )


@pytest.mark.parametrize("epsilon", [0.0, -2e-5, INF, NAN])
def test_step_sizes_need_a_positive_finite_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        langevin_step_sizes(geometric_ladder(), epsilon)


def test_step_sizes_need_a_ladder():
    with pytest.raises(ValueError, match=r"decrease strictly; level 2 is 1.0 after 0.5"):
        langevin_step_sizes(torch.tensor([0.5, 1.0]), 2e-5)


# --- after NCSN --------------------------------------------------------------------------------


def test_roots_of_a_karras_ladder_are_equally_spaced_and_its_ends_exact():
    ladder = karras_ladder(8.0, 0.01, 18)
    roots = ladder.double() ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(17), rtol=1e-4, atol=0)
    assert ladder[0].item() == 8.0
    assert ladder[-1] == torch.tensor(0.01)


def test_a_karras_ladder_of_large_power_is_geometric():
    torch.testing.assert_close(
        karras_ladder(1.0, 0.01, 10, power=1e5), geometric_ladder(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"sigma_max": 0.001},
        {"sigma_max": 0.01},
        {"sigma_min": 0.0},
        {"levels": 1},
        {"power": 0.0},
        {"sigma_max": math.inf},
    ],
)
def test_impossible_karras_ladders_are_refused(bad):
    with pytest.raises(ValueError, match="needs sigma_max > sigma_min > 0"):
        karras_ladder(**bad)


def test_the_shortest_karras_ladder_is_its_ends():
    assert karras_ladder(8.0, 0.5, 2).tolist() == [8.0, 0.5]


@pytest.mark.parametrize(("dimension", "ratio"), [(784, 1.082), (3072, 1.040)])
def test_matched_ratio_is_the_published_one(dimension, ratio):
    assert matched_ratio(dimension) == pytest.approx(ratio, abs=6e-4)
    assert overlap(matched_ratio(dimension), dimension) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("dimension", "share"), [(8, 0.5), (8, 0.01), (20, 0.1)])
def test_matched_ratio_may_be_far_above_two_in_few_dimensions(dimension, share):
    ratio = matched_ratio(dimension, share)
    assert overlap(ratio, dimension) == pytest.approx(share, abs=1e-6)


def test_the_levels_of_ncsn_share_nothing_by_this_measure():
    assert overlap(1.668, 784) < 1e-6
    assert overlap(1.0, 784) > 0.99


def test_overlap_is_the_mass_that_radii_share():
    """‖x‖ of x ~ N(0, I) beside those of N(0, γ² I), by simulation; n = 200,000."""
    n, dimension, ratio = 200_000, 50, 1.3
    radii = torch.randn(n, dimension, generator=generator_for(0)).norm(dim=1)
    above = ratio * dimension**0.5
    share = ((radii - above).abs() < 3 * ratio / 2**0.5).double().mean()
    assert 0.3 < overlap(ratio, dimension) < 0.9
    assert overlap(ratio, dimension) == pytest.approx(float(share), abs=0.02)


@pytest.mark.parametrize(("dimension", "share"), [(2, 0.5), (784, 0.0), (784, 0.95)])
def test_a_ratio_that_does_not_exist_is_refused(dimension, share):
    with pytest.raises(ValueError, match="8 or more"):
        matched_ratio(dimension, share)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_variance_left_is_the_recurrence(steps):
    epsilon, last, ratio = 3e-5, 0.01, 1.2
    variance = ratio**2
    for _ in range(steps):
        variance = (1 - epsilon / (2 * last**2)) ** 2 * variance + epsilon / last**2
    assert variance_left(epsilon, last, ratio, steps) == pytest.approx(variance)


def test_variance_of_the_authors_code_settles_at_its_known_excess():
    assert variance_left(4e-5, 0.01, 1.668, 100) == pytest.approx(1.111, abs=1e-3)


@pytest.mark.parametrize("steps", [3, 5, 100])
def test_no_other_step_leaves_a_variance_nearer_to_one(steps):
    best = matched_epsilon(0.01, 1.082, steps)
    distance = abs(variance_left(best, 0.01, 1.082, steps) - 1)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert abs(variance_left(factor * best, 0.01, 1.082, steps) - 1) >= distance


# --- σ drawn for training ------------------------------------------------------------------------


def test_drawn_levels_are_those_of_the_ladder_and_uniform():
    sigmas = geometric_ladder()
    drawn = draw_levels(sigmas, 20_000, generator_for(0))
    assert drawn.dtype == sigmas.dtype
    counts = torch.stack([(drawn == sigma).sum() for sigma in sigmas]).double()
    assert counts.sum() == 20_000
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_squared < 27.88  # 9 degrees of freedom, exceeded once in a thousand


def test_log_sigma_is_uniform_between_the_ends():
    sigma = draw_log_uniform(8.0, 0.01, 40_000, generator_for(0))
    u = (sigma / 0.01).log() / math.log(800)
    assert u.min() >= 0
    assert u.max() <= 1
    assert scipy.stats.kstest(u.numpy(), "uniform").pvalue > 1e-4


def test_levels_of_an_ever_finer_ladder_are_log_uniform_in_the_limit():
    """By the test of Kolmogorov and Smirnov, which tells ten levels from the limit."""
    sigmas = geometric_ladder(8.0, 0.01, 2000)
    fine = draw_levels(sigmas, 40_000, generator_for(0))
    limit = draw_log_uniform(8.0, 0.01, 40_000, generator_for(1))
    assert scipy.stats.kstest(fine.log().numpy(), limit.log().numpy()).pvalue > 1e-3
    coarse = draw_levels(geometric_ladder(8.0, 0.01, 10), 40_000, generator_for(0))
    assert scipy.stats.kstest(coarse.log().numpy(), limit.log().numpy()).pvalue < 1e-6


@pytest.mark.parametrize(
    "draw",
    [partial(draw_levels, geometric_ladder()), partial(draw_log_uniform, 1.0, 0.01)],
    ids=["levels", "log-uniform"],
)
def test_the_generator_alone_decides_which_sigma_is_drawn(draw):
    with global_generator_untouched():
        first, again, other = (draw(50, generator_for(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    plain = draw(50)
    torch.manual_seed(1)
    assert torch.equal(plain, draw(50))
    assert draw(0).shape == (0,)
    assert plain.shape == (50,)


@pytest.mark.parametrize("ends", [(0.01, 8.0), (1.0, 1.0), (1.0, 0.0), (1.0, -0.1), (NAN, 0.1)])
def test_ends_that_are_not_the_largest_and_the_smallest_sigma_are_refused(ends):
    with pytest.raises(ValueError, match="needs sigma_max > sigma_min > 0"):
        draw_log_uniform(*ends, 3)


@given(shape=st.lists(st.integers(1, 3), max_size=3), batch=st.integers(0, 3))
def test_per_sample_multiplies_every_sample_by_its_own_sigma(shape, batch):
    x, sigma = torch.randn(batch, *shape), torch.rand(batch)
    column = per_sample(sigma, x)
    assert column.shape == (batch, *[1] * len(shape))
    expected = [level * sample for level, sample in zip(sigma, x, strict=True)]
    assert torch.equal(column * x, torch.stack(expected) if batch else x)


def test_per_sample_takes_a_choice_for_each_sample():
    chosen = per_sample(torch.tensor([True, False]), torch.zeros(2, 3, 4))
    assert chosen.dtype == torch.bool
    assert chosen.shape == (2, 1, 1)


def test_the_denoisers_weight_is_the_papers_far_below_the_spread_and_its_square_far_above():
    """σ² (σ² + s²)/s²: σ² for σ ≪ s, and σ⁴/s² for σ ≫ s."""
    sigma = torch.tensor([1e-4, 0.25, 0.5, 1e4]).double()
    got = denoiser_weight(sigma, 0.5)
    torch.testing.assert_close(got[0], loss_weight(sigma[0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(got[1:3], torch.tensor([0.078125, 0.5]).double())
    torch.testing.assert_close(got[3], 4 * sigma[3] ** 4, rtol=1e-6, atol=0)


@pytest.mark.parametrize("data_std", [0.0, -0.5, NAN])
def test_the_spread_of_the_data_is_positive(data_std):
    with pytest.raises(ValueError, match="needs a positive data_std"):
        denoiser_weight(torch.ones(2), data_std)
