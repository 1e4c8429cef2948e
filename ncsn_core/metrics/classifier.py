"""A small classifier whose features stand in for Inception's, for digits and garments."""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

import ncsn_core.checkpoints as checkpoints
import ncsn_core.provenance as provenance
from ncsn_core.data.datasets import load_images, load_labels, to_unit
from ncsn_core.data.pixels import AnyImages, as_images
from ncsn_core.errors import NonFiniteLossError
from ncsn_core.pretrained import Model, model
from ncsn_core.randomness import generator_for


class Classifier(nn.Module):
    """Convolutions 32, 32, 64, 64 with batch normalization and 64 features, for 28×28 gray images.

    Args:
        classes: number of classes.
    """

    image_size = 28
    image_channels = 1
    num_features = 64

    def __init__(self, classes: int = 10) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            )

        self.body = nn.Sequential(
            block(1, 32),
            block(32, 32, stride=2),
            block(32, 64),
            block(64, 64, stride=2),
        )
        self.embed = nn.Linear(64 * 7 * 7, self.num_features)
        self.head = nn.Linear(self.num_features, classes)

    def features(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch features"]:
        """The 64 activations before the last layer, for images in [0, 1]."""
        return F.relu(self.embed(self.body(2.0 * x - 1.0).flatten(1)))

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch classes"]:
        """Class logits for images in [0, 1]."""
        return self.head(self.features(x))


def train_classifier(
    folder: Path | str,
    *,
    dataset: str = "mnist",
    epochs: int = 5,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    train_images: int | None = None,
    test_images: int | None = None,
    device: str = "cpu",
    download: bool = False,
    progress: bool = True,
) -> Model:
    """Train a `Classifier` with Adam, a cosine rate and shifts of up to two pixels.

    Args:
        folder: where the checkpoint goes, once, at the end.
        dataset: "mnist" or "fashion_mnist".
        epochs, batch_size, learning_rate, seed: the usual.
        train_images, test_images: use the first so many images; all when None.
        device: where to train.
        download: fetch a data set that is not on this machine.
        progress: show a bar.

    Returns:
        The checkpoint; `metrics` holds the accuracy on the test split.

    Raises:
        NonFiniteLossError: when training diverged; nothing is written.
        NCSNError: when the data set is of another kind or not there, see `ncsn_core.data`.
    """
    images = load_images(dataset, device=device, download=download)[:train_images]
    labels = load_labels(dataset)[:train_images].to(device)
    checkpoints.owned_files(Path(folder))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = Classifier().to(device)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: dict[str, list[Any]] = {"step": [], "loss": []}
    began = time.monotonic()

    with tqdm(total=steps, unit="step", desc=f"{dataset} classifier", disable=not progress) as bar:
        for epoch in range(epochs):
            generator = generator_for(seed, epoch)
            order = torch.randperm(len(images), generator=generator).to(device)
            for chosen in order.split(batch_size):
                x = shift(to_unit(images[chosen]), generator=generator)
                loss = F.cross_entropy(network(x), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            history["step"].append((epoch + 1) * steps // epochs)
            history["loss"].append(round(float(loss.detach()), 4))
            bar.set_postfix_str(f"loss {history['loss'][-1]:.3f}")
    if not all(map(math.isfinite, history["loss"])):
        raise NonFiniteLossError("the classifier's loss is not finite; try a smaller learning_rate")

    network.eval()
    test = to_unit(load_images(dataset, "test", device=device)[:test_images])
    truth = load_labels(dataset, "test")[:test_images].to(device)
    saved = checkpoints.save(
        folder,
        {"weights": network.state_dict()},
        kind="classifier",
        config={
            "dataset": dataset,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "train_images": len(images),
        },
        metrics={"test_accuracy": accuracy(network, test, truth), "test_images": len(test)},
        history=history,
        provenance=provenance.describe(device)
        | {
            "seed": seed,
            "seconds": round(time.monotonic() - began, 1),
            "data_sha256": provenance.tensor_sha256(images),
        },
    )
    return model(saved)


def shift(
    x: Float[Tensor, "batch channel height width"],
    pixels: int = 2,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel height width"]:
    """Move a batch by up to `pixels` in each direction, all its images alike; zeros come in."""
    dy, dx = torch.randint(0, 2 * pixels + 1, (2,), generator=generator).tolist()
    height, width = x.shape[2:]
    return F.pad(x, (pixels,) * 4)[:, :, dy : dy + height, dx : dx + width]


@torch.no_grad()
@torch.no_grad()
def class_counts(
    classifier: Classifier, features: Float[Tensor, "count features"]
) -> Int[Tensor, " classes"]:
    """How many images a classifier takes for each class, which shows what kinds are missing.

    Real images are not equally many of each class either, and a classifier errs.

    Args:
        classifier: the one that the features are from.
        features: what `Classifier.features` gives.
    """
    logits = classifier.head(features.to(classifier.head.weight))
    return logits.argmax(1).bincount(minlength=classifier.head.out_features).cpu()


def accuracy(
    classifier: Classifier,
    x: AnyImages,
    labels: Int[Tensor, " count"],
    *,
    batch_size: int = 500,
) -> float:
    """Fraction of images, by the rule of `data.as_images`, whose most probable class is the label.

    Raises:
        ValueError: as `ncsn_core.data.as_images`.
    """
    x = as_images(x, channels=1)
    hits = sum(
        int((classifier(to_unit(images)).argmax(1) == truth).sum())
        for images, truth in zip(x.split(batch_size), labels.split(batch_size), strict=True)
    )
    return hits / len(x)
