"""The samplers after NCSN against closed forms: Gaussians, mixtures, orders, likelihoods."""

import math
from itertools import pairwise

import pytest
import torch
from registry import SAMPLERS
from scores import MIXTURE, point_mass, without_type_checks

from ncsn_core.divergence import hutchinson_divergence
from ncsn_core.errors import UnknownNameError
from ncsn_core.metrics.cost import log_log_slope
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import (
    annealed_langevin,
    consistent_annealed,
    log_likelihood,
    probability_flow,
    reverse_diffusion,
    solve_probability_flow,
)
from ncsn_core.schedules import geometric_ladder, karras_ladder, per_sample

SPREAD = 0.5  # of the Gaussian data N(0, SPREAD² I) of this module


def gaussian(x, sigma):
    return -x / (SPREAD**2 + per_sample(sigma, x) ** 2)


def mixture(x, sigma):
    return MIXTURE.noised(sigma[0].item()).score(x)


def counting(score):
    """The score, and the list of the levels that it is asked for."""
    asked = []

    def watched(x, sigma):
        asked.append(round(sigma[0].item(), 6))
        return score(x, sigma)

    return watched, asked


ON_A_LADDER = {name: case for name, case in SAMPLERS.items() if "sigmas" in case.options}
FOR_SPREAD_OUT_DATA = [  # see below; and a fill has the law of the unknown given the known
    name for name in ON_A_LADDER if not name.startswith(("consistent_annealed", "inpaint"))
]
every = pytest.mark.parametrize("sampler", ON_A_LADDER.values(), ids=ON_A_LADDER)


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOR_SPREAD_OUT_DATA)
def test_samples_have_the_variance_of_the_data(name):
    """Gaussian data from the exact start, a fine ladder; four standard errors, 3 % of bias."""
    n, sigmas = 40_000, geometric_ladder(10.0, 0.01, 600)
    start = (SPREAD**2 + 100) ** 0.5 * torch.randn(n, 1, generator=generator_for(0))
    x = SAMPLERS[name](gaussian, start, generator_for(1), sigmas=sigmas)
    assert float(x.var()) == pytest.approx(SPREAD**2, rel=0.03 + 4 * (2 / n) ** 0.5)
    assert float(x.mean()) == pytest.approx(0, abs=4 * SPREAD / n**0.5)


@every
def test_every_update_is_shown(sampler):
    seen, sigmas = [], geometric_ladder(1.0, 0.1, 6)
    sampler(gaussian, torch.randn(3, 2), sigmas=sigmas, callback=seen.append)
    assert [state.level for state in seen] == sorted(state.level for state in seen)
    assert {state.level for state in seen} == set(range(6))
    for state in seen:
        assert state.sigma == pytest.approx(sigmas[state.level].item())
    assert not any(torch.equal(a.x, b.x) for a, b in pairwise(seen))


@every
def test_a_score_that_is_not_finite_is_named_with_evaluation_and_sigma(sampler):
    def broken(x, sigma):
        asked.append(sigma)
        return torch.where(per_sample(sigma, x) < 0.3, torch.nan, gaussian(x, sigma))

    asked = []
    with pytest.raises(FloatingPointError, match=r"\(sigma = 0\.2512\)") as error:
        sampler(broken, torch.randn(3, 2), sigmas=geometric_ladder(1.0, 0.1, 6))
    assert f"not finite at evaluation {len(asked)} " in str(error.value)


@every
def test_a_ladder_that_rises_is_refused(sampler):
    with pytest.raises(ValueError, match=r"level|Ladder|ladder"):
        sampler(gaussian, torch.randn(3, 2), sigmas=torch.tensor([0.1, 1.0]))


# --- evaluations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("annealed_langevin", 12),
        ("consistent_annealed", 6),
        ("consistent_annealed denoise=True", 7),
        ("reverse_diffusion", 12),
        ("probability_flow method=euler", 6),
        ("probability_flow", 11),
        ("probability_flow method=multistep", 6),
    ],
)
def test_evaluations_are_as_many_as_promised_and_at_the_ladders_levels(name, evaluations):
    sigmas = geometric_ladder(1.0, 0.1, 6)
    score, asked = counting(gaussian)
    SAMPLERS[name](score, torch.randn(2, 2), sigmas=sigmas)
    assert len(asked) == evaluations
    assert set(asked) <= {round(s, 6) for s in sigmas.tolist()}


