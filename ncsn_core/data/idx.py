"""The IDX format of MNIST: a big-endian header (magic, sizes) and raw bytes, gzipped."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ncsn_core.errors import CorruptFileError

MOST_BYTES = 2**28  # five times the largest file of MNIST; a few kilobytes can unpack to gigabytes


def read_idx(path: Path, *, sha256: str | None = None) -> Tensor:
    """Read an IDX file of unsigned bytes.

    Args:
        path: a gzipped IDX file.
        sha256: expected SHA-256 of the *uncompressed* bytes; checked when given.

    Returns:
        uint8 tensor with the sizes of the header.

    Raises:
        CorruptFileError: when the file is not gzip, not IDX, of the wrong length or hash.
    """
    try:
        with gzip.open(path) as file:
            raw = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptFileError(f"{path.name} cannot be read as gzip: {error}") from error
    if len(raw) > MOST_BYTES:
        raise CorruptFileError(f"{path.name} is larger than {MOST_BYTES:,} bytes when unpacked")
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
        raise CorruptFileError(
            f"{path.name} is not the published file: its SHA-256 differs. Reinstall ncsn_core, or "
            f"restore the file"
        )
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise CorruptFileError(f"{path.name} is not an IDX file of unsigned bytes")
    dimensions = raw[3]
    header = 4 + 4 * dimensions
    if dimensions == 0 or len(raw) < header:
        raise CorruptFileError(f"{path.name} ends inside its header")
    sizes = struct.unpack(f">{dimensions}I", raw[4:header])
    if math.prod(sizes) != len(raw) - header:
        announced = " × ".join(map(str, sizes))
        raise CorruptFileError(
            f"{path.name} announces {announced} bytes and holds {len(raw) - header}"
        )
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8)[header:].clone()
    try:
        return values.reshape(sizes)
    except RuntimeError as error:  # an empty array with an absurd size
        raise CorruptFileError(f"{path.name} announces impossible sizes: {sizes}") from error
