"""Images as one uint8 tensor on the training device, and batches made from it there.

MNIST ships with the package.  The other data sets are read by torchvision: found on disk first,
downloaded when allowed (`ncsn_core.data.download`; CelebA by torchvision too).  All of them fit in
memory (MNIST 47 MB, CelebA at 32×32 about 500 MB), so there are no worker processes.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from ncsn_core._types import Images
from ncsn_core.data.download import ARCHIVES, fetch
from ncsn_core.data.idx import read_idx
from ncsn_core.data.pixels import AnyImages, as_images
from ncsn_core.devices import pick_device
from ncsn_core.errors import CorruptFileError, MissingDataError, NCSNError, UnknownNameError
from ncsn_core.files import is_there
from ncsn_core.randomness import generator_for

DATASETS = ("mnist", "fashion_mnist", "cifar10", "celeba")
SPLITS = ("train", "test")
CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
SIZES = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "celeba": 32}  # of the stored images
FACE = 140  # pixels of the square that is cut out of a photograph of CelebA

# SHA-256 of the uncompressed originals (LeCun, Cortes and Burges; CC BY-SA 3.0).
MNIST_FILES = {
    ("train", "images"): (
        "train-images-idx3-ubyte.gz",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    ("train", "labels"): (
        "train-labels-idx1-ubyte.gz",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    ("test", "images"): (
        "t10k-images-idx3-ubyte.gz",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    ("test", "labels"): (
        "t10k-labels-idx1-ubyte.gz",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


def data_root() -> Path:
    """Where other data sets are looked for: $NCSN_DATA, or ncsn/data in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("NCSN_DATA", cache / "ncsn" / "data"))


def load_images(
    name: str,
    split: str = "train",
    *,
    device: torch.device | str = "cpu",
    root: Path | str | None = None,
    download: bool = False,
    size: int | None = None,
) -> Images:
    """All images of a split as one uint8 tensor [count, channel, height, width] on `device`.

    Args:
        name: one of `DATASETS`, or the path of images of one's own: `read_images` reads them and
            `OwnImages.split` divides them.  CelebA is cropped to its central 140×140 and resized to
            32×32, as in the paper, or to a larger `size`.
        split: "train" or "test".
        device: where the tensor goes.
        root: folder to look in; `data_root()` when not given.  MNIST needs none.
        download: fetch what is not there.
        size: height and width to average the images down to, see `block_average`; None: as stored.
            One's own are cropped and scaled to it.

    Raises:
        UnknownNameError: for another name or split.
        MissingDataError: when the files are not there and cannot be downloaded.
        CorruptFileError: when a file was altered or cut short.
        NCSNError: when another process is downloading it.
        ValueError: for a size that does not divide that of the images.
    """
    if name not in DATASETS and split in SPLITS and is_there(name):
        from ncsn_core.data.own import read_images

        return read_images(name, size=size).split()[SPLITS.index(split)].to(pick_device(device))
    images = _load(name, split, root, download, size)[0]
    return (images if size is None else block_average(images, size)).to(pick_device(device))


def load_labels(
    name: str,
    split: str = "train",
    *,
    root: Path | str | None = None,
    download: bool = False,
) -> Int[Tensor, " count"]:
    """Class labels, int64, in the order of `load_images`.  CelebA has none.

    Raises:
        UnknownNameError, MissingDataError, CorruptFileError: as `load_images`.
    """
    labels = _load(name, split, root, download)[1]
    if labels is None:
        raise UnknownNameError("labelled data set", name, [d for d in DATASETS if d != "celeba"])
    return labels


def _load(
    name: str, split: str, root: Path | str | None, download: bool, size: int | None = None
) -> tuple[Images, Int[Tensor, " count"] | None]:
    if name not in DATASETS:
        hint = "For images of your own, name their folder or file (--images, images=)"
        raise UnknownNameError("data set", name, DATASETS, hint)
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if name == "mnist":
        return _mnist(split)
    folder = data_root() if root is None else Path(root)
    try:
        return _torchvision(name, split, folder, download, size)
    except NCSNError:
        raise
    except Exception as error:  # gdown's are no RuntimeErrors; a damaged file has any
        if download or isinstance(error, (RuntimeError, OSError)):
            raise MissingDataError(_where_to_put(name, folder, download, error)) from error
        raise CorruptFileError(
            f"the files of {name} in {folder} cannot be read ({error!r}). "
            f"Delete them and fetch them again"
        ) from error


def _mnist(split: str) -> tuple[Images, Int[Tensor, " count"]]:
    folder = Path(__file__).parent / "mnist"
    images_name, images_hash = MNIST_FILES[split, "images"]
    labels_name, labels_hash = MNIST_FILES[split, "labels"]
    images = read_idx(folder / images_name, sha256=images_hash)
    labels = read_idx(folder / labels_name, sha256=labels_hash)
    return images[:, None], labels.long()


def _torchvision(
    name: str, split: str, folder: Path, download: bool, size: int | None
) -> tuple[Images, Int[Tensor, " count"] | None]:
    from torchvision import datasets
    from torchvision.transforms import functional as transforms

    kinds = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}
    if name in kinds and download:
        try:
            kinds[name](folder, train=split == "train")
        except RuntimeError:  # not there
            fetch(ARCHIVES[name], folder)
    elif download:
        folder.mkdir(parents=True, exist_ok=True)
    if name == "fashion_mnist":
        fashion = datasets.FashionMNIST(folder, train=split == "train")
        return fashion.data[:, None], fashion.targets.long()
    if name == "cifar10":  # torchvision unpacks the archive
        cifar = datasets.CIFAR10(folder, train=split == "train", download=download)
        return torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(
            cifar.targets
        )
    celeba = datasets.CelebA(folder, split=split, target_type=[], download=download)
    images = []
    side = max(SIZES[name], min(size or 0, FACE))
    for i in tqdm(range(len(celeba)), desc="cropping CelebA", unit="image"):
        face = transforms.center_crop(celeba[i][0], [FACE, FACE])
        images.append(transforms.pil_to_tensor(transforms.resize(face, [side, side])))
    return torch.stack(images), None


