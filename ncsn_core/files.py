"""Writing files so that a reader never finds half of one."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds either what it held or all of `content`.

    The bytes go to a temporary name beside `path`, reach the disk, and are renamed.  A failure (a
    full disk, an interrupt) leaves what was at `path` untouched.  Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
