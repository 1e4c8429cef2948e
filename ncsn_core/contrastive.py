"""An energy model trained by maximum likelihood, its negatives drawn by Langevin dynamics.

p_θ(x) = exp(−E_θ(x)) / Z(θ) with a network E_θ of one output.  Z cannot be computed, and need not
be:

    −∇_θ log p_θ(x) = ∇_θ E_θ(x) − E_{x′ ~ p_θ} ∇_θ E_θ(x′),

so training lowers the energy of data and raises that of the model's own samples, the *negatives*.
They have to be drawn anew in every step, by short runs of Langevin dynamics from noise (Nijkamp et
al. 2019; Du & Mordatch 2019).  That is what such a model pays.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core.samplers import langevin, score_of


def short_run(
    energy: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    *,
    steps: int = 60,
    epsilon: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Negatives by short-run Langevin dynamics (Nijkamp et al. 2019).

    The runs are far too short to forget their start.  What training then learns is a sampler of
    this length as much as an energy.

    Args:
        energy: maps x to one energy a sample.
        x: the starts, uniform noise in the paper.
        steps, epsilon, generator: see `ncsn_core.samplers.langevin`.
    """
    score = score_of(lambda y: -energy(y))  # ∇ log p = −∇E, without Z
    return langevin(score, x, epsilon=epsilon, steps=steps, generator=generator)


def contrastive_divergence(
    energy: Callable[[Tensor], Tensor],
    data: Float[Tensor, "batch *shape"],
    negatives: Float[Tensor, "batch *shape"],
    *,
    penalty: float = 0.0,
) -> Float[Tensor, " batch"]:
    """E(x) − E(x′): its gradient is the likelihood's when x′ ~ p_θ (Du & Mordatch 2019).

    Args:
        energy: maps images to one energy each.
        data: x.
        negatives: x′; no gradient flows into how they were drawn.
        penalty: weight of E(x)² + E(x′)², which keeps the energies from drifting away together
            (Du & Mordatch 2019).
    """
    low, high = energy(data), energy(negatives.detach())
    return low - high + penalty * (low.square() + high.square())
