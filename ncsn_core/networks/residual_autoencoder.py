"""The residual auto-encoder whose training losses are Figure 1 of Song & Ermon (2019)."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 8  # of every GroupNorm, as in the authors' code; the paper does not mention any


class ResidualAutoencoder(nn.Module):
    """An image in, a score of the same shape out (Song & Ermon 2019, Appendix B.1).

    Five residual blocks encode, with `width` times 1, 2, 2, 4, 4 filters; the second and the fourth
    halve the resolution.  Five more decode, in mirror image.  Nothing connects the two halves but
    the code in the middle.  Blocks end with the ELU, as in the authors' code; the paper says
    "pre-activation" (He et al. 2016), which is the other kind here.  With 3 channels and width 32
    it is the network of Figure 1, with 1.38 million parameters.

    Args:
        channels: of the images.
        width: filters of the first block, a multiple of 8.
        preactivation: norm and ELU before each convolution of a block, and none after the sum.
    """

    def __init__(self, channels: int = 3, width: int = 32, *, preactivation: bool = False) -> None:
        super().__init__()
        if width < 1 or width % GROUPS:
            raise ValueError(f"width must be a positive multiple of {GROUPS}; got {width}")
        filters = [width * times for times in (1, 1, 2, 2, 4, 4)]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        down, up = pairwise(filters), pairwise(filters[::-1])
        self.encoder = nn.Sequential(*[EncoderBlock(*pair, preactivation) for pair in down])
        self.decoder = nn.Sequential(*[DecoderBlock(*pair, preactivation) for pair in up])
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Scores of images in [0, 1].

        Raises:
            ValueError: for a height or width that is not a multiple of 4.
        """
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(
                "height and width must be multiples of 4, since the network halves them twice; "
                f"got {x.shape[2]} x {x.shape[3]}"
            )
        return self.last(self.decoder(self.encoder(self.first(2 * x - 1))))


class EncoderBlock(nn.Module):
    """Two convolutions plus a shortcut; more filters mean half the resolution."""

    def __init__(self, before: int, after: int, preactivation: bool) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        first = nn.Conv2d(before, after, 3, padding=1, stride=stride)
        second = nn.Conv2d(after, after, 3, padding=1)
        self.main = _main(first, second, preactivation)
        self.last = nn.Identity() if preactivation else nn.ELU()
        self.shortcut = (
            nn.Identity() if stride == 1 else nn.Conv2d(before, after, 3, padding=1, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.main(x) + self.shortcut(x))


class DecoderBlock(nn.Module):
    """An encoder block in the mirror; fewer filters mean twice the resolution."""

    def __init__(self, before: int, after: int, preactivation: bool) -> None:
        super().__init__()
        doubles = before != after
        first = nn.Conv2d(before, after, 3, padding=1)
        second = _doubling(after, after) if doubles else nn.Conv2d(after, after, 3, padding=1)
        self.main = _main(first, second, preactivation)
        self.last = nn.Identity() if preactivation else nn.ELU()
        self.shortcut = _doubling(before, after) if doubles else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.main(x) + self.shortcut(x))


Convolution = nn.Conv2d | nn.ConvTranspose2d


def _main(first: Convolution, second: Convolution, preactivation: bool) -> nn.Sequential:
    """conv, norm, ELU, conv, norm; or norm, ELU, conv, norm, ELU, conv."""

    def norm(channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(GROUPS, channels)

    if preactivation:
        before, between = norm(first.in_channels), norm(second.in_channels)
        return nn.Sequential(before, nn.ELU(), first, between, nn.ELU(), second)
    return nn.Sequential(
        first, norm(first.out_channels), nn.ELU(), second, norm(second.out_channels)
    )


def _doubling(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1)
