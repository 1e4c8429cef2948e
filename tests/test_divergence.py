"""Traces and Jacobian products against torch.autograd and closed forms, in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scores import (
    MATRIX,
    MIXTURE,
    cases,
    explicit_jacobian,
    global_generator_untouched,
    linear,
    network,
    points,
    scaled_basis,
    sine_without_forward_mode,
    within,
    without_type_checks,
)

from ncsn_core.distributions import Checkerboard, ring
from ncsn_core.divergence import (
    MEMORY_LIMIT,
    PROJECTIONS,
    TRACE_METHODS,
    antisymmetry,
    exact_divergence,
    hutchinson_divergence,
    jacobian,
    jacobian_vector,
    projections,
    quadratic_form,
    vector_jacobian,
)
from ncsn_core.errors import UnknownNameError
from ncsn_core.metrics.cost import peak_bytes
from ncsn_core.randomness import generator_for

MODES = ["forward", "reverse"]

QUARTER_TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def times(matrices, vectors):
    """Each sample's matrix times its vector, in the shape of the vectors."""
    products = torch.einsum("bij,bj->bi", matrices, vectors.flatten(1))
    return products.reshape(vectors.shape)


def traces(matrices):
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def antisymmetric_share(matrices):
    odd = (matrices - matrices.mT) / 2
    return odd.square().sum((1, 2)) / matrices.square().sum((1, 2))


# --- products with the Jacobian ----------------------------------------------------------------


@given(cases())
def test_jacobian_products_are_those_of_the_explicit_jacobian(case):
    score, x = case
    explicit, v = explicit_jacobian(score, x), points(*x.shape[:1], x.shape[1:], seed=1)
    s, right = jacobian_vector(score, x, v)
    torch.testing.assert_close(right, times(explicit, v))
    torch.testing.assert_close(s, score(x))
    s, left = vector_jacobian(score, x, v)
    torch.testing.assert_close(left, times(explicit.mT, v))
    torch.testing.assert_close(s, score(x))


@given(cases())
def test_quadratic_form_is_v_J_v_in_both_modes(case):
    score, x = case
    explicit, v = explicit_jacobian(score, x), points(*x.shape[:1], x.shape[1:], seed=1)
    for mode in MODES:
        s, form = quadratic_form(score, x, v, mode)
        torch.testing.assert_close(form, (v * times(explicit, v)).flatten(1).sum(1))
        torch.testing.assert_close(s, score(x))


@given(cases())
def test_jacobian_is_that_of_autograd(case):
    score, x = case
    torch.testing.assert_close(jacobian(score, x), explicit_jacobian(score, x))


def test_row_i_of_the_jacobian_holds_the_derivatives_of_s_i():
    """For s = Ax that is A itself and, A being asymmetric, not Aᵀ."""
    x = points(4, (3,))
    torch.testing.assert_close(jacobian(linear(MATRIX), x), MATRIX.expand(4, 3, 3))
    e = torch.eye(3, dtype=torch.float64)[:1].expand(4, 3)
    torch.testing.assert_close(jacobian_vector(linear(MATRIX), x, e)[1], MATRIX[:, 0].expand(4, 3))
    torch.testing.assert_close(vector_jacobian(linear(MATRIX), x, e)[1], MATRIX[0].expand(4, 3))


@pytest.mark.parametrize(
    "estimate",
    [
        lambda x, mode: quadratic_form(sine_without_forward_mode, x, torch.ones_like(x), mode)[1],
        lambda x, mode: hutchinson_divergence(
            sine_without_forward_mode, x, kind="rademacher", mode=mode
        ),
        lambda x, mode: exact_divergence(
            sine_without_forward_mode, x, {"reverse": "vmap"}.get(mode, mode)
        ),
    ],
    ids=["quadratic form", "hutchinson", "exact"],
)
def test_the_mode_decides_which_derivative_the_score_is_asked_for(estimate):
    x = points(3, (2,))
    torch.testing.assert_close(estimate(x, "reverse"), x.cos().sum(1))
    with pytest.raises(RuntimeError, match="jvp"):
        estimate(x, "forward")


# --- the exact trace ---------------------------------------------------------------------------


