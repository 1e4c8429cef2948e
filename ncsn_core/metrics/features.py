"""The networks in whose features images are compared: our classifiers, and Inception for color."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import ncsn_core.pretrained as pretrained
from ncsn_core.data.datasets import to_bytes, to_unit
from ncsn_core.data.pixels import AnyImages, as_images
from ncsn_core.devices import pick_device
from ncsn_core.errors import CorruptFileError, MissingDataError, UnknownNameError
from ncsn_core.metrics.classifier import Classifier

CLASSIFIERS = {"mnist": "digit_classifier", "fashion_mnist": "fashion_classifier"}
INCEPTION_DATASETS = ("cifar10", "celeba")
PARTS = 10  # images of an Inception score: one for each part of the set
OFFICIAL_SHA256 = "6726825d"  # the file's name carries these first digits


class Inception(nn.Module):
    """The Inception-v3 of FID and Inception score, from torch-fidelity, for color images in [0, 1].

    Its weights were converted from the TensorFlow graph of the original FID code, and its resizing
    to 299×299 is that graph's, so that its numbers compare with published ones.

    Args:
        weights: torch-fidelity's file.
    """

    image_size = None  # it scales by itself
    image_channels = 3

    def __init__(self, weights: Path | str) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """The 2048 activations before the last layer, of images in [0, 1] as a file keeps them."""
        return self.network(to_bytes(x))[0]

    def logits(self, features: Float[Tensor, "count features"]) -> Float[Tensor, "count classes"]:
        """The 1008 class logits without their bias, as the Inception score uses them."""
        return features @ self.network.fc.weight.T.to(features)


@dataclass(frozen=True)
class Extractor:
    """A network whose features images are compared in, under the name that goes with every number.

    Attributes:
        name: such as "digit_classifier".
        network: has `features(images)` and the `image_size` that these need; None: any.
        sha256: of the file with its weights; empty when they came from none.
        batch_size: images an evaluation; bounds the memory.  A hundred digits fit into a
            processor's cache and take less than half the time of five hundred.
    """

    name: str
    network: Classifier | Inception
    sha256: str = ""
    batch_size: int = 100

    @torch.no_grad()
    def __call__(self, images: AnyImages) -> Float[Tensor, "count features"]:
        """Features, on the CPU, of images on any device.

        Args:
            images: by the rule of `ncsn_core.data.as_images`: bytes, or floats in [0, 1].  Those of
                another size than the network's are scaled to it, bilinearly.

        Raises:
            ValueError: as `ncsn_core.data.as_images`.  `ncsn_core.data.to_bytes` clips samples
                that strayed far.
        """
        device = next(self.network.parameters()).device
        size = self.network.image_size
        images = as_images(images, channels=self.network.image_channels)

        def readable(batch: Tensor) -> Tensor:
            unit = to_unit(batch)
            if size is None or unit.shape[2:] == (size, size):
                return unit
            return F.interpolate(unit, size=(size, size), mode="bilinear")

        batches = (readable(batch.to(device)) for batch in images.split(self.batch_size))
        return torch.cat([self.network.features(batch).cpu() for batch in batches])


def load_extractor(
    dataset: str,
    device: torch.device | str = "cpu",
    *,
    weights: Path | str | None = None,
    download: bool = False,
) -> Extractor:
    """The features in which images of a data set are compared.

    Args:
        dataset: our digit classifier for "mnist", our Fashion-MNIST classifier for "fashion_mnist",
            Inception for the colored "cifar10" and "celeba", and for "inception".
        device: where the network goes.
        weights, download: of Inception, see `load_inception`; the classifiers ship.

    Raises:
        UnknownNameError: for another data set.
        MissingDataError, CorruptFileError: as `load_inception`.
    """
    if dataset in CLASSIFIERS:
        record = pretrained.load(CLASSIFIERS[dataset])
        return Extractor(record.name, record.classifier(device), record.weights_sha256)
    if dataset in (*INCEPTION_DATASETS, "inception"):
        return load_inception(device, weights=weights, download=download)
    raise UnknownNameError("data set", dataset, (*CLASSIFIERS, *INCEPTION_DATASETS, "inception"))


def load_inception(
    device: torch.device | str = "cpu",
    *,
    weights: Path | str | None = None,
    download: bool = False,
) -> Extractor:
    """Inception with its standard weights.

    Args:
        device: where the network goes.
        weights: torch-fidelity's file; None: where PyTorch keeps downloads (TORCH_HOME).
        download: fetch the file, 92 MB, into that place when it is not there.

    Returns:
        An extractor whose name says when the weights are others than the standard ones.

    Raises:
        MissingDataError: when the file is not there and may not, or could not, be downloaded.
        CorruptFileError: when it does not hold Inception's weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if weights is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
        if download and not path.is_file():
            _download(URL_INCEPTION_V3, path)
    else:
        path = Path(weights)
    if not path.is_file():
        raise MissingDataError(
            f"Inception's weights are not on this machine: there is no file {path}. Put "
            f"{URL_INCEPTION_V3} there, name another place (--inception-weights, weights=), or "
            f"allow the download (--download, download=True)"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    official = digest.startswith(OFFICIAL_SHA256)
    try:
        # torch-fidelity unpickles the file, which could run code: first see that it is plain.
        torch.load(path, map_location="cpu", weights_only=True)
        network = Inception(path)
    except Exception as error:
        raise CorruptFileError(
            f"{path} does not hold the weights of torch-fidelity's Inception network "
            f"({type(error).__name__}). Delete it and fetch it again"
        ) from error
    name = "inception-v3" if official else f"inception-v3 with the weights {digest[:12]}"
    return Extractor(
        name, network.to(pick_device(device)).eval().requires_grad_(False), digest, batch_size=64
    )


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=OFFICIAL_SHA256)
    except (OSError, RuntimeError) as error:
        raise MissingDataError(
            f"Inception's weights could not be downloaded ({error}). Put {url} into {path.parent}"
        ) from error


class InceptionScore(NamedTuple):
    """Mean and standard deviation of the Inception score over the parts of a set."""

    mean: float
    std: float


def inception_score(
    logits: Float[Tensor, "count classes"], *, splits: int = PARTS
) -> InceptionScore:
    """exp E KL(p(y|x) ‖ p(y)) of Inception's predictions (Salimans et al. 2016), torch-fidelity's.

    Args:
        logits: of the images, from `Inception.logits`.
        splits: parts of the set, each scored by itself; the literature takes 10.

    Raises:
        ValueError: for fewer images than parts.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits must lie between 1 and the {len(logits)} images; got {splits}")
    scores = isc_features_to_metric(logits, splits)
    return InceptionScore(scores["inception_score_mean"], scores["inception_score_std"])
