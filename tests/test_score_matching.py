"""Score-matching objectives against torch.autograd, closed forms and each other, in float64."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from registry import OBJECTIVES, sigma_of, ways
from scores import (
    MATRIX,
    MIXTURE,
    MIXTURE_COVARIANCES,
    cases,
    explicit_jacobian,
    linear,
    network,
    one_level,
    points,
    scaled_basis,
    sine_without_forward_mode,
    within,
    without_type_checks,
)
from torch.func import functional_call

from ncsn_core.divergence import (
    PROJECTIONS,
    TRACE_METHODS,
    exact_divergence,
    hutchinson_divergence,
    projections,
)
from ncsn_core.errors import UnknownNameError
from ncsn_core.networks import MLP, Ensemble, NoiseConditionalScore, RefineNet
from ncsn_core.objectives import (
    denoising_floor,
    denoising_score_matching,
    explicit_score_matching,
    finite_difference_score_matching,
    implicit_score_matching,
    sliced_score_matching,
    sliced_score_matching_vr,
)
from ncsn_core.parametrizations import unconditional
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import draw_levels, loss_weight, per_sample

MODES = ["reverse", "forward"]
SIGMA = 0.4
LADDER = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
SLICED = {
    "SSM": sliced_score_matching,
    "SSM-VR": sliced_score_matching_vr,
    "finite differences": finite_difference_score_matching,
}
every_sliced_loss = pytest.mark.parametrize("loss", SLICED.values(), ids=SLICED.keys())


def vincent(score, x, sigma, **options):
    """The denoising loss of one σ, for a score that is not told it, without a weight."""
    sigma = one_level(x, sigma)
    return denoising_score_matching(
        unconditional(score), x, sigma, weight=torch.ones_like, **options
    )


def given_all(case):
    """A loss as a function of the score, the data x, directions v and noise z."""

    def loss(score, x, v, z):
        drawn = {"v": v}
        if "sigma" in case.options and "sigma" not in case.way:
            score = unconditional(score)
            drawn |= {"sigma": sigma_of(x, LADDER), "noise": z}
        return case(score, x, **{name: drawn[name] for name in drawn if name in case.options})

    return loss


LOSSES = {
    name: given_all(case)
    for name, case in (OBJECTIVES | ways(denoising_floor)).items()
    if "kind" not in case.way
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def inputs(batch, shape, count=2):
    """x, v and z of so many samples."""
    v = torch.randn(count, batch, *shape, dtype=torch.float64, generator=generator_for(0, 3))
    return points(batch, shape), v, points(batch, shape, seed=1)


# --- each objective is its formula -------------------------------------------------------------


@given(cases(), st.integers(1, 3), st.sampled_from(MODES))
def test_sliced_losses_are_their_formulas_for_the_given_directions(case, count, mode):
    """vᵀJv + ½(vᵀs)² and vᵀJv + ½‖s‖², one sample and one direction after another."""
    score, x = case
    v = torch.randn(count, *x.shape, dtype=x.dtype)
    ssm, ssm_vr = (torch.zeros(len(x), dtype=x.dtype) for _ in range(2))
    for i, matrix in enumerate(explicit_jacobian(score, x)):
        s = score(x[i : i + 1]).flatten()
        for direction in v[:, i].flatten(1):
            form = direction @ matrix @ direction
            ssm[i] += (form + 0.5 * (direction @ s) ** 2) / count
            ssm_vr[i] += (form + 0.5 * (s @ s)) / count
    torch.testing.assert_close(sliced_score_matching(score, x, v=v, mode=mode), ssm)
    torch.testing.assert_close(sliced_score_matching_vr(score, x, v=v, mode=mode), ssm_vr)


@given(cases(), st.none() | st.integers(1, 5))
def test_implicit_loss_is_the_trace_and_half_the_square(case, chunk):
    score, x = case
    trace = explicit_jacobian(score, x).diagonal(dim1=1, dim2=2).sum(1)
    expected = trace + sum((score(x) ** 2).flatten(1).T) / 2 if len(x) else trace
    for method in TRACE_METHODS:
        got = implicit_score_matching(score, x, method=method, chunk=chunk)
        torch.testing.assert_close(got, expected, msg=method)


@given(cases(), st.floats(0.01, 2.0))
def test_losses_without_a_derivative_are_their_formulas(case, width):
    """Explicit, denoising, its floor and finite differences, one sample after another."""
    score, x = case
    target, z = network(x.shape[1:], seed=1), points(len(x), x.shape[1:], seed=1)
    v = points(2, x.shape, seed=2)
    explicit, denoising, floor, differences = (torch.zeros(len(x), dtype=x.dtype) for _ in range(4))
    dimension = math.prod(x.shape[1:])
    for i, y in enumerate(x):
        y = y.unsqueeze(0)
        explicit[i] = (score(y) - target(y)).norm() ** 2 / 2
        noised = y + width * z[i]
        denoising[i] = (score(noised) - (y - noised) / width**2).norm() ** 2 / 2
        floor[i] = (dimension / width**2 - target(y).norm() ** 2) / 2
        for w in v[:, i]:
            ahead, behind = score(y + width * w), score(y - width * w)
            slope = ((ahead - behind) / (2 * width) * w).sum()
            differences[i] += (slope + ((ahead + behind) / 2).norm() ** 2 / 2) / 2
    for got, expected in [
        (explicit_score_matching(score, x, target), explicit),
        (vincent(score, x, width, noise=z), denoising),
        (denoising_floor(unconditional(target), x, one_level(x, width)), floor),
        (finite_difference_score_matching(score, x, step=width, v=v), differences),
    ]:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("power", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("mode", MODES)
def test_multilevel_sliced_losses_are_their_formulas(power, mode):
    inner = network((3,))
    x, v, z = inputs(6, (3,))
    sigmas = LADDER[torch.arange(6) % 3]
    weight = functools.partial(loss_weight, power=power)

    def score(y, sigma):
        return inner(y) / per_sample(sigma, y)

    given = {"noise": z, "v": v, "weight": weight}
    ssm = sliced_score_matching(score, x, sigmas, mode=mode, **given)
    ssm_vr = sliced_score_matching_vr(score, x, sigmas, mode=mode, **given)
    differences = finite_difference_score_matching(score, x, sigmas, step=1e-4, **given)
    for i, sigma in enumerate(sigmas):
        noised = (x[i] + sigma * z[i]).unsqueeze(0)
        s = inner(noised)[0] / sigma
        matrix = explicit_jacobian(inner, noised)[0] / sigma
        form = sum(w @ matrix @ w for w in v[:, i]) / 2
        slices = sum((w @ s) ** 2 for w in v[:, i]) / 2
        expected = sigma**power * (form + s.square().sum() / 2)
        torch.testing.assert_close(ssm[i], sigma**power * (form + slices / 2))
        torch.testing.assert_close(ssm_vr[i], expected)
        torch.testing.assert_close(differences[i], expected, rtol=1e-5, atol=1e-5)


def test_directions_are_drawn_one_after_another_from_the_named_law():
    score, x = network((3,)), points(4, (3,))
    for kind in PROJECTIONS:
        generator = generator_for(0)
        v = torch.stack([projections(x, kind, generator) for _ in range(3)])
        for loss in SLICED.values():
            drawn = loss(score, x, count=3, kind=kind, generator=generator_for(0))
            torch.testing.assert_close(drawn, loss(score, x, v=v))


# --- the objectives against each other ---------------------------------------------------------


@given(cases(smallest_batch=1))
def test_over_a_scaled_orthogonal_basis_the_sliced_losses_are_the_implicit_one(case):
    score, x = case
    expected = implicit_score_matching(score, x)
    torch.testing.assert_close(sliced_score_matching(score, x, v=scaled_basis(x)), expected)
    torch.testing.assert_close(sliced_score_matching_vr(score, x, v=scaled_basis(x)), expected)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("loss", [sliced_score_matching, sliced_score_matching_vr])
def test_sliced_losses_are_unbiased_estimates_of_the_implicit_loss(loss, kind):
    """At one point, over 10,000 directions; a v of length 1 would be far away."""
    score, x = network((2, 2)), points(1, (2, 2))
    got = loss(score, x.expand(10_000, 2, 2), kind=kind, generator=generator_for(0))
    assert got.std() > 0.1
    assert within(got, implicit_score_matching(score, x))


def test_the_noise_of_ssm_vr_is_that_of_the_trace_alone():
    score, (x, v, _) = network((3,)), inputs(5, (3,))
    trace = hutchinson_divergence(score, x, v=v)
    expected = trace + score(x).square().sum(1) / 2
    torch.testing.assert_close(sliced_score_matching_vr(score, x, v=v), expected)


def test_ssm_vr_with_rademacher_directions_is_the_implicit_loss_for_a_diagonal_jacobian():
    x = points(50, (4,))
    got = sliced_score_matching_vr(torch.sin, x, kind="rademacher")
    torch.testing.assert_close(got, implicit_score_matching(torch.sin, x))
    assert not torch.allclose(sliced_score_matching(torch.sin, x, kind="rademacher"), got)


def test_finite_differences_converge_to_ssm_vr_at_second_order():
    score, (x, v, _) = network((3,)), inputs(20, (3,))
    steps = np.array([0.2, 0.1, 0.05, 0.025])
    limit = sliced_score_matching_vr(score, x, v=v)
    errors = [
        (finite_difference_score_matching(score, x, step=h, v=v) - limit).abs().mean().item()
        for h in steps
    ]
    order = np.diff(np.log(errors)) / np.diff(np.log(steps))
    assert order == pytest.approx([2.0, 2.0, 2.0], abs=0.15)
    assert order[-1] == pytest.approx(2.0, abs=0.01)


def test_finite_differences_are_exact_for_a_linear_score_at_any_step():
    x, v, _ = inputs(5, (3,))
    got = finite_difference_score_matching(linear(MATRIX), x, step=3.0, v=v)
    torch.testing.assert_close(got, sliced_score_matching_vr(linear(MATRIX), x, v=v))


def test_finite_differences_ask_for_two_evaluations_a_direction_and_no_derivative():
    asked = []

    def score(x):
        asked.append(len(x))
        return x.detach()

    x = points(5, (3,)).requires_grad_()
    assert not finite_difference_score_matching(score, x, count=3).requires_grad
    assert asked == [5] * 6


@pytest.mark.parametrize("score", [network((2,)), MIXTURE.score], ids=["network", "clean score"])
def test_denoising_loss_minus_its_floor_is_the_explicit_loss_on_the_noised_density(score):
    """In expectation; noise and points are shared, so that little is left to chance."""
    x, z = MIXTURE.sample(20_000, generator_for(0)), points(20_000, (2,), seed=1)
    noised, target = x + SIGMA * z, MIXTURE.noised(SIGMA).score
    excess = vincent(score, x, SIGMA, noise=z)
    excess = excess - denoising_floor(unconditional(target), noised, one_level(x, SIGMA))
    explicit = explicit_score_matching(score, noised, target)
    assert explicit.mean() > 0.01
    assert within(excess - explicit, 0.0)


def test_explicit_loss_minus_the_implicit_one_is_half_the_fisher_information():
    score, x = network((2,)), MIXTURE.sample(20_000, generator_for(0))
    difference = explicit_score_matching(score, x, MIXTURE.score) - implicit_score_matching(
        score, x
    )
    assert within(difference, fisher_information(0.0) / 2)


@every_sliced_loss
@pytest.mark.parametrize("sigma", LADDER.tolist())
def test_multilevel_sliced_is_multilevel_denoising_minus_a_constant(loss, sigma):
    """λ(σ) D/(2σ²), whatever the network: here a random one."""
    inner, x = network((2,)), MIXTURE.sample(20_000, generator_for(0))
    given = {"noise": points(len(x), (2,), seed=1)}
    given |= {"weight": functools.partial(loss_weight, power=1.0)}

    def score(y, sigma):
        return inner(y) / per_sample(sigma, y)

    sliced = loss(score, x, one_level(x, sigma), generator=generator_for(1), **given)
    denoising = denoising_score_matching(score, x, one_level(x, sigma), **given)
    assert within(denoising - sliced, sigma * 2 / (2 * sigma**2))


# --- closed forms ------------------------------------------------------------------------------

COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.5]]).double()


def expectations():
    """Each loss of s(x) = −Ax for data N(0, C), by hand."""
    a, c, eye = MATRIX / 4, COVARIANCE, torch.eye(3).double()

    def half_trace(m, covariance):  # ½ E‖m y‖² for y ~ N(0, covariance)
        return 0.5 * (m @ covariance @ m.mT).trace()

    implicit = half_trace(a, c) - a.trace()
    target = torch.linalg.inv(c)
    noised = c + SIGMA**2 * eye
    return {
        "explicit": half_trace(target - a, c),
        "implicit": implicit,
        **dict.fromkeys(SLICED, implicit),
        "denoising": half_trace(a, c) + half_trace(eye / SIGMA - SIGMA * a, eye),
        "floor": 0.5 * (3 / SIGMA**2 - torch.linalg.inv(noised).trace()),
        "multilevel denoising": torch.stack(
            [half_trace(a, c) * s**2 + half_trace(eye - s**2 * a, eye) for s in LADDER]
        ).mean(),
        **dict.fromkeys(
            (f"multilevel {name}" for name in SLICED),
            torch.stack(
                [s**2 * (half_trace(a, c + s**2 * eye) - a.trace()) for s in LADDER]
            ).mean(),
        ),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, k) for name in expectations() for k in (PROJECTIONS if name in SLICED else [None])],
)
def test_losses_of_a_linear_score_on_gaussian_data_have_their_closed_form_mean(name, kind):
    count, draws = 20_000, generator_for(0, 5)
    root = torch.linalg.cholesky(COVARIANCE)
    x = points(count, (3,)) @ root.mT
    score = linear(-MATRIX / 4)

    def noised_score(sigma):
        return linear(-torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(3).double()))

    def multilevel(loss):
        sigma = draw_levels(LADDER, count, draws)
        return loss(unconditional(score), x, sigma, generator=draws)

    loss = {
        "explicit": lambda: explicit_score_matching(score, x, noised_score(0.0)),
        "implicit": lambda: implicit_score_matching(score, x),
        "denoising": lambda: vincent(score, x, SIGMA, generator=draws),
        "floor": lambda: denoising_floor(
            unconditional(noised_score(SIGMA)),
            x + SIGMA * points(count, (3,), seed=1),
            one_level(x, SIGMA),
        ),
        **{
            f"multilevel {name}": functools.partial(multilevel, loss)
            for name, loss in SLICED.items()
        },
        "multilevel denoising": lambda: multilevel(denoising_score_matching),
    }.get(name, lambda: SLICED[name](score, x, kind=kind, generator=draws))()
    assert within(loss, expectations()[name])


@functools.cache
def fisher_information(sigma):
    """E‖∇ log q_σ‖² of the mixture by quadrature on a grid, with torch's own densities."""
    reach = 6 * (1.5 + sigma**2) ** 0.5
    axis = torch.linspace(-1.0 - reach, 1.5 + reach, 300, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis).requires_grad_()
    density = reference_density(sigma)
    log_density = density.log_prob(x)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    mass = log_density.detach().exp() * (axis[1] - axis[0]) ** 2
    assert mass.sum() == pytest.approx(1.0, abs=1e-9)
    return (mass * score.square().sum(1)).sum().item()


