"""Measurements of images: loss and score per level, distances, precision and recall, neighbors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ncsn_core._checks import check_clean
from ncsn_core._types import Ladder, NoiseConditional
from ncsn_core.data.datasets import to_unit
from ncsn_core.data.pixels import as_images, as_tensor
from ncsn_core.metrics.features import PARTS, Extractor, Inception, inception_score
from ncsn_core.randomness import normal_like
from ncsn_core.schedules import per_sample


@dataclass(frozen=True)
class LevelStatistics:
    """What a score does at each noise level, image by image.

    Attributes:
        loss: ½‖s(x̃, σ) + z/σ‖², not weighted, [levels, count].
        score_norm: ‖s(x̃, σ)‖, [levels, count].
    """

    loss: Tensor
    score_norm: Tensor


@torch.no_grad()
def level_statistics(
    score: NoiseConditional,
    x: Shaped[Tensor, "count *shape"] | np.ndarray,
    sigmas: Ladder,
    *,
    batch_size: int = 250,
    generator: torch.Generator | None = None,
) -> LevelStatistics:
    """Noise every image to every level once; the loss (Eq. 5) and the norm of the score there.

    Args:
        score: maps (x `[batch, *shape]`, σ [batch]) to a tensor like x.
        x: clean data, on the device of the score; images in [0, 1], or bytes.
        sigmas: the ladder.
        batch_size: images an evaluation; bounds the memory.
        generator: source of the noise.

    Raises:
        ValueError: for a network of images, data in another range, as
            `ncsn_core.data.as_images`; data that are not finite floats.
    """
    if not isinstance(x, Tensor) or x.dtype == torch.uint8:
        x = to_unit(x)
    check_clean(score, x)
    losses = torch.empty(len(sigmas), len(x))
    norms = torch.empty(len(sigmas), len(x))
    for level, level_sigma in enumerate(sigmas.to(x.device)):
        for first in range(0, len(x), batch_size):
            batch = x[first : first + batch_size]
            sigma = level_sigma.expand(len(batch))
            column = per_sample(sigma, batch)
            z = normal_like(batch, generator)
            s = score(batch + column * z, sigma)
            part = slice(first, first + len(batch))
            losses[level, part] = 0.5 * (s + z / column).flatten(1).square().sum(1).cpu()
            norms[level, part] = s.flatten(1).norm(dim=1).cpu()
    return LevelStatistics(losses, norms)


def _exact(features: Tensor) -> Tensor:
    """Features in float64, on the CPU: Apple's GPUs have none."""
    return features.cpu().double()


def frechet_distance(
    features: Float[Tensor, "count features"], reference: Float[Tensor, "real features"]
) -> float:
    """Fréchet distance between Gaussian fits to two sets of features (Heusel et al. 2017).

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½).  In Inception's features this is the FID of the
    literature.  It is biased upward for few images, so compare only numbers of one count.

    Raises:
        ValueError: for fewer than two images in either set.
    """
    fewest = min(len(features), len(reference))
    if fewest < 2:
        raise ValueError(f"a covariance needs at least two images; got {fewest}")
    ours, theirs = _exact(features), _exact(reference)
    covariances = torch.cov(ours.T), torch.cov(theirs.T)
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * root
    return float((ours.mean(0) - theirs.mean(0)).square().sum() + spread)


class KernelDistance(NamedTuple):
    """KID over random subsets.

    Attributes:
        mean: over the subsets.
        std: over the subsets; the spread of an estimate from one of them, not the mean's error.
    """

    mean: float
    std: float