def _where_to_put(name: str, folder: Path, download: bool, error: Exception) -> str:
    place = {
        "fashion_mnist": (
            "the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, "
            "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, unzipped, into "
            f"{folder / 'FashionMNIST' / 'raw'}"
        ),
        "cifar10": f"the folder cifar-10-batches-py of cifar-10-python.tar.gz into {folder}",
        "celeba": (
            "img_align_celeba (unzipped), list_eval_partition.txt, identity_CelebA.txt, "
            "list_attr_celeba.txt, list_bbox_celeba.txt and list_landmarks_align_celeba.txt of "
            f"{CELEBA} into {folder / 'celeba'}"
        ),
    }[name]
    tried = "could not be downloaded" if download else "is not on this machine"
    said = " ".join(str(error).split())  # gdown's has lines
    advice = "" if download else ", or allow the download (--download, download=True)"
    return f"{name} {tried} ({said}). Put {place}{advice}. NCSN_DATA names another folder"


def check_size(name: str, size: int) -> None:
    """See that `load_images` gives images of a data set in a size, without loading them.

    Raises:
        ValueError: when it does not; the message says which sizes it has.
    """
    stored = SIZES.get(name, size)
    if name == "celeba" and stored < size <= FACE:
        return
    if size < 1 or stored % size:
        more = f", or more of them up to {FACE}" if name == "celeba" else ""
        raise ValueError(
            f"a network for images of {size} × {size} pixels could never be compared with "
            f"{name}: its images have {stored} × {stored} here, or a divisor of that{more}. Name "
            f"the size that it was trained at"
        )


def block_average(
    images: UInt8[Tensor, "count channel large large"], size: int
) -> UInt8[Tensor, "count channel small small"]:
    """Images of size × size pixels, each the mean of a block, rounded to whole gray levels.

    Raises:
        ValueError: when `size` does not divide that of the images.
    """
    large = images.shape[-1]
    if size < 1 or large % size:
        raise ValueError(
            f"images of {large} × {large} pixels cannot be averaged down to {size} × {size}: "
            f"the size must divide theirs"
        )
    if size == large:
        return images
    return F.avg_pool2d(images.float(), large // size).round().to(torch.uint8)


def to_unit(images: AnyImages) -> Float[Tensor, "count channel height width"]:
    """Bytes → float32 in [0, 1]: x / 255.  Other images by the rule of `as_images`.

    Raises:
        ValueError: as `as_images`.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        images = as_images(images)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def to_bytes(x: Float[Tensor, "*shape"] | UInt8[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """[0, 1] → uint8, rounded; what lies outside is clipped, as a screen would, and NaN is black.

    Samples that strayed far, or chains that ran away, become pictures by this.  Bytes stay.
    """
    if x.dtype == torch.uint8:
        return x
    return (x * 255).round().clamp(0, 255).nan_to_num(0).to(torch.uint8)


def dequantize(
    images: Images, *, generator: torch.Generator | None = None
) -> Float[Tensor, "count channel height width"]:
    """uint8 → float32 in [0, 1] with uniform noise of one gray level: x / 256 + u / 256.

    In the unit of [0, 1] images x/255 this is (x/255) · 255/256 + u/256, the paper's.

    Raises:
        ValueError: for floats, which have no gray levels; `to_bytes` makes bytes of them.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"only bytes are dequantized; got {images.dtype}. See to_bytes")
    u = torch.rand(images.shape, device=images.device, generator=generator)
    return (images.float() + u) / 256


def batches(
    images: Images,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    flip: bool = False,
) -> Iterator[tuple[int, Float[Tensor, "batch channel height width"], torch.Generator]]:
    """Training batches for steps `start`, `start` + 1, … without end.

    Every epoch is a new permutation; an incomplete last batch is left out.  Batch k depends on
    `seed` and k alone, so a run resumed at k sees what an uninterrupted one would have seen.

    Args:
        images: uint8 tensor on the training device.
        batch_size: images a batch, at most as many as there are.
        seed: the run's seed.
        start: the first step.
        flip: mirror every image left to right with probability one half (CIFAR-10 and CelebA).

    Returns:
        An iterator over the steps: the step, its dequantized images, and a generator for whatever
        else the step draws.

    Raises:
        ValueError: when a batch would hold more images than there are, or none.
    """
    if not 1 <= batch_size <= len(images):
        raise ValueError(
            f"batch_size must be between 1 and the number of images, {len(images)}; "
            f"got {batch_size}"
        )
    return _batches(images, batch_size, seed, start, flip)


def _batches(
    images: Images, batch_size: int, seed: int, start: int, flip: bool
) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    per_epoch = len(images) // batch_size
    step, epoch = start, -1
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            # On the CPU, so that every device sees the images in one order; then where they are,
            # because a GPU waits for what comes from elsewhere.
            order = torch.randperm(len(images), generator=generator_for(seed, 0, epoch))
            order = order.to(images.device)
        first = step % per_epoch * batch_size
        generator = generator_for(seed, 1, step, device=images.device)
        chosen = images[order[first : first + batch_size]]
        if flip:
            mirrored = torch.rand(batch_size, device=images.device, generator=generator) < 0.5
            chosen = torch.where(mirrored[:, None, None, None], chosen.flip(-1), chosen)
        yield step, dequantize(chosen, generator=generator), generator
        step += 1