@given(cases(), st.none() | st.integers(1, 14))
def test_all_exact_traces_are_the_trace_of_the_explicit_jacobian(case, chunk):
    score, x = case
    expected = traces(explicit_jacobian(score, x))
    for method in TRACE_METHODS:
        got = exact_divergence(score, x, method, chunk=chunk)
        torch.testing.assert_close(got, expected, msg=method)


@pytest.mark.parametrize("method", TRACE_METHODS)
@pytest.mark.parametrize(
    "score",
    [MIXTURE.score, lambda x: ring().score(x, 0.4), lambda x: Checkerboard().score(x, 0.2)],
    ids=["mixture", "ring", "checkerboard"],
)
def test_exact_traces_of_the_closed_form_scores_agree_with_central_differences(score, method):
    """Not every operation of torch has correct derivatives under vmap and in forward mode."""
    x, h = 0.7 * points(5, (2,)), 1e-4
    steps = h * torch.eye(2, dtype=torch.float64)
    expected = sum((score(x + e) - score(x - e))[:, i] / (2 * h) for i, e in enumerate(steps))
    torch.testing.assert_close(exact_divergence(score, x, method), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_a_score_that_does_not_depend_on_x_has_no_divergence(method):
    assert torch.equal(exact_divergence(torch.ones_like, points(3, (2,)), method), torch.zeros(3))


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_exact_trace_in_float32_stays_in_float32_and_under_no_grad(method):
    score, x = network((3,)).float(), points(2, (3,)).float()
    with torch.no_grad():
        got = exact_divergence(score, x, method)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, traces(explicit_jacobian(score, x)))


# --- estimates of the trace --------------------------------------------------------------------


@given(cases(), st.integers(1, 3), st.sampled_from(MODES))
def test_hutchinson_is_the_mean_of_v_J_v_over_the_given_directions(case, count, mode):
    score, x = case
    explicit = explicit_jacobian(score, x)
    v = torch.randn(count, *x.shape, dtype=x.dtype)
    expected = sum((w * times(explicit, w)).flatten(1).sum(1) for w in v) / count
    torch.testing.assert_close(hutchinson_divergence(score, x, v=v, mode=mode), expected)


@given(cases(smallest_batch=1), st.sampled_from(MODES))
def test_hutchinson_over_a_scaled_orthogonal_basis_is_the_exact_trace(case, mode):
    score, x = case
    got = hutchinson_divergence(score, x, v=scaled_basis(x), mode=mode)
    torch.testing.assert_close(got, traces(explicit_jacobian(score, x)))


def variance_of_v_S_v(kind, symmetric):
    """Var(vᵀSv) for symmetric S, in closed form, for each of the three laws."""
    dimension, trace = len(symmetric), symmetric.trace()
    squared = symmetric.square().sum()
    return {
        "gaussian": 2 * squared,
        "rademacher": 2 * (squared - symmetric.diagonal().square().sum()),
        "sphere": dimension / (dimension + 2) * (trace**2 + 2 * squared) - trace**2,
    }[kind]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("count", [1, 4])
def test_hutchinson_has_the_right_mean_and_a_variance_that_falls_like_one_over_count(
    kind, mode, count
):
    score, x = network((2, 2)), points(1, (2, 2))
    explicit = explicit_jacobian(score, x)[0]
    estimates = hutchinson_divergence(
        score,
        x.expand(10_000, 2, 2),
        count=count,
        kind=kind,
        mode=mode,
        generator=generator_for(0, count),
    )
    assert within(estimates, explicit.trace())
    variance = variance_of_v_S_v(kind, (explicit + explicit.mT) / 2) / count
    assert within((estimates - explicit.trace()).square(), variance)


def test_rademacher_estimates_of_a_diagonal_jacobian_have_no_variance():
    score, x = torch.sin, points(50, (6,))
    exact = torch.cos(x).sum(1)
    torch.testing.assert_close(hutchinson_divergence(score, x, kind="rademacher"), exact)
    for kind in ["gaussian", "sphere"]:
        assert (hutchinson_divergence(score, x, kind=kind) - exact).abs().mean() > 0.1


def test_rademacher_has_the_smallest_variance_for_a_dominant_diagonal():
    matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)) + 0.1
    x = torch.zeros(10_000, 6, dtype=torch.float64)
    spread = {
        kind: hutchinson_divergence(linear(matrix), x, kind=kind, generator=generator_for(0)).std()
        for kind in PROJECTIONS
    }
    assert spread["rademacher"] < 0.2 * spread["sphere"] < 0.2 * spread["gaussian"]


