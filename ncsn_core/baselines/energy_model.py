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
from torch import Tensor, nn

from ncsn_core._types import Batch, PerSample
from ncsn_core.parametrizations import score_from_log_density
from ncsn_core.samplers.langevin import langevin

Energy = Callable[[Tensor], Tensor]


class EnergyModel(nn.Module):
    """A scalar energy E_θ of gray images of any size, after Nijkamp et al. (2019).

    A 3×3 convolution, two 4×4 convolutions that halve the resolution, a 3×3 convolution, a sum over
    the pixels, a linear map.  Softplus between them, since Langevin dynamics differentiates in x
    and training once more.

    Args:
        channels: C feature maps at full resolution, 2C and 4C at a half and a quarter.

    Raises:
        ValueError: without channels.
    """

    def __init__(self, channels: int = 40) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1; got {channels}")
        c = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, c, 3, padding=1),
            nn.Softplus(),
            nn.Conv2d(c, 2 * c, 4, stride=2, padding=1),
            nn.Softplus(),
            nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1),
            nn.Softplus(),
            nn.Conv2d(4 * c, 4 * c, 3, padding=1),
            nn.Softplus(),
        )
        self.head = nn.Linear(4 * c, 1)

    def forward(self, x: Float[Tensor, "batch 1 height width"]) -> PerSample:
        """E_θ of images in [0, 1]."""
        return self.head(self.features(2 * x - 1).sum((2, 3))).squeeze(1)


def short_run(
    energy: Energy,
    x: Batch,
    *,
    steps: int = 60,
    epsilon: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Batch:
    """Negatives by short-run Langevin dynamics (Nijkamp et al. 2019).

    The runs are far too short to forget their start.  What training then learns is a sampler of
    this length as much as an energy.

    Args:
        energy: maps x to one energy a sample.
        x: the starts, uniform noise in the paper.
        steps, epsilon, generator: see `ncsn_core.samplers.langevin`.
    """
    score = score_from_log_density(lambda y: -energy(y))  # ∇ log p = −∇E, without Z
    return langevin(score, x, epsilon=epsilon, steps=steps, generator=generator)


def contrastive_divergence(
    energy: Energy,
    data: Batch,
    negatives: Batch,
    *,
    penalty: float = 0.0,
) -> PerSample:
    """E(x) − E(x′): its gradient is the likelihood's when x′ ~ p_θ (Du & Mordatch 2019).

    Args:
        energy: maps images to one energy each.
        data: images x.
        negatives: x′; no gradient flows into how they were drawn.
        penalty: weight of E(x)² + E(x′)², which keeps the energies from drifting away together
            (Du & Mordatch 2019).
    """
    low, high = energy(data), energy(negatives.detach())
    return low - high + penalty * (low.square() + high.square())
