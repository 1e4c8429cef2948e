"""The museum of bugs: plausible wrong code, and for each bug the one line that exposes it.

Every bug runs without complaint and answers with finite numbers of the right shape.  Its check is
a function of an implementation: the right one passes and the bug does not.  The exercises of
the chapters show the bugs and ask for the checks.
"""

import math

import pytest
import torch
from torch import nn

from ncsn_core.divergence import (
    exact_divergence,
    hutchinson_divergence,
    projections,
    quadratic_form,
)
from ncsn_core.objectives import (
    denoising_score_matching,
    explicit_score_matching,
    sliced_score_matching,
    sliced_score_matching_vr,
)
from ncsn_core.parametrizations import unconditional
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import langevin, mala
from ncsn_core.samplers.mala import log_proposal

# --- chapter 1: an average of logarithms -------------------------------------------------------


def log_of_the_mean_weight(log_weights):
    """log (1/n) Σ wᵢ: the estimate of log Z by importance sampling."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def mean_of_the_log_weights(log_weights):
    """Looks right because weights overflow, their logarithms do not, and a mean is a mean.

    But log is concave: by Jensen's inequality this stays below log Z, however many weights there
    are.
    """
    return log_weights.mean(0)


def weights_1_and_3_average_to_2(log_z):
    return math.isclose(log_z(torch.tensor([1.0, 3.0]).log()), math.log(2), rel_tol=1e-6)


# --- chapter 2: the sum of a Jacobian for its trace --------------------------------------------


def sum_of_the_jacobian(score, x):
    """Looks right because one backward pass differentiates every output in every input.

    But it adds the outputs up before it differentiates: Σᵢⱼ ∂sᵢ/∂xⱼ, the whole matrix and not its
    diagonal.  For the score of independent coordinates, a favorite of tests, the two are equal.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(x).sum(), x)
    return gradient.flatten(1).sum(1)


def swapping_two_coordinates_has_no_trace(divergence):
    return bool((divergence(lambda x: x.flip(1), torch.zeros(3, 2)) == 0).all())


# --- chapter 3: directions that are not centered -----------------------------------------------


def hutchinson_with_uniform_directions(score, x):
    """Looks right because `rand` says random, and any random direction should do.

    But E[v vᵀ] = I is what the proof needs.  For uniform numbers in [0, 1] it is ⅓ on the diagonal,
    and ¼ off it, where the mean of v leaks the rest of the Jacobian into the trace.
    """
    return quadratic_form(score, x, torch.rand_like(x))[1]


def minus_identity_has_trace_minus_4(divergence):
    return abs(divergence(torch.neg, torch.zeros(10_000, 4)).mean() + 4) < 0.2


# --- chapter 4: the denoising target -----------------------------------------------------------


def denoising(score, x, sigma):
    """½ ‖s(x̃) + (x̃ − x)/σ²‖², for one σ and a score that is not told it."""
    return denoising_score_matching(
        unconditional(score), x, torch.full((len(x),), sigma), weight=torch.ones_like
    )


def denoising_towards_the_noise(score, x, sigma):
    """Looks right because the noise is what the network has to find.

    But the score points back to the data: the target is −(x̃ − x)/σ², so that the loss adds
    (x̃ − x)/σ².  With this sign the network learns −∇ log q_σ, and Langevin dynamics diverges.
    """
    noised = x + sigma * torch.randn_like(x)
    return 0.5 * (score(noised) - (noised - x) / sigma**2).flatten(1).square().sum(1)


def the_score_of_a_point_has_no_denoising_loss(objective):
    return bool(objective(lambda x: -x / 0.25, torch.zeros(10, 4), 0.5).max() < 1e-6)


def denoising_with_uniform_noise(score, x, sigma):
    """Looks right because `rand` and `randn` differ by one letter, and the loss falls all the same.

    But the target is the score of N(x, σ²I), and uniform noise is not drawn from it.
    """
    z = torch.rand_like(x)
    return 0.5 * (score(x + sigma * z) + z / sigma).flatten(1).square().sum(1)


def score_0_loses_half_the_dimension_over_sigma_squared(objective):
    return abs(objective(torch.zeros_like, torch.zeros(10_000, 4), 0.5).mean() - 8) < 0.4


