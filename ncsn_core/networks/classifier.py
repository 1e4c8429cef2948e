"""A small classifier, whose features stand in for Inception's for digits and Fashion-MNIST."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DigitClassifier(nn.Module):
    """Convolutions 32, 32, 64, 64 with batch normalization and 64 features, for 28×28 gray images.

    Args:
        classes: number of classes.
    """

    image_size = 28
    num_features = 64

    def __init__(self, classes: int = 10) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            )

        self.body = nn.Sequential(
            block(1, 32),
            block(32, 32, stride=2),
            block(32, 64),
            block(64, 64, stride=2),
        )
        self.embed = nn.Linear(64 * 7 * 7, self.num_features)
        self.head = nn.Linear(self.num_features, classes)

    def features(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch features"]:
        """The 64 activations before the last layer, for images in [0, 1]."""
        return F.relu(self.embed(self.body(2.0 * x - 1.0).flatten(1)))

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch classes"]:
        """Class logits for images in [0, 1]."""
        return self.head(self.features(x))