# --- consistent annealed sampling ----------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.25, 0.6, 1.0, 1.5])
def test_noise_stays_on_the_ladder(eta):
    """For data that is always 0, x at level i+1 has variance σᵢ₊₁² exactly, at every level."""
    n, sigmas, seen = 200_000, geometric_ladder(1.0, 0.1, 12), []
    start = sigmas[0] * torch.randn(n, 1, generator=generator_for(0))
    consistent_annealed(
        point_mass,
        start,
        sigmas,
        epsilon=2 * 0.01 * eta,
        generator=generator_for(1),
        callback=lambda state: seen.append(float(state.x.var())),
    )
    for got, sigma in zip(seen[:-1], sigmas[1:], strict=True):
        assert got == pytest.approx(sigma.item() ** 2, rel=5 * (2 / n) ** 0.5)
    assert seen[-1] == pytest.approx((1 - eta) ** 2 * 0.01, rel=0.02, abs=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_consistency_is_that_of_a_single_point(eta):
    """Spread-out data loses variance: where σ is small beside the spread, a share of η/2."""
    n, sigmas = 100_000, geometric_ladder(1.0, 0.01, 200)
    start = (SPREAD**2 + 1) ** 0.5 * torch.randn(n, 1, generator=generator_for(0))
    x = consistent_annealed(gaussian, start, sigmas, epsilon=2e-4 * eta, generator=generator_for(1))
    variance = SPREAD**2 + 1
    for high, low in pairwise(sigmas.double().tolist()):
        kept = 1 - eta * high**2 / (SPREAD**2 + high**2)
        variance = kept**2 * variance + low**2 - ((1 - eta) * high) ** 2
    assert float(x.var()) == pytest.approx(variance, rel=0.01 + 4 * (2 / n) ** 0.5)
    assert variance < SPREAD**2 * (1 - eta / 4)


@pytest.mark.parametrize("denoise", [False, True])
def test_consistent_annealing_denoises_only_when_asked(denoise):
    x, sigmas, states = torch.randn(3, 2), geometric_ladder(1.0, 0.1, 6), []
    score, asked = counting(gaussian)
    got = consistent_annealed(
        score, x, sigmas, epsilon=0.012, denoise=denoise, callback=states.append
    )
    last = states[-1].x
    assert len(asked) == 6 + denoise
    expected = last + 0.01 * gaussian(last, sigmas[-1:].expand(3)) if denoise else last
    torch.testing.assert_close(got, expected)


def test_langevin_dynamics_does_not_stay_on_the_ladder():
    """What consistency is about: the variance of a level's end is above σ² however many steps."""
    n, seen = 100_000, []
    start = torch.randn(n, 1, generator=generator_for(0))
    annealed_langevin(
        point_mass,
        start,
        torch.ones(1),
        epsilon=0.4,
        steps_per_level=50,
        generator=generator_for(1),
        callback=lambda state: seen.append(float(state.x.var())),
    )
    assert seen[-1] > 1.08


def test_the_papers_step_is_illegal_on_the_papers_ladder():
    """NCSN's 2e-5 (4e-5 in Algorithm 1's form) is too small; 8.1e-5 to 3.2e-4 is legal."""
    ladder, x = geometric_ladder(), torch.rand(2, 3)
    for epsilon in (2e-5, 4e-5, 7.9e-5, 3.3e-4):
        with pytest.raises(ValueError, match=r"epsilon must lie between 8\.01e-05 and 0\.0003199"):
            consistent_annealed(point_mass, x, ladder, epsilon=epsilon)
    consistent_annealed(point_mass, x, ladder, epsilon=8.1e-5)


# --- the reverse SDE -----------------------------------------------------------------------------


def test_predictors_are_their_formulas():
    x, sigmas = torch.randn(4, 2), torch.tensor([0.8, 0.3])
    z = torch.randn(4, 2, generator=generator_for(5))
    drop = 0.8**2 - 0.3**2
    for ancestral, scale in ((False, 1.0), (True, 0.3 / 0.8)):
        middle = x + drop * gaussian(x, sigmas[:1].expand(4)) + scale * drop**0.5 * z
        expected = middle + 0.3**2 * gaussian(middle, sigmas[1:].expand(4))
        got = reverse_diffusion(
            gaussian, x, sigmas, ancestral=ancestral, generator=generator_for(5)
        )
        torch.testing.assert_close(got, expected)


def test_correctors_are_langevin_steps_of_the_stated_size():
    seen = []
    x, sigmas = torch.randn(4, 2), torch.tensor([0.8])
    reverse_diffusion(
        gaussian,
        x,
        sigmas,
        corrector_steps=3,
        snr=0.1**0.5,
        generator=generator_for(0),
        callback=seen.append,
    )
    by_langevin = annealed_langevin(
        gaussian,
        x,
        sigmas,
        epsilon=0.4 * 0.8**2,  # 2e-5 of the authors' code, at σ_L = 0.01, is ε = 0.4 σ_L²
        steps_per_level=3,
        denoise=True,
        generator=generator_for(0),
    )
    assert [state.step for state in seen] == [0, 1, 2, 3]
    torch.testing.assert_close(seen[-1].x, by_langevin)


@pytest.mark.parametrize("bad", [{"corrector_steps": -1}, {"snr": 0.0}])
def test_impossible_correctors_are_refused(bad):
    with pytest.raises(ValueError, match="corrector_steps"):
        reverse_diffusion(gaussian, torch.zeros(1, 1), torch.ones(1), **bad)


# --- the ODE -------------------------------------------------------------------------------------


def flow(x, first, last):
    """The exact flow of Gaussian data: x(σ) ∝ √(SPREAD² + σ²)."""
    return x * ((SPREAD**2 + last**2) / (SPREAD**2 + first**2)) ** 0.5


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("multistep", 2)])
def test_solvers_converge_with_their_order(method, order):
    """Error at σ_L against the number of levels, in float64, before the step to 0."""
    x = torch.tensor([[3.0]], dtype=torch.float64)
    counts, errors = (20.0, 40.0, 80.0, 160.0), []
    for levels in counts:
        seen = []
        sigmas = karras_ladder(4.0, 0.05, int(levels), power=1e3).double()
        sigmas[0], sigmas[-1] = 4.0, 0.05
        probability_flow(gaussian, x, sigmas, method=method, callback=seen.append)
        end = seen[-2].x
        errors.append(abs(float(end - flow(x, 4.0, 0.05))))
    assert log_log_slope(counts, errors).value == pytest.approx(-order, abs=0.25)