def reference_density(sigma):
    covariances = MIXTURE_COVARIANCES + sigma**2 * torch.eye(2).double()
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(MIXTURE.weights),
        torch.distributions.MultivariateNormal(MIXTURE.means, covariances),
    )


def test_the_exact_score_has_no_explicit_loss():
    x = MIXTURE.sample(100, generator_for(0))

    def target(y):
        y = y.detach().requires_grad_()
        return torch.autograd.grad(reference_density(0.0).log_prob(y).sum(), y)[0]

    loss = explicit_score_matching(MIXTURE.score, x, target)
    torch.testing.assert_close(loss, torch.zeros(100).double(), rtol=0, atol=1e-20)


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_the_exact_score_has_the_least_implicit_loss_there_is(method):
    """−½ E‖∇ log p‖²."""
    x = MIXTURE.sample(20_000, generator_for(0))
    loss = implicit_score_matching(MIXTURE.score, x, method=method)
    assert within(loss, -fisher_information(0.0) / 2)


@every_sliced_loss
@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_exact_score_has_the_least_implicit_loss_in_sliced_losses_too(loss, kind):
    x = MIXTURE.sample(20_000, generator_for(0))
    got = loss(MIXTURE.score, x, kind=kind, generator=generator_for(1))
    assert within(got, -fisher_information(0.0) / 2)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 3.0])
