"""Networks: the NCSN RefineNet, the score that wraps it, and the digit classifier."""

from torch import nn

from ncsn_core.networks.classifier import DigitClassifier
from ncsn_core.networks.refinenet import RefineNet
from ncsn_core.networks.score import NoiseConditionalScore

__all__ = ["DigitClassifier", "NoiseConditionalScore", "RefineNet", "count_parameters"]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