def kernel_distance(
    features: Float[Tensor, "count features"],
    reference: Float[Tensor, "real features"],
    *,
    subsets: int = 100,
    subset_size: int = 100,
    seed: int = 0,
) -> KernelDistance:
    """KID: squared maximum mean discrepancy of two sets of features (Bińkowski et al. 2018, §3).

    The kernel is k(a, b) = (aᵀb/features + 1)³ and the estimate, on random subsets of both sets, is
    unbiased: unlike the Fréchet distance its mean does not depend on the number of images, and it
    may be slightly negative.

    Args:
        features, reference: two sets.
        subsets: how many pairs of subsets.
        subset_size: images in each; at most as many as there are in the smaller set.
        seed: of the subsets.

    Raises:
        ValueError: for a subset size below 2 or above the number of images, or no subsets.
    """
    smaller = min(len(features), len(reference))
    if not 2 <= subset_size <= smaller:
        raise ValueError(
            f"subset_size must lie between 2 and the {smaller} images of the smaller set; "
            f"got {subset_size}"
        )
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1; got {subsets}")
    ours, theirs = _exact(features), _exact(reference)
    generator = torch.Generator().manual_seed(seed)

    def some(found: Tensor) -> Tensor:
        return found[torch.randperm(len(found), generator=generator)[:subset_size]]

    def within(kernel: Tensor) -> Tensor:
        return (kernel.sum() - kernel.trace()) / (subset_size * (subset_size - 1))

    values = []
    for _ in range(subsets):
        real, seen = some(theirs), some(ours)
        own, same, across = (
            (x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((real, real), (seen, seen), (real, seen))
        )
        values.append(within(own) + within(same) - 2 * across.mean())
    found = torch.stack(values)
    return KernelDistance(float(found.mean()), float(found.std(correction=0)))


class PrecisionRecall(NamedTuple):
    """How good images are, and how much of the real ones they cover.

    Attributes:
        precision: the share of the images that look like a real one.
        recall: the share of the real images that look like one of the images.
    """

    precision: float
    recall: float


def precision_recall(
    features: Float[Tensor, "count features"],
    reference: Float[Tensor, "real features"],
    *,
    neighbors: int = 3,
) -> PrecisionRecall:
    """Precision and recall by nearest neighbors (Kynkäänniemi et al. 2019), from torch-fidelity.

    An image looks like one of a set if it lies within the ball around a member of it that reaches
    to the member's `neighbors`-th neighbor in that set.  A distance mixes two failures that these
    tell apart: malformed images lower the precision, missing kinds of images the recall.  Both
    depend on the counts: compare only numbers of the same ones, next to those of held-out images.

    Args:
        features, reference: two sets.
        neighbors: how many, fewer than there are images in the smaller set.

    Raises:
        ValueError: for fewer than one neighbor or too few images.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    smaller = min(len(features), len(reference))
    if not 1 <= neighbors < smaller:
        raise ValueError(
            f"neighbors must be at least 1 and fewer than the {smaller} images of the smaller "
            f"set; got {neighbors}"
        )
    found = prc_features_to_metric(
        _exact(features),
        _exact(reference),
        prc_neighborhood=neighbors,
        prc_batch_size=10_000,
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(found["precision"], found["recall"])


@dataclass(frozen=True)
class Distances:
    """How far a set of images is from real ones; `dataclasses.asdict` gives what a manifest holds.

    Attributes:
        fid: `frechet_distance`.
        kid, kid_std: `kernel_distance`, mean and standard deviation over subsets.
        count, reference_count: images in the set, and real ones.
        subset_size: images in a subset of the KID.
        features: the name of the network whose features were compared.
        inception_score, inception_score_std: for Inception's features of ten images or more, see
            `ncsn_core.metrics.features.inception_score`.
    """

    fid: float
    kid: float
    kid_std: float
    count: int
    reference_count: int
    subset_size: int
    features: str
    inception_score: float | None = None
    inception_score_std: float | None = None


def distances(
    features: Float[Tensor, "count features"],
    reference: Float[Tensor, "real features"],
    extractor: Extractor,
    *,
    subsets: int = 100,
    subset_size: int = 100,
    seed: int = 0,
) -> Distances:
    """FID and KID of a set of features, and its Inception score when they are Inception's.

    Args:
        features: of the images, from the extractor.
        reference: those of real images.
        extractor: where both come from.
        subsets, subset_size, seed: see `kernel_distance`.

    Raises:
        ValueError: as `frechet_distance` and `kernel_distance`.
    """
    kid, kid_std = kernel_distance(
        features, reference, subsets=subsets, subset_size=subset_size, seed=seed
    )
    score: tuple[float, float] | tuple[None, None] = (None, None)
    if isinstance(extractor.network, Inception) and len(features) >= PARTS:
        score = inception_score(extractor.network.logits(features))
    return Distances(
        fid=frechet_distance(features, reference),
        kid=kid,
        kid_std=kid_std,
        count=len(features),
        reference_count=len(reference),
        subset_size=subset_size,
        features=extractor.name,
        inception_score=score[0],
        inception_score_std=score[1],
    )


def measure(
    sets: Mapping[str, Tensor],
    reference: Tensor,
    extractor: Extractor,
    counts: Sequence[int],
    *,
    subset_size: int = 100,
    seed: int = 0,
    smaller: Collection[str] = (),
) -> dict[int, dict[str, Distances]]:
    """`distances` of several sets of images at each of several counts.

    One set should be held-out real images: what they reach is the floor of a perfect sampler.  Two
    counts show how much the FID depends on them: the paper selects its checkpoint by the FID of
    1,000 samples and reports that of 50,000.

    Args:
        sets: images by name, by the rule of `ncsn_core.data.as_images`; the first ones are used.
            `ncsn_core.data.to_bytes` clips samples that strayed far.
        reference: real images.
        extractor: see `ncsn_core.metrics.features.load_extractor`.
        counts: how many images of each set.
        subset_size, seed: see `kernel_distance`; at most the smallest count.
        smaller: names of sets of which fewer may be there; all of them are measured then, and the
            `count` of their distances says how many.

    Returns:
        By count and name.

    Raises:
        ValueError: when a set has fewer images than a count, naming a set that cannot be read, and
            as `distances`.
    """
    for name, images in sets.items():
        if len(images) < max(counts) and name not in smaller:
            raise ValueError(f"{name} has {len(images)} images; {max(counts)} are to be measured")
    known = extractor(reference)
    seen = {}
    for name, images in sets.items():
        try:
            seen[name] = extractor(images[: max(counts)])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return {
        n: {
            name: distances(features[:n], known, extractor, subset_size=subset_size, seed=seed)
            for name, features in seen.items()
        }
        for n in counts
    }


@dataclass(frozen=True)
class Neighbors:
    """The nearest reference images of some images, the nearest first.

    Attributes:
        distance: Euclidean, [images, count]; that of a copy is rounded to a thousandth of its norm.
        index: of the reference image, [images, count].
    """

    distance: Float[Tensor, "images count"]
    index: Int[Tensor, "images count"]


@torch.no_grad()
def nearest_neighbors(
    images: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
    *,
    count: int = 1,
    features: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 500,
) -> Neighbors:
    """The nearest images of a reference set, to see whether samples were memorized (Appendix C).

    A distance by itself says little.  Compare with that of held-out images, which are as near to
    the training set as new images of the same kind are.

    Args:
        images: samples, on the device of `reference`; images by the rule of
            `ncsn_core.data.as_images`, or points `[images, dimension]`, floats both.
        reference: the training images, likewise.
        count: number of neighbors.
        features: maps a batch of images to [batch, features], in which distances are then taken;
            None compares pixels.
        batch_size: images at once; the memory is batch_size × reference distances.

    Raises:
        ValueError: for a count below 1 or above the number of reference images, or images of
            another shape.
    """
    if not 1 <= count <= len(reference):
        raise ValueError(
            f"count must lie between 1 and the {len(reference)} reference images; got {count}"
        )
    images, reference = _comparable(images), _comparable(reference)
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"images and reference must have one shape; got {tuple(images.shape[1:])} and "
            f"{tuple(reference.shape[1:])}"
        )

    def described(batch: Tensor) -> Tensor:
        unit = to_unit(batch) if batch.dtype == torch.uint8 else batch
        return (unit if features is None else features(unit)).flatten(1)

    known = torch.cat([described(batch) for batch in reference.split(batch_size)])
    found = [
        torch.cdist(described(batch), known).topk(count, largest=False)
        for batch in images.split(batch_size)
    ]
    return Neighbors(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def _comparable(x: Tensor | np.ndarray) -> Tensor:
    """Images by the one rule; points as they are."""
    x = as_tensor(x)
    if x.ndim == 4:
        return as_images(x)
    if not x.is_floating_point():
        raise ValueError(f"points are floats; got {x.dtype}. ncsn_core.data.to_unit makes them")
    return x


def dark_pixels(images: Tensor) -> Tensor:
    """Mask [channel, height, width] of the pixels that are 0 in every one of the uint8 `images`.

    In MNIST's border there are dozens: what a sample shows there is noise and nothing else.
    """
    return (images == 0).all(dim=0)
