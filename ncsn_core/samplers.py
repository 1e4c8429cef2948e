"""Samplers: from a score to samples.  Each observes through a callback and never prints."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core.schedules import langevin_step_sizes

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class State:
    """What a callback sees after each update; the tensors are never overwritten, so keep them.

    Attributes:
        level: index i of the noise level, from 0.
        step: update t within the level, from 0.
        sigma: σᵢ.
        alpha: step size αᵢ.
        x: the samples after the update, [batch, *shape].
        score: the score that the update used, at the samples *before* it.
    """

    level: int
    step: int
    sigma: float
    alpha: float
    x: Tensor
    score: Tensor


@torch.no_grad()
def annealed_langevin(
    score: Score,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    generator: torch.Generator | None = None,
    callback: Callable[[State], None] | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1).

    For each level i, T times:  x ← x + αᵢ/2 · s(x, σᵢ) + √αᵢ · z,  with αᵢ = ε σᵢ²/σ_L².
    This takes levels × T network evaluations, and holds a handful of batches in memory whatever T.

    Args:
        score: maps (x [batch, *shape], σ [batch]) to a tensor like x.
        x: where the chains start; the paper's start is uniform noise in [0, 1].  Not modified.
        sigmas: the ladder, from the largest noise to the smallest.
        epsilon: ε of Algorithm 1.  The paper prints 2e-5; the authors' code runs 4e-5 in this form.
        steps_per_level: T.
        denoise: finish with x + σ_L² s(x, σ_L), the mean of the clean image given x (Tweedie); one
            more evaluation.  Without it samples carry noise of standard deviation about σ_L, as the
            paper's do.
        generator: source of z, on the device of `x`.
        callback: called with a `State` after every update.

    Returns:
        The last samples, not clipped.

    Raises:
        ValueError: for an invalid ladder, ε or T, or a score of another shape than its input.
        FloatingPointError: when a score is not finite, naming level and step.
    """
    if steps_per_level < 1:
        raise ValueError(f"steps_per_level must be at least 1; got {steps_per_level}")
    alphas = langevin_step_sizes(sigmas, epsilon).tolist()
    for i, alpha in enumerate(alphas):
        sigma = sigmas[i].expand(len(x))
        for t in range(steps_per_level):
            s = _checked(score, x, sigma, f"level {i + 1} of {len(alphas)}", f", step {t + 1}")
            z = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
            x = x + alpha / 2 * s + alpha**0.5 * z
            if callback is not None:
                callback(State(i, t, sigmas[i].item(), alpha, x, s))
    if denoise:
        sigma = sigmas[-1].expand(len(x))
        x = x + sigmas[-1] ** 2 * _checked(score, x, sigma, "the final denoising step")
    return x


def _checked(score: Score, x: Tensor, sigma: Tensor, level: str, step: str = "") -> Tensor:
    s = score(x, sigma)
    if s.shape != x.shape:
        raise ValueError(
            f"a score has the shape of its input, {tuple(x.shape)}; got {tuple(s.shape)}"
        )
    if not torch.isfinite(s).all():
        raise FloatingPointError(
            f"the score is not finite at {level} (sigma = {sigma[0].item():.4g}){step}; "
            f"a smaller epsilon may help"
        )
    return s