def test_the_exact_noised_score_reaches_the_denoising_floor(sigma):
    """½(D/σ² − E‖∇ log q_σ‖²), which is not 0."""
    expected = 0.5 * (2 / sigma**2 - fisher_information(sigma))
    target = MIXTURE.noised(sigma).score
    x, z = MIXTURE.sample(20_000, generator_for(0)), points(20_000, (2,), seed=1)
    loss = vincent(target, x, sigma, generator=generator_for(1))
    assert expected > 0.01
    assert within(loss, expected)
    floor = denoising_floor(unconditional(target), x + sigma * z, one_level(x, sigma))
    assert within(floor, expected)


@every_sliced_loss
def test_the_exact_scores_have_the_least_multilevel_sliced_loss(loss):
    """−½ λ(σ) E‖∇ log q_σ‖², averaged over the levels."""
    x = MIXTURE.sample(20_000, generator_for(0))
    generator = generator_for(1)
    sigma = draw_levels(LADDER, len(x), generator)
    losses = loss(MIXTURE.score, x, sigma, generator=generator)
    least = [-0.5 * s**2 * fisher_information(s) for s in LADDER.tolist()]
    assert within(losses, sum(least) / 3)


# --- training through them ---------------------------------------------------------------------


def gradient(parameters, losses):
    grads = torch.autograd.grad(losses.mean(), list(parameters), materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


@every_loss
def test_the_gradient_in_the_parameters_passes_gradcheck(loss):
    tiny = MLP(2, hidden=2, layers=1).double()
    given = inputs(2, (2,))

    def losses(*parameters):
        named = dict(zip(dict(tiny.named_parameters()), parameters, strict=True))
        return loss(lambda x: functional_call(tiny, named, (x,)), *given)

    assert torch.autograd.gradcheck(losses, tuple(tiny.parameters()))


def shaken(refine_net):
    """Every parameter moved away from where it starts, so that each one matters."""
    with torch.no_grad():
        for parameter in refine_net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return refine_net


@pytest.mark.parametrize("name", LOSSES)
def test_the_mode_decides_which_derivative_the_score_is_asked_for(name):
    given = inputs(3, (2,))
    if name.endswith("forward"):
        with pytest.raises(RuntimeError, match="jvp"):
            LOSSES[name](sine_without_forward_mode, *given)
    else:
        expected = LOSSES[name](torch.sin, *given)
        torch.testing.assert_close(LOSSES[name](sine_without_forward_mode, *given), expected)


@pytest.fixture(scope="module")
def image_network():
    """A tiny RefineNet, with images, directions and noise for it."""
    torch.manual_seed(0)
    refine_net = shaken(RefineNet(2, 1, 8, levels=2))
    x, v, z = (part.float() for part in inputs(2, (1, 8, 8), count=1))
    return refine_net, x, v, z


@pytest.mark.parametrize("family", ["sliced_score_matching", "sliced_score_matching_vr"])
def test_both_modes_train_the_image_network_alike(image_network, family):
    """The gradient too: torch's own instance normalization would miss it by a fifth."""
    refine_net, *given = image_network

    def score(x):
        return refine_net(x, torch.tensor([0, 1]))

    losses = {way: LOSSES[family + way](score, *given) for way in ("", " mode=forward")}
    torch.testing.assert_close(*losses.values(), rtol=1e-4, atol=1e-4)
    grads = [gradient(refine_net.parameters(), values) for values in losses.values()]
    assert torch.isfinite(grads[0]).all()
    scale = grads[0].abs().max()
    assert scale > 1e-3
    torch.testing.assert_close(*[g / scale for g in grads], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["explicit", "denoising", "finite_difference"])
def test_objectives_without_a_derivative_train_the_image_network(image_network, name):
    refine_net, *given = image_network
    losses = LOSSES[f"{name}_score_matching"](lambda x: refine_net(x, torch.tensor([0, 1])), *given)
    got = gradient(refine_net.parameters(), losses)
    assert losses.shape == (2,)
    assert torch.isfinite(got).all()
    assert got.abs().max() > 1e-3


@pytest.mark.slow
def test_all_exact_traces_train_an_image_network_alike():
    refine_net, x = shaken(RefineNet(2, 1, 4, levels=2)), points(2, (1, 4, 4)).float()

    def score(y):
        return refine_net(y, torch.tensor([0, 1]))

    losses = {method: implicit_score_matching(score, x, method=method) for method in TRACE_METHODS}
    for method in ["vmap", "forward"]:
        torch.testing.assert_close(losses[method], losses["loop"], rtol=1e-4, atol=1e-4)
    grads = [gradient(refine_net.parameters(), losses[method]) for method in ["vmap", "forward"]]
    scale = grads[0].abs().max()
    assert torch.isfinite(grads[0]).all()
    assert scale > 1e-3
    torch.testing.assert_close(*[g / scale for g in grads], rtol=0, atol=1e-4)


@every_sliced_loss
def test_multilevel_sliced_trains_the_wrapped_image_network_at_its_own_levels(image_network, loss):
    """`NoiseConditionalScore` finds the level of every σ also under a functional transform."""
    refine_net, x, v, z = image_network
    x = x.sigmoid()  # images are in [0, 1]
    ladder, level = LADDER[:2].float(), torch.tensor([1, 0])
    score, sigma = NoiseConditionalScore(refine_net, ladder), ladder[level]
    losses = loss(score, x, sigma, noise=z, v=v)
    plain = loss(lambda y: refine_net(y, level), x + per_sample(sigma, x) * z, v=v)
    torch.testing.assert_close(losses, sigma**2 * plain)
    assert gradient(refine_net.parameters(), losses).abs().max() > 1e-3


def test_finite_differences_train_like_ssm_vr_for_a_small_step():
    score, (x, v, _) = network((3,)), inputs(5, (3,))
    limit = gradient(score.parameters(), sliced_score_matching_vr(score, x, v=v))
    close = finite_difference_score_matching(score, x, step=1e-4, v=v)
    torch.testing.assert_close(gradient(score.parameters(), close), limit, rtol=1e-5, atol=1e-6)


@every_loss
def test_an_ensemble_has_the_losses_and_gradients_of_its_members(loss):
    ensemble = Ensemble.of(lambda: MLP(2, hidden=5).double(), seeds=[3, 1, 4])
    x, v, z = inputs(6, (2,))
    got = loss(ensemble, x, v, z)
    grads = torch.autograd.grad(got.sum(), list(ensemble.stacked), materialize_grads=True)
    for i in range(3):
        own = slice(2 * i, 2 * i + 2)
        member = ensemble.member(i).requires_grad_()
        alone = loss(member, x[own], v[:, own], z[own])
        torch.testing.assert_close(got[own], alone)
        expected = torch.autograd.grad(
            alone.sum(), list(member.parameters()), materialize_grads=True
        )
        for stacked, single in zip(grads, expected, strict=True):
            torch.testing.assert_close(stacked[i], single)


# --- what is drawn -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["denoising", *SLICED])
def test_noise_is_standard_normal_and_nowhere_shared(name):
    """Moments of z = (x̃ − x)/σ on one level; uniform noise in [0, 1] would fail each of them."""
    seen = []

    def watched(x, sigma):
        seen.append(x.detach() / SIGMA)
        return torch.zeros_like(x)

    x = torch.zeros(1000, 50, dtype=torch.float64)
    loss = (SLICED | {"denoising": denoising_score_matching})[name]
    given = {"mode": "forward"} if name.startswith("SSM") else {}
    given |= {"step": 1e-9} if name == "finite differences" else {}
    loss(watched, x, one_level(x, SIGMA), generator=generator_for(0), **given)
    z = seen[0].flatten()
    for power, expected in enumerate([0.0, 1.0, 0.0, 3.0], start=1):
        assert within(z**power, expected), f"moment {power}"
    assert len(z.unique()) == z.numel()


@every_sliced_loss
@pytest.mark.parametrize("draws", ["noise", "v"])
def test_noise_and_directions_can_each_be_given(loss, draws):
    """What is given is used, and what is not is drawn: the loss changes with the generator."""
    x, v, z = inputs(6, (3,))
    given, sigma = {"noise": z, "v": v}, LADDER[torch.arange(6) % 3]
    inner = network((3,))

    def losses(seed, **injected):
        return loss(
            lambda y, sigma: inner(y) / per_sample(sigma, y),
            x,
            sigma,
            generator=generator_for(seed),
            **injected,
        )

    assert torch.equal(losses(1, **given), losses(2, **given))
    del given[draws]
    assert not torch.equal(losses(1, **given), losses(2, **given))


# --- the batch ---------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_a_sample_has_its_loss_in_any_order_alone_and_among_others(loss, shape):
    score, (x, v, z) = network(shape), inputs(5, shape)
    together = loss(score, x, v, z)
    for chosen in ([3, 0, 4, 1, 2], [3], []):
        index = torch.tensor(chosen, dtype=torch.int64)
        torch.testing.assert_close(loss(score, x[index], v[:, index], z[index]), together[index])


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_stays_and_nothing_of_the_caller_is_changed(loss, dtype):
    score, given = network((3,)).to(dtype), [part.to(dtype) for part in inputs(4, (3,))]
    before = [part.clone() for part in given]
    assert loss(score, *given).dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(parameter.grad is None for parameter in score.parameters())


# --- errors ------------------------------------------------------------------------------------


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape of its input, \(3, 2\)"):
        explicit_score_matching(network((2,)), points(3, (2,)), lambda x: x[:, :1])


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda s, x: implicit_score_matching(s, x, method="uniform"), TRACE_METHODS),
        (lambda s, x: sliced_score_matching(s, x, kind="uniform"), PROJECTIONS),
        (lambda s, x: sliced_score_matching(s, x, mode="uniform"), ["forward", "reverse"]),
        (lambda s, x: sliced_score_matching_vr(s, x, kind="uniform"), PROJECTIONS),
        (lambda s, x: sliced_score_matching_vr(s, x, mode="uniform"), ["forward", "reverse"]),
        (lambda s, x: finite_difference_score_matching(s, x, kind="uniform"), PROJECTIONS),
        (
            lambda s, x: sliced_score_matching_vr(
                unconditional(s), x, one_level(x, 1.0), mode="uniform"
            ),
            ["forward", "reverse"],
        ),
    ],
    ids=["method", "SSM kind", "SSM mode", "VR kind", "VR mode", "FD kind", "multilevel mode"],
)
def test_an_unknown_name_is_refused_with_the_list_of_the_known_ones(call, known):
    with (
        without_type_checks(),
        pytest.raises(UnknownNameError, match=f"'uniform'; known: {', '.join(known)}$"),
    ):
        call(network((2,)), points(3, (2,)))


