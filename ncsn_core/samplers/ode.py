"""The probability-flow ODE: sampling without noise on the way, and likelihoods.

With dx/dσ = −σ s(x, σ) every point moves so that at noise level σ the points have the law of the
data with noise σ (Song et al. 2021, §4.3).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ncsn_core._types import Batch, Ladder, LogDensity, NoiseConditional, PerSample, Score
from ncsn_core.divergence import exact_divergence
from ncsn_core.errors import UnknownNameError
from ncsn_core.parametrizations import denoiser_from_score
from ncsn_core.samplers.state import Callback, State, checked, guarded, sampler
from ncsn_core.schedules import validate_ladder

Method = Literal["euler", "heun", "multistep"]
Slope = Callable[[float, np.ndarray], np.ndarray]


@sampler()
def probability_flow(
    score: NoiseConditional,
    x: Batch,
    sigmas: Ladder,
    *,
    method: Method = "heun",
    callback: Callback | None = None,
) -> Batch:
    """The probability-flow ODE along a ladder, down to σ = 0 (Song et al. 2021, §4.3).

    - "euler": x + (σᵢ − σᵢ₊₁) σᵢ s(x, σᵢ).  The first order, L evaluations.
    - "heun": the mean of that slope and the one at its end (Karras et al. 2022, Algorithm 1).  The
      second order, 2L − 1 evaluations.
    - "multistep": DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), which is exact for a denoised
      image x + σ² s that changes linearly in log σ, and takes the change from the step before.  The
      second order, L evaluations.

    The last step goes from σ_L to 0 and is the denoising x + σ_L² s(x, σ_L) in each case.  The
    score is asked at the ladder's levels only.

    Args:
        score, callback: as for `annealed_langevin`.
        x: where the points start.
        sigmas: the ladder.
        method: the solver.

    Raises:
        ValueError: for an invalid ladder, an unknown method, or a score of another shape.
        FloatingPointError: when a score is not finite, naming σ and the evaluation.
    """
    if method not in get_args(Method):
        raise UnknownNameError("method", method, get_args(Method))
    levels = [*validate_ladder(sigmas).tolist(), 0.0]
    before: Tensor | None = None  # the denoised images of the step before

    for i, (sigma, below) in enumerate(pairwise(levels)):
        s = score(x, _levels(x, sigma))
        if method == "multistep":
            clean = target = x + sigma**2 * s
            if before is not None and below > 0:
                ratio = math.log(levels[i - 1] / sigma) / math.log(sigma / below)
                target = clean + (clean - before) / (2 * ratio)
            x = below / sigma * x + (1 - below / sigma) * target
            before = clean
        else:
            slope = sigma * s
            ahead = x + (sigma - below) * slope
            if method == "heun" and below > 0:
                end = below * score(ahead, _levels(x, below))
                ahead = x + (sigma - below) * (slope + end) / 2
            x = ahead
        if callback is not None:
            callback(State(i, 0, sigma, sigma - below, x, s))
    return x


class Solution(NamedTuple):
    """Where an adaptive solver arrived, and how often it asked for the score of the batch."""

    x: Tensor
    evaluations: int


@guarded()
def solve_probability_flow(
    score: NoiseConditional,
    x: Batch,
    sigma_start: float,
    sigma_end: float,
    *,
    tolerance: float = 1e-4,
    denoise: bool = False,
) -> Solution:
    """The probability-flow ODE by an adaptive Runge–Kutta method of order 5(4), SciPy's RK45.

    Integrates dx/d log σ = −σ² s(x, σ), downward for samples and upward (`sigma_start` <
    `sigma_end`) to find the noise that belongs to an image.  One step size serves the whole batch,
    whose error is measured by its root mean square.

    Args:
        score: a noise-conditional score of every σ between the ends.
        x: where the points start, at noise level `sigma_start`.
        sigma_start, sigma_end: the ends.
        tolerance: relative and absolute, in the units of the data.
        denoise: finish with x + σ² s(x, σ) at `sigma_end`; one more evaluation.

    Raises:
        ValueError: for ends that are not positive or are equal.
        FloatingPointError: when a score is not finite, or the solver gives up.
    """
    ends = _log_ends(sigma_start, sigma_end)

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        sigma = _between(log_sigma, sigma_start, sigma_end)
        return _flat(-(sigma**2) * score(_shaped(flat, x), _levels(x, sigma)))

    flat, evaluations = _integrate(slope, ends, _flat(x), tolerance)
    end = _shaped(flat, x)
    if denoise:
        end = denoiser_from_score(score)(end, _levels(x, sigma_end))
        evaluations += 1
    return Solution(end, evaluations)


class Likelihood(NamedTuple):
    """log q(x) of each sample, [batch], and how often the solver asked for score and divergence."""

    log_p: PerSample
    evaluations: int


def log_likelihood(
    score: NoiseConditional,
    x: Batch,
    sigma_max: float,
    sigma_min: float,
    prior: LogDensity,
    *,
    divergence: Callable[[Score, Tensor], Tensor] = exact_divergence,
    tolerance: float = 1e-5,
) -> Likelihood:
    """log q_σ(x) at σ_min by the instantaneous change of variables (Song et al. 2021, §4.3).

    Along the flow, d log q_σ(x)/dσ = σ tr ∇s(x, σ).  Following x from σ_min up to σ_max,

        log q_min(x) = log q_max(x(σ_max)) − ∫ σ tr ∇s(x(σ), σ) dσ.

    It is the density of the data *with noise* `sigma_min`, in nats, and that of the model's flow: a
    network's score need not be the score of any density, but its flow has one.

    Args:
        score: a noise-conditional score, differentiable in x, at every σ between the ends.
        x: points at noise level `sigma_min`.
        sigma_max, sigma_min: the largest and the smallest noise.
        prior: the log-density at `sigma_max`; a Gaussian where that is far beyond the data.
        divergence: (score, x) → its divergence for each sample, the exact one or an estimate such
            as `hutchinson_divergence` with fixed directions (they must not change on the way).
        tolerance: of SciPy's RK45, relative and absolute.

    Returns:
        The log-likelihood of each sample, and how often score and divergence were asked for.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0.
        FloatingPointError: when a score is not finite, or the solver gives up.
    """
    if not sigma_max > sigma_min:
        raise ValueError(f"needs sigma_max > sigma_min; got {sigma_max} and {sigma_min}")
    ends = _log_ends(sigma_min, sigma_max)
    n = x.numel()

    answer = checked(score)

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        sigma = _between(log_sigma, sigma_min, sigma_max)
        at = _shaped(flat[:n], x)
        with torch.no_grad():
            s = answer(at, _levels(x, sigma))
        trace = divergence(lambda y: score(y, _levels(y, sigma)), at)
        return np.concatenate([_flat(-(sigma**2) * s), _flat(sigma**2 * trace)])

    start = np.concatenate([_flat(x), np.zeros(len(x))])
    flat, evaluations = _integrate(slope, ends, start, tolerance)
    log_p = prior(_shaped(flat[:n], x)) - torch.from_numpy(flat[n:]).to(x)
    return Likelihood(log_p, evaluations)


def _flat(x: Tensor) -> np.ndarray:
    """The numbers of a tensor, as SciPy wants them."""
    return x.detach().cpu().double().numpy().ravel()


def _shaped(flat: np.ndarray, like: Tensor) -> Tensor:
    """The tensor that `_flat` was given."""
    return torch.from_numpy(flat).to(like).reshape(like.shape)


def _levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)


def _log_ends(start: float, end: float) -> tuple[float, float]:
    if not (start > 0 and end > 0 and start != end):
        raise ValueError(f"needs two different positive noise levels; got {start} and {end}")
    return math.log(start), math.log(end)


def _between(log_sigma: float, *ends: float) -> float:
    """σ, without what exp(log σ) rounds beyond the ends."""
    return min(max(math.exp(log_sigma), min(ends)), max(ends))


def _integrate(
    slope: Slope,
    ends: tuple[float, float],
    start: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, int]:
    from scipy.integrate import solve_ivp

    found = solve_ivp(
        slope, ends, start, method="RK45", rtol=tolerance, atol=tolerance, t_eval=[ends[1]]
    )
    if not found.success:
        raise FloatingPointError(f"the ODE solver gave up: {found.message}")
    return found.y[:, -1], found.nfev
