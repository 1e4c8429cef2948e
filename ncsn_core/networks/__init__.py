"""Networks: the RefineNet and its score, Figure 1's auto-encoder, toy networks, the classifier.

And what the score is compared with: an adversarial pair, a PixelCNN, an energy model.
"""

from typing import TYPE_CHECKING

from torch import nn

from ncsn_core.lazy import names_of

if TYPE_CHECKING:
    from ncsn_core.networks.classifier import DigitClassifier
    from ncsn_core.networks.energy_model import EnergyModel
    from ncsn_core.networks.gan import Discriminator, Generator
    from ncsn_core.networks.mlp import MLP, ConditionalMLP, Ensemble
    from ncsn_core.networks.pixelcnn import PixelCNN
    from ncsn_core.networks.refinenet import RefineNet
    from ncsn_core.networks.residual_autoencoder import ResidualAutoencoder
    from ncsn_core.networks.score import ContinuousScore, EnergyScore, NoiseConditionalScore
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "classifier": "DigitClassifier",
            "energy_model": "EnergyModel",
            "gan": "Discriminator Generator",
            "mlp": "MLP ConditionalMLP Ensemble",
            "pixelcnn": "PixelCNN",
            "refinenet": "RefineNet",
            "residual_autoencoder": "ResidualAutoencoder",
            "score": "ContinuousScore EnergyScore NoiseConditionalScore",
        },
    )

__all__ = [
    "MLP",
    "ConditionalMLP",
    "ContinuousScore",
    "DigitClassifier",
    "Discriminator",
    "EnergyModel",
    "EnergyScore",
    "Ensemble",
    "Generator",
    "NoiseConditionalScore",
    "PixelCNN",
    "RefineNet",
    "ResidualAutoencoder",
    "count_parameters",
]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
