"""The reverse of the diffusion that adds the noise, step by step, with Langevin steps between."""

from itertools import pairwise

import torch

from ncsn_core._types import Batch, Ladder, NoiseConditional
from ncsn_core.randomness import normal_like
from ncsn_core.samplers.langevin import langevin_step
from ncsn_core.samplers.state import Callback, State, sampler
from ncsn_core.schedules import validate_ladder


@sampler()
def reverse_diffusion(
    score: NoiseConditional,
    x: Batch,
    sigmas: Ladder,
    *,
    ancestral: bool = False,
    corrector_steps: int = 0,
    snr: float = 0.16,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Batch:
    """Predictor–corrector sampling of the reverse-time SDE (Song et al. 2021, Algorithm 2).

    The SDE is the variance-exploding one, whose marginal at time σ is the data with noise σ.  At
    each level, first the corrector, M Langevin steps of size α = 4 (r σᵢ)² in the form of Algorithm
    1; then the predictor, with σ_{L+1} = 0 and without noise at the end,

        x ← x + (σᵢ² − σᵢ₊₁²) s(x, σᵢ) + √(σᵢ² − σᵢ₊₁²) · z.

    An ancestral predictor (Ho et al. 2020, in the notation of Song et al. 2021, Appendix F) gives
    z the variance σᵢ₊₁² (σᵢ² − σᵢ₊₁²)/σᵢ² instead.  The last predictor step is the denoising
    x + σ_L² s(x, σ_L).  This takes L (M + 1) evaluations.

    Args:
        score, generator, callback: as for `annealed_langevin`.
        x: where the chains start; noise of standard deviation σ₁ for a ladder that starts far
            beyond the data.
        sigmas: the ladder.
        ancestral: which predictor.
        corrector_steps: M, corrections a level.
        snr: r, the signal-to-noise ratio; NCSN's code has √0.1 = 0.316 (its ε = 2e-5), the paper's
            Algorithm 1 √0.05.

    Raises:
        ValueError: for an invalid ladder, M below 0 or r that is not positive, or a score of
            another shape than its input.
        FloatingPointError: when a score is not finite, naming σ and the evaluation.
    """
    if corrector_steps < 0 or not snr > 0:
        raise ValueError(f"needs corrector_steps >= 0 and snr > 0; got {corrector_steps} and {snr}")
    levels = [*validate_ladder(sigmas).tolist(), 0.0]
    for i, (sigma_i, below) in enumerate(pairwise(levels)):
        sigma = sigmas[i].expand(len(x))
        alpha = 4 * (snr * sigma_i) ** 2
        for t in range(corrector_steps):
            s = score(x, sigma)
            x = langevin_step(x, s, alpha, normal_like(x, generator))
            if callback is not None:
                callback(State(i, t, sigma_i, alpha, x, s))
        s = score(x, sigma)
        drop = sigma_i**2 - below**2
        x = x + drop * s
        if below > 0:
            scale = below / sigma_i if ancestral else 1.0
            x = x + scale * drop**0.5 * normal_like(x, generator)
        if callback is not None:
            callback(State(i, corrector_steps, sigma_i, drop, x, s))
    return x
