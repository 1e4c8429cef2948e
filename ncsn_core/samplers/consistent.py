"""Consistent annealed sampling: noise that stays on the ladder, with one step a level."""

import math
from itertools import pairwise

import torch

from ncsn_core._types import Batch, Ladder, NoiseConditional
from ncsn_core.parametrizations import denoiser_from_score
from ncsn_core.randomness import normal_like
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, sampler
from ncsn_core.schedules import validate_ladder


@sampler(SMALLER_STEPS)
def consistent_annealed(
    score: NoiseConditional,
    x: Batch,
    sigmas: Ladder,
    *,
    epsilon: float,
    denoise: bool = False,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Batch:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2021, Algorithm 2).

    With η = ε/(2σ_L²) and g = σᵢ₊₁/σᵢ, once for each level:

        x ← x + η σᵢ² s(x, σᵢ) + σᵢ₊₁ √(1 − ((1 − η)/g)²) · z,

    without noise at the last one.  A Langevin step adds as much noise as the level has and leaves
    more than the next one allows for.  Here the noise that is left, (1 − η) σᵢ, and what is added
    make σᵢ₊₁ together.  This takes one evaluation a level.

    Args:
        score, x, generator, callback: as for `annealed_langevin`.  For more steps, take a finer
            ladder.
        sigmas: the ladder.
        epsilon: ε in the form of Algorithm 1 of Song & Ermon (2019), twice the ε of their code.
        denoise: finish with x + σ_L² s(x, σ_L), as the paper does; one more evaluation.

    Raises:
        ValueError: for an invalid ladder or ε; also unless 1 − g ≤ η ≤ 1 + g at every level, beyond
            which no noise can make up the difference.
        FloatingPointError: when a score is not finite, naming σ and the evaluation.
    """
    levels = validate_ladder(sigmas).tolist()
    eta = epsilon / (2 * levels[-1] ** 2)
    _check(levels, epsilon)
    for i, sigma_i in enumerate(levels):
        sigma = sigmas[i].expand(len(x))
        s = score(x, sigma)
        x = x + eta * sigma_i**2 * s
        if i + 1 < len(levels):
            left = (1 - eta) * sigma_i / levels[i + 1]
            x = x + levels[i + 1] * max(0.0, 1 - left**2) ** 0.5 * normal_like(x, generator)
        if callback is not None:
            callback(State(i, 0, sigma_i, 2 * eta * sigma_i**2, x, s))
    if denoise:
        x = denoiser_from_score(score)(x, sigma)
    return x


def _check(levels: list[float], epsilon: float) -> None:
    """Raise ValueError unless noise can make up what a step leaves, at every level."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be positive and finite; got {epsilon}")
    for high, low in pairwise(levels):
        g = low / high
        least, most = (2 * levels[-1] ** 2 * (1 + side * g) for side in (-1, 1))
        if not least <= epsilon <= most:
            raise ValueError(
                f"epsilon must lie between {least:.4g} and {most:.4g} for noise levels that fall "
                f"by {g:.4g} a step; got {epsilon:.4g}. A finer ladder allows smaller steps"
            )
