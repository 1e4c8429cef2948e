"""The network of an energy model: one number for an image, trained by `ncsn_core.contrastive`."""

from jaxtyping import Float
from torch import Tensor, nn


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

    def forward(self, x: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, " batch"]:
        """E_θ of images in [0, 1]."""
        return self.head(self.features(2 * x - 1).sum((2, 3))).squeeze(1)
