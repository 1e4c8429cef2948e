"""NCSN as plainly as possible: a second network, loss and sampler to measure and test ours against.

The modules have the names of the authors' code, so that checkpoints are interchangeable.  Nothing
here shares code with `ncsn_core`.  The tests compare `ncsn_core.networks.RefineNet` with it, weight
for weight, and `speed.py` compares the speed: eager float32, a loss read on the host at every step,
every intermediate image of the sampler copied to the host, as in the authors' code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


class ConditionalInstanceNorm2dPlus(nn.Module):
    """γ·((x − m)/s + α·(m − M)/√(V + 1e-5)) + β; `embed` holds γ, α, β side by side."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, 3 * channels)
        with torch.no_grad():
            self.embed.weight[:, : 2 * channels].normal_(1, 0.02)
            self.embed.weight[:, 2 * channels :].zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gamma, alpha, beta = self.embed(y)[:, :, None, None].chunk(3, dim=1)
        m = x.mean(dim=(2, 3))
        spread = m.var(dim=1, keepdim=True)
        brightness = (m - m.mean(dim=1, keepdim=True)) / torch.sqrt(spread + 1e-5)
        return gamma * (F.instance_norm(x) + alpha * brightness[:, :, None, None]) + beta


def conv3(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3×3 convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


class ConvMeanPool(nn.Module):
    """A convolution, then the mean of every 2×2 pixels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, adjust_padding: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.conv = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), conv) if adjust_padding else conv

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


class ConditionalResidualBlock(nn.Module):
    """Twice normalization, ELU, convolution; the resolution is kept, or halved by mean pooling."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        classes: int,
        pool: bool = False,
        dilation: int = 1,
        shortcut: bool = False,
        adjust_padding: bool = False,
    ) -> None:
        super().__init__()

        def last(kernel: int) -> nn.Module:
            if pool:
                return ConvMeanPool(inputs, outputs, kernel, adjust_padding)
            return conv3(inputs, outputs, dilation)

        self.normalize1 = ConditionalInstanceNorm2dPlus(inputs, classes)
        self.conv1 = conv3(inputs, inputs, dilation)
        self.normalize2 = ConditionalInstanceNorm2dPlus(inputs, classes)
        self.conv2 = last(3)
        self.shortcut = last(1) if shortcut else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.normalize1(x, y)))
        return self.conv2(F.elu(self.normalize2(h, y))) + self.shortcut(x)


