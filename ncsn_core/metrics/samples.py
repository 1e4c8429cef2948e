"""How samples and scores compare with a target that is known, and what chains do on the way.

`ncsn_core.metrics.images` measures images, whose modes and exact score are not at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ncsn_core._types import Ladder, PerSample, Points
from ncsn_core.data.datasets import to_bytes
from ncsn_core.samplers.state import State


class Share(NamedTuple):
    """An observed fraction and its confidence interval."""

    value: float
    low: float
    high: float


def mode_weights(
    x: Points, modes: Float[Tensor, "modes dimension"], *, confidence: float = 0.95
) -> list[Share]:
    """The fraction of samples that are nearest to each mode, with Wilson's interval (1927).

    The interval is the chance of `count` independent samples; it knows nothing of a sampler's bias.
    Where modes overlap, the fraction nearest to a mode is not the weight of its component.

    Args:
        x: independent samples.
        modes: where the modes are.
        confidence: probability with which an interval covers the true fraction.

    Raises:
        ValueError: for no samples, or samples that are not finite.
    """
    from scipy.stats import binomtest  # slow to import, and needed here alone

    if len(x) == 0:
        raise ValueError("there are no samples to count")
    if not torch.isfinite(x).all():
        raise ValueError("some samples are not finite: look at the sampler before the weights")
    nearest = torch.cdist(x, modes.to(x)).argmin(1)
    counts = torch.bincount(nearest, minlength=len(modes)).tolist()
    shares = []
    for count in counts:
        interval = binomtest(count, len(x)).proportion_ci(confidence, method="wilson")
        shares.append(Share(count / len(x), float(interval.low), float(interval.high)))
    return shares


def distance_to_nearest(x: Points, points: Float[Tensor, "points dimension"]) -> PerSample:
    """Euclidean distance of each sample to the nearest of `points`."""
    # torch's other way loses digits where points are close.
    distances = torch.cdist(x, points.to(x), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amin(1)


def sliced_wasserstein(
    x: Points, y: Points, *, directions: int = 100, generator: torch.Generator | None = None
) -> float:
    """Sliced Wasserstein-2 distance of two equally large samples (Bonneel et al. 2015).

    In one dimension optimal transport pairs the sorted points; the squared distance is averaged
    over random directions, and the root is in the units of the data.  Two samples of one law have
    a positive distance as well: compare with that.

    Args:
        x: a sample.
        y: another, of the same shape.
        directions: number of random directions on the unit sphere.
        generator: source of the directions.

    Raises:
        ValueError: for samples of different shapes.
    """
    if x.shape != y.shape:
        raise ValueError(
            f"sorted samples are paired one by one, so that both need one shape; "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    v = torch.randn(x.shape[1], directions, generator=generator, device=x.device, dtype=x.dtype)
    v = v / v.norm(dim=0)
    gaps = (x @ v).sort(0).values - (y @ v).sort(0).values
    return float(gaps.square().mean().sqrt())


def autocorrelation(
    chains: Float[Tensor, "steps chains"], *, mean: float | None = None
) -> Float[Tensor, " steps"]:
    """ρ(k), the correlation of a stationary series with itself k steps later, over all chains.

    By the fast Fourier transform; a lag of k has steps − k pairs, and late lags are noisy.

    Args:
        chains: one number a step and chain.
        mean: of the stationary law where it is known; the mean of all numbers when None.

    Raises:
        ValueError: for a series that does not vary.
    """
    steps = len(chains)
    series = chains.cpu().double()  # Apple's GPUs have no float64
    deviations = series - (series.mean() if mean is None else mean)
    spectrum = torch.fft.rfft(deviations, n=2 * steps, dim=0)
    sums = torch.fft.irfft(spectrum.abs().square(), n=2 * steps, dim=0)[:steps].sum(1)
    covariances = sums / torch.arange(steps, 0, -1)
    if covariances[0] <= 0:
        raise ValueError("the series does not vary, and has no autocorrelation")
    return (covariances / covariances[0]).float().to(chains.device)


def autocorrelation_time(
    chains: Float[Tensor, "steps chains"], *, mean: float | None = None
) -> float:
    """τ = 1 + 2 Σ_k ρ(k), the steps that are worth one independent sample.

    Summed in pairs of lags, which for a reversible chain are positive and fall; where they cease to
    do so there is only noise left (the initial monotone sequence of Geyer 1992).  A chain that is
    not many times longer than τ gives too small a value.
    """
    rho = autocorrelation(chains, mean=mean).cpu().double()
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(1)
    return float(2 * pairs.cummin(0).values.clamp(min=0).sum() - 1)


@dataclass(frozen=True)
class Binned:
    """A quantity averaged over bins of another.

    Attributes:
        edges: of the bins, [bins + 1].
        mean: of the quantity in each bin, [bins]; NaN where a bin is empty.
        standard_error: of the mean, [bins]; NaN for fewer than two values.
        count: values in each bin, [bins].
    """

    edges: Tensor
    mean: Tensor
    standard_error: Tensor
    count: Tensor


def binned(
    values: Float[Tensor, " count"],
    by: Float[Tensor, " count"],
    edges: Sequence[float] | Float[Tensor, " edges"],
) -> Binned:
    """Average `values` over bins [edge, next edge) of `by`; what lies outside all bins is left out.

    The error of a score against the distance from the modes is
    `binned((s - exact).square().sum(1), distance_to_nearest(x, modes), edges)`.

    Raises:
        ValueError: for edges that do not increase.
    """
    limits = torch.as_tensor(edges, dtype=by.dtype, device=by.device)
    if len(limits) < 2 or not (limits[1:] > limits[:-1]).all():
        raise ValueError("bins need at least two edges, in increasing order")
    bin_of = torch.bucketize(by, limits, right=True) - 1
    inside = (bin_of >= 0) & (bin_of < len(limits) - 1)
    index, wide = bin_of[inside].cpu(), values[inside].cpu().double()
    zeros = wide.new_zeros(len(limits) - 1)
    count = zeros.index_add(0, index, torch.ones_like(wide))
    mean = zeros.index_add(0, index, wide) / count
    squares = zeros.index_add(0, index, (wide - mean[index]).square())
    standard_error = (squares / (count - 1) / count).sqrt()
    standard_error[count < 2] = float("nan")
    found = (mean.to(values.dtype), standard_error.to(values.dtype), count.long())
    return Binned(limits, *(column.to(values.device) for column in found))


def intrinsic_dimension(x: Points, neighbors: int = 20, *, batch_size: int = 1000) -> float:
    """Dimension of the manifold that the points lie near (Levina & Bickel 2005).

    In k dimensions the number of neighbors within r grows like r^k, which makes the logarithms of
    the ratios of neighbor distances exponential with rate k.  The inverse of the estimate is
    averaged over the points, as MacKay & Ghahramani (2005) advise.  What it finds is the dimension
    at the scale of the neighbors' distances: with few points in a high dimension, too low a one.

    Args:
        x: distinct points.
        neighbors: k of the literature, at least 2.
        batch_size: points at once; the memory is batch_size × count distances.

    Raises:
        ValueError: for fewer than 2 neighbors, not more points than neighbors, or points that occur
            twice.
    """
    nearest = _nearest_distances(x, neighbors, batch_size)
    logs = (nearest[:, -1:] / nearest[:, :-1]).log().sum(1)
    return (neighbors - 1) / float(logs.mean())


def _nearest_distances(
    x: Points, neighbors: int, batch_size: int
) -> Float[Tensor, "count {neighbors}"]:
    """Distances from each point to so many others, in float64, the nearest first."""
    if not 2 <= neighbors < len(x):
        raise ValueError(
            f"neighbors must lie between 2 and the number of other points, {len(x) - 1}; "
            f"got {neighbors}"
        )
    found = []
    for some in x.split(batch_size):
        # The smallest distance is that of a point to itself.
        distances = torch.cdist(some, x, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(distances.topk(neighbors + 1, largest=False).values[:, 1:].cpu().double())
    nearest = torch.cat(found)
    if (nearest[:, 0] == 0).any():
        raise ValueError("some points occur twice; their distance has no logarithm")
    return nearest


class Recorder:
    """A callback for `sample` that keeps what the book shows of the chains, in little memory.

    Args:
        sigmas: the ladder.
        steps_per_level: T of Algorithm 1.
        dark: mask [channel, height, width] of pixels that are always black in the data.
        chains: how many chains to keep whole, the first ones; at most a batch.
        frames: about how many moments of these to keep for an animation; 0 keeps none.
    """

    def __init__(
        self,
        sigmas: Ladder,
        steps_per_level: int,
        dark: Bool[Tensor, "channel height width"],
        *,
        chains: int = 16,
        frames: int = 60,
    ) -> None:
        self.steps = steps_per_level
        self.levels = len(sigmas)
        self.dark = dark
        self.chains = chains
        moments = min(frames, self.levels * self.steps)
        self.moments = set(
            torch.linspace(0, self.levels * self.steps - 1, moments).round().long().tolist()
        )
        self.ends: list[Tensor] = []
        self.frames: list[Tensor] = []
        self.dark_sums = torch.zeros(self.levels, 3, dtype=torch.float64)
        self.ratios: list[list[Tensor]] = [[] for _ in range(self.levels)]

    def __call__(self, first: int, state: State) -> None:
        noise_norm = (state.step_size * state.x[0].numel()) ** 0.5
        drift_norm = state.step_size / 2 * state.score.flatten(1).norm(dim=1)
        self.ratios[state.level].append(drift_norm / noise_norm)  # of each chain; a GPU goes on

        if state.step == self.steps - 1:
            pixels = state.x[:, self.dark.to(state.x.device)].cpu().double()
            sums = [float(pixels.sum()), float(pixels.square().sum()), float(pixels.numel())]
            self.dark_sums[state.level] += torch.tensor(sums, dtype=torch.float64)
            if first == 0:
                self.ends.append(state.x[: self.chains].half().cpu())
        if first == 0 and state.level * self.steps + state.step in self.moments:
            self.frames.append(to_bytes(state.x[: self.chains]).cpu())

    def tensors(self) -> dict[str, Tensor]:
        """What was seen.

        Returns:
            ends: float16 [chains, levels, channel, height, width], the state after each level.
            frames: uint8 [frames, chains, channel, height, width], unless none were kept.
            dark_mean, dark_std: float32 [levels], over chains and dark pixels, after each level.
            snr: float32 [levels], mean of ‖α/2 · s‖ / √(αD) over all chains and steps.
        """
        total, squares, count = self.dark_sums.unbind(1)
        mean = total / count
        frames = {"frames": torch.stack(self.frames)} if self.frames else {}
        return frames | {
            "ends": torch.stack(self.ends, dim=1),
            "dark_mean": mean.float(),
            "dark_std": (squares / count - mean**2).clamp(min=0).sqrt().float(),
            "snr": torch.stack([torch.cat(r).cpu().double().mean() for r in self.ratios]).float(),
        }
