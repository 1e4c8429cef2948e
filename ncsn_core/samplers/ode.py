"""The probability-flow ODE: sampling without noise on the way, and likelihoods.

With dx/dσ = −σ s(x, σ) every point moves so that at noise level σ the points have the law of the
data with noise σ (Song et al. 2021, §4.3).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core.checks import later
from ncsn_core.divergence import exact_divergence
from ncsn_core.samplers.annealed import denoised
from ncsn_core.samplers.state import Callback, State, checked
from ncsn_core.schedules import validate_ladder

NoiseConditional = Callable[[Tensor, Tensor], Tensor]
Method = Literal["euler", "heun", "multistep"]


@torch.no_grad()
@later()
def probability_flow(
    score: NoiseConditional,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    method: Method = "heun",
    callback: Callback | None = None,
) -> Float[Tensor, "batch *shape"]:
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
        FloatingPointError: when a score is not finite, naming the level.
    """
    if method not in ("euler", "heun", "multistep"):
        raise ValueError(f"method must be 'euler', 'heun' or 'multistep'; got {method!r}")
    levels = [*validate_ladder(sigmas).tolist(), 0.0]
    before: Tensor | None = None  # the denoised images of the step before

    for i, (sigma, below) in enumerate(pairwise(levels)):
        s = _at(score, x, sigma, f"level {i + 1} of {len(sigmas)}")
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
                end = below * _at(score, ahead, below, f"level {i + 2} of {len(sigmas)}")
                ahead = x + (sigma - below) * (slope + end) / 2
            x = ahead
        if callback is not None:
            callback(State(i, 0, sigma, sigma - below, x, s))
    return x


class Solution(NamedTuple):
    """Where an adaptive solver arrived, and how often it asked for the score of the batch."""

    x: Tensor
    evaluations: int


@torch.no_grad()
def solve_probability_flow(
    score: NoiseConditional,
    x: Float[Tensor, "batch *shape"],
    first: float,
    last: float,
    *,
    tolerance: float = 1e-4,
    denoise: bool = True,
) -> Solution:
    """The probability-flow ODE by an adaptive Runge–Kutta method of order 5(4), SciPy's RK45.

    Integrates dx/d log σ = −σ² s(x, σ), downward for samples and upward (`first` < `last`) to find
    the noise that belongs to an image.  One step size serves the whole batch, whose error is
    measured by its root mean square.

    Args:
        score: a noise-conditional score of every σ between the ends.
        x: where the points start, at noise level `first`.
        first, last: the ends.
        tolerance: relative and absolute, in the units of the data.
        denoise: finish with x + σ² s(x, σ) at `last`; one more evaluation.

    Raises:
        ValueError: for ends that are not positive or are equal.
        FloatingPointError: when a score is not finite, or the solver gives up.
    """
    ends = _log_ends(first, last)

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        sigma = _between(log_sigma, first, last)
        return _flat(-(sigma**2) * _at(score, _shaped(flat, x), sigma, f"sigma = {sigma:.4g}"))

    flat, evaluations = _integrate(slope, ends, _flat(x), tolerance)
    end = _shaped(flat, x)
    if denoise:
        end = denoised(score, end, torch.tensor(last, dtype=x.dtype, device=x.device))
        evaluations += 1
    return Solution(end, evaluations)


def log_likelihood(
    score: NoiseConditional,
    x: Float[Tensor, "batch *shape"],
    first: float,
    last: float,
    prior: Callable[[Tensor], Tensor],
    *,
    divergence: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = exact_divergence,
    tolerance: float = 1e-5,
) -> tuple[Float[Tensor, " batch"], int]:
    """log q_σ(x) at σ = `last` by the instantaneous change of variables (Song et al. 2021, §4.3).

    Along the flow, d log q_σ(x)/dσ = σ tr ∇s(x, σ).  Following x from `last` up to `first`,

        log q_last(x) = log q_first(x(first)) − ∫ σ tr ∇s(x(σ), σ) dσ.

    It is the density of the data *with noise* `last`, in nats, and that of the model's flow: a
    network's score need not be the score of any density, but its flow has one.

    Args:
        score: a noise-conditional score, differentiable in x, at every σ between the ends.
        x: points at noise level `last`.
        first, last: the largest and the smallest noise.
        prior: the log-density at `first`; a Gaussian where `first` is far beyond the data.
        divergence: (score, x) → its divergence for each sample, the exact one or an estimate such
            as `hutchinson_divergence` with fixed directions (they must not change on the way).
        tolerance: of SciPy's RK45, relative and absolute.

    Returns:
        The log-likelihoods, and the number of evaluations of score and divergence.

    Raises:
        ValueError: unless first > last > 0.
        FloatingPointError: when a score is not finite, or the solver gives up.
    """
    if not first > last:
        raise ValueError(f"needs first > last; got {first} and {last}")
    ends = _log_ends(last, first)
    n = x.numel()

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        sigma = _between(log_sigma, last, first)
        at = _shaped(flat[:n], x)
        with torch.no_grad():
            s = _at(score, at, sigma, f"sigma = {sigma:.4g}")
        trace = divergence(lambda y: score(y, _levels(y, sigma)), at)
        return np.concatenate([_flat(-(sigma**2) * s), _flat(sigma**2 * trace)])

    start = np.concatenate([_flat(x), np.zeros(len(x))])
    flat, evaluations = _integrate(slope, ends, start, tolerance)
    return prior(_shaped(flat[:n], x)) - torch.from_numpy(flat[n:]).to(x), evaluations


def _flat(x: Tensor) -> np.ndarray:
    """The numbers of a tensor, as SciPy wants them."""
    return x.detach().double().cpu().numpy().ravel()


def _shaped(flat: np.ndarray, like: Tensor) -> Tensor:
    """The tensor that `_flat` was given."""
    return torch.from_numpy(flat).to(like).reshape(like.shape)


def _levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)


def _at(score: NoiseConditional, x: Tensor, sigma: float, where: str) -> Tensor:
    return checked(score(x, _levels(x, sigma)), x, where)


def _log_ends(first: float, last: float) -> tuple[float, float]:
    if not (first > 0 and last > 0 and first != last):
        raise ValueError(f"needs two different positive noise levels; got {first} and {last}")
    return math.log(first), math.log(last)


def _between(log_sigma: float, *ends: float) -> float:
    """σ, without what exp(log σ) rounds beyond the ends."""
    return min(max(math.exp(log_sigma), min(ends)), max(ends))


def _integrate(
    slope: Callable[[float, np.ndarray], np.ndarray],
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