class CondRCUBlock(nn.Module):
    """Residual conv units; block b, stage s has the modules `b_s_norm` and `b_s_conv`, from 1."""

    def __init__(self, channels: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.blocks = blocks
        for name in (f"{b}_{s}" for b in range(1, blocks + 1) for s in (1, 2)):
            self.add_module(f"{name}_norm", ConditionalInstanceNorm2dPlus(channels, classes))
            self.add_module(f"{name}_conv", conv3(channels, channels, bias=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for b in range(1, self.blocks + 1):
            h = x
            for s in (1, 2):
                h = F.elu(self.get_submodule(f"{b}_{s}_norm")(h, y))
                h = self.get_submodule(f"{b}_{s}_conv")(h)
            x = x + h
        return x


class CondMSFBlock(nn.Module):
    """Multi-scale fusion: norm → conv → bilinear → sum, without an activation."""

    def __init__(self, inputs: list[int], outputs: int, classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalInstanceNorm2dPlus(n, classes) for n in inputs)
        self.convs = nn.ModuleList(conv3(n, outputs) for n in inputs)

    def forward(self, xs: list[Tensor], y: Tensor, shape: torch.Size) -> Tensor:
        scaled = [
            F.interpolate(conv(norm(x, y)), size=shape, mode="bilinear", align_corners=True)
            for x, norm, conv in zip(xs, self.norms, self.convs, strict=True)
        ]
        return sum(scaled[1:], start=scaled[0])


class CondCRPBlock(nn.Module):
    """Chained residual pooling by the average, zero padding counted."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        pair = (1, 2)
        self.norms = nn.ModuleList(ConditionalInstanceNorm2dPlus(channels, classes) for _ in pair)
        self.convs = nn.ModuleList(conv3(channels, channels, bias=False) for _ in pair)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        path = x = F.elu(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(F.avg_pool2d(norm(path, y), 5, stride=1, padding=2))
            x = x + path
        return x


class CondRefineBlock(nn.Module):
    """One RefineNet block: convolution units, fusion of resolutions, pooling, an output unit."""

    def __init__(self, inputs: list[int], outputs: int, classes: int, *, end: bool = False) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(CondRCUBlock(n, 2, classes) for n in inputs)
        if len(inputs) > 1:
            self.msf = CondMSFBlock(inputs, outputs, classes)
        self.crp = CondCRPBlock(outputs, classes)
        self.output_convs = CondRCUBlock(outputs, 3 if end else 1, classes)

    def forward(self, xs: list[Tensor], y: Tensor) -> Tensor:
        """The first input has the size of the result."""
        hs = [adapt(x, y) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        h = self.msf(hs, y, xs[0].shape[2:]) if len(hs) > 1 else hs[0]
        return self.output_convs(self.crp(h, y), y)


class CondRefineNetDilated(nn.Module):
    """The network of PAPER §4.1: image [batch, channel, height, width], class [batch] → scores.

    `adjusted` is the stage with `adjust_padding`: the fourth in their code, for 28 × 28 pixels.
    """

    def __init__(
        self, ngf: int = 64, image_channels: int = 1, classes: int = 10, adjusted: int | None = None
    ) -> None:
        super().__init__()
        wide = 2 * ngf

        def stage(number: int, inputs: int, *, pool: bool = False, **kind: Any) -> nn.ModuleList:
            kind["adjust_padding"] = adjusted == number
            first = ConditionalResidualBlock(inputs, wide, classes, pool, shortcut=True, **kind)
            return nn.ModuleList([first, ConditionalResidualBlock(wide, wide, classes, **kind)])

        self.begin_conv = conv3(image_channels, ngf)
        self.res1 = nn.ModuleList(ConditionalResidualBlock(ngf, ngf, classes) for _ in range(2))
        self.res2 = stage(2, ngf, pool=True)
        self.res3 = stage(3, wide, dilation=2)
        self.res4 = stage(4, wide, dilation=4)
        self.refine1 = CondRefineBlock([wide], wide, classes)
        self.refine2 = CondRefineBlock([wide, wide], wide, classes)
        self.refine3 = CondRefineBlock([wide, wide], ngf, classes)
        self.refine4 = CondRefineBlock([ngf, ngf], ngf, classes, end=True)
        self.normalizer = ConditionalInstanceNorm2dPlus(ngf, classes)
        self.end_conv = conv3(ngf, image_channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h, layers = self.begin_conv(2 * x - 1), []
        for stage in (self.res1, self.res2, self.res3, self.res4):
            for block in stage:
                h = block(h, y)
            layers.append(h)
        h = self.refine1([layers[3]], y)
        h = self.refine2([layers[2], h], y)
        h = self.refine3([layers[1], h], y)
        h = self.refine4([layers[0], h], y)
        return self.end_conv(F.elu(self.normalizer(h, y)))


def training_step(
    network: nn.Module, optimizer: Optimizer, sigmas: Tensor, x: Tensor, labels: Tensor, z: Tensor
) -> float:
    """Denoising score matching of images, levels and noise, with λ(σ) = σ²; returns the loss."""
    used = sigmas[labels].view(-1, 1, 1, 1)
    perturbed = x + z * used
    target = -1 / used**2 * (perturbed - x)
    error = (network(perturbed, labels) - target).view(len(x), -1)
    loss = (0.5 * (error**2).sum(dim=-1) * used.flatten() ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def sample(
    network: nn.Module, x: Tensor, sigmas: Tensor, steps_per_level: int, epsilon: float
) -> list[Tensor]:
    """Algorithm 1; returns every image on the way, on the host, and the last ones."""
    images = []
    with torch.no_grad():
        for c, sigma in enumerate(sigmas):
            labels = torch.ones(len(x), device=x.device).long() * c
            alpha = epsilon * (sigma / sigmas[-1]) ** 2
            for _ in range(steps_per_level):
                images.append(torch.clamp(x, 0.0, 1.0).to("cpu"))
                z = torch.randn_like(x)
                x = x + alpha / 2 * network(x, labels) + torch.sqrt(alpha) * z
    return [*images, x.to("cpu")]