# --- chapter 5: slices -------------------------------------------------------------------------


def sliced_with_unit_directions(score, x):
    """Looks right because a slice is a direction, and a direction has length 1.

    But then E[v vᵀ] = I/D: the trace counts for one D-th of itself against the whole of ½‖s‖², and
    the minimum is at ∇ log p / D, the right field at the wrong length.
    """
    v = torch.nn.functional.normalize(torch.randn_like(x), dim=1)
    s, form = quadratic_form(score, x, v)
    return form + 0.5 * s.square().sum(1)


def minus_identity_loses_minus_4_at_the_origin(objective):
    return abs(objective(torch.neg, torch.zeros(10_000, 4)).mean() + 4) < 0.2


def sliced_with_an_elementwise_square(score, x, v):
    """Looks right because `(v * s).square().sum()` has every symbol of (vᵀs)².

    But it squares before it adds: Σ vᵢ²sᵢ².  No average over v finds this bug, because with
    E[v vᵀ] = I the mean of both is ‖s‖²; a given v does.
    """
    s, form = quadratic_form(score, x, v[0])
    return form + 0.5 * (v[0] * s).square().sum(1)


def a_slice_across_the_score_does_not_see_it(objective):
    return bool(objective(lambda x: x * 0 + ACROSS, torch.zeros(1, 2), torch.ones(1, 1, 2)) == 0)


ACROSS = torch.tensor([1.0, -1.0])  # at a right angle to (1, 1)


# --- chapter 6: samplers -----------------------------------------------------------------------


def langevin_at_temperature_2(x, epsilon, steps, generator):
    """Looks right because √(2ε) is what the authors' code writes.

    But its drift is ε·s, where the paper's is ε/2·s.  Mixed, the two sample √p.
    """
    for _ in range(steps):
        z = torch.randn(x.shape, generator=generator)
        x = x + epsilon / 2 * -x + (2 * epsilon) ** 0.5 * z
    return x


def mala_without_the_way_back(x, epsilon, steps, generator):
    """Looks right because p(y)/p(x) is Metropolis' own test.

    But his proposals were symmetric, and those of a Langevin step are not.
    """
    for _ in range(steps):
        y = x + epsilon / 2 * -x + epsilon**0.5 * torch.randn(x.shape, generator=generator)
        log_u = torch.rand(len(x), generator=generator).log()
        accepted = log_u < (x.square() - y.square()).sum(1) / 2
        x = torch.where(accepted[:, None], y, x)
    return x


def mala_with_the_score_of_what_was_rejected(x, epsilon, steps, generator):
    """Looks right because the score of the proposal was needed anyway.

    But where the proposal was rejected the next step starts at x, and needs the score of x.
    """
    s = -x
    for _ in range(steps):
        y = x + epsilon / 2 * s + epsilon**0.5 * torch.randn(x.shape, generator=generator)
        log_u = torch.rand(len(x), generator=generator).log()
        forth, back = log_proposal(y, x, s, epsilon), log_proposal(x, y, -y, epsilon)
        accepted = log_u < (x.square() - y.square()).sum(1) / 2 + back - forth
        x, s = torch.where(accepted[:, None], y, x), -y
    return x


def mala_of_the_accepted_only(x, epsilon, steps, generator):
    """Looks right because the rejected proposals are not samples.

    But a chain that stays counts again: that is how the probable places get their weight.
    """
    last = []
    mala(
        torch.neg,
        x,
        log_density=lambda x: -x.square().sum(1) / 2,
        epsilon=epsilon,
        steps=steps,
        generator=generator,
        callback=lambda state: last.append(state.x[state.accepted]),
    )
    return last[-1]


def a_standard_normal_keeps_its_variance(sampler, correction=1.0):
    """From exact samples, forty long steps, four standard errors; `correction` is the variance."""
    n = 40_000
    x = sampler(torch.randn(n, 1, generator=generator_for(0)), 2.0, 40, generator_for(1))
    return abs(float(x.square().mean()) / correction - 1) < 4 * (2 / len(x)) ** 0.5


def langevin_has_the_variance_of_its_step(sampler):
    return a_standard_normal_keeps_its_variance(sampler, correction=1 / (1 - 2.0 / 4))


# --- chapter 7: a variance for a standard deviation --------------------------------------------


