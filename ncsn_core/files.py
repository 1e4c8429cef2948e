"""Writing files so that a reader never finds half of one, and folders so that one process does."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ncsn_core.errors import NCSNError, UnwritableError

LOCK = ".lock"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds either what it held or all of `content`.

    The bytes go to a temporary name beside `path`, reach the disk, and are renamed.  A failure (a
    full disk, an interrupt) leaves what was at `path` untouched.  Missing folders are made.

    Raises:
        UnwritableError: when the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UnwritableError(
            f"{path} could not be written: {error}. What was there before is still there"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder, until the block ends.

    The operating system keeps the lock and takes it back from a process that ends, however it
    ends: nothing stale is left to be removed by hand.  What a killed process was writing under a
    temporary name is removed.  Missing folders are made.

    Raises:
        NCSNError: at once, when another process is writing there.
        UnwritableError: when nobody can write there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise NCSNError(
            f"another process is writing into {folder}. Wait until it has finished, or choose "
            f"another folder"
        ) from error
    except OSError as error:
        raise UnwritableError(f"{folder} cannot be written to: {error}") from error
    try:
        for unfinished in folder.rglob(".*.tmp*"):
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
