"""Langevin dynamics and MALA against what is known in closed form about their chains."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from scores import without_type_checks

from ncsn_core.distributions import GaussianMixture
from ncsn_core.parametrizations import score_from_log_density
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import annealed_langevin, langevin, mala


def pull(x):
    """∇ log N(x; 0, I)."""
    return -x


def gaussian(x):
    """log N(x; 0, I) but for the constant."""
    return -0.5 * x.flatten(1).square().sum(1)


def run(x=None, *, score=pull, seed=0, **options):
    x = torch.zeros(3, 2) if x is None else x
    return langevin(
        score, x, generator=generator_for(seed), **{"epsilon": 0.1, "steps": 5} | options
    )


def adjusted(x=None, *, score=pull, log_density=gaussian, seed=0, **options):
    x = torch.zeros(3, 2) if x is None else x
    options = {"epsilon": 1.0, "steps": 5} | options
    return mala(score, x, log_density=log_density, generator=generator_for(seed), **options)


MIXTURE = GaussianMixture(  # skewed, with two modes that a chain can travel between
    torch.tensor([[-1.0], [2.0]]), torch.tensor([[0.25], [1.0]]), torch.tensor([0.3, 0.7])
)


def mixture_cdf(x):
    return 0.3 * norm.cdf(x, -1, 0.5) + 0.7 * norm.cdf(x, 2, 1)


# --- Langevin: the law of the chain ------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0, 3.0])
def test_stationary_variance_of_a_standard_normal(epsilon):
    """1/(1 − ε/4), and not 1; n = 200,000, four standard errors."""
    n, steps = 200_000, max(1, math.ceil(math.log(1e-4) / math.log(abs(1 - epsilon / 2) + 1e-9)))
    x = run(torch.zeros(n, 1), epsilon=epsilon, steps=steps)
    expected = 1 / (1 - epsilon / 4)
    assert float(x.var()) == pytest.approx(expected, rel=4 * (2 / n) ** 0.5)
    assert float(x.mean()) == pytest.approx(0, abs=4 * (expected / n) ** 0.5)


def test_stationary_mean_and_covariance_in_three_dimensions():
    """For N(μ, P⁻¹) the covariance C = (I − ½εP) C (I − ½εP) + εI has the root (P − ¼εP²)⁻¹."""
    n, epsilon = 200_000, 0.4
    precision = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    mean = torch.tensor([1.0, -2.0, 3.0])
    x = run(mean.expand(n, 3), score=lambda x: (mean - x) @ precision, epsilon=epsilon, steps=120)
    expected = torch.linalg.inv(precision - epsilon / 4 * precision @ precision)
    scale = expected.diagonal().sqrt()
    errors = 4 * torch.outer(scale, scale) * (2 / n) ** 0.5  # at least four standard errors
    assert ((x.T.cov() - expected).abs() < errors).all()
    assert ((x.mean(0) - mean).abs() < 4 * scale / n**0.5).all()


def test_variance_on_the_way_follows_the_recurrence():
    """v ← (1 − ε/2)² v + ε from any start; n = 100,000, four standard errors."""
    n, epsilon, variance, seen = 100_000, 0.3, 4.0, []
    start = 2 * torch.randn(n, 1, generator=generator_for(1))
    run(start, epsilon=epsilon, callback=lambda state: seen.append(float(state.x.var())))
    for got in seen:
        variance = (1 - epsilon / 2) ** 2 * variance + epsilon
        assert got == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)


@pytest.mark.slow
def test_bias_is_of_first_order_in_epsilon():
    """E[x²] for p = ½ sech²(x), where it is π²/12 and no formula gives the chain's own value.

    All chains start from exact samples and run for the same time εT; the slope of log bias against
    log ε is fitted.  Its standard error is about 0.07, and the next order in ε adds as much.
    """
    n, time = 1_000_000, 8.0
    start = torch.rand(n, 1, generator=generator_for(1), dtype=torch.float64)
    start = torch.atanh(2 * start - 1).float()
    epsilons, biases = [0.1, 0.2, 0.4], []
    for epsilon in epsilons:
        steps = round(time / epsilon)
        x = run(start, score=lambda x: -2 * torch.tanh(x), epsilon=epsilon, steps=steps)
        biases.append(float(x.square().mean()) - math.pi**2 / 12)
    slope = np.polyfit(np.log(epsilons), np.log(biases), 1)[0]
    assert slope == pytest.approx(1, abs=0.3)


def test_one_step_is_equation_4():
    x = torch.rand(2, 3)
    z = torch.randn(2, 3, generator=generator_for(0))
    torch.testing.assert_close(run(x, epsilon=0.1, steps=1), x + 0.05 * -x + 0.1**0.5 * z)


@pytest.mark.parametrize("epsilon", [1e-5, 0.03, 0.1, 1 / 3])
def test_annealed_langevin_with_one_level_is_langevin_to_the_bit(epsilon):
    x, level = torch.rand(50, 3, generator=generator_for(1)), torch.tensor([0.7])
    annealed = annealed_langevin(
        lambda x, sigma: -x / 3,
        x,
        level,
        epsilon=epsilon,
        steps_per_level=20,
        generator=generator_for(0),
    )
    plain = run(x, score=lambda x: -x / 3, epsilon=epsilon, steps=20)
    assert torch.equal(annealed, plain)


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_a_schedule_is_one_epsilon_a_step(kind):
    epsilons = [0.3, 0.2, 0.1]
    x, generator = torch.rand(4, 2), generator_for(0)
    got = run(x, epsilon=kind(epsilons), steps=None)
    for epsilon in epsilons:
        x = langevin(pull, x, epsilon=epsilon, steps=1, generator=generator)
    assert torch.equal(got, x)


def test_a_schedule_may_be_given_with_its_number_of_steps():
    sizes = [0.1] * 300
    assert torch.equal(run(epsilon=sizes, steps=300), run(epsilon=sizes, steps=None))


# --- MALA: the law of the chain ----------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("score", [MIXTURE.score, torch.zeros_like, lambda x: 1 - 0.5 * x])
def test_mala_leaves_the_target_invariant(epsilon, score):
    """Whatever the step and whatever the score, even no score at all: Kolmogorov–Smirnov.

    40,000 independent chains start from exact samples and make ten steps.  Each of the nine cases
    would fail by chance once in 10,000 seeds.
    """
    start = MIXTURE.sample(40_000, generator_for(1))
    x, acceptance = adjusted(
        start, score=score, log_density=MIXTURE.log_density, epsilon=epsilon, steps=10
    )
    assert 0.03 < acceptance.mean() < 0.999
    assert (x != start).float().mean() > 0.3
    assert kstest(x[:, 0].numpy(), mixture_cdf).pvalue > 1e-4


def test_langevin_does_not_leave_the_target_invariant():
    """The same test must be able to fail."""
    start = MIXTURE.sample(40_000, generator_for(1))
    x = run(start, score=MIXTURE.score, epsilon=1.0, steps=10)
    assert kstest(x[:, 0].numpy(), mixture_cdf).pvalue < 1e-10


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0])
def test_mala_has_the_variance_of_the_target_from_any_start(epsilon):
    n = 100_000
    x, _ = adjusted(torch.zeros(n, 1), epsilon=epsilon, steps=math.ceil(20 / epsilon))
    assert float(x.var()) == pytest.approx(1, rel=4 * (2 / n) ** 0.5)


def test_decisions_are_those_of_the_closed_form():
    """For N(0, I) the logarithm of the ratio is ε/8 · (‖x‖² − ‖y‖²), for the proposal y."""
    epsilon, start = 1.7, torch.randn(500, 3, generator=generator_for(1), dtype=torch.float64)
    states = []
    end, acceptance = adjusted(start, epsilon=epsilon, steps=1, callback=states.append)
    generator = generator_for(0)
    z = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    u = torch.rand(500, generator=generator, dtype=torch.float64)
    size = float(torch.tensor(epsilon))
    y = start - size / 2 * start + size**0.5 * z
    taken = u.log() < size / 8 * (start.square().sum(1) - y.square().sum(1))
    assert 0.2 < taken.double().mean() < 0.95
    assert torch.equal(states[0].accepted, taken)
    assert torch.equal(end, torch.where(taken[:, None], y, start))
    assert torch.equal(acceptance, taken.float())


def test_acceptance_tends_to_one_and_falls_with_the_step():
    start = torch.randn(5000, 10, generator=generator_for(1))
    rates = [float(adjusted(start, epsilon=e).acceptance.mean()) for e in (0.01, 0.3, 1.0, 3.0)]
    assert rates[0] > 0.999
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5


def test_acceptance_is_the_mean_of_the_decisions_and_a_rejected_chain_stays():
    states, start = [], torch.randn(200, 2, generator=generator_for(1))
    end, acceptance = adjusted(start, epsilon=3.0, steps=8, callback=states.append)
    decisions = torch.stack([state.accepted for state in states])
    torch.testing.assert_close(acceptance, decisions.float().mean(0))
    positions = [start] + [state.x for state in states]
    for before, after, taken in zip(positions, positions[1:], decisions, strict=False):
        assert torch.equal((after != before).any(1), taken)
    assert torch.equal(positions[-1], end)
    for before, state in zip(positions, states, strict=False):
        assert torch.equal(state.score, pull(before))


def test_a_target_with_an_edge():
    """The exponential law: −∞ beyond the edge, where the score is not even a number."""
    n = 50_000
    start = -torch.rand(n, 1, generator=generator_for(1)).clamp(min=1e-6).log()

    def log_density(x):
        return torch.where(x[:, 0] > 0, -x[:, 0], -torch.inf)

    def score(x):
        return torch.where(x > 0, -1.0, torch.nan)

    x, acceptance = adjusted(start, score=score, log_density=log_density, epsilon=0.8, steps=20)
    assert (x > 0).all()
    assert acceptance.mean() < 0.9
    assert kstest(x[:, 0].numpy(), "expon").pvalue > 1e-3


def test_energy_gives_the_score():
    x = torch.randn(20, 1)
    torch.testing.assert_close(score_from_log_density(MIXTURE.log_density)(x), MIXTURE.score(x))
    end, _ = adjusted(
        x, score=score_from_log_density(MIXTURE.log_density), log_density=MIXTURE.log_density
    )
    same, _ = adjusted(x, score=MIXTURE.score, log_density=MIXTURE.log_density)
    torch.testing.assert_close(end, same)


# --- both: the callback -------------------------------------------------------------------------

SAMPLERS = pytest.mark.parametrize(
    "sampler",
    [run, lambda *args, **options: adjusted(*args, **options).x],
    ids=["langevin", "mala"],
)


@SAMPLERS
def test_states_count_the_steps_and_have_no_level(sampler):
    states = []
    sampler(callback=states.append)
    assert [(s.level, s.step, s.sigma) for s in states] == [(0, t, 0.0) for t in range(5)]


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_stops_with_the_evaluation(bad):
    def score(x):
        calls.append(1)
        return torch.full_like(x, bad) if len(calls) == 4 else -x

    calls = []
    with pytest.raises(FloatingPointError, match="at evaluation 4; a smaller"):
        run(score=score)
    calls = []  # the first evaluation of MALA is at the start
    with pytest.raises(FloatingPointError, match="at evaluation 4; a smaller"):
        adjusted(score=score)
    with pytest.raises(FloatingPointError, match="at evaluation 1; a smaller"):
        adjusted(score=lambda x: torch.full_like(x, bad))


def test_a_step_that_is_too_large_is_noticed():
    """ε > 4 diverges for N(0, 1): by a factor of 4 a step, beyond float32 within 200."""
    with pytest.raises(FloatingPointError, match="a smaller epsilon may help"):
        run(epsilon=10.0, steps=200)


@SAMPLERS
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": [0.1, -0.1], "steps": 2}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be positive"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps": -2}, "steps must be at least 1; got -2"),
        ({"steps": None}, "number of steps"),
        ({"epsilon": [], "steps": None}, "steps must be at least 1"),
        ({"epsilon": [0.1, 0.2]}, "lists 2 steps, and steps is 5"),
    ],
)
def test_bad_settings_are_refused_before_the_first_evaluation(sampler, options, complaint):
    def never(x):
        pytest.fail("the score was evaluated")

    with pytest.raises(ValueError, match=complaint):
        sampler(score=never, **options)


def test_log_densities_are_one_finite_number_a_chain():
    with without_type_checks(), pytest.raises(ValueError, match="one number for each of 3 chains"):
        adjusted(log_density=lambda x: gaussian(x).sum())
    with pytest.raises(ValueError, match="the density is 0"):
        adjusted(log_density=lambda x: torch.full((3,), -torch.inf))
    for bad in (torch.nan, torch.inf):
        calls = []

        def log_density(x, bad=bad, calls=calls):
            calls.append(1)
            return torch.full((3,), bad) if len(calls) == 4 else gaussian(x)

        with pytest.raises(
            FloatingPointError, match="the log-density is not a number at evaluation 4"
        ):
            adjusted(log_density=log_density)
