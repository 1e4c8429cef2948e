"""Networks: the RefineNet and its score, Figure 1's auto-encoder, toy networks, the classifier.

And what the score is compared with: an adversarial pair, a PixelCNN, an energy model.
"""

from torch import nn

from ncsn_core.networks.classifier import DigitClassifier
from ncsn_core.networks.energy_model import EnergyModel
from ncsn_core.networks.gan import Discriminator, Generator
from ncsn_core.networks.mlp import MLP, ConditionalMLP, Ensemble
from ncsn_core.networks.pixelcnn import PixelCNN
from ncsn_core.networks.refinenet import RefineNet
from ncsn_core.networks.residual_autoencoder import ResidualAutoencoder
from ncsn_core.networks.score import ContinuousScore, EnergyScore, NoiseConditionalScore

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
