"""What every function of a kind has in common, for any input that hypothesis finds.

The objectives and samplers are the registered ones, divergences and networks stand in tables; what
is asserted of one is asserted of all: shapes, dtypes, memory formats, empty batches, points that
are not finite, scores of another shape, who decides what is drawn, and noise levels from 1e-30 to
1e30.  No answer is quietly wrong: it is right, or an error.
"""

import math
from functools import partial
from inspect import getmembers, isfunction, signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from registry import LADDER, OBJECTIVES, SAMPLERS, ways
from scores import global_generator_untouched, one_level, points

from ncsn_core import divergence, objectives, samplers, schedules
from ncsn_core.data import block_average, dequantize, to_bytes, to_unit
from ncsn_core.metrics.samples import binned, distance_to_nearest, mode_weights, sliced_wasserstein
from ncsn_core.networks import ContinuousScore, EnergyScore, NoiseConditionalScore, RefineNet
from ncsn_core.parametrizations import unconditional
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import per_sample


def score(x, sigma=None):
    """Of N(0, 2I) or N(0, (1 + σ²)I), and a whirl, so that the Jacobian has no symmetry."""
    variance = 2 if sigma is None else 1 + per_sample(sigma, x) ** 2
    return (x.flatten(1).roll(1, 1).reshape(x.shape) / 4 - x) / variance


# Functions of a score, the points and a generator.
LOSSES = OBJECTIVES | ways(
    objectives.denoising_floor,
    divergence.exact_divergence,
    divergence.hutchinson_divergence,
    divergence.antisymmetry,
)
JACOBIANS = {
    "jacobian": lambda s, x, g: divergence.jacobian(s, x),
    "Jv": lambda s, x, g: divergence.jacobian_vector(s, x, x),
    "vJ": lambda s, x, g: divergence.vector_jacobian(s, x, x),
    "vJv": lambda s, x, g: divergence.quadratic_form(s, x, x),
}
CALLS = LOSSES | SAMPLERS
every = pytest.mark.parametrize("name", CALLS)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)

shapes = st.sampled_from([(1,), (3,), (2, 4), (1, 2, 2), (3, 4, 2)])
batches = st.integers(1, 5)
dtypes = st.sampled_from([torch.float32, torch.float64])


def call(name, x, seed=0):
    return CALLS[name](score, x, generator_for(seed))


def result_shape(name, x):
    return x.shape if name in SAMPLERS else x.shape[:1]


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_sampler_is_a_name_of_the_package_and_shows_its_updates(name):
    function = samplers.SAMPLERS[name]
    assert name in samplers.__all__  # what the API page lists
    assert getattr(samplers, name) is function, f"the file {name}.py must have another name"
    assert signature(function).parameters["callback"].default is None


def test_every_function_of_the_objectives_is_a_registered_loss_but_for_the_floor():
    public = {
        name
        for name, function in getmembers(objectives, isfunction)
        if function.__module__ == objectives.__name__ and not name.startswith("_")
    }
    assert public == {*objectives.OBJECTIVES, "denoising_floor"}


def test_a_function_that_cannot_be_called_on_the_toy_is_told_what_it_lacks():
    def function(score, x, sigmas, *, temperature, friction):
        return x

    with pytest.raises(AssertionError, match="function has no default for friction, temperature: "):
        ways(function)


@every
@given(batch=batches, shape=shapes, dtype=dtypes)
def test_shapes_and_dtypes_are_kept_and_the_input_left_alone(name, batch, shape, dtype):
    x = points(batch, shape, dtype=dtype)
    before = x.clone()
    found = call(name, x)
    assert found.shape == result_shape(name, x)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert torch.equal(x, before)


@every
@given(batch=batches)
def test_memory_formats_do_not_matter(name, batch):
    x = points(batch, (3, 4, 2))
    plain = call(name, x)
    wide = points(batch, (3, 4, 4))
    wide[..., ::2] = x
    for other in (
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 3).contiguous().transpose(0, 3),
        wide[..., ::2],
    ):
        assert not other.is_contiguous() or batch == 1
        torch.testing.assert_close(call(name, other), plain)


@every
@given(shape=shapes, dtype=dtypes)
def test_no_samples_give_no_results(name, shape, dtype):
    x = torch.zeros(0, *shape, dtype=dtype)
    found = call(name, x)
    assert found.shape == result_shape(name, x)
    assert found.dtype == dtype


@every
@given(
    batch=batches, where=st.integers(0, 100), bad=st.sampled_from([math.nan, math.inf, -math.inf])
)
def test_a_point_that_is_not_finite_is_never_answered_by_a_finite_number(name, batch, where, bad):
    x = points(batch, (3,))
    row = where % batch
    x[row, where % 3] = bad
    try:
        found = call(name, x)
    except (ValueError, FloatingPointError):
        return
    assert not torch.isfinite(found[row]).all()


