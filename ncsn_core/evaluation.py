"""Measurements of images: loss and score size per level, Fréchet distance, nearest neighbors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ncsn_core.networks import DigitClassifier
from ncsn_core.objectives import NoiseConditional, multilevel_denoising_score_matching


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
    x: Float[Tensor, "count *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    batch_size: int = 250,
    generator: torch.Generator | None = None,
) -> LevelStatistics:
    """Noise every image to every level once; the loss (Eq. 5) and the norm of the score there.

    Args:
        score: maps (x [batch, *shape], σ [batch]) to a tensor like x.
        x: clean data, on the device of the score.
        sigmas: the ladder.
        batch_size: images an evaluation; bounds the memory.
        generator: source of the noise.
    """
    losses = torch.empty(len(sigmas), len(x))
    norms = torch.empty(len(sigmas), len(x))
    for level in range(len(sigmas)):
        for first in range(0, len(x), batch_size):
            batch = x[first : first + batch_size]
            seen: list[Tensor] = []

            def watched(noised: Tensor, sigma: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(score(noised, sigma))
                return seen[0]

            loss = multilevel_denoising_score_matching(
                watched,
                batch,
                sigmas,
                levels=torch.full((len(batch),), level, device=x.device),
                weight_power=0.0,
                generator=generator,
            )
            losses[level, first : first + len(batch)] = loss.cpu()
            norms[level, first : first + len(batch)] = seen[0].flatten(1).norm(dim=1).cpu()
    return LevelStatistics(losses, norms)


class DigitFeatures(nn.Module):
    """A digit classifier's features in the form that torchmetrics expects of a FID network."""

    def __init__(self, classifier: DigitClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features
        self.input_img_size = (1, 28, 28)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)


class FrechetDigitDistance:
    """Fréchet distance (Heusel et al. 2017) between digit sets, in a digit classifier's features.

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) between Gaussian fits to the features of two sets.
    It is *not* the FID of the literature, whose features are Inception's; and, like FID, it is
    biased upward for few images, so compare only numbers of one count.  The metric itself is
    torchmetrics'.

    Args:
        classifier: whose features are compared.
        reference: real images in [0, 1], [count, 1, 28, 28].
        batch_size: images an evaluation.
    """

    def __init__(
        self,
        classifier: DigitClassifier,
        reference: Float[Tensor, "count 1 28 28"],
        *,
        batch_size: int = 500,
    ) -> None:
        device = next(classifier.parameters()).device
        self.batch_size = batch_size
        self.metric = FrechetInceptionDistance(
            feature=DigitFeatures(classifier), reset_real_features=False, normalize=True
        ).to(device)
        self._update(reference, real=True)

    def __call__(self, images: Float[Tensor, "count 1 28 28"]) -> float:
        """Distance of `images`, in [0, 1], from the reference.

        Raises:
            ValueError: for fewer than two images.
        """
        if len(images) < 2:
            raise ValueError(f"a covariance needs at least two images; got {len(images)}")
        self.metric.reset()
        self._update(images, real=False)
        return float(self.metric.compute())

    def _update(self, images: Tensor, *, real: bool) -> None:
        device = self.metric.real_features_sum.device
        for batch in images.split(self.batch_size):
            self.metric.update(batch.to(device), real=real)


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
    images: Float[Tensor, "images *shape"],
    reference: Float[Tensor, "reference *shape"],
    *,
    count: int = 1,
    features: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 500,
) -> Neighbors:
    """The nearest images of a reference set, to see whether samples were memorized (Appendix C).

    A distance by itself says little.  Compare with that of held-out images, which are as near to
    the training set as new images of the same kind are.

    Args:
        images: samples, on the device of `reference`.
        reference: the training images.
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
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"images and reference must have one shape; got {tuple(images.shape[1:])} and "
            f"{tuple(reference.shape[1:])}"
        )

    def described(batch: Tensor) -> Tensor:
        return (batch if features is None else features(batch)).flatten(1)

    known = torch.cat([described(batch) for batch in reference.split(batch_size)])
    found = [
        torch.cdist(described(batch), known).topk(count, largest=False)
        for batch in images.split(batch_size)
    ]
    return Neighbors(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


@torch.no_grad()
def accuracy(
    classifier: DigitClassifier,
    x: Float[Tensor, "count 1 28 28"],
    labels: Int[Tensor, " count"],
    *,
    batch_size: int = 500,
) -> float:
    """Fraction of images in [0, 1] whose most probable class is the label."""
    hits = sum(
        int((classifier(images).argmax(1) == truth).sum())
        for images, truth in zip(x.split(batch_size), labels.split(batch_size), strict=True)
    )
    return hits / len(x)


def dark_pixels(images: Tensor) -> Tensor:
    """Mask [channel, height, width] of the pixels that are 0 in every one of the uint8 `images`.

    In MNIST's border there are dozens: what a sample shows there is noise and nothing else.
    """
    return (images == 0).all(dim=0)