def test_an_unknown_method_is_refused():
    x, sigmas = torch.zeros(1, 1), torch.ones(1)
    with pytest.raises((ValueError, TypeError), match=r"(?s)euler.*heun.*multistep"):
        probability_flow(gaussian, x, sigmas, method="rk4")
    with (
        without_type_checks(),
        pytest.raises(
            UnknownNameError, match="unknown method 'rk4'; known: euler, heun, multistep"
        ),
    ):
        probability_flow(gaussian, x, sigmas, method="rk4")


def test_a_ladder_of_one_level_is_one_denoising_step():
    x = torch.randn(3, 2)
    expected = x + 0.49 * gaussian(x, torch.full((3,), 0.7))
    for method in ("euler", "heun", "multistep"):
        got = probability_flow(gaussian, x, torch.tensor([0.7]), method=method)
        torch.testing.assert_close(got, expected)


def test_adaptive_solver_is_the_exact_flow_both_ways():
    x = torch.tensor([[3.0], [-0.4]], dtype=torch.float64)
    score, asked = counting(gaussian)
    down = solve_probability_flow(score, x, 4.0, 0.01, tolerance=1e-8)
    assert down.evaluations == len(asked)
    torch.testing.assert_close(down.x, flow(x, 4.0, 0.01), rtol=1e-6, atol=1e-6)
    back = solve_probability_flow(gaussian, down.x, 0.01, 4.0, tolerance=1e-8)
    torch.testing.assert_close(back.x, x, rtol=1e-5, atol=1e-5)


