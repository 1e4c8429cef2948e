"""NCSN as plainly as possible: a second network, loss and sampler to measure and test ours against.

`CondRefineNetDilated` has the module names of the authors' code, so that its state dictionaries
are interchangeable with their checkpoints.  Nothing here shares code with the rest of `ncsn_core`:
normalizations and poolings are the library's, and every layer is a line.  The tests compare
`ncsn_core.networks.RefineNet` with it, weight for weight, after `ncsn_core.convert`, and
`ncsn_core.book.bench` compares the speed: eager float32, a loss read on the host at every step,
every intermediate image of the sampler copied to the host, as in the authors' code.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class ConvMeanPool(nn.Module):
    """A convolution, then the mean of every 2×2 pixels."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, adjust_padding: bool = False
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        pad = nn.ZeroPad2d((1, 0, 1, 0))
        self.conv = nn.Sequential(pad, conv) if adjust_padding else conv

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def dilated(inputs: int, outputs: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)


class ConditionalResidualBlock(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        classes: int,
        *,
        pool: bool = False,
        dilation: int = 1,
        shortcut: bool = False,
        adjust_padding: bool = False,
    ) -> None:
        super().__init__()
        self.normalize1 = ConditionalInstanceNorm2dPlus(inputs, classes)
        self.conv1 = dilated(inputs, inputs, dilation)
        self.normalize2 = ConditionalInstanceNorm2dPlus(inputs, classes)
        self.conv2 = (
            ConvMeanPool(inputs, outputs, 3, adjust_padding)
            if pool
            else dilated(inputs, outputs, dilation)
        )
        if shortcut:
            self.shortcut = (
                ConvMeanPool(inputs, outputs, 1, adjust_padding)
                if pool
                else dilated(inputs, outputs, dilation)
            )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.normalize1(x, y)))
        h = self.conv2(F.elu(self.normalize2(h, y)))
        return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class CondRCUBlock(nn.Module):
    """Residual conv units; block b, stage s has the modules `b_s_norm` and `b_s_conv`, from 1."""

    def __init__(self, channels: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.blocks = blocks
        for b in range(1, blocks + 1):
            for s in (1, 2):
                self.add_module(f"{b}_{s}_norm", ConditionalInstanceNorm2dPlus(channels, classes))
                self.add_module(
                    f"{b}_{s}_conv", nn.Conv2d(channels, channels, 3, padding=1, bias=False)
                )

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
        self.convs = nn.ModuleList(nn.Conv2d(n, outputs, 3, padding=1) for n in inputs)

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
        self.norms = nn.ModuleList(
            ConditionalInstanceNorm2dPlus(channels, classes) for _ in range(2)
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = F.elu(x)
        path = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(F.avg_pool2d(norm(path, y), 5, stride=1, padding=2))
            x = x + path
        return x


class CondRefineBlock(nn.Module):
    def __init__(self, inputs: list[int], outputs: int, classes: int, *, end: bool = False) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(CondRCUBlock(n, 2, classes) for n in inputs)
        if len(inputs) > 1:
            self.msf = CondMSFBlock(inputs, outputs, classes)
        self.crp = CondCRPBlock(outputs, classes)
        self.output_convs = CondRCUBlock(outputs, 3 if end else 1, classes)

    def forward(self, xs: list[Tensor], y: Tensor, shape: torch.Size) -> Tensor:
        hs = [adapt(x, y) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        h = self.msf(hs, y, shape) if len(hs) > 1 else hs[0]
        return self.output_convs(self.crp(h, y), y)


class CondRefineNetDilated(nn.Module):
    """The network of PAPER §4.1: image [batch, channel, height, width], class [batch] → scores.

    `adjusted` is the stage that is built with `adjust_padding`: the authors' code does so with the
    fourth for images of 28 × 28 pixels, and with none for others.
    """

    def __init__(
        self,
        ngf: int = 64,
        image_channels: int = 1,
        classes: int = 10,
        adjusted: int | None = None,
    ) -> None:
        super().__init__()
        wide = 2 * ngf
        second, fourth = ({"adjust_padding": adjusted == number} for number in (2, 4))

        def stage(inputs: int, **kind: Any) -> nn.ModuleList:
            first = ConditionalResidualBlock(inputs, wide, classes, shortcut=True, **kind)
            kind.pop("pool", None)
            return nn.ModuleList([first, ConditionalResidualBlock(wide, wide, classes, **kind)])

        self.begin_conv = nn.Conv2d(image_channels, ngf, 3, padding=1)
        self.res1 = nn.ModuleList(ConditionalResidualBlock(ngf, ngf, classes) for _ in range(2))
        self.res2 = stage(ngf, pool=True, **second)
        self.res3 = stage(wide, dilation=2)
        self.res4 = stage(wide, dilation=4, **fourth)
        self.refine1 = CondRefineBlock([wide], wide, classes)
        self.refine2 = CondRefineBlock([wide, wide], wide, classes)
        self.refine3 = CondRefineBlock([wide, wide], ngf, classes)
        self.refine4 = CondRefineBlock([ngf, ngf], ngf, classes, end=True)
        self.normalizer = ConditionalInstanceNorm2dPlus(ngf, classes)
        self.end_conv = nn.Conv2d(ngf, image_channels, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        layers = [self.begin_conv(2 * x - 1)]
        for stage in (self.res1, self.res2, self.res3, self.res4):
            h = layers[-1]
            for block in stage:
                h = block(h, y)
            layers.append(h)
        _, layer1, layer2, layer3, layer4 = layers
        h = self.refine1([layer4], y, layer4.shape[2:])
        h = self.refine2([layer3, h], y, layer3.shape[2:])
        h = self.refine3([layer2, h], y, layer2.shape[2:])
        h = self.refine4([layer1, h], y, layer1.shape[2:])
        return self.end_conv(F.elu(self.normalizer(h, y)))


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, sigmas: Tensor
) -> Callable[..., float]:
    """A step of denoising score matching over all levels, with λ(σ) = σ² (Eqs. 5 and 6).

    Returns:
        A function from clean images [batch, channel, height, width], and where given their levels
        and noise, to the loss on the host.
    """

    def step(x: Tensor, labels: Tensor | None = None, z: Tensor | None = None) -> float:
        if labels is None:
            labels = torch.randint(0, len(sigmas), (len(x),), device=x.device)
        if z is None:
            z = torch.randn_like(x)
        used = sigmas[labels].view(-1, 1, 1, 1)
        perturbed = x + z * used
        target = -1 / used**2 * (perturbed - x)
        scores = network(perturbed, labels)
        error = (scores - target).view(len(x), -1)
        loss = (0.5 * (error**2).sum(dim=-1) * used.flatten() ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def sample(
    network: nn.Module,
    x: Tensor,
    sigmas: Tensor,
    steps_per_level: int,
    epsilon: float,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Algorithm 1; returns every image on the way, on the host, and the last ones."""
    images = []
    with torch.no_grad():
        for c, sigma in enumerate(sigmas):
            labels = torch.ones(len(x), device=x.device).long() * c
            alpha = epsilon * (sigma / sigmas[-1]) ** 2
            for _ in range(steps_per_level):
                images.append(torch.clamp(x, 0.0, 1.0).to("cpu"))
                z = torch.randn(x.shape, device=x.device, generator=generator)
                x = x + alpha / 2 * network(x, labels) + torch.sqrt(alpha) * z
        images.append(x.to("cpu"))
    return images
