"""A small PixelCNN: an image's likelihood as a product over its pixels (van den Oord et al. 2016).

    log p(x) = Σᵢ log p(xᵢ | x₁, …, xᵢ₋₁),

with the pixels in raster order, row by row.  One network gives all of the conditionals at once, by
convolutions whose masks hide pixel i and those after it from output i.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ncsn_core._types import PerSample


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees the pixels before its own in raster order (Oord et al. 2016, §3.4).

    Args:
        inputs, outputs: feature maps.
        width: of the window, odd.
        own: whether the pixel itself is seen: not by the first layer (the paper's mask A), which
            looks at pixels, but by the later ones (mask B), which look at features that do not
            know it.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, width: int, *, own: bool) -> None:
        super().__init__(inputs, outputs, width, padding=width // 2)
        mask = torch.ones(width, width)
        mask[width // 2, width // 2 + own :] = 0
        mask[width // 2 + 1 :] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs height width"]:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class PixelCNN(nn.Module):
    """The logits of every pixel's value, given the pixels before it (van den Oord et al. 2016).

    A 7×7 convolution with mask A, residual blocks (ReLU → 1×1 to half the maps → ReLU → 3×3 with
    mask B → ReLU → 1×1 back), two 1×1 layers, a softmax over the gray levels.  Stacked 3×3 masks
    leave a blind spot up and to the right, which the gated PixelCNN closed later; the model is
    properly normalized all the same.

    Args:
        channels: feature maps between the blocks, even.
        blocks: number of residual blocks.
        values: gray levels of a pixel, 0 to values − 1, at least 2.

    Raises:
        ValueError: for numbers outside of these ranges.
    """

    def __init__(self, channels: int = 128, blocks: int = 8, values: int = 256) -> None:
        super().__init__()
        if channels < 2 or channels % 2 or blocks < 0 or values < 2:
            raise ValueError(
                f"a PixelCNN needs even channels >= 2, blocks >= 0 and values >= 2; "
                f"got {channels}, {blocks} and {values}"
            )
        self.values = values
        self.first = MaskedConv2d(1, channels, 7, own=False)
        self.blocks = nn.ModuleList(_block(channels) for _ in range(blocks))
        self.last = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, values, 1),
        )

    def forward(
        self, x: Float[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, "batch values height width"]:
        """Logits for images in [0, 1]; those at pixel i depend on the pixels before i alone."""
        h = self.first(2 * x - 1)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)

    def log_likelihood(self, x: Int[Tensor, "batch 1 height width"]) -> PerSample:
        """log p(x) in nats, exactly and for all pixels in one evaluation.

        Args:
            x: whole gray levels, int64, from 0 to values − 1.
        """
        logits = self(x.float() / (self.values - 1))
        return -F.cross_entropy(logits, x[:, 0], reduction="none").flatten(1).sum(1)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        height: int,
        width: int,
        *,
        pixels: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "{count} 1 {height} {width}"]:
        """Samples, one pixel after the other: height × width evaluations of the network.

        Every evaluation computes all pixels and uses one.  Keeping what does not change from pixel
        to pixel would save most of the work, but no evaluation: each needs the one before.

        Args:
            count: number of images, drawn side by side.
            height, width: of an image.
            pixels: stop after so many, which leaves the others black; None draws them all.
            generator: source of the draws, on the device of the network.
        """
        x = torch.zeros(count, 1, height, width, dtype=torch.int64, device=self.first.weight.device)
        for i in range(height * width if pixels is None else pixels):
            row, column = divmod(i, width)
            logits = self(x.float() / (self.values - 1))[:, :, row, column]
            drawn = torch.multinomial(logits.softmax(1), 1, generator=generator)
            x[:, :, row, column] = drawn
        return x


def _block(channels: int) -> nn.Sequential:
    half = channels // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, half, 1),
        nn.ReLU(),
        MaskedConv2d(half, half, 3, own=True),
        nn.ReLU(),
        nn.Conv2d(half, channels, 1),
    )