def test_adaptive_solver_denoises_and_counts_it():
    x = torch.tensor([[3.0]], dtype=torch.float64)
    plain = solve_probability_flow(gaussian, x, 4.0, 0.3, tolerance=1e-6)
    clean = solve_probability_flow(gaussian, x, 4.0, 0.3, tolerance=1e-6, denoise=True)
    assert clean.evaluations == plain.evaluations + 1
    sigma = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(clean.x, plain.x + 0.09 * gaussian(plain.x, sigma))


def test_a_looser_tolerance_costs_fewer_evaluations():
    x = torch.randn(5, 2, dtype=torch.float64, generator=generator_for(0))
    loose, tight = (
        solve_probability_flow(mixture, 4 * x, 4.0, 0.01, tolerance=tolerance).evaluations
        for tolerance in (1e-2, 1e-8)
    )
    assert loose < tight / 3


def test_a_flow_that_runs_off_to_infinity_is_given_up():
    """dx/dlog σ = −σ² s = −x² from 1 at log σ = 0 downward: 1/(1 + log σ), without end at 1/e."""
    x = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="the ODE solver gave up: Required step size"):
        solve_probability_flow(lambda x, sigma: (x / per_sample(sigma, x)) ** 2, x, 1.0, 0.1)


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (1.0, 0.0), (1.0, -0.5), (1.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)]
)
def test_ends_must_be_two_noise_levels(ends):
    with pytest.raises(ValueError, match="two different positive"):
        solve_probability_flow(gaussian, torch.zeros(1, 1), *ends)


# --- likelihoods ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_likelihood_of_the_mixture_is_its_density():
    x = torch.randn(6, 2, dtype=torch.float64, generator=generator_for(0))
    prior = MIXTURE.noised(30.0).log_density
    got, evaluations = log_likelihood(mixture, x, 30.0, 0.05, prior, tolerance=1e-7)
    torch.testing.assert_close(got, MIXTURE.noised(0.05).log_density(x), rtol=0, atol=1e-4)
    assert evaluations > 10


@pytest.mark.slow
def test_a_gaussian_prior_is_off_by_less_the_farther_out_it_stands():
    x = torch.randn(6, 2, dtype=torch.float64, generator=generator_for(0))
    errors = []
    for first in (10.0, 100.0):
        normal = torch.distributions.Normal(0.0, first)
        got, _ = log_likelihood(
            mixture, x, first, 0.05, lambda y, normal=normal: normal.log_prob(y).sum(1)
        )
        errors.append(float((got - MIXTURE.noised(0.05).log_density(x)).abs().max()))
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 5


def test_likelihood_by_an_estimated_divergence_is_right_on_average():
    """Rademacher directions, 2,000 for one point: within four standard errors."""
    n = 2000
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(n, 2)
    v = torch.randint(0, 2, (1, n, 2), generator=generator_for(0)).double() * 2 - 1

    def estimated(score, y):
        return hutchinson_divergence(score, y, v=v)

    prior = MIXTURE.noised(30.0).log_density
    got, _ = log_likelihood(mixture, x, 30.0, 0.3, prior, divergence=estimated)
    expected = MIXTURE.noised(0.3).log_density(x[:1]).item()
    error = float(got.std()) / n**0.5
    assert error > 0
    assert float(got.mean()) == pytest.approx(expected, abs=4 * error)


def test_likelihood_goes_up_the_ladder():
    with pytest.raises(ValueError, match=r"needs sigma_max > sigma_min; got 0\.1 and 1\.0"):
        log_likelihood(gaussian, torch.zeros(1, 1), 0.1, 1.0, lambda x: x[:, 0])


def test_a_sampler_without_an_epsilon_does_not_advise_a_smaller_one():
    x = torch.zeros(2, 3)

    def infinite(x, sigma):
        return torch.full_like(x, math.inf)

    ladder = geometric_ladder(1.0, 0.1, 3)
    for sample in (probability_flow, reverse_diffusion):
        with pytest.raises(FloatingPointError, match="not finite at") as error:
            sample(infinite, x, ladder)
        assert "epsilon" not in str(error.value)


@pytest.mark.parametrize("epsilon", [0.0, -1e-4, math.inf, math.nan])
def test_consistent_annealing_refuses_such_an_epsilon_at_a_single_level_too(epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        consistent_annealed(point_mass, torch.zeros(2, 1), torch.tensor([0.1]), epsilon=epsilon)
