"""Downloads over HTTPS, of files whose SHA-256 is known before they arrive."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.hub import download_url_to_file

from ncsn_core.errors import CorruptFileError
from ncsn_core.files import exclusive, write_atomically


@dataclass(frozen=True)
class Archive:
    """Files of a data set: where they are on the internet, and where torchvision looks for them.

    Attributes:
        address: of the folder that holds them.
        folder: below the folder for all data sets.
        sha256: by name of the file, as it is downloaded.
    """

    address: str
    folder: str
    sha256: Mapping[str, str]


ARCHIVES = {
    "fashion_mnist": Archive(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            "train-labels-idx1-ubyte.gz": (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
    ),
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/",
        "",
        {
            "cifar-10-python.tar.gz": (
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
            )
        },
    ),
}


def fetch(archive: Archive, root: Path) -> None:
    """Download what is missing of an archive; a gzipped file is unpacked beside itself.

    A file takes its name when its hash has been verified, and not before.

    Raises:
        CorruptFileError: when what arrives is not the published file.
        NCSNError: when another process is downloading it too, or the folder cannot be written.
        OSError: when the address cannot be reached.
    """
    folder = root / archive.folder
    with exclusive(folder):
        for name, sha256 in archive.sha256.items():
            path = folder / name
            # What torch was downloading in a process that was killed: the name and 32 hex digits.
            for unfinished in folder.glob(f"{name}.{'[0-9a-f]' * 32}.partial"):
                unfinished.unlink()
            if not path.is_file() or _digest(path) != sha256:
                _download(archive.address + name, path, sha256)
            if path.suffix == ".gz" and not path.name.endswith(".tar.gz"):
                write_atomically(path.with_suffix(""), gzip.decompress(path.read_bytes()))


def _download(address: str, path: Path, sha256: str) -> None:
    try:
        download_url_to_file(address, str(path), hash_prefix=sha256, progress=False)
    except RuntimeError as error:
        raise CorruptFileError(
            f"what {address} sent is not the published file: it was cut short or altered on the "
            f"way. Try again, or get the file elsewhere and put it into {path.parent}"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
