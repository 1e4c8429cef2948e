"""Networks: the RefineNet and the score made of it, Figure 1's auto-encoder, toy networks."""

from typing import TYPE_CHECKING

from torch import nn

from ncsn_core._lazy import names_of

if TYPE_CHECKING:
    from ncsn_core.networks.build import build_network, build_score
    from ncsn_core.networks.mlp import MLP, ConditionalMLP, Ensemble
    from ncsn_core.networks.refinenet import RefineNet
    from ncsn_core.networks.residual_autoencoder import ResidualAutoencoder
    from ncsn_core.networks.score import ContinuousScore, EnergyScore, NoiseConditionalScore
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "build": "build_network build_score",
            "mlp": "MLP ConditionalMLP Ensemble",
            "refinenet": "RefineNet",
            "residual_autoencoder": "ResidualAutoencoder",
            "score": "ContinuousScore EnergyScore NoiseConditionalScore",
        },
    )

__all__ = [
    "MLP",
    "ConditionalMLP",
    "ContinuousScore",
    "EnergyScore",
    "Ensemble",
    "NoiseConditionalScore",
    "RefineNet",
    "ResidualAutoencoder",
    "build_network",
    "build_score",
    "count_parameters",
]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