@pytest.mark.parametrize("name", [*LOSSES, "jacobian"])
def test_a_sample_that_is_not_finite_is_named_before_the_score_is_asked(name):
    def never(x, sigma=None):
        pytest.fail("the score was evaluated")

    for value in (math.nan, math.inf, -math.inf):
        x = points(5, (2, 2))
        x[[2, 4], 1, 0] = value
        with pytest.raises(ValueError, match=rf"sample 2 of the batch .*{value}"):
            (CALLS | JACOBIANS)[name](never, x, None)


@every
@given(batch=st.integers(2, 5), order=st.randoms(use_true_random=False))
def test_samples_do_not_see_each_other(name, batch, order):
    """The others change, or are gone, and a sample's result does not change."""
    x = points(batch, (3,))
    row = order.randrange(batch)
    found = call(name, x)[row]
    other = x.clone()
    other[torch.arange(batch) != row] += 1.0
    torch.testing.assert_close(call(name, other)[row], found)
    if "generator" not in CALLS[name].options:
        torch.testing.assert_close(call(name, x[row : row + 1])[0], found)


@every
def test_the_generator_alone_decides_what_is_drawn(name):
    x = points(20, (3,))
    with global_generator_untouched():
        first, again, other = (call(name, x, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == ("generator" not in CALLS[name].options)
    torch.manual_seed(1)
    plain = CALLS[name](score, x, None)
    torch.manual_seed(1)
    assert torch.equal(plain, CALLS[name](score, x, None))


@pytest.mark.parametrize("name", CALLS | JACOBIANS)
def test_a_score_of_another_shape_is_refused(name):
    """Some of them, broadcast silently, would move all pixels or all samples alike."""
    for wrong in (
        lambda x, sigma=None: x[:, :1],
        lambda x, sigma=None: x.flatten(1),
        lambda x, sigma=None: x[:-1],
        lambda x, sigma=None: x[:1],
        lambda x, sigma=None: x[0],
        lambda x, sigma=None: x.flatten(1).sum(1),
    ):
        with pytest.raises(ValueError, match=r"a score has the shape of its input, \(4, 2, 3\)"):
            (CALLS | JACOBIANS)[name](wrong, points(4, (2, 3)), None)


@every_sampler
def test_samplers_record_no_gradients(name):
    weight = torch.ones((), requires_grad=True)
    found = CALLS[name](lambda x, sigma=None: weight * score(x, sigma), points(3, (2,)), None)
    assert not found.requires_grad


@every_sampler
def test_states_can_be_kept_and_the_last_is_the_answer(name):
    """No tensor of a state is written to afterwards, or shares memory with another state's."""
    states, copies = [], []

    def keep(state):
        states.append(state)
        copies.append((state.x.clone(), state.score.clone()))

    end = SAMPLERS[name](score, points(3, (2,)), generator_for(0), callback=keep)
    for state, (x, s) in zip(states, copies, strict=True):
        assert torch.equal(state.x, x)
        assert torch.equal(state.score, s)
    addresses = [t.data_ptr() for s in states for t in (s.x, s.score)]
    assert len(set(addresses)) == len(addresses)
    assert torch.equal(states[-1].x, end) == ("denoise" not in SAMPLERS[name].way)


# --- extreme noise -------------------------------------------------------------------------------


@given(
    first=st.floats(-30, 30).map(lambda e: 10.0**e),
    decades=st.floats(0.1, 40),
    levels=st.integers(1, 50),
)
def test_a_ladder_is_a_ladder_or_an_error(first, decades, levels):
    last = first / 10**decades
    try:
        sigmas = schedules.geometric_ladder(first, last, levels)
    except ValueError:
        return
    assert len(sigmas) == levels
    assert torch.isfinite(sigmas).all()
    assert (sigmas > 0).all()
    assert (sigmas.diff() < 0).all()
    assert sigmas[0] == pytest.approx(first, rel=1e-6)
    assert sigmas[-1] == pytest.approx(last, rel=1e-5)


@given(exponent=st.floats(-30, 30))
def test_denoising_at_any_noise_is_finite_and_not_negative_or_an_error(exponent):
    def loss(x):
        sigma = one_level(x, 10.0**exponent)
        return objectives.denoising_score_matching(
            unconditional(score), x, sigma, weight=torch.ones_like, generator=generator_for(0)
        )

    x = points(4, (3,))
    assert torch.isfinite(loss(x)).all()
    assert (loss(x) >= 0).all()
    # In single precision the target z/σ of a tiny σ has no square.
    assert not loss(x.float()).isnan().any()


@given(sigma=st.sampled_from([0.0, -1.0, math.nan, -math.inf, math.inf]))
def test_noise_that_is_not_positive_and_finite_is_refused(sigma):
    x = points(2, (3,))
    with pytest.raises(ValueError, match="positive and finite"):
        objectives.denoising_score_matching(score, x, one_level(x, sigma))
    with pytest.raises(ValueError, match="positive"):
        schedules.geometric_ladder(1.0, sigma, 3)


@given(epsilon=st.sampled_from([0.0, -1e-5, math.nan, math.inf]))
def test_a_step_size_that_is_not_positive_and_finite_is_refused(epsilon):
    x = points(2, (3,))
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        samplers.annealed_langevin(score, x, LADDER, epsilon=epsilon)
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        samplers.langevin(score, x, epsilon=epsilon, steps=2)


@given(exponent=st.floats(0, 38))
def test_a_step_that_is_too_large_ends_in_an_error_and_not_in_numbers_without_meaning(exponent):
    try:
        found = samplers.langevin(
            score, points(3, (2,)), epsilon=10.0**exponent, steps=50, generator=generator_for(0)
        )
    except FloatingPointError as error:
        assert "smaller epsilon" in str(error)  # noqa: PT017
        return
    assert torch.isfinite(found).all()


# --- networks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return RefineNet(2, 1, 8, levels=3).requires_grad_(False)


WRAPPERS = {
    "score": NoiseConditionalScore,
    "energy": EnergyScore,
    "continuous": partial(ContinuousScore, data_mean=0.5, data_std=0.3),
}


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_network_takes_any_batch_in_any_memory_format(network, kind, batch):
    wrapped = WRAPPERS[kind](network, schedules.geometric_ladder(1.0, 0.01, 3))
    x = torch.rand(batch, 1, 8, 8)
    sigma = wrapped.sigmas[:1].expand(batch)
    found = wrapped(x, sigma)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        wrapped(x.transpose(2, 3).contiguous().transpose(2, 3), sigma), found
    )
    for row in range(batch):
        alone = wrapped(x[row : row + 1], sigma[:1])
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_hides_no_pixel_that_is_not_finite(network, kind, bad):
    wrapped = WRAPPERS[kind](network, schedules.geometric_ladder(1.0, 0.01, 3))
    x = torch.rand(2, 1, 8, 8)
    x[1, 0, 3, 3] = bad
    found = wrapped(x, wrapped.sigmas[:1].expand(2))
    assert torch.isfinite(found[0]).all()
    assert not torch.isfinite(found[1]).all()


@pytest.mark.parametrize("kind", WRAPPERS)
@given(sigma=st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_a_network_answers_at_its_own_noise_levels_and_at_no_other(network, kind, sigma):
    wrapped = WRAPPERS[kind](network, schedules.geometric_ladder(1.0, 0.01, 3))
    levels = wrapped.sigmas.tolist()
    known = sigma in levels
    if kind == "continuous":
        known = levels[-1] * (1 - 1e-5) <= sigma <= levels[0] * (1 + 1e-5)
    x = torch.rand(1, 1, 8, 8)
    if known:
        assert torch.isfinite(wrapped(x, torch.tensor([sigma]))).all()
    else:
        with pytest.raises(ValueError, match="sigma = "):
            wrapped(x, torch.tensor([sigma]))


# --- images and diagnostics ----------------------------------------------------------------------


@given(value=st.integers(0, 255), seed=st.integers(0, 2**31))
def test_bytes_become_numbers_and_come_back(value, seed):
    images = torch.full((1, 1, 2, 2), value, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(images)), images)
    noised = dequantize(images, generator=generator_for(seed))
    assert torch.equal((noised * 256).floor().to(torch.uint8), images)
    assert (noised < 1).all()
    assert torch.equal(block_average(images, 1)[0, 0, 0, 0], images[0, 0, 0, 0])


@given(x=st.floats(allow_nan=False, width=32))
def test_what_lies_outside_is_clipped_as_a_screen_would(x):
    expected = min(max(x, 0), 1) * 255
    assert abs(int(to_bytes(torch.tensor([x]))) - expected) <= 0.5 + 1e-4


@given(count=st.integers(1, 30), modes=st.integers(1, 4), seed=st.integers(0, 1000))
def test_shares_of_modes_add_up_and_lie_in_their_intervals(count, modes, seed):
    generator = generator_for(seed)
    x = torch.randn(count, 2, generator=generator)
    shares = mode_weights(x, torch.randn(modes, 2, generator=generator))
    assert sum(share.value for share in shares) == pytest.approx(1)
    assert all(0 <= share.low <= share.value <= share.high <= 1 for share in shares)


@given(count=st.integers(1, 30), seed=st.integers(0, 1000))
def test_distances_are_distances(count, seed):
    generator = generator_for(seed)
    x, y = (torch.randn(count, 3, generator=generator) for _ in range(2))
    assert (distance_to_nearest(x, x) < 1e-3).all()
    assert (distance_to_nearest(x, y) >= 0).all()
    there = sliced_wasserstein(x, y, generator=generator_for(0))
    back = sliced_wasserstein(y, x, generator=generator_for(0))
    assert there == pytest.approx(back, rel=1e-4)
    assert sliced_wasserstein(x, x, generator=generator_for(0)) == 0
    shifted = sliced_wasserstein(x, x + torch.ones(3), generator=generator_for(0))
    assert shifted <= math.sqrt(3) + 1e-4


@given(count=st.integers(0, 40), seed=st.integers(0, 1000))
def test_bins_count_every_value_once(count, seed):
    by = torch.rand(count, generator=generator_for(seed))
    found = binned(by * 2, by, [0.0, 0.25, 0.5, 1.0])
    assert int(found.count.sum()) == count
    total = (found.mean.nan_to_num() * found.count).sum()
    assert float(total) == pytest.approx(float(by.sum() * 2), rel=1e-4, abs=1e-5)
