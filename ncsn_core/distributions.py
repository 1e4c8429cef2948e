"""Distributions whose noised density and score are known in closed form: the oracles of the book.

For data p and noise N(0, σ²I) the noised density is the convolution q_σ = p * N(0, σ²I).  Every
distribution here answers `log_density(x, sigma)` and `score(x, sigma)` for q_σ, exactly, and its
`sample` draws from p.  σ is a number or one per sample; 0, the default, asks for p itself, which
those concentrated on a curve or a plane do not have.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core._types import PerSample, Points

Sigma = float | PerSample

# Gauss's rule on one panel of a curve: positions in [−1, 1] and weights.
POSITIONS, WEIGHTS = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))


class Distribution(Protocol):
    """What the toy chapters need to know about p and its noised versions q_σ."""

    @property
    def dimension(self) -> int:
        """D, the number of coordinates."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Points:
        """Draw `count` independent points of p."""

    def log_density(self, x: Points, sigma: Sigma = 0.0) -> PerSample:
        """log q_σ(x) [batch], in nats."""

    def score(self, x: Points, sigma: Sigma = 0.0) -> Points:
        """∇ₓ log q_σ(x) [batch, dimension]."""


@dataclass(frozen=True)
class GaussianMixture:
    """p(x) = Σ_k w_k N(x; μ_k, R_k diag(v_k) R_kᵀ), a mixture of Gaussians in any dimension.

    Noise adds σ² to every variance and changes nothing else, so that one formula serves p and all
    of its noised versions.  A variance may be 0: the component then lies on a plane, and only
    σ > 0 gives it a density.

    Attributes:
        means: μ [K, D].
        variances: v [K, D], along the axes of the component, at least 0.
        weights: w [K], positive, summing to 1.
        rotations: R [K, D, D], orthogonal, the axes as columns; the coordinate axes when None.
    """

    means: Float[Tensor, "components dimension"]
    variances: Float[Tensor, "components dimension"]
    weights: Float[Tensor, " components"]
    rotations: Float[Tensor, "components dimension dimension"] | None = None

    def __post_init__(self) -> None:
        if self.means.shape != self.variances.shape or self.means.shape[:1] != self.weights.shape:
            raise ValueError(
                f"means and variances are [K, D] and weights [K]; got {tuple(self.means.shape)}, "
                f"{tuple(self.variances.shape)} and {tuple(self.weights.shape)}"
            )
        if not torch.isfinite(self.means).all():
            raise ValueError("means must be finite")
        if not (torch.isfinite(self.variances).all() and (self.variances >= 0).all()):
            raise ValueError("variances must be finite and at least 0")
        total = self.weights.sum().item()
        if not (self.weights > 0).all() or abs(total - 1) > 1e-5:
            raise ValueError(f"weights must be positive and sum to 1; they sum to {total:g}")
        if self.rotations is not None:
            if self.rotations.shape != (*self.means.shape, self.dimension):
                raise ValueError(f"rotations are [K, D, D]; got {tuple(self.rotations.shape)}")
            product = self.rotations.mT @ self.rotations
            identity = torch.eye(self.dimension, dtype=product.dtype).expand_as(product)
            if not torch.allclose(product, identity.to(product.device), atol=1e-4):
                raise ValueError("rotations must be orthogonal matrices, one a component")

    @classmethod
    def from_covariances(
        cls,
        means: Float[Tensor, "components dimension"],
        covariances: Float[Tensor, "components dimension dimension"],
        weights: Float[Tensor, " components"],
    ) -> "GaussianMixture":
        """The mixture of N(μ_k, Σ_k), by the eigenvectors and eigenvalues of each Σ_k.

        An eigenvalue that is 0 but for rounding becomes 0: the component lies on a plane.

        Raises:
            ValueError: for a covariance that is not symmetric or has a negative eigenvalue.
        """
        if not torch.allclose(covariances, covariances.mT, atol=1e-6):
            raise ValueError("covariances must be symmetric")
        variances, rotations = torch.linalg.eigh(covariances)
        largest = variances.abs().amax(-1, keepdim=True)
        if (variances < -1e-6 * largest).any():
            raise ValueError("covariances must not have negative eigenvalues")
        rounding = means.shape[1] * torch.finfo(variances.dtype).eps * largest
        variances = torch.where(variances <= rounding, 0.0, variances)
        return cls(means, variances, weights, rotations)

    @property
    def dimension(self) -> int:
        """D, the number of coordinates."""
        return self.means.shape[1]

    @property
    def smallest_variance(self) -> float:
        """0 when a component lies on a plane."""
        return self.variances.min().item()

    def noised(self, sigma: float) -> "GaussianMixture":
        """q_σ, which is a mixture again, with variances v + σ²."""
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError("sigma must be finite and at least 0")
        return GaussianMixture(self.means, self.variances + sigma**2, self.weights, self.rotations)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Points:
        """Draw `count` independent points of p."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(
            count,
            self.dimension,
            generator=generator,
            dtype=self.means.dtype,
            device=self.means.device,
        )
        z = z * self.variances.sqrt()[component]
        if self.rotations is not None:
            z = (self.rotations[component] @ z.unsqueeze(-1)).squeeze(-1)
        return self.means[component] + z

    def log_components(self, x: Points, sigma: Sigma = 0.0) -> Float[Tensor, "batch components"]:
        """log w_k N(x; μ_k, Σ_k + σ²I), each component's share of the noised density."""
        return self._log_components(*self._standardized(x, sigma))

    def log_density(self, x: Points, sigma: Sigma = 0.0) -> PerSample:
        """log q_σ(x) [batch], in nats; ValueError for σ = 0 where p has no density."""
        return self.log_components(x, sigma).logsumexp(-1)

    def responsibilities(self, x: Points, sigma: Sigma = 0.0) -> Float[Tensor, "batch components"]:
        """P(component k | x) under q_σ; the rows sum to 1."""
        return self.log_components(x, sigma).softmax(-1)

    def score(self, x: Points, sigma: Sigma = 0.0) -> Points:
        """∇ log q_σ(x): the components' own scores (Σ_k + σ²I)⁻¹(μ_k − x), by responsibility."""
        along, variances = self._standardized(x, sigma)
        pull = -along / variances
        if self.rotations is not None:
            pull = torch.einsum("kij,bkj->bki", self.rotations, pull)
        responsibilities = self._log_components(along, variances).softmax(-1)
        return (responsibilities.unsqueeze(-1) * pull).sum(1)

    def _standardized(self, x: Points, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """x − μ_k along each component's axes, and the variances there: [batch, K, D] both."""
        variance = _variance(sigma, x, self.smallest_variance, type(self).__name__)
        offset = x.unsqueeze(1) - self.means
        if self.rotations is not None:
            offset = torch.einsum("kij,bki->bkj", self.rotations, offset)
        return offset, self.variances + variance.reshape(-1, 1, 1)

    def _log_components(self, along: Tensor, variances: Tensor) -> Tensor:
        """`log_components` from what `_standardized` returns."""
        exponent = (along.square() / variances).sum(-1)
        normalizer = variances.log().sum(-1) + self.dimension * math.log(2 * math.pi)
        return self.weights.log() - 0.5 * (exponent + normalizer)


@dataclass(frozen=True)
class Curve:
    """Data on a curve: p is the law of γ(t), t uniform on [0, 1], which has no density in R^D.

    With noise it has one, q_σ(x) = ∫ N(x; γ(t), σ²I) dt.  The integral is computed in float64 by
    Gauss's rule, which is as good at the ends of an open curve as in between: within a few σ of
    the curve its error is that of float32 while neighboring points of the rule are closer than σ,
    and soon far below.  A smaller σ is refused.

    Attributes:
        path: γ, maps t [n] to points [n, D].
        nodes: number of points in the integral, made up to a multiple of 40, a panel of the rule.
    """

    path: Callable[[Tensor], Tensor]
    nodes: int = 2000

    @property
    def dimension(self) -> int:
        """D, the number of coordinates."""
        return self.path(torch.zeros(1)).shape[1]

    @functools.cached_property
    def smallest_sigma(self) -> float:
        """The largest distance between neighboring points of the integral."""
        points, _ = self._rule
        return (points[1:] - points[:-1]).norm(dim=1).max().item()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Points:
        """Draw `count` independent points of the curve."""
        device = "cpu" if generator is None else generator.device
        return self.path(torch.rand(count, generator=generator, device=device))

    def log_density(self, x: Points, sigma: Sigma = 0.0) -> PerSample:
        """log q_σ(x) [batch], in nats; ValueError for a σ below `smallest_sigma`."""
        exponents, variance, points = self._exponents(x, sigma)
        normalizer = 0.5 * points.shape[1] * (2 * math.pi * variance).log()
        return (exponents.logsumexp(-1) - normalizer).to(x)

    def score(self, x: Points, sigma: Sigma = 0.0) -> Points:
        """∇ log q_σ(x) = (E[γ(t) | x] − x)/σ²; ValueError for a σ below `smallest_sigma`."""
        exponents, variance, points = self._exponents(x, sigma)
        expected = exponents.softmax(-1) @ points
        return ((expected - x.cpu()) / variance.unsqueeze(1)).to(x)

    @functools.cached_property
    def _rule(self) -> tuple[Tensor, Tensor]:
        """Points of the curve and their weights: Gauss–Legendre on equal panels of [0, 1]."""
        panels = -(-self.nodes // len(WEIGHTS))
        start = torch.arange(panels, dtype=torch.float64).unsqueeze(1)
        t = (start + (POSITIONS + 1) / 2) / panels
        return self.path(t.flatten()), (WEIGHTS / (2 * panels)).repeat(panels)

    def _exponents(self, x: Points, sigma: Sigma) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the integral's terms [batch, nodes], σ² [batch] and the points."""
        # On the CPU: Apple's GPUs have no float64.
        variance = _variance(sigma, x, 0.0, "Curve", least=self.smallest_sigma).cpu().double()
        (points, weights), wide = self._rule, x.cpu().double()
        # Not torch.cdist: its gradient is wrong under vmap.
        squared = wide.square().sum(1, keepdim=True) - 2 * wide @ points.mT + points.square().sum(1)
        return weights.log() - 0.5 * squared / variance.unsqueeze(1), variance, points


def ring(radius: float = 1.0) -> Curve:
    """A circle about the origin of the plane."""

    def path(t: Tensor) -> Tensor:
        angle = 2 * math.pi * t
        return radius * torch.stack([angle.cos(), angle.sin()], 1)

    return Curve(path)


def swiss_roll(turns: float = 1.5, radius: float = 1.0) -> Curve:
    """A spiral in the plane, from a third of `radius` out to `radius`."""

    def path(t: Tensor) -> Tensor:
        angle = 2 * math.pi * turns * t
        return (radius * (1 + 2 * t) / 3).unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)

    return Curve(path)


def embedded_curve(dimension: int, frequencies: int = 2, seed: int = 0) -> Curve:
    """A closed smooth curve in R^D that no plane holds: circles in random planes, added up.

    Each frequency f adds a circle of radius 1/f in a plane of its own, so that D must be at
    least twice the number of frequencies.

    Raises:
        ValueError: for a smaller D.
    """
    if dimension < 2 * frequencies:
        raise ValueError(
            f"{frequencies} frequencies need a dimension of at least {2 * frequencies}; "
            f"got {dimension}"
        )
    directions = torch.randn(
        dimension,
        2 * frequencies,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    basis = torch.linalg.qr(directions).Q

    def path(t: Tensor) -> Tensor:
        waves = []
        for f in range(1, frequencies + 1):
            angle = 2 * math.pi * f * t
            waves += [angle.cos() / f, angle.sin() / f]
        return torch.stack(waves, 1) @ basis.mT.to(t)

    return Curve(path)


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the black squares of a board [−1, 1]²: a density with edges.

    Inside a square log p is flat and its score 0; across an edge p jumps, so that p has no score
    there and no identity that integrates by parts holds for it.  With noise everything is smooth.

    Attributes:
        squares: squares along a side, even.
    """

    squares: int = 4

    def __post_init__(self) -> None:
        if self.squares < 2 or self.squares % 2:
            raise ValueError(f"a board has an even number of squares a side; got {self.squares}")

    @property
    def dimension(self) -> int:
        """Two."""
        return 2

    def sample(self, count: int, generator: torch.Generator | None = None) -> Points:
        """Draw `count` independent points of the black squares."""
        device = "cpu" if generator is None else generator.device
        row = torch.randint(self.squares, (count,), generator=generator, device=device)
        pair = torch.randint(self.squares // 2, (count,), generator=generator, device=device)
        within = torch.rand(count, 2, generator=generator, device=device)
        corner = torch.stack([2 * pair + row % 2, row], 1)
        return (corner + within) * (2 / self.squares) - 1

    def log_density(self, x: Points, sigma: Sigma = 0.0) -> PerSample:
        """log q_σ(x) [batch], in nats; for σ = 0 it is −∞ outside the black squares."""
        if not isinstance(sigma, Tensor) and sigma == 0:
            return self._clean(x)
        # float64, because the logarithms of tails differ in their last digits; so on the CPU
        width = _variance(sigma, x, 0.0, "Checkerboard").cpu().double().sqrt().reshape(-1, 1, 1)
        edges = torch.linspace(-1, 1, self.squares + 1, dtype=torch.float64)
        offset = edges - x.cpu().double().unsqueeze(-1)
        # log mass of N(x, σ²) in each column and each row: [batch, 2, squares]
        mass = _log_mass(offset[..., :-1] / width, offset[..., 1:] / width)
        shares = [
            mass[:, 0, parity::2].logsumexp(-1) + mass[:, 1, parity::2].logsumexp(-1)
            for parity in (0, 1)
        ]
        return (torch.logaddexp(*shares) - math.log(2.0)).to(x)

    def score(self, x: Points, sigma: Sigma = 0.0) -> Points:
        """∇ log q_σ(x); ValueError for σ = 0."""
        _variance(sigma, x, 0.0, "Checkerboard")
        return torch.func.grad(lambda y: self.log_density(y, sigma).sum())(x)

    def _clean(self, x: Points) -> PerSample:
        cell = ((x + 1) * (self.squares / 2)).floor()
        black = ((cell.sum(1) % 2) == 0) & ((cell >= 0) & (cell < self.squares)).all(1)
        return x.new_full((len(x),), -math.log(2.0)).masked_fill(~black, -math.inf)


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Φ(high) − Φ(low)), accurate in both tails."""
    right = low > 0
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    upper = torch.special.log_ndtr(high)
    return upper + torch.log(-torch.expm1(torch.special.log_ndtr(low) - upper))


def _variance(
    sigma: Sigma, x: Points, smallest_variance: float, name: str, least: float = 0.0
) -> PerSample:
    """σ² of each sample, [batch], after checking that q_σ has a density."""
    values = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if values.ndim and values.shape != x.shape[:1]:
        raise ValueError(
            f"sigma is a number or one for each of the {len(x)} samples; got shape "
            f"{tuple(values.shape)}"
        )
    values = values.expand(len(x))
    if not torch.isfinite(values).all() or (values < 0).any():
        raise ValueError("sigma must be finite and at least 0")
    if smallest_variance == 0 and len(x) and (values <= 0).any():
        raise ValueError(
            f"this {name} has no smooth density without noise, and so no score; give sigma > 0"
        )
    if len(x) and (values < least).any():
        raise ValueError(
            f"sigma = {values.min().item():.3g} is finer than the {least:.3g} between points of "
            f"the curve's integral; give the curve more nodes"
        )
    return values.square()
