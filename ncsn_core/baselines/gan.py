"""A small adversarial pair for gray images, after Radford et al. (2016).

The *generator* turns Gaussian noise into an image, the *discriminator* gives a logit for "this
image is real".  They are trained against each other, each by its own loss (Goodfellow et al. 2014).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ncsn_core._types import PerSample


class Generator(nn.Module):
    """Noise → image in [0, 1]: the generator of a DCGAN (Radford et al. 2016) with one doubling.

    A linear map to 2C maps at half the resolution, a 3×3 convolution there, a transposed 4×4
    convolution that doubles the resolution, a last 3×3 convolution, tanh.  Every layer but the last
    is followed by batch normalization and ReLU; every weight starts as N(0, 0.02²), or as torch
    has it where there is no normalization to bring such small weights up.

    Args:
        channels: C, the feature maps at full resolution.
        image_size: height and width; must be even.
        latent: dimension of the noise.
        normalize: False leaves batch normalization out.

    Raises:
        ValueError: for an odd image size, or a size that is not positive.
    """

    def __init__(
        self,
        channels: int = 32,
        image_size: int = 14,
        latent: int = 64,
        *,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        _check(channels, image_size, latent)
        c, half = channels, image_size // 2
        self.latent = latent
        self.layers = nn.Sequential(
            nn.Linear(latent, 2 * c * half**2),
            nn.Unflatten(1, (2 * c, half, half)),
            *_normalized(2 * c, nn.ReLU(), normalize),
            nn.Conv2d(2 * c, 2 * c, 3, padding=1),
            *_normalized(2 * c, nn.ReLU(), normalize),
            nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1),
            *_normalized(c, nn.ReLU(), normalize),
            nn.Conv2d(c, 1, 3, padding=1),
            nn.Tanh(),
        )
        if normalize:
            self.apply(_initialize)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 1 height width"]:
        """Images from noise z ~ N(0, I)."""
        return (self.layers(z) + 1) / 2

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "{count} 1 height width"]:
        """As many images, from noise that the `generator` draws: one evaluation a sample."""
        device = next(self.parameters()).device
        return self(torch.randn(count, self.latent, generator=generator).to(device))


class Discriminator(nn.Module):
    """Image in [0, 1] → logit of "real": the discriminator of a DCGAN (Radford et al. 2016).

    4×4 convolutions with stride 2 instead of pooling, leaky ReLUs of slope 0.2, batch normalization
    everywhere but after the first convolution, a linear map at the end.

    Args:
        channels: C, the feature maps at half the resolution; 2C at a quarter.
        image_size: height and width; must be even.
        normalize: False leaves batch normalization out.

    Raises:
        ValueError: for an odd image size, or a size that is not positive.
    """

    def __init__(self, channels: int = 32, image_size: int = 14, *, normalize: bool = True) -> None:
        super().__init__()
        _check(channels, image_size)
        c, half = channels, image_size // 2
        quarter = (half + 1) // 2  # rounded up: 7 → 4
        self.layers = nn.Sequential(
            nn.Conv2d(1, c, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(c, 2 * c, 3, stride=2, padding=1),
            *_normalized(2 * c, nn.LeakyReLU(0.2), normalize),
            nn.Flatten(),
            nn.Linear(2 * c * quarter**2, 1),
        )
        if normalize:
            self.apply(_initialize)

    def forward(self, x: Float[Tensor, "batch 1 height width"]) -> PerSample:
        """One logit an image."""
        return self.layers(2 * x - 1).squeeze(1)


def discriminator_loss(real: PerSample, fake: PerSample) -> PerSample:
    """−log D(x) − log(1 − D(G(z))), from the logits of D (Goodfellow et al. 2014, Eq. 1).

    It is log 4 for a discriminator that cannot tell, and 0 for one that always can.
    """
    return F.softplus(-real) + F.softplus(fake)


def generator_loss(fake: PerSample) -> PerSample:
    """−log D(G(z)), the non-saturating loss (Goodfellow et al. 2014, §3), from the logits of D.

    It points where log(1 − D(G(z))) does, but its gradient does not vanish where D wins: there it
    grows like −logit.
    """
    return F.softplus(-fake)


def _normalized(channels: int, activation: nn.Module, normalize: bool) -> tuple[nn.Module, ...]:
    return (nn.BatchNorm2d(channels), activation) if normalize else (activation,)


def _initialize(module: nn.Module) -> None:
    """Weights from N(0, 0.02²), scales from N(1, 0.02²), biases 0, as Radford et al. chose."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def _check(channels: int, image_size: int, latent: int = 1) -> None:
    if channels < 1 or latent < 1:
        raise ValueError(f"channels and latent must be at least 1; got {channels} and {latent}")
    if image_size < 4 or image_size % 2:
        raise ValueError(f"image_size must be even and at least 4; got {image_size}")
