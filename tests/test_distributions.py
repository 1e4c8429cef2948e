"""The oracles against quadrature, torch.autograd, other libraries and each other, in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from scores import explicit_jacobian, global_generator_untouched, within, without_type_checks
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ncsn_core.distributions import (
    Checkerboard,
    Curve,
    GaussianMixture,
    embedded_curve,
    ring,
    swiss_roll,
)
from ncsn_core.divergence import TRACE_METHODS, exact_divergence
from ncsn_core.randomness import generator_for

INF, NAN = math.inf, math.nan


def turn(*angles):
    """Rotations of the plane [K, 2, 2]; unlike the eigenvectors of eigh, never symmetric."""
    cos, sin = (f(torch.tensor(angles, dtype=torch.float64)) for f in (torch.cos, torch.sin))
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


MEANS = torch.tensor([[-1.0, 0.5], [1.5, 1.0], [0.0, -2.0]], dtype=torch.float64)
VARIANCES = torch.tensor([[1.5, 0.3], [0.2, 0.5], [0.5, 1.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
STRAIGHT = GaussianMixture(MEANS, VARIANCES, WEIGHTS)
ROTATED = GaussianMixture(MEANS, VARIANCES, WEIGHTS, turn(0.6, -0.9, 2.0))
# Every component on a line: no density without noise.
LINES = GaussianMixture(MEANS, VARIANCES * torch.tensor([1.0, 0.0]), WEIGHTS, ROTATED.rotations)

EVERY = {
    "mixture": STRAIGHT,
    "rotated mixture": ROTATED,
    "mixture on lines": LINES,
    "ring": ring(),
    "swiss roll": swiss_roll(),
    "embedded curve": embedded_curve(5),
    "checkerboard": Checkerboard(),
}
every = pytest.mark.parametrize("p", EVERY.values(), ids=EVERY.keys())
curves = pytest.mark.parametrize(
    "p", [ring(), swiss_roll(), embedded_curve(5)], ids=["ring", "swiss roll", "embedded curve"]
)


def noised_samples(p, sigma, count, stream=0):
    """Points of q_σ in float64: samples of p plus σz."""
    x = p.sample(count, generator_for(0, stream)).double()
    return x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator_for(1, stream))


def orthogonal(count, dimension, seed=0):
    square = torch.randn(
        count, dimension, dimension, dtype=torch.float64, generator=generator_for(seed, 9)
    )
    return torch.linalg.qr(square).Q


@st.composite
def mixtures(draw):
    """A random rotated mixture, points about it, and a σ for each of them."""
    dimension, components = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = generator_for(draw(st.integers(0, 2**16)))

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)

    weights = uniform(0.1, 1.0, components)
    mixture = GaussianMixture(
        means=uniform(-3.0, 3.0, components, dimension),
        variances=uniform(0.2, 2.0, components, dimension),
        weights=weights / weights.sum(),
        rotations=orthogonal(components, dimension) if draw(st.booleans()) else None,
    )
    batch = draw(st.integers(0, 4))
    return mixture, uniform(-4.0, 4.0, batch, dimension), uniform(0.0, 1.5, batch)


def reference(mixture, sigma=0.0):
    """The noised mixture as torch.distributions knows it, from covariance matrices."""
    rotations = mixture.rotations
    if rotations is None:
        rotations = torch.eye(mixture.dimension, dtype=torch.float64)
    covariances = rotations @ torch.diag_embed(mixture.variances) @ rotations.mT
    noise = sigma**2 * torch.eye(mixture.dimension, dtype=torch.float64)
    components = MultivariateNormal(mixture.means, covariances + noise)
    return MixtureSameFamily(Categorical(mixture.weights), components)


def autograd_score(log_density, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_density(x).sum(), x)[0]


# --- every distribution ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "sigma"),
    [
        (STRAIGHT, 0.0),
        (ROTATED, 0.0),
        (ROTATED, 0.7),
        (LINES, 0.5),
        (ring(), 0.3),
        (swiss_roll(), 0.3),
        (Checkerboard(), 0.3),
        (Checkerboard(2), 0.5),
    ],
)
def test_the_density_integrates_to_one(p, sigma):
    """By the trapezoid rule, which for a smooth density is exact beyond rounding."""
    wide, step = (9.0, 0.15) if isinstance(p, GaussianMixture) else (3.6, 0.15)
    axis = torch.arange(-wide, wide, step, dtype=torch.float64)
    mass = p.log_density(torch.cartesian_prod(axis, axis), sigma).exp().sum() * step**2
    assert mass.item() == pytest.approx(1, abs=1e-6)


@every
def test_the_score_is_the_gradient_of_the_log_density(p):
    x = noised_samples(p, 0.5, 20)
    sigma = torch.linspace(0.2, 2.0, 20, dtype=torch.float64)
    expected = autograd_score(lambda y: p.log_density(y, sigma), x)
    torch.testing.assert_close(p.score(x, sigma), expected, rtol=1e-9, atol=1e-9)


@every
def test_samples_with_noise_have_the_score_that_is_claimed(p):
    """Stein's identities, E[s] = 0 and E[s xᵀ] = −I, hold for the score of x's own density."""
    x = noised_samples(p, 0.4, 1500)
    s = p.score(x, 0.4)
    assert within(s, 0.0)
    moments = (s.unsqueeze(2) * x.unsqueeze(1)).flatten(1)
    assert within(moments, -torch.eye(p.dimension, dtype=torch.float64).flatten())


@every
@pytest.mark.parametrize("sigma", [0.35, 1.4])
def test_stein_identities_fail_for_another_noise_level(p, sigma):
    x = noised_samples(p, 0.7, 1500)
    moments = (p.score(x, sigma).unsqueeze(2) * x.unsqueeze(1)).flatten(1)
    assert not within(moments, -torch.eye(p.dimension, dtype=torch.float64).flatten())


@every
def test_each_sample_has_its_own_sigma_and_no_other_neighbors(p):
    x = noised_samples(p, 0.5, 6)
    sigma = torch.tensor([0.2, 0.3, 0.5, 0.7, 1.0, 3.0], dtype=torch.float64)
    for answer in (p.log_density, p.score):
        alone = torch.cat([answer(x[i : i + 1], sigma[i].item()) for i in range(6)])
        torch.testing.assert_close(answer(x, sigma), alone, rtol=1e-10, atol=1e-10)


@every
@pytest.mark.parametrize("method", TRACE_METHODS)
def test_the_score_can_be_differentiated_by_every_method(p, method):
    """Its Jacobian is the Hessian of log q_σ, which torch.autograd computes one sample alone."""
    x = noised_samples(p, 0.5, 4)
    hessian = explicit_jacobian(
        lambda y: torch.func.grad(lambda z: p.log_density(z, 0.5).sum())(y), x
    )
    torch.testing.assert_close(hessian, hessian.mT, rtol=1e-8, atol=1e-8)
    trace = exact_divergence(lambda y: p.score(y, 0.5), x, method)
    torch.testing.assert_close(trace, hessian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-8, atol=1e-8)


@every
def test_double_precision_stays_and_single_precision_agrees(p):
    x = noised_samples(p, 0.5, 50)
    for answer in (p.log_density, p.score):
        assert answer(x, 0.5).dtype == torch.float64
    if isinstance(p, GaussianMixture):
        fields = (p.means, p.variances, p.weights, p.rotations)
        p32 = GaussianMixture(*(None if f is None else f.float() for f in fields))
    else:
        p32 = p
    assert p32.sample(3).dtype == torch.float32
    for single, double in ((p32.log_density, p.log_density), (p32.score, p.score)):
        assert single(x.float(), 0.5).dtype == torch.float32
        torch.testing.assert_close(
            single(x.float(), 0.5).double(), double(x, 0.5), rtol=1e-4, atol=1e-4
        )


@every
def test_the_generator_decides_the_samples(p):
    with global_generator_untouched():
        first = p.sample(7, generator_for(5))
        assert torch.equal(first, p.sample(7, generator_for(5)))
        assert not torch.equal(first, p.sample(7, generator_for(6)))
    assert first.shape == (7, p.dimension)
    torch.manual_seed(3)
    without = p.sample(7)
    torch.manual_seed(3)
    assert torch.equal(without, p.sample(7))


@every
def test_an_empty_batch_is_allowed(p):
    nothing = torch.zeros(0, p.dimension, dtype=torch.float64)
    assert p.score(nothing, 0.5).shape == (0, p.dimension)
    assert p.log_density(nothing, 0.5).shape == (0,)


@every
@pytest.mark.parametrize("sigma", [-0.5, NAN, INF, -INF])
def test_a_sigma_that_is_negative_or_not_finite_is_refused(p, sigma):
    x = torch.zeros(2, p.dimension, dtype=torch.float64)
    for wrong in (sigma, torch.tensor([0.5, sigma])):
        for answer in (p.log_density, p.score):
            with pytest.raises(ValueError, match="sigma must be finite and at least 0"):
                answer(x, wrong)


@every
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (4,)])
def test_a_sigma_that_is_not_one_per_sample_is_refused(p, shape):
    x = torch.zeros(3, p.dimension, dtype=torch.float64)
    with without_type_checks():
        for answer in (p.log_density, p.score):
            with pytest.raises(ValueError, match="one for each of the 3 samples"):
                answer(x, torch.ones(shape))


# --- Gaussian mixtures -------------------------------------------------------------------------


@given(case=mixtures())
def test_mixture_density_is_that_of_torch_distributions(case):
    mixture, x, sigma = case
    ours = mixture.log_density(x, sigma)
    for i in range(len(x)):
        theirs = reference(mixture, sigma[i].item()).log_prob(x[i])
        torch.testing.assert_close(ours[i], theirs, rtol=1e-9, atol=1e-9)


@given(case=mixtures())
def test_mixture_score_is_the_gradient_of_the_reference(case):
    mixture, x, sigma = case
    ours = mixture.score(x, sigma)
    for i in range(len(x)):
        log_prob = reference(mixture, sigma[i].item()).log_prob
        torch.testing.assert_close(ours[i], autograd_score(log_prob, x[i]), rtol=1e-8, atol=1e-8)


@given(case=mixtures(), sigma=st.floats(0.0, 3.0))
def test_noised_is_the_same_as_asking_for_sigma(case, sigma):
    mixture, x, _ = case
    noised = mixture.noised(sigma)
    torch.testing.assert_close(noised.log_density(x), mixture.log_density(x, sigma))
    torch.testing.assert_close(noised.score(x), mixture.score(x, sigma))
    again = noised.noised(2.0)  # noise upon noise adds in variance
    total = math.hypot(sigma, 2.0)
    torch.testing.assert_close(again.log_density(x), mixture.log_density(x, total))


@given(case=mixtures())
def test_responsibilities_are_bayes_rule(case):
    mixture, x, sigma = case
    ours = mixture.responsibilities(x, sigma)
    assert ours.shape == (len(x), len(mixture.weights))
    torch.testing.assert_close(ours.sum(1), torch.ones(len(x), dtype=torch.float64))
    for i in range(len(x)):
        components = reference(mixture, sigma[i].item()).component_distribution
        joint = mixture.weights * components.log_prob(x[i]).exp()
        torch.testing.assert_close(ours[i], joint / joint.sum(), rtol=1e-8, atol=1e-12)


@given(case=mixtures())
def test_from_covariances_finds_variances_and_axes_again(case):
    mixture, x, sigma = case
    covariances = reference(mixture).component_distribution.covariance_matrix
    again = GaussianMixture.from_covariances(mixture.means, covariances, mixture.weights)
    torch.testing.assert_close(again.log_density(x, sigma), mixture.log_density(x, sigma))
    torch.testing.assert_close(again.score(x, sigma), mixture.score(x, sigma))


@pytest.mark.parametrize("x", [-2.0, 0.3, 4.0])
def test_noised_density_is_the_convolution_with_a_gaussian(x):
    """∫ p(y) N(x − y; 0, σ²) dy by the trapezoid rule in one dimension."""
    sigma, step = 0.6, 0.01
    mixture = GaussianMixture(MEANS[:, :1], STRAIGHT.variances[:, :1], WEIGHTS)
    y = torch.arange(-12, 12, step, dtype=torch.float64).unsqueeze(1)
    kernel = torch.exp(-((x - y) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    parts = torch.exp(-((y - MEANS[:, 0]) ** 2) / (2 * mixture.variances[:, 0]))
    p = (parts / (2 * math.pi * mixture.variances[:, 0]).sqrt()) @ WEIGHTS
    at = torch.tensor([[x]], dtype=torch.float64)
    expected = (p * kernel.squeeze()).sum(0, keepdim=True) * step
    torch.testing.assert_close(mixture.log_density(at, sigma).exp(), expected)


@pytest.mark.parametrize("p", [STRAIGHT, ROTATED, LINES], ids=["straight", "rotated", "lines"])
def test_mixture_samples_follow_the_mixture(p):
    """By a Kolmogorov-Smirnov test along several directions, in which the law is known."""
    x = p.sample(5000, generator_for(0))
    rotations = p.rotations if p.rotations is not None else torch.eye(2, dtype=torch.float64)
    covariances = rotations @ torch.diag_embed(p.variances) @ rotations.mT
    for angle in (0.3, 0.9, 1.7, 2.5):  # not across a line, where its variance is 0
        u = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        law = stats.norm((p.means @ u).numpy(), (u @ covariances @ u).sqrt().numpy())
        test = stats.kstest(
            (x @ u).numpy(), lambda t, law=law: law.cdf(t[:, None]) @ WEIGHTS.numpy()
        )
        assert test.pvalue > 1e-3, f"angle {angle}"


def test_points_far_from_every_component_have_finite_answers():
    """There the nearest component alone counts, although each density is 0 in float32."""
    mixture = GaussianMixture(*(f.float() for f in (MEANS, torch.ones(3, 2), WEIGHTS)))
    x = torch.tensor([[0.0, -1000.0], [2000.0, 1000.0]])
    torch.testing.assert_close(mixture.score(x), mixture.means[[2, 1]] - x)
    expected = -0.5 * (mixture.means[[2, 1]] - x).square().sum(1)
    torch.testing.assert_close(mixture.log_density(x), expected, rtol=1e-4, atol=0)


def test_a_component_on_a_line_has_a_density_only_with_noise():
    """N(0, 4) along one axis and nothing across: with noise, N(0, 4 + σ²) N(0, σ²)."""
    axes = turn(0.7)
    line = GaussianMixture(
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor([[4.0, 0.0]], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        axes,
    )
    assert line.smallest_variance == 0
    samples = line.sample(100, generator_for(0)) @ axes[0]
    assert samples[:, 0].std() > 1
    torch.testing.assert_close(
        samples[:, 1], torch.zeros(100, dtype=torch.float64), atol=1e-12, rtol=0
    )

    x = torch.randn(20, 2, dtype=torch.float64)
    along, across = (x @ axes[0]).T
    expected = stats.norm.logpdf(along, scale=4.25**0.5) + stats.norm.logpdf(across, scale=0.5)
    torch.testing.assert_close(line.log_density(x, 0.5), torch.from_numpy(expected))
    pull = torch.stack([-along / 4.25, -across / 0.25], 1)
    torch.testing.assert_close(line.score(x, 0.5), pull @ axes[0].T)
    for answer in (line.log_density, line.score, line.responsibilities):
        for sigma in (0.0, torch.cat([torch.ones(19), torch.zeros(1)])):
            with pytest.raises(ValueError, match="no smooth density without noise"):
                answer(x, sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_covariance_of_lower_rank_gives_a_plane_in_spite_of_rounding(dtype):
    """u uᵀ has eigenvalues 0, which eigh returns as numbers of either sign near 1e-8."""
    for seed in range(20):
        u = torch.randn(4, 1, dtype=dtype, generator=generator_for(seed))
        plane = GaussianMixture.from_covariances(
            torch.zeros(1, 4, dtype=dtype), (u @ u.mT).unsqueeze(0), torch.ones(1, dtype=dtype)
        )
        assert (plane.variances == 0).sum() == 3
        with pytest.raises(ValueError, match="give sigma > 0"):
            plane.score(u.mT)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weights": torch.tensor([0.5, 0.4])}, "sum to 0.9"),
        ({"weights": torch.tensor([1.0, 0.0])}, "positive"),
        ({"weights": torch.tensor([1.5, -0.5])}, "positive"),
        ({"weights": torch.tensor([0.5, NAN])}, "positive and sum to 1"),
        ({"weights": torch.tensor([1.0])}, r"weights \[K\]"),
        ({"means": torch.zeros(2, 3)}, r"\[K, D\]"),
        ({"means": torch.tensor([[0.0, NAN], [0.0, 0.0]])}, "means must be finite"),
        ({"variances": torch.tensor([[1.0, -1e-3], [1.0, 1.0]])}, "at least 0"),
        ({"variances": torch.tensor([[1.0, NAN], [1.0, 1.0]])}, "finite"),
        ({"variances": torch.tensor([[1.0, INF], [1.0, 1.0]])}, "finite"),
        ({"rotations": torch.ones(2, 2, 2)}, "orthogonal"),
        ({"rotations": torch.stack([torch.eye(2), 2 * torch.eye(2)])}, "orthogonal"),
        ({"rotations": torch.eye(2).unsqueeze(0)}, r"rotations are \[K, D, D\]; got \(1, 2, 2\)"),
        ({"rotations": torch.eye(3).expand(2, 3, 3)}, r"rotations are \[K, D, D\]"),
    ],
)
def test_a_mixture_of_wrong_parts_is_refused(change, complaint):
    parts = {
        "means": torch.zeros(2, 2),
        "variances": torch.ones(2, 2),
        "weights": torch.full((2,), 0.5),
    }
    GaussianMixture(**parts)
    with without_type_checks(), pytest.raises(ValueError, match=complaint):
        GaussianMixture(**parts | change)


@pytest.mark.parametrize(
    ("covariance", "complaint"),
    [
        ([[1.0, 0.5], [0.0, 1.0]], "symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "negative eigenvalues"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(covariance, complaint):
    good = torch.diag(torch.tensor([1e9, 1e9]))  # beside which −1 would look like rounding
    with pytest.raises(ValueError, match=complaint):
        GaussianMixture.from_covariances(
            torch.zeros(2, 2), torch.stack([torch.tensor(covariance), good]), torch.full((2,), 0.5)
        )


@pytest.mark.parametrize("sigma", [-1.0, NAN, INF])
def test_noise_of_a_wrong_size_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be finite and at least 0"):
        ROTATED.noised(sigma)


# --- curves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 5.0])
def test_the_ring_is_its_closed_form(radius, sigma):
    """q_σ(x) = exp(−(r − R)²/2σ²) Ĩ₀(rR/σ²)/2πσ², with Ĩ the Bessel function times e^{−z}."""
    r = torch.linspace(0.01, radius + 3 * sigma, 60, dtype=torch.float64)
    angle = torch.linspace(0, 7, 60, dtype=torch.float64)
    outward = torch.stack([angle.cos(), angle.sin()], 1)
    z = r * radius / sigma**2
    i0, i1 = torch.special.i0e(z), torch.special.i1e(z)
    density = -((r - radius) ** 2) / (2 * sigma**2) + i0.log() - math.log(2 * math.pi * sigma**2)
    score = ((radius * i1 / i0 - r) / sigma**2).unsqueeze(1) * outward
    x, p = r.unsqueeze(1) * outward, ring(radius)
    torch.testing.assert_close(p.log_density(x, sigma), density, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.score(x, sigma), score, rtol=1e-8, atol=1e-8)


def test_the_integral_holds_down_to_the_smallest_sigma():
    p = ring()
    sigma = 1.0001 * p.smallest_sigma
    x = noised_samples(p, sigma, 200)
    r = x.norm(dim=1)
    z = r / sigma**2
    i0, i1 = torch.special.i0e(z), torch.special.i1e(z)
    expected = -((r - 1) ** 2) / (2 * sigma**2) + i0.log() - math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(p.log_density(x, sigma), expected, rtol=0, atol=1e-6)
    expected = ((i1 / i0 - r) / sigma**2 / r).unsqueeze(1) * x
    torch.testing.assert_close(sigma * p.score(x, sigma), sigma * expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_an_open_curve_is_right_at_its_ends_too(sigma):
    """The swiss roll's integral by Simpson's rule, about both ends and the middle."""
    p = swiss_roll()
    x = p.path(torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)).repeat(3, 1)
    x = x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator_for(0))
    t = torch.linspace(0, 1, 40_001, dtype=torch.float64)
    squared = (x.unsqueeze(1) - p.path(t)).square().sum(2)
    mean = integrate.simpson((-squared / (2 * sigma**2)).exp().numpy(), x=t.numpy())
    expected = torch.from_numpy(mean).log() - math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(p.log_density(x, sigma), expected, rtol=0, atol=1e-7)
    slopes = autograd_score(lambda y: p.log_density(y, sigma), x)
    torch.testing.assert_close(p.score(x, sigma), slopes)


@curves
def test_a_curve_without_noise_has_no_density(p):
    x = p.sample(3, generator_for(0))
    for answer in (p.log_density, p.score):
        for sigma in (0.0, torch.tensor([0.5, 0.0, 0.5])):
            with pytest.raises(ValueError, match="Curve has no smooth density without noise"):
                answer(x, sigma)


@curves
def test_a_sigma_finer_than_the_integral_is_refused_until_there_are_more_nodes(p):
    x = p.sample(3, generator_for(0)).double()
    sigma = 0.6 * p.smallest_sigma
    for answer in (p.log_density, p.score):
        for wrong in (sigma, torch.tensor([0.5, 0.5, sigma])):
            with pytest.raises(ValueError, match="give the curve more nodes"):
                answer(x, wrong)
    finer, finest = (Curve(p.path, nodes=n * p.nodes) for n in (2, 8))
    assert finer.smallest_sigma == pytest.approx(p.smallest_sigma / 2, rel=0.02)
    torch.testing.assert_close(finer.log_density(x, sigma), finest.log_density(x, sigma))
    torch.testing.assert_close(finer.score(x, sigma), finest.score(x, sigma))


@pytest.mark.parametrize("nodes", [1, 40, 41, 100])
def test_any_number_of_nodes_is_made_up_to_whole_panels(nodes):
    """Never fewer than asked for: with a wide σ each of them is already exact."""
    p = Curve(ring().path, nodes)
    x = torch.tensor([[1.0, 0.2], [0.1, -0.3]], dtype=torch.float64)
    assert p.smallest_sigma <= ring().smallest_sigma * 2000 / max(nodes, 40) * 1.05
    torch.testing.assert_close(p.log_density(x, 1.0), ring().log_density(x, 1.0))


def test_ring_samples_are_uniform_in_angle():
    x = ring(2.0).sample(5000, generator_for(0)).double()
    torch.testing.assert_close(
        x.norm(dim=1), torch.full((5000,), 2.0, dtype=torch.float64), rtol=1e-5, atol=0
    )
    angle = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3


def test_swiss_roll_samples_wind_outward_evenly():
    """Radius and angle both tell t, and agree; t is uniform."""
    turns, radius = 1.5, 2.0
    x = swiss_roll(turns, radius).sample(5000, generator_for(0)).double()
    t = (3 * x.norm(dim=1) / radius - 1) / 2
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-3
    angle = 2 * math.pi * turns * t
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(x, x.norm(dim=1, keepdim=True) * direction, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dimension", "frequencies"), [(2, 1), (4, 2), (7, 2), (50, 3)])
def test_an_embedded_curve_spans_two_dimensions_a_frequency(dimension, frequencies):
    p = embedded_curve(dimension, frequencies)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    points = p.path(t)
    assert p.dimension == points.shape[1] == dimension
    spread = torch.linalg.svdvals(points[:-1] - points[:-1].mean(0))
    assert (spread > 1).sum() == 2 * frequencies
    assert (spread < 1e-9).sum() == dimension - 2 * frequencies
    torch.testing.assert_close(points[0], points[-1])  # closed
    length = sum(f**-2 for f in range(1, frequencies + 1)) ** 0.5
    torch.testing.assert_close(points.norm(dim=1), torch.full_like(t, length))


def test_across_its_span_an_embedded_curve_is_noise_alone():
    """There the score is −x⊥/σ², and the density that of N(0, σ²I) with two dimensions less."""
    sigma, p = 0.4, embedded_curve(5)
    basis = torch.linalg.svd(p.path(torch.linspace(0, 1, 50, dtype=torch.float64)))[2]
    across = basis[4]
    x = noised_samples(p, 0.4, 10)
    torch.testing.assert_close(p.score(x, sigma) @ across, -(x @ across) / sigma**2)
    inside = x - (x @ across).unsqueeze(1) * across
    drop = p.log_density(inside, sigma) - p.log_density(x, sigma)
    torch.testing.assert_close(drop, (x @ across) ** 2 / (2 * sigma**2))


def test_the_seed_decides_where_a_curve_is_embedded():
    t = torch.linspace(0, 1, 5)
    with global_generator_untouched():
        first, again, other = (embedded_curve(6, seed=seed).path(t) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize(("dimension", "frequencies"), [(1, 1), (3, 2), (5, 3)])
def test_a_dimension_too_small_for_the_curve_is_refused(dimension, frequencies):
    with pytest.raises(ValueError, match=f"at least {2 * frequencies}; got {dimension}"):
        embedded_curve(dimension, frequencies)


# --- checkerboard ------------------------------------------------------------------------------


def middles(squares):
    """Middle of every square [squares²], row by row, and whether it is black."""
    middle = (2 * torch.arange(squares, dtype=torch.float64) + 1) / squares - 1
    column, row = torch.meshgrid(middle, middle, indexing="xy")
    index = torch.arange(squares)
    black = (index.unsqueeze(1) + index) % 2 == 0
    return torch.stack([column.flatten(), row.flatten()], 1), black.flatten()


@pytest.mark.parametrize("squares", [2, 4, 10])
def test_half_of_the_board_is_black_with_density_one_half(squares):
    points, black = middles(squares)
    assert black.sum() == squares**2 / 2
    for sigma in (0.0, 0):
        with without_type_checks():
            density = Checkerboard(squares).log_density(points, sigma).exp()
        torch.testing.assert_close(density, 0.5 * black.double(), rtol=1e-15, atol=0)


def test_outside_the_board_the_density_is_zero():
    outside = [-1.1, 1.1]  # where the pattern of the squares would go on, and where it would not
    edge = [(a, b) for a in outside for b in (-0.9, -0.6, 0.1, 0.6, *outside)]
    x = torch.tensor([*edge, *[(b, a) for a, b in edge], (5.0, 5.0), (NAN, 0.1)])
    assert (Checkerboard().log_density(x) == -INF).all()


def test_checkerboard_samples_fill_the_black_squares_evenly():
    board = Checkerboard()
    x = board.sample(8000, generator_for(0))
    assert (board.log_density(x) == math.log(0.5)).all()
    cell = ((x + 1) * 2).long()
    counts = torch.bincount(cell[:, 1] * 4 + cell[:, 0], minlength=16)
    _, black = middles(4)
    assert (counts[~black] == 0).all()
    assert stats.chisquare(counts[black].numpy()).pvalue > 1e-3
    within_square = ((x + 1) * 2) % 1
    for axis in range(2):
        assert stats.kstest(within_square[:, axis].numpy(), "uniform").pvalue > 1e-3
    assert stats.pearsonr(*within_square.T.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("squares", [2, 4])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_noised_checkerboard_is_the_sum_over_its_black_squares(squares, sigma):
    """Each square's share by the normal distribution function, within a few σ of the board."""
    points, black = middles(squares)
    half = 1 / squares
    x = noised_samples(Checkerboard(squares), sigma, 50)
    expected = torch.zeros(50, dtype=torch.float64)
    for middle in points[black]:
        high, low = (torch.special.ndtr((middle + side - x) / sigma) for side in (half, -half))
        expected += 0.5 * (high - low).prod(1)
    ours = Checkerboard(squares).log_density(x, sigma).exp()
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("sigma", [0.01, 1.0])
@pytest.mark.parametrize("far", [5.0, 20.0, 300.0, 1e4])
def test_far_from_the_board_the_score_points_to_its_nearest_corner(sigma, far):
    """There q_σ falls like exp(−d²/2σ²)/d² from the black corner at (1, 1)."""
    x = torch.tensor([[1.0, 1.0]]) + far * sigma
    d = ((x.double() - 1) / sigma).squeeze().tolist()
    board = Checkerboard()
    score = board.score(x.double(), sigma)
    # the pull of the corner, d, and 1/d more by the hazard rate of the normal law
    assert (-score * sigma).squeeze().tolist() == pytest.approx(d, rel=1.1 / far**2 + 1e-6)
    torch.testing.assert_close(board.score(x, sigma).double(), score, rtol=1e-6, atol=0)
    h = 1e-4 * sigma * torch.eye(2, dtype=torch.float64)
    ahead, behind = (board.log_density(x.double() + side * h, sigma) for side in (1, -1))
    slopes = (ahead - behind) / (2e-4 * sigma)
    torch.testing.assert_close(score.squeeze(), slopes, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkerboard_is_finite_everywhere_with_noise(dtype):
    axis = torch.linspace(-30, 30, 41, dtype=dtype)
    x = torch.cartesian_prod(axis, axis)
    for sigma in (0.05, 1.0, 100.0):
        assert Checkerboard().log_density(x, sigma).isfinite().all()
        assert Checkerboard().score(x, sigma).isfinite().all()


def test_a_board_without_noise_has_no_score():
    x = torch.zeros(2, 2)
    for sigma in (0.0, torch.tensor([0.5, 0.0])):
        with pytest.raises(ValueError, match="Checkerboard has no smooth density without noise"):
            Checkerboard().score(x, sigma)


@pytest.mark.parametrize("squares", [-2, 0, 1, 3])
def test_a_board_needs_an_even_number_of_squares(squares):
    with pytest.raises(ValueError, match=f"even number of squares a side; got {squares}"):
        Checkerboard(squares)