def noised(x, z):
    """x + σz with σ² = 0.0001."""
    return x + 0.01 * z


def noised_by_the_variance(x, z):
    """Looks right because the paper writes N(0, 0.0001), and the eye cannot see either noise."""
    return x + 0.01**2 * z


def the_signal_to_noise_ratio_is_40_decibels(noise):
    x = torch.full((20_000,), 0.5)
    error = noise(x, torch.randn(20_000, generator=generator_for(0))) - x
    return abs(-10 * float(error.square().mean().log10()) - 40) < 0.2


# --- chapter 8: a mean over coordinates --------------------------------------------------------


def fisher_divergence_by_mse_loss(score, x, target):
    """Looks right because in the plane it is: 1/D = 1/2 there, and nowhere else."""
    return nn.functional.mse_loss(score(x), target(x))


def an_error_of_1_in_three_coordinates_is_three_halves(divergence):
    found = divergence(lambda x: x + 1, torch.zeros(5, 3), lambda x: x).mean()
    return math.isclose(float(found), 1.5, rel_tol=1e-6)


# --- the visit ---------------------------------------------------------------------------------


def adjusted(x, epsilon, steps, generator):
    return mala(
        torch.neg,
        x,
        log_density=lambda x: -x.square().sum(1) / 2,
        epsilon=epsilon,
        steps=steps,
        generator=generator,
    ).x


EXHIBITS = {
    "average of logarithms": (
        log_of_the_mean_weight,
        mean_of_the_log_weights,
        weights_1_and_3_average_to_2,
    ),
    "sum of the Jacobian": (
        exact_divergence,
        sum_of_the_jacobian,
        swapping_two_coordinates_has_no_trace,
    ),
    "uniform directions": (
        hutchinson_divergence,
        hutchinson_with_uniform_directions,
        minus_identity_has_trace_minus_4,
    ),
    "sign of the target": (
        denoising,
        denoising_towards_the_noise,
        the_score_of_a_point_has_no_denoising_loss,
    ),
    "uniform noise": (
        denoising,
        denoising_with_uniform_noise,
        score_0_loses_half_the_dimension_over_sigma_squared,
    ),
    "unit directions": (
        sliced_score_matching_vr,
        sliced_with_unit_directions,
        minus_identity_loses_minus_4_at_the_origin,
    ),
    "elementwise square": (
        lambda score, x, v: sliced_score_matching(score, x, v=v),
        sliced_with_an_elementwise_square,
        a_slice_across_the_score_does_not_see_it,
    ),
    "temperature 2": (
        lambda x, epsilon, steps, generator: langevin(
            torch.neg, x, epsilon=epsilon, steps=steps, generator=generator
        ),
        langevin_at_temperature_2,
        langevin_has_the_variance_of_its_step,
    ),
    "no way back": (adjusted, mala_without_the_way_back, a_standard_normal_keeps_its_variance),
    "score of the rejected": (
        adjusted,
        mala_with_the_score_of_what_was_rejected,
        a_standard_normal_keeps_its_variance,
    ),
    "accepted only": (adjusted, mala_of_the_accepted_only, a_standard_normal_keeps_its_variance),
    "variance for deviation": (
        noised,
        noised_by_the_variance,
        the_signal_to_noise_ratio_is_40_decibels,
    ),
    "mean over coordinates": (
        explicit_score_matching,
        fisher_divergence_by_mse_loss,
        an_error_of_1_in_three_coordinates_is_three_halves,
    ),
}


@pytest.mark.parametrize(("right", "wrong", "check"), EXHIBITS.values(), ids=EXHIBITS.keys())
def test_the_right_code_passes_the_check_and_the_bug_does_not(right, wrong, check):
    assert check(right)
    assert not check(wrong)


def test_no_average_over_directions_finds_the_elementwise_square():
    """What its docstring says: equal means, so that only a given direction tells them apart."""
    x = torch.ones(20_000, 3)
    v = projections(x).unsqueeze(0)
    difference = sliced_score_matching(torch.neg, x, v=v) - sliced_with_an_elementwise_square(
        torch.neg, x, v
    )
    assert difference.std() > 1
    assert difference.mean().abs() < 4 * difference.std() / len(x) ** 0.5