# --- random directions -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_directions_have_mean_0_covariance_the_identity_and_the_fourth_moment_of_their_law(kind):
    """The fourth moment tells them apart: 3, 1 and 3D/(D + 2)."""
    like = torch.zeros(20_000, 5, dtype=torch.float64)
    v = projections(like, kind, generator_for(0))
    assert within(v, 0.0)
    assert within(v.unsqueeze(2) * v.unsqueeze(1), torch.eye(5))
    assert within(v**4, {"gaussian": 3.0, "rademacher": 1.0, "sphere": 15 / 7}[kind])


@pytest.mark.parametrize("shape", [(5,), (2, 3, 3)])
def test_sphere_has_radius_root_d_and_rademacher_is_plus_or_minus_one(shape):
    like = torch.zeros(100, *shape)
    radius = projections(like, "sphere").flatten(1).norm(dim=1)
    torch.testing.assert_close(radius, torch.full((100,), math.prod(shape) ** 0.5))
    assert projections(like, "rademacher").unique().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4, 1), (2, 3, 4, 4)])
def test_directions_have_the_shape_and_dtype_of_the_points(kind, dtype, shape):
    v = projections(torch.zeros(shape, dtype=dtype), kind)
    assert v.shape == shape
    assert v.dtype == dtype
    assert torch.isfinite(v).all()


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_every_sample_has_a_direction_of_its_own(kind):
    v = projections(torch.zeros(200, 60), kind, generator_for(0))
    assert len(v.unique(dim=0)) == 200


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_generator_alone_decides_what_is_drawn(kind):
    x = points(20, (3,))
    with global_generator_untouched():
        first, again, other = (projections(x, kind, generator_for(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    plain = projections(x, kind)
    torch.manual_seed(1)
    assert torch.equal(plain, projections(x, kind))


# --- the antisymmetric share -------------------------------------------------------------------


@given(cases(smallest_batch=1))
def test_antisymmetry_over_a_scaled_orthogonal_basis_is_its_definition(case):
    score, x = case
    expected = antisymmetric_share(explicit_jacobian(score, x))
    torch.testing.assert_close(antisymmetry(score, x, v=scaled_basis(x)), expected)


def test_antisymmetry_of_a_gradient_field_is_0():
    """The score of a mixture, and the gradient of a network with one output."""
    x = points(10, (2,))
    energy = network((2,))
    for field in [
        MIXTURE.score,
        torch.func.grad(lambda y: energy(y)[:, 0].sum()),
    ]:
        torch.testing.assert_close(antisymmetry(field, x), torch.zeros(10).double())
    assert (antisymmetry(energy, x) > 1e-3).all()  # the network itself is not a gradient


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, 2.0])
def test_antisymmetry_of_a_rotation_is_the_squared_sine_whatever_is_drawn(angle):
    """R(θ) = cos θ · I + sin θ · (a quarter turn), and all three keep or scale the length of v."""
    rotation = math.cos(angle) * torch.eye(2).double() + math.sin(angle) * QUARTER_TURN
    got = antisymmetry(linear(rotation), points(20, (2,)))
    torch.testing.assert_close(got, torch.full((20,), math.sin(angle) ** 2).double())


def test_antisymmetry_of_a_shear_is_one_half_whatever_is_drawn():
    """s = (x₂, 0): Jv = (v₂, 0) and Jᵀv = (0, v₁), of which neither alone would do."""
    shear = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    got = antisymmetry(linear(shear), points(20, (2,)))
    torch.testing.assert_close(got, torch.full((20,), 0.5).double())


def test_antisymmetry_of_an_antisymmetric_matrix_is_1():
    got = antisymmetry(linear(MATRIX - MATRIX.mT), points(20, (3,)))
    torch.testing.assert_close(got, torch.ones(20).double())


def test_antisymmetry_of_a_random_matrix_is_about_one_half():
    """(1 − 1/D)/2 of the squared norm in expectation, here for D = 300."""
    matrix = torch.randn(300, 300, generator=generator_for(0))
    got = antisymmetry(linear(matrix), torch.zeros(20, 300), generator=generator_for(1))
    assert got.mean() == pytest.approx((1 - 1 / 300) / 2, abs=0.02)


@pytest.mark.parametrize("count", [1, 3])
def test_antisymmetry_is_unbiased_where_its_denominator_is_fixed(count):
    """An orthogonal matrix keeps the length of v; the rest depends on the direction alone."""
    orthogonal = torch.linalg.qr(torch.randn(4, 4, generator=generator_for(0)).double()).Q
    x = torch.zeros(10_000, 4, dtype=torch.float64)
    got = antisymmetry(linear(orthogonal), x, count=count, generator=generator_for(1))
    assert got.std() > 0.01
    assert within(got, antisymmetric_share(orthogonal.unsqueeze(0)))


# --- differentiating again ---------------------------------------------------------------------


EXACT = {
    method: lambda score, x, v, method=method: exact_divergence(score, x, method, chunk=2)
    for method in TRACE_METHODS
}
ESTIMATES = {
    f"hutchinson {mode}": lambda score, x, v, mode=mode: hutchinson_divergence(
        score, x, v=v[None], mode=mode
    )
    for mode in MODES
}
TRACES = EXACT | ESTIMATES
every_trace = pytest.mark.parametrize("name", TRACES)


@every_trace
def test_parameter_gradients_of_a_trace_are_those_of_autograd(name):
    score, x, v = network((2, 2)), points(3, (2, 2)), points(3, (2, 2), seed=1)
    explicit = explicit_jacobian(score, x, create_graph=True)
    expected = traces(explicit) if name in EXACT else (v * times(explicit, v)).flatten(1).sum(1)
    got = TRACES[name](score, x, v)
    parameters = list(score.parameters())[:-1]  # no derivative in x knows the last bias
    wanted = torch.autograd.grad(expected.sum(), parameters)
    assert all(gradient.abs().max() > 0.01 for gradient in wanted)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), parameters), wanted)


