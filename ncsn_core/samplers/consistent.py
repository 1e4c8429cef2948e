"""Consistent annealed sampling: noise that stays on the ladder, with one step a level."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core.checks import later
from ncsn_core.samplers.annealed import denoised
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, checked, normal_like
from ncsn_core.schedules import langevin_step_sizes


@torch.no_grad()
@later()
def consistent_annealed(
    score: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    epsilon: float,
    denoise: bool = True,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2021, Algorithm 2).

    With η = ε/(2σ_L²) and g = σᵢ₊₁/σᵢ, once for each level:

        x ← x + η σᵢ² s(x, σᵢ) + σᵢ₊₁ √(1 − ((1 − η)/g)²) · z,

    without noise at the last one.  A Langevin step adds as much noise as the level has and leaves
    more than the next one allows for.  Here the noise that is left, (1 − η) σᵢ, and what is added
    make σᵢ₊₁ together.  This takes one evaluation a level, and one to denoise.

    Args:
        score, x, generator, callback: as for `annealed_langevin`.  For more steps, take a finer
            ladder.
        sigmas: the ladder.
        epsilon: ε in the form of Algorithm 1 of Song & Ermon (2019), twice the ε of their code.
        denoise: finish with x + σ_L² s(x, σ_L).

    Raises:
        ValueError: for an invalid ladder or ε; also unless 1 − g ≤ η ≤ 1 + g at every level, beyond
            which no noise can make up the difference.
        FloatingPointError: when a score is not finite, naming the level.
    """
    alphas = langevin_step_sizes(sigmas, epsilon).tolist()
    levels = sigmas.tolist()
    eta = epsilon / (2 * levels[-1] ** 2)
    for high, low in pairwise(levels):
        g = low / high
        if not 1 - g <= eta <= 1 + g:
            least, most = (2 * levels[-1] ** 2 * (1 + side * g) for side in (-1, 1))
            raise ValueError(
                f"epsilon must lie between {least:.4g} and {most:.4g} for noise levels that fall "
                f"by {g:.4g} a step; got {epsilon:.4g}. A finer ladder allows smaller steps"
            )
    for i, sigma in enumerate(levels):
        where = f"level {i + 1} of {len(levels)}"
        s = checked(score(x, sigmas[i].expand(len(x))), x, where, SMALLER_STEPS)
        x = x + eta * sigma**2 * s
        if i + 1 < len(levels):
            left = (1 - eta) * sigma / levels[i + 1]
            x = x + levels[i + 1] * max(0.0, 1 - left**2) ** 0.5 * normal_like(x, generator)
        if callback is not None:
            callback(State(i, 0, sigma, alphas[i], x, s))
    if denoise:
        x = denoised(score, x, sigmas[-1])
    return x
