"""Annealed Langevin dynamics, one noise level after the other."""

import torch

from ncsn_core._types import Batch, Ladder, NoiseConditional
from ncsn_core.parametrizations import denoiser_from_score
from ncsn_core.randomness import normal_like
from ncsn_core.samplers.langevin import langevin_step
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, sampler
from ncsn_core.schedules import langevin_step_sizes


@sampler(SMALLER_STEPS)
def annealed_langevin(
    score: NoiseConditional,
    x: Batch,
    sigmas: Ladder,
    *,
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Batch:
    """Annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1).

    For each level i, T times:  x ← x + αᵢ/2 · s(x, σᵢ) + √αᵢ · z,  with αᵢ = ε σᵢ²/σ_L².
    This takes levels × T network evaluations, and holds a handful of batches in memory whatever T.

    Args:
        score: maps (x `[batch, *shape]`, σ [batch]) to a tensor like x.
        x: where the chains start; the paper's start is uniform noise in [0, 1].  Not modified.
        sigmas: the ladder, from the largest noise to the smallest.
        epsilon: ε of Algorithm 1.  The paper prints 2e-5; the authors' code runs 4e-5 in this form.
        steps_per_level: T of Algorithm 1.
        denoise: finish with x + σ_L² s(x, σ_L), the mean of the clean image given x (Tweedie); one
            more evaluation.  Without it samples carry noise of standard deviation about σ_L, as the
            paper's do.
        generator: source of z, on the device of `x`.
        callback: called with a `State` after every update.

    Returns:
        The last samples, not clipped.

    Raises:
        ValueError: for an invalid ladder, ε or T, or a score of another shape than its input.
        FloatingPointError: when a score is not finite, naming σ and the evaluation.
    """
    alphas = langevin_step_sizes(sigmas, epsilon).tolist()
    for i, (sigma_i, alpha) in enumerate(zip(sigmas.tolist(), alphas, strict=True)):
        sigma = sigmas[i].expand(len(x))
        for t in steps(steps_per_level):
            s = score(x, sigma)
            x = langevin_step(x, s, alpha, normal_like(x, generator))
            if callback is not None:
                callback(State(i, t, sigma_i, alpha, x, s))
    if denoise:
        x = denoiser_from_score(score)(x, sigma)
    return x


def steps(count: int) -> range:
    """The steps of a level, from 0.

    Raises:
        ValueError: for none.
    """
    if count < 1:
        raise ValueError(f"steps_per_level must be at least 1; got {count}")
    return range(count)
