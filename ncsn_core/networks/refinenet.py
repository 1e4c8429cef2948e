"""The noise-conditional score network of Song & Ermon (2019), §4.1 and Appendix A.

A RefineNet (Lin et al. 2017) whose every normalization knows the noise level.  Read bottom up: a
normalization, the two kinds of convolution block, a RefineNet block, the network.

Every normalization is followed by either an ELU or a linear map, and every convolution sees the
normalized activations ("pre-activation"), so that a residual path is a plain sum.
"""

import functools
import inspect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad

Features = Float[Tensor, "batch _ _ _"]  # a feature map [batch, channel, height, width]
Coefficients = Float[Tensor, "batch channel"]
Levels = Int[Tensor, " batch"] | Float[Tensor, " batch"]


def instance_norm_plus(
    x: Float[Tensor, "batch channel height width"],
    gamma: Coefficients,
    beta: Coefficients,
    alpha: Coefficients | None = None,
) -> Float[Tensor, "batch channel height width"]:
    """Instance normalization++ (Song & Ermon 2019, Appendix A.1).

    With m_k the spatial mean of channel k, s_k its standard deviation, and M, V the mean and
    *unbiased* variance of the m_k over the channels of one image, channel k becomes

        γ_k · ( (x_k − m_k) / s_k  +  α_k · (m_k − M) / √(V + 1e-5) ) + β_k.

    Plain instance normalization throws m_k, the brightness of a feature map, away; the α term
    brings it back.  `alpha=None` leaves it out.
    """
    variance, m = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    y = (x - m) / torch.sqrt(variance + 1e-5)
    if alpha is not None:
        spread, mean = torch.var_mean(m, dim=1, correction=1, keepdim=True)
        y = y + alpha[:, :, None, None] * (m - mean) / torch.sqrt(spread + 1e-5)
    return gamma[:, :, None, None] * y + beta[:, :, None, None]


def normalize(
    x: Features,
    gamma: Coefficients,
    beta: Coefficients,
    alpha: Coefficients | None,
    *,
    elu: bool,
    compiled: bool,
) -> Features:
    """`instance_norm_plus` and an ELU after it if asked for, in the fastest form that is right.

    All forms give the same numbers to rounding, the statistics in float32 whatever `x` is in.
    """
    # torch forgets that the statistics depend on x when it differentiates its own kernel in forward
    # mode and then once more (pytorch issue 196699); the plain operations have the right ones.
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return _in_two_passes(x, gamma, beta, alpha, elu)
    if compiled:
        return _compiled()(x, gamma, beta, alpha, elu)
    return _by_kernel(x, gamma, beta, alpha, elu)


def _by_kernel(x: Tensor, gamma: Tensor, beta: Tensor, alpha: Tensor | None, elu: bool) -> Tensor:
    """The fastest eager way: torch's own kernel, a group for each channel, in contiguous memory."""
    shift = _with_means(beta, gamma, alpha, x.mean(dim=(2, 3), dtype=torch.float32))
    standardized = F.group_norm(x, x.shape[1]).to(x.dtype)
    y = torch.addcmul(_as_map(shift, x), standardized, _as_map(gamma, x))
    return F.elu(y, inplace=True) if elu else y


def _in_two_passes(
    x: Tensor, gamma: Tensor, beta: Tensor, alpha: Tensor | None, elu: bool
) -> Tensor:
    """What a compiler can fuse: one pass over memory for the moments, one for everything else."""
    variance, m = torch.var_mean(x.float(), dim=(2, 3), correction=0)
    scale = gamma * torch.rsqrt(variance + 1e-5)
    shift = _with_means(beta, gamma, alpha, m) - m * scale
    y = x.float() * scale[:, :, None, None] + shift[:, :, None, None]
    if elu:  # with e^y − 1, within 2⁻²³ of expm1(y), which takes six times as long on a CPU
        y = F.relu(y) + (y.clamp(max=0).exp() - 1)
    return y.to(x.dtype)


def _with_means(beta: Tensor, gamma: Tensor, alpha: Tensor | None, m: Tensor) -> Tensor:
    """β_k + γ_k α_k (m_k − M) / √(V + 1e-5), [batch, channel]: all that is added to a channel."""
    if alpha is None:
        return beta
    spread, mean = torch.var_mean(m, dim=1, correction=1, keepdim=True)
    return beta + gamma * alpha * (m - mean) / torch.sqrt(spread + 1e-5)


