"""Writing files so that a reader never finds half of one, and folders so that one process does."""

import errno
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from ncsn_core.errors import NCSNError, NCSNWarning, UnwritableError

LOCK = ".lock"
SOFT_LOCK = ".lock-soft"  # a lock by being there, where the file system has no others
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
GRACE = 3.0  # seconds in which a soft lock is found to be stale
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

    Some file systems of networks and clouds have no locks.  There a file `SOFT_LOCK` stands in for
    one, and a warning says so.  That of a process of this machine that has ended is taken over.
    Whether a process of another machine has ended cannot be seen from here: the error then names
    the file to delete.

    Args:
        folder: what a killed process left here under a temporary name is removed.
        below: folders inside of it that are cleaned too, because nobody else writes there.

    Raises:
        NCSNError: at once, when another process is writing there; without locks after `GRACE`.
        UnwritableError: when nobody can write there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock: BaseFileLock = FileLock(folder / LOCK)
        if soft := not _has_locks(folder):
            lock = SoftFileLock(folder / SOFT_LOCK)
            warnings.warn(
                f"the file system of {folder} has no locks: a file {SOFT_LOCK} stands in for one",
                NCSNWarning,
                stacklevel=3,
            )
        lock.acquire(timeout=GRACE if soft else 0, poll_interval=GRACE / 20)
    except Timeout as error:
        holder = _holder(folder / SOFT_LOCK) if soft else ""
        raise NCSNError(
            f"another process is writing into {folder}{holder}. Wait until it has finished, or "
            f"choose another folder"
        ) from error
    except OSError as error:
        raise UnwritableError(f"{folder} cannot be written to: {error}") from error
    try:
        for place in (folder, *below):
            _clean(place)
        yield
    finally:
        lock.release()


def _has_locks(folder: Path) -> bool:
    """Whether the file system of a folder locks files; tried on a file that nobody else knows."""
    try:
        import fcntl
    except ImportError:  # Windows, which always does
        return True
    path = temporary(folder / LOCK)
    try:
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def _holder(soft_lock: Path) -> str:
    """Who holds a soft lock, since when, and what to do when it is nobody any more."""
    try:
        who = soft_lock.read_text(encoding="utf-8").split()
        since = datetime.fromtimestamp(soft_lock.stat().st_mtime).isoformat(" ", "minutes")
    except (OSError, ValueError):  # it is gone, or not filelock's
        return ""
    name = f"process {who[0]} on {who[1].partition('?')[0]}" if len(who) > 1 else "it does not say"
    return f" ({name}, since {since}; if that one has ended, delete {soft_lock})"


def _clean(folder: Path) -> None:
    """Remove the files of a folder that bear the name of a temporary of ours."""
    for path in folder.glob(".ncsn-*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
