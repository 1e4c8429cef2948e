"""Annealed Langevin dynamics, one noise level after the other."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core.checks import later
from ncsn_core.samplers.langevin import langevin_step
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, checked, normal_like
from ncsn_core.schedules import langevin_step_sizes


def unconstrained(sigma: float) -> Callable[[Tensor], Tensor]:
    """Let the samples be, at every level."""
    return lambda x: x


def denoised(
    score: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    sigma: Float[Tensor, ""],
) -> Float[Tensor, "batch *shape"]:
    """x + σ² s(x, σ), the mean of the clean data given x (Tweedie)."""
    return x + sigma**2 * checked(score(x, sigma.expand(len(x))), x, "the final denoising step")


@torch.no_grad()
@later()
def annealed_langevin(
    score: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    constraint: Callable[[float], Callable[[Tensor], Tensor]] = unconstrained,
) -> Float[Tensor, "batch *shape"]:
    """Annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1).

    For each level i, T times:  x ← x + αᵢ/2 · s(x, σᵢ) + √αᵢ · z,  with αᵢ = ε σᵢ²/σ_L².
    This takes levels × T network evaluations, and holds a handful of batches in memory whatever T.

    Args:
        score: maps (x `[batch, *shape]`, σ [batch]) to a tensor like x.
        x: where the chains start; the paper's start is uniform noise in [0, 1].  Not modified.
        sigmas: the ladder, from the largest noise to the smallest.
        epsilon: ε of Algorithm 1.  The paper prints 2e-5; the authors' code runs 4e-5 in this form.
        steps_per_level: T.
        denoise: finish with x + σ_L² s(x, σ_L), the mean of the clean image given x (Tweedie); one
            more evaluation.  Without it samples carry noise of standard deviation about σ_L, as the
            paper's do.
        generator: source of z, on the device of `x`.
        callback: called with a `State` after every update.
        constraint: called with σᵢ at the start of each level; returns a map through which the
            samples go at once, and again after every update of the level.

    Returns:
        The last samples, not clipped.

    Raises:
        ValueError: for an invalid ladder, ε or T, or a score of another shape than its input.
        FloatingPointError: when a score is not finite, naming level and step.
    """
    if steps_per_level < 1:
        raise ValueError(f"steps_per_level must be at least 1; got {steps_per_level}")
    alphas = langevin_step_sizes(sigmas, epsilon).tolist()
    levels = sigmas.tolist()
    for i, alpha in enumerate(alphas):
        sigma = sigmas[i].expand(len(x))
        level = f"level {i + 1} of {len(alphas)} (sigma = {levels[i]:.4g})"
        constrained = constraint(levels[i])
        x = constrained(x)
        for t in range(steps_per_level):
            s = checked(score(x, sigma), x, f"{level}, step {t + 1}", SMALLER_STEPS)
            x = constrained(langevin_step(x, s, alpha, normal_like(x, generator)))
            if callback is not None:
                callback(State(i, t, levels[i], alpha, x, s))
    if denoise:
        x = denoised(score, x, sigmas[-1])
    return x
