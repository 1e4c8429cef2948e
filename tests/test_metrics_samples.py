"""Diagnostics against laws whose answers are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from scores import without_type_checks

from ncsn_core.distributions import embedded_curve
from ncsn_core.metrics.samples import (
    autocorrelation,
    autocorrelation_time,
    binned,
    distance_to_nearest,
    intrinsic_dimension,
    mode_weights,
    sliced_wasserstein,
)
from ncsn_core.randomness import generator_for

MODES = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator_for(seed), dtype=dtype)


# --- weights of modes --------------------------------------------------------------------------


def test_weights_count_the_nearest_mode():
    x = torch.tensor([[-4.0, -4.0], [9.0, 0.0], [1.0, 1.0], [100.0, 100.0]])
    weights = mode_weights(x, MODES)
    assert [share.value for share in weights] == [0.25, 0.75]


def test_interval_is_wilsons():
    """(p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), also where no sample is."""
    x = MODES[[1] * 30 + [0] * 10]
    for confidence in (0.95, 0.99):
        z = norm.ppf((1 + confidence) / 2)
        for share, p in zip(
            mode_weights(x, MODES, confidence=confidence), (0.25, 0.75), strict=True
        ):
            middle = (p + z**2 / 80) / (1 + z**2 / 40)
            half = z * math.sqrt(p * (1 - p) / 40 + z**2 / 6400) / (1 + z**2 / 40)
            assert (share.low, share.high) == pytest.approx((middle - half, middle + half))
    nobody = mode_weights(x, torch.cat([MODES, MODES + 100]))[3]
    assert nobody.value == nobody.low == 0
    assert 0 < nobody.high < 0.1


def test_interval_covers_the_weight_as_often_as_it_says():
    """500 experiments of 200 samples: between 92% and 98% of the 95% intervals."""
    covered = 0
    for seed in range(500):
        second = torch.rand(200, generator=generator_for(seed)) < 0.8
        _, share = mode_weights(MODES[second.long()], MODES)
        covered += share.low <= 0.8 <= share.high
    assert 460 <= covered <= 490


def test_samples_without_weights_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        mode_weights(torch.zeros(0, 2), MODES)
    with pytest.raises(ValueError, match="not finite"):
        mode_weights(torch.tensor([[1.0, math.nan]]), MODES)


def test_distance_to_nearest():
    x = torch.tensor([[-5.0, -2.0], [5.0, 9.0]])
    torch.testing.assert_close(distance_to_nearest(x, MODES), torch.tensor([3.0, 4.0]))


# --- sliced Wasserstein ------------------------------------------------------------------------


def test_in_one_dimension_it_is_the_distance_of_sorted_samples():
    x, y = torch.tensor([[3.0], [1.0], [0.0]]), torch.tensor([[0.0], [5.0], [1.0]])
    assert sliced_wasserstein(x, y) == pytest.approx(math.sqrt(4 / 3))


def test_a_shift_is_seen_in_each_direction():
    """For a shift by a the mean square over directions is ‖a‖²/D; and the order does not matter."""
    x, shift = normal(50, 3), torch.tensor([1.0, 2.0, 2.0])
    y = (x + shift)[torch.randperm(50)]
    got = sliced_wasserstein(x, y, directions=20_000, generator=generator_for(1))
    assert got == pytest.approx(math.sqrt(3), rel=0.02)
    assert sliced_wasserstein(x, x[torch.randperm(50)]) == pytest.approx(0, abs=1e-6)


def test_it_is_symmetric_scales_with_the_units_and_follows_the_generator():
    x, y = normal(40, 2), 2 * normal(40, 2, seed=1)

    def distance(x, y, seed=2):
        return sliced_wasserstein(x, y, directions=5, generator=generator_for(seed))

    assert distance(x, y) == pytest.approx(distance(y, x))
    assert distance(3 * x, 3 * y) == pytest.approx(3 * distance(x, y), rel=1e-5)
    assert distance(x, y) != distance(x, y, seed=3)


def test_samples_of_different_sizes_are_refused():
    with without_type_checks(), pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(4, 2))


# --- autocorrelation ---------------------------------------------------------------------------


def autoregressive(rho, steps=4000, chains=100):
    """x ← ρx + √(1 − ρ²) z, stationary, with correlation ρ^k after k steps and τ = (1+ρ)/(1−ρ)."""
    x, generator, path = normal(chains, seed=1), generator_for(2), []
    for _ in range(steps):
        x = rho * x + math.sqrt(1 - rho**2) * torch.randn(chains, generator=generator)
        path.append(x)
    return torch.stack(path)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.9])
def test_autocorrelation_of_an_autoregressive_series(rho):
    chains = 3 * autoregressive(rho) + 7
    expected = rho ** torch.arange(10.0)
    torch.testing.assert_close(autocorrelation(chains)[:10], expected, atol=0.02, rtol=0)
    assert autocorrelation_time(chains) == pytest.approx((1 + rho) / (1 - rho), rel=0.05)


def test_autocorrelation_is_that_of_the_definition():
    chains = normal(30, 4)
    deviations = (chains - 0.3).double()
    expected = [deviations.square().mean()]
    expected += [(deviations[:-k] * deviations[k:]).mean() for k in range(1, 30)]
    expected = torch.stack(expected) / expected[0]
    got = autocorrelation(chains, mean=0.3)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-4)


def test_a_series_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="does not vary"):
        autocorrelation(torch.ones(5, 2))


# --- bins --------------------------------------------------------------------------------------


def test_bins_are_closed_on_the_left_and_leave_the_outside_out():
    by = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.9, 3.0])
    values = torch.tensor([9.0, 1.0, 3.0, 5.0, 7.0, 9.0])
    bins = binned(values, by, [0.0, 1.0, 2.0, 3.0])
    assert bins.count.tolist() == [2, 1, 1]
    assert bins.mean.tolist() == [2.0, 5.0, 7.0]
    empty = binned(values, by, torch.tensor([1.5, 2.0, 3.0]))
    assert empty.count.tolist() == [0, 1]
    assert math.isnan(empty.mean[0])
    assert math.isnan(empty.standard_error[1])


@given(st.integers(0, 100), st.integers(2, 5))
def test_bins_agree_with_a_loop(seed, count):
    values, by = normal(40, seed=seed), normal(40, seed=seed + 1)
    edges = torch.linspace(-2, 2, count + 1)
    bins = binned(values, by, edges)
    for b in range(count):
        some = values[(by >= edges[b]) & (by < edges[b + 1])]
        assert bins.count[b] == len(some)
        if len(some) > 1:
            error = float(some.std()) / len(some) ** 0.5
            assert float(bins.mean[b]) == pytest.approx(float(some.mean()), abs=1e-5)
            assert float(bins.standard_error[b]) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("edges", [[0.0], [1.0, 0.0], [0.0, 0.0]])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(ValueError, match="increasing"):
        binned(torch.zeros(2), torch.zeros(2), edges)


# --- intrinsic dimension -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("neighbors", [3, 10, 20])
def test_dimension_of_a_plane_whatever_it_lies_in(k, neighbors):
    x = normal(3000, k, dtype=torch.float64)
    embedded = x @ torch.linalg.qr(normal(30, k, seed=1, dtype=torch.float64)).Q.T
    got = intrinsic_dimension(embedded, neighbors)
    assert got == pytest.approx(k, rel=0.06)
    assert got == pytest.approx(intrinsic_dimension(x, neighbors), rel=1e-6)


def test_dimension_of_a_curve_and_of_its_noised_self():
    x = embedded_curve(10).sample(2000, generator_for(0))
    assert intrinsic_dimension(x) == pytest.approx(1, rel=0.05)
    assert intrinsic_dimension(x + 0.3 * normal(2000, 10, seed=1)) > 5


def test_dimension_does_not_depend_on_order_batches_or_scale():
    x = normal(500, 3)
    expected = intrinsic_dimension(x)
    shuffled = 7 * x[torch.randperm(500)]
    assert intrinsic_dimension(shuffled, batch_size=64) == pytest.approx(expected, rel=1e-5)


def test_points_without_a_dimension_are_refused():
    x = normal(30, 2)
    for neighbors in (1, 30):
        with pytest.raises(ValueError, match="between 2 and the number of other points, 29"):
            intrinsic_dimension(x, neighbors)
    with pytest.raises(ValueError, match="occur twice"):
        intrinsic_dimension(torch.cat([x, x[:1]]), 5)
