"""Writing files so that a reader never finds half of one, and folders so that one process does."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ncsn_core.errors import NCSNError, UnwritableError

LOCK = ".lock"
TEMPORARY = re.compile(r"\.ncsn-[0-9a-f]{8}\.tmp(\.\w+)?")


def is_there(path: object) -> bool:
    """Whether something that may be a path, or any other word, is that of a file or folder."""
    try:
        return bool(path) and Path(str(path)).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero in it
        return False


def temporary(path: Path, suffix: str = "") -> Path:
    """A new name beside `path` for what is being written; no other program uses such a name."""
    return path.with_name(f".ncsn-{secrets.token_hex(4)}.tmp{suffix}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds either what it held or all of `content`.

    The bytes go to a temporary name beside `path`, reach the disk, and are renamed.  A failure (a
    full disk, an interrupt) leaves what was at `path` untouched.  Missing folders are made.

    Raises:
        UnwritableError: when the file cannot be written.
    """
    unfinished = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise UnwritableError(
            f"{path} could not be written: {error}. What was there before is still there"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path, below: Iterable[Path] = ()) -> Iterator[None]:
    """Be the only process that writes into a folder, until the block ends.

    The operating system keeps the lock and takes it back from a process that ends, however it
    ends: nothing stale is left to be removed by hand.  Missing folders are made.

    Args:
        folder: what a killed process left here under a temporary name is removed.
        below: folders inside of it that are cleaned too, because nobody else writes there.

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
        for place in (folder, *below):
            _clean(place)
        yield
    finally:
        lock.release()


def _clean(folder: Path) -> None:
    """Remove the files of a folder that bear the name of a temporary of ours."""
    for path in folder.glob(".ncsn-*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