def _as_map(coefficients: Tensor, x: Tensor) -> Tensor:
    return coefficients[:, :, None, None].to(x.dtype)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """`_in_two_passes`, fused by `torch.compile`.

    The normalizations are memory-bound and the slowest part of the network in eager mode.  They
    come in about eight shapes per batch size, so that compiling them alone takes seconds where
    compiling the whole network takes minutes.
    """
    settings = torch._dynamo.config
    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, name, max(64, getattr(settings, name)))
    # Without the run-time type checks that the tests put around it; they cannot be compiled.
    return torch.compile(inspect.unwrap(_in_two_passes), dynamic=False)


def _near_one(levels: int, channels: int) -> nn.Parameter:
    """N(1, 0.02²); not drawn on the meta device, where asking loads all of torch's compiler."""
    values = torch.empty(levels, channels)
    return nn.Parameter(values if values.is_meta else values.normal_(1.0, 0.02))


class ConditionalInstanceNormPlus(nn.Module):
    """`instance_norm_plus` with one row of γ, α, β for each noise level.

    γ, α ~ N(1, 0.02²) and β = 0 at the start.  A level is the index of a row, or a number between
    two indices, where the rows are interpolated.

    Args:
        channels: number of feature maps, at least 2 (V is a variance over them).
        levels: number of noise levels.
        keep_means: the "++" term.  False gives plain conditional instance normalization.
        elu: whether an ELU follows.

    Its attribute `normalize`, set to False, leaves γ x + β and nothing more.
    """

    def __init__(
        self, channels: int, levels: int, *, keep_means: bool = True, elu: bool = True
    ) -> None:
        super().__init__()
        self.elu = elu
        self.compiled = False
        self.normalize = True
        self.gamma = _near_one(levels, channels)
        self.alpha = _near_one(levels, channels) if keep_means else None
        self.beta = nn.Parameter(torch.zeros(levels, channels))

    def forward(self, x: Features, level: Levels) -> Features:
        if not self.normalize:
            scale, shift = (rows(t, level)[:, :, None, None] for t in (self.gamma, self.beta))
            y = torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))
            return F.elu(y) if self.elu else y
        gamma, beta = rows(self.gamma, level), rows(self.beta, level)
        alpha = None if self.alpha is None else rows(self.alpha, level)
        return normalize(x, gamma, beta, alpha, elu=self.elu, compiled=self.compiled)


def rows(table: Float[Tensor, "levels channel"], level: Levels) -> Coefficients:
    """The rows of a table; at an index between two of them, their linear interpolation."""
    if not level.is_floating_point():
        return table[level]
    below = level.floor().clamp(0, len(table) - 2).long()
    return torch.lerp(table[below], table[below + 1], (level - below)[:, None])