@every_sliced_loss
@pytest.mark.parametrize("count", [0, -1])
def test_a_sliced_loss_needs_a_projection(loss, count):
    with pytest.raises(ValueError, match=f"at least one projection; got {count}"):
        loss(network((2,)), points(3, (2,)), count=count)


@every_sliced_loss
def test_an_empty_stack_of_directions_is_refused(loss):
    with pytest.raises(ValueError, match="at least one projection; got 0"):
        loss(network((2,)), points(3, (2,)), v=torch.ones(0, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 2), (4, 1, 2), (4, 3, 1), (4, 2, 2), (1, 4, 3, 2)])
@pytest.mark.parametrize("name", [name for name in LOSSES if "finite" in name or "sliced" in name])
def test_directions_of_another_shape_are_refused(name, shape):
    """Some of them would broadcast silently."""
    message = rf"\[count, \*\(3, 2\)\].*got \({', '.join(map(str, shape))}\)"
    v = torch.ones(shape, dtype=torch.float64)
    with without_type_checks(), pytest.raises(ValueError, match=message):
        LOSSES[name](network((2,)), points(3, (2,)), v, points(3, (2,)))


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan])
def test_sigma_and_step_are_positive(value):
    score, x = network((2,)), points(3, (2,))
    for call in [
        lambda: vincent(score, x, value),
        lambda: denoising_floor(unconditional(score), x, one_level(x, value)),
    ]:
        with pytest.raises(ValueError, match=rf"sigma must be positive and finite; got \[{value}"):
            call()
    with pytest.raises(ValueError, match=f"step .* must be positive; got {value}"):
        finite_difference_score_matching(score, x, step=value)


@pytest.mark.parametrize("method", ["vmap", "forward"])
def test_an_implicit_loss_too_large_for_memory_says_how_large_and_a_chunk_repairs_it(method):
    x = points(3, (64,))
    with pytest.raises(MemoryError, match=f"{3 * 30_000**2 * 8 / 2**30:.1f} GiB"):
        implicit_score_matching(torch.sin, torch.zeros(3, 30_000).double(), method=method)
    limited = {"method": method, "memory_limit": 8 * 3 * 64 * 8}
    with pytest.raises(MemoryError):
        implicit_score_matching(torch.sin, x, **limited)
    torch.testing.assert_close(
        implicit_score_matching(torch.sin, x, chunk=8, **limited),
        exact_divergence(torch.sin, x) + torch.sin(x).square().sum(1) / 2,
    )
