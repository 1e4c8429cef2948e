"""Where a number comes from: commit, device, threads, time, and the files that were loaded."""

import datetime
import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def commit() -> str | None:
    """Return the short commit of the checkout that holds this package, or None outside one.

    `-dirty` is appended when a tracked file has changed since.
    """
    described = _git("rev-parse", "--short=12", "HEAD")
    if described is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{described}-dirty" if changed else described


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def device() -> str:
    """Return the accelerator that torch offers this process, or "cpu".

    Never imports torch: a process that has not loaded it has computed on the CPU.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Return the number of threads that torch computes with in this process (1 without torch)."""
    torch = sys.modules.get("torch")
    return 1 if torch is None else int(torch.get_num_threads())


def reference_seconds() -> float:
    """Return how long a computation takes here and now that is always the same.

    A notebook's budget is counted in it, because a machine that is slow, or busy, is so for both.
    """
    import numpy as np

    a = np.full((96, 96), 1 / 96)
    x, total = a, 0.0
    began = time.perf_counter()
    for _ in range(3000):  # small steps, as a toy network's: products, functions, calls of Python
        x = np.tanh(a @ x + 0.1)
        total += sum(x[0, :8].tolist())
    return time.perf_counter() - began


def now() -> str:
    """Return the time in UTC, to the second: `2031-05-17T08:30:00+00:00`."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def record() -> dict[str, Any]:
    """Return commit, device, threads and time of this process, ready for JSON."""
    return {"commit": commit(), "device": device(), "threads": threads(), "time": now()}


_opened: set[str] = set()


def watch() -> None:
    """Note from now on which files this process opens and which folders it lists, for `loaded`."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                _opened.add(os.path.abspath(os.fsdecode(path)))

    sys.addaudithook(note)


def loaded() -> list[str]:
    """Return what this process has loaded of the package: its modules, and all since `watch`.

    Paths begin with the package's name.
    """
    name = PACKAGE.name
    modules = [sys.modules[module] for module in sys.modules if module.split(".")[0] == name]
    paths = {str(module.__file__) for module in modules} | {p for p in _opened if name in p}
    inside = {path for path in map(Path.resolve, map(Path, paths)) if path.is_relative_to(PACKAGE)}
    return sorted(path.relative_to(PACKAGE.parent).as_posix() for path in inside)