def box_average(x: Features, width: int = 5) -> Features:
    """Average over a width × width window, stride 1, zero padding counted.

    The same as `F.avg_pool2d(x, width, stride=1, padding=width // 2)`, as a depthwise convolution,
    which runs about ten times faster on a CPU.
    """
    window = torch.ones(x.shape[1], 1, width, width, dtype=x.dtype, device=x.device)
    return F.conv2d(x, window, padding=width // 2, groups=x.shape[1]) * (1.0 / width**2)


def conv3x3(inputs: int, outputs: int, *, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3×3 convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


class ResidualBlock(nn.Module):
    """norm → ELU → 3×3 conv → norm → ELU → 3×3 conv, plus a shortcut.

    The resolution is kept, or halved by mean pooling (`downsample`) after the second convolution.
    A first block of a stage (`project`) has a convolution in its shortcut: 1×1 before the pooling,
    or a dilated 3×3 where the stage is dilated.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        levels: int,
        *,
        downsample: bool = False,
        dilation: int = 1,
        project: bool = False,
        keep_means: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = ConditionalInstanceNormPlus(inputs, levels, keep_means=keep_means)
        self.conv1 = conv3x3(inputs, inputs, dilation=dilation, bias=True)
        self.norm2 = ConditionalInstanceNormPlus(inputs, levels, keep_means=keep_means)
        self.conv2 = conv3x3(inputs, outputs, dilation=dilation, bias=True)
        self.shortcut: nn.Module = nn.Identity()
        if project and dilation > 1:
            self.shortcut = conv3x3(inputs, outputs, dilation=dilation, bias=True)
        elif project:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.pool: nn.Module = nn.AvgPool2d(2) if downsample else nn.Identity()

    def forward(self, x: Features, level: Levels) -> Features:
        h = self.conv1(self.norm1(x, level))
        h = self.conv2(self.norm2(h, level))
        return self.pool(h) + self.pool(self.shortcut(x))


class ResidualConvUnit(nn.Module):
    """`blocks` residual blocks of two (norm → ELU → 3×3 conv without bias) each."""

    def __init__(self, channels: int, levels: int, blocks: int, *, keep_means: bool = True) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            ConditionalInstanceNormPlus(channels, levels, keep_means=keep_means)
            for _ in range(2 * blocks)
        )
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(2 * blocks))

    def forward(self, x: Features, level: Levels) -> Features:
        for first in range(0, len(self.convs), 2):
            h = self.convs[first](self.norms[first](x, level))
            x = x + self.convs[first + 1](self.norms[first + 1](h, level))
        return x


class MultiResolutionFusion(nn.Module):
    """Bring feature maps of several resolutions to one: Σ upsample(conv(norm(xᵢ)))."""

    def __init__(
        self, inputs: list[int], outputs: int, levels: int, *, keep_means: bool = True
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            ConditionalInstanceNormPlus(n, levels, keep_means=keep_means, elu=False) for n in inputs
        )
        self.convs = nn.ModuleList(conv3x3(n, outputs, bias=True) for n in inputs)

    def forward(self, xs: list[Features], level: Levels) -> Features:
        size = xs[0].shape[2:]
        hs = []
        for x, norm, conv in zip(xs, self.norms, self.convs, strict=True):
            h = conv(norm(x, level))
            if h.shape[2:] != size:
                h = F.interpolate(h, size=size, mode="bilinear", align_corners=True)
            hs.append(h)
        return functools.reduce(torch.add, hs)


class ChainedResidualPooling(nn.Module):
    """Gather context from a growing window: twice norm → 5×5 pool → 3×3 conv, every stage summed.

    RefineNet pools by the maximum.  The paper pools by the average, zero padding counted, as style
    transfer does for smoother images; its code keeps the name `maxpool`.
    """

    def __init__(
        self, channels: int, levels: int, stages: int = 2, *, keep_means: bool = True
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            ConditionalInstanceNormPlus(channels, levels, keep_means=keep_means, elu=False)
            for _ in range(stages)
        )
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(stages))

    def forward(self, x: Features, level: Levels) -> Features:
        x = F.elu(x)
        path = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(box_average(norm(path, level)))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """One RefineNet block: residual conv units → multi-resolution fusion → pooling → output unit.

    `inputs` lists the channels of the feature maps that come in, the finest first; with one alone
    there is nothing to fuse.
    """

    def __init__(
        self,
        inputs: list[int],
        outputs: int,
        levels: int,
        *,
        last: bool = False,
        keep_means: bool = True,
    ) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(
            ResidualConvUnit(n, levels, 2, keep_means=keep_means) for n in inputs
        )
        self.fuse = (
            MultiResolutionFusion(inputs, outputs, levels, keep_means=keep_means)
            if len(inputs) > 1
            else None
        )
        self.pool = ChainedResidualPooling(outputs, levels, keep_means=keep_means)
        self.output = ResidualConvUnit(outputs, levels, 3 if last else 1, keep_means=keep_means)

    def forward(self, xs: list[Features], level: Levels) -> Features:
        hs = [unit(x, level) for unit, x in zip(self.adapt, xs, strict=True)]
        h = hs[0] if self.fuse is None else self.fuse(hs, level)
        return self.output(self.pool(h, level), level)


class RefineNet(nn.Module):
    """The NCSN architecture: s_θ(x, σᵢ) from an image and the index i of its noise level.

    Four residual stages (C, 2C at half resolution, 2C with dilation 2, 2C with dilation 4) and four
    RefineNet blocks back up: 75 convolutions and 71 normalizations (Song & Ermon 2019, Appendix A).
    Dilation keeps the resolution where pooling would lose it: a score has one value per pixel.

    Pixels come in [0, 1] and are mapped to 2x − 1 inside; the output is ∇ log q_σ with respect to
    the [0, 1] pixels.  The first and last convolution run in float32 also under autocast: at the
    smallest noise, bfloat16 would round black (−1) by 9% of σ_L, and the output carries ±1/σ_L.

    Args:
        channels: C; 64 for the paper's MNIST network (7,638,657 parameters at 10 levels), 128 for
            CIFAR-10 and CelebA (30,117,635).  At least 2.
        image_channels: 1 for gray images, 3 for color.
        image_size: height and width in pixels; must be even.
        levels: number of noise levels, at least 1.
        keep_means: see `ConditionalInstanceNormPlus`.
        normalize: False leaves every normalization out but for the scale and shift of its noise
            level; an ablation.
        input_range: what 0 and 1 become before 2x − 1, for a network that was trained on pixels of
            another range; see `ncsn_core.convert`.

    Raises:
        ValueError: for an odd or too small image, or fewer than two channels or one level.
    """

    def __init__(
        self,
        channels: int = 64,
        image_channels: int = 1,
        image_size: int = 28,
        levels: int = 10,
        *,
        keep_means: bool = True,
        normalize: bool = True,
        input_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        keep_means = keep_means and normalize
        low, high = input_range
        self.scale, self.shift = 2.0 * (high - low), 2.0 * low - 1.0
        if channels < 2 or levels < 1 or image_channels < 1:
            raise ValueError(
                f"a RefineNet needs channels >= 2, image_channels >= 1 and levels >= 1; "
                f"got {channels}, {image_channels} and {levels}"
            )
        if image_size < 4 or image_size % 2:
            raise ValueError(
                f"image_size must be even (stage 2 halves it) and at least 4; got {image_size}"
            )
        self.image_shape = (image_channels, image_size, image_size)
        self.levels = levels
        c = channels

        def residual(inputs: int, outputs: int, **kind: bool | int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, levels, keep_means=keep_means, **kind)  # type: ignore[arg-type]

        def refine(inputs: list[int], outputs: int, last: bool = False) -> RefineBlock:
            return RefineBlock(inputs, outputs, levels, last=last, keep_means=keep_means)

        self.begin = conv3x3(image_channels, c, bias=True)
        self.blocks = nn.ModuleList(
            [  # two a stage
                residual(c, c),
                residual(c, c),
                residual(c, 2 * c, downsample=True, project=True),
                residual(2 * c, 2 * c),
                residual(2 * c, 2 * c, dilation=2, project=True),
                residual(2 * c, 2 * c, dilation=2),
                residual(2 * c, 2 * c, dilation=4, project=True),
                residual(2 * c, 2 * c, dilation=4),
            ]
        )
        self.refine = nn.ModuleList(
            [
                refine([2 * c], 2 * c),
                refine([2 * c, 2 * c], 2 * c),
                refine([2 * c, 2 * c], c),
                refine([c, c], c, last=True),
            ]
        )
        self.norm = ConditionalInstanceNormPlus(c, levels, keep_means=keep_means)
        self.end = conv3x3(c, image_channels, bias=True)
        for module in self.modules():
            if isinstance(module, ConditionalInstanceNormPlus):
                module.normalize = normalize

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        level: Levels,
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the scores of `x` `[batch, *image_shape]`, each at its own noise level index.

        Indices that are not whole, in floating point, stand for noise between two levels.

        Raises:
            ValueError: when the images have another shape than the network was built for.
        """
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"this network takes images of shape {self.image_shape}; got {tuple(x.shape[1:])}"
            )
        if len(x) == 0:
            return torch.zeros_like(x, dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            h = self.begin(self.scale * x.float() + self.shift)
        if torch.is_autocast_enabled(x.device.type):
            h = h.to(torch.get_autocast_dtype(x.device.type))

        skips = []
        for i in range(4):
            h = self.blocks[2 * i + 1](self.blocks[2 * i](h, level), level)
            skips.append(h)

        h = self.refine[0]([skips[3]], level)
        h = self.refine[1]([skips[2], h], level)
        h = self.refine[2]([skips[1], h], level)
        h = self.refine[3]([skips[0], h], level)

        h = self.norm(h, level)
        with torch.autocast(x.device.type, enabled=False):
            return self.end(h.float())

    @property
    def compiled(self) -> bool:
        """Whether the normalizations are compiled."""
        return self.norm.compiled

    def compile_normalizations(self, compiled: bool = True) -> None:
        """Choose compiled normalizations (which need a C++ compiler or a GPU) or eager ones.

        Either way the weights go into the memory format in which it is fastest: channels last for
        the compiled ones, as convolutions prefer it; contiguous for the eager kernels, which would
        copy every feature map.
        """
        self.to(memory_format=torch.channels_last if compiled else torch.contiguous_format)
        for module in self.modules():
            if isinstance(module, ConditionalInstanceNormPlus):
                module.compiled = compiled