@every_trace
def test_the_gradient_of_a_trace_in_x_passes_gradcheck(name):
    score, v = network((2,)).requires_grad_(False), points(2, (2,), seed=1)
    torch.autograd.gradcheck(lambda x: TRACES[name](score, x, v), points(2, (2,)).requires_grad_())


@every_trace
def test_an_expanded_batch_is_as_good_as_a_copied_one(name):
    """Its samples share their memory, which torch's own forward mode refuses."""
    score, x, v = network((3,)), points(1, (3,)).expand(4, 3), points(4, (3,), seed=1)
    trace = TRACES[name]
    torch.testing.assert_close(trace(score, x, v), trace(score, x.clone(), v))
    torch.testing.assert_close(
        antisymmetry(score, x, v=v[None]), antisymmetry(score, x.clone(), v=v[None])
    )


def test_nothing_of_the_caller_is_changed():
    score, x = network((3,)), points(4, (3,)).requires_grad_()
    before = x.detach().clone()
    for trace in TRACES.values():
        trace(score, x, points(4, (3,), seed=1))
    antisymmetry(score, x)
    jacobian(score, x)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in score.parameters())


# --- the batch ---------------------------------------------------------------------------------


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(case, random):
    score, x = case
    v = points(2, x.shape, seed=1)
    order = random.sample(range(len(x)), len(x))
    for measure in [
        lambda y, w: exact_divergence(score, y),
        lambda y, w: hutchinson_divergence(score, y, v=w),
        lambda y, w: antisymmetry(score, y, v=w),
    ]:
        torch.testing.assert_close(measure(x[order], v[:, order]), measure(x, v)[order])


# --- errors ------------------------------------------------------------------------------------


def test_the_message_about_a_bad_sample_is_short_for_an_image():
    with pytest.raises(ValueError, match="sample 0") as caught:
        exact_divergence(torch.sin, torch.full((2, 3, 64, 64), math.nan))
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda s, x: projections(x, "uniform"), PROJECTIONS),
        (lambda s, x: hutchinson_divergence(s, x, kind="uniform"), PROJECTIONS),
        (lambda s, x: hutchinson_divergence(s, x, mode="uniform"), MODES),
        (lambda s, x: quadratic_form(s, x, x, "uniform"), MODES),
        (lambda s, x: exact_divergence(s, x, "uniform"), TRACE_METHODS),
    ],
    ids=["projections", "hutchinson kind", "hutchinson mode", "quadratic form", "trace"],
)
def test_an_unknown_name_is_refused_with_the_list_of_the_known_ones(call, known):
    with (
        without_type_checks(),
        pytest.raises(UnknownNameError, match=f"'uniform'; known: {', '.join(known)}$"),
    ):
        call(network((2,)), points(3, (2,)))


@pytest.mark.parametrize("estimate", [hutchinson_divergence, antisymmetry])
@pytest.mark.parametrize("count", [0, -1])
def test_an_estimate_needs_a_projection(estimate, count):
    with pytest.raises(ValueError, match=f"at least one projection; got {count}"):
        estimate(network((2,)), points(3, (2,)), count=count)


@pytest.mark.parametrize("estimate", [hutchinson_divergence, antisymmetry])
def test_an_empty_stack_of_directions_is_refused(estimate):
    with pytest.raises(ValueError, match="at least one projection; got 0"):
        estimate(network((2,)), points(3, (2,)), v=torch.ones(0, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("estimate", [hutchinson_divergence, antisymmetry])
@pytest.mark.parametrize("shape", [(3, 2), (4, 1, 2), (4, 3, 1), (4, 2, 2), (1, 4, 3, 2)])
def test_directions_of_another_shape_are_refused(estimate, shape):
    message = rf"\[count, \*\(3, 2\)\].*got \({', '.join(map(str, shape))}\)"
    with without_type_checks(), pytest.raises(ValueError, match=message):
        estimate(network((2,)), points(3, (2,)), v=torch.ones(shape, dtype=torch.float64))


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["vmap", "forward"])
@pytest.mark.parametrize(
    ("batch", "shape", "dtype", "says"),
    [
        (2, (30_000,), torch.float32, "30,000 Jacobian products of 2 samples in 30,000 dim"),
        (1, (3, 128, 128), torch.float64, "49,152 Jacobian products of 1 samples in 49,152 dim"),
    ],
)
def test_a_trace_too_large_is_refused_before_anything_is_computed(
    method, batch, shape, dtype, says
):
    def never(x):
        raise AssertionError("the score was evaluated")

    dimension = math.prod(shape)
    needed = dimension**2 * batch * torch.finfo(dtype).bits / 8
    assert needed > MEMORY_LIMIT
    with pytest.raises(MemoryError, match=f"{says}.* {needed / 2**30:.1f} GiB .* 4.0 GiB.*chunk"):
        exact_divergence(never, torch.zeros(batch, *shape, dtype=dtype), method)


@pytest.mark.parametrize("method", ["vmap", "forward"])
def test_a_chunk_that_fits_into_the_limit_repairs_it(method):
    score, x = torch.sin, points(3, (64,))
    limit = 8 * 3 * 64 * 8  # eight products of three samples, 64 dimensions, 8 bytes
    expected = torch.cos(x).sum(1)
    for chunk in (None, 9):
        with pytest.raises(MemoryError):
            exact_divergence(score, x, method, chunk=chunk, memory_limit=limit)
    got = exact_divergence(score, x, method, chunk=8, memory_limit=limit)
    torch.testing.assert_close(got, expected)


def test_the_loop_holds_one_product_whatever_the_chunk():
    x = points(3, (64,))
    exact_divergence(torch.sin, x, "loop", chunk=64, memory_limit=3 * 64 * 8)
    with pytest.raises(MemoryError, match="1 Jacobian products"):
        exact_divergence(torch.sin, x, "loop", memory_limit=3 * 64 * 8 - 1)


@pytest.mark.parametrize("method", ["vmap", "forward"])
@pytest.mark.parametrize("chunk", [None, 50])
def test_the_memory_that_the_message_tells_is_what_is_used(method, chunk):
    """The products themselves, and at most a few temporaries of their size."""
    x = torch.zeros(4, 500)
    with pytest.raises(MemoryError):
        exact_divergence(torch.sin, x, method, chunk=chunk, memory_limit=0)
    told = (chunk or 500) * 4 * 500 * 4
    used = peak_bytes(lambda: exact_divergence(torch.sin, x, method, chunk=chunk))
    assert told <= used <= 4 * told


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_is_at_least_one_dimension(chunk):
    with pytest.raises(ValueError, match="chunk_size"):
        exact_divergence(torch.sin, points(3, (2,)), chunk=chunk)
