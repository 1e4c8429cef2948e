"""Where a result came from: commit, device, versions, data, and the files that were read.

Imports nothing that takes time: a process that has not loaded torch has computed on the CPU.
"""

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PACKAGE = Path(__file__).resolve().parent
NOTEBOOK = "NCSN_NOTEBOOK"
"""Environment variable by which a kernel learns the file of the notebook that it executes."""

CHANGED = "+changes"

_records: set[Path] = set()
_opened: set[str] = set()


# --- commit -------------------------------------------------------------------------------------


def commit() -> str:
    """The commit of the checkout that this package was imported from, or its version.

    Ends in `+changes` when something that results rest on differs from that commit: code and
    settings of the package, the records that this process has opened, or the cells of the
    notebook that it executes.  What else was changed in the checkout does not matter.
    """
    root = PACKAGE.parent
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() == root:
            inside = [path for path in sorted(_records) if path.is_relative_to(root)]
            code = ["ncsn_core/*.py", "ncsn_core/*.yaml"]
            asked = ["--porcelain", "--untracked-files=all", "--", *code, *map(str, inside)]
            changed = _git("status", *asked) or _notebook_changed(root)
            return _git("rev-parse", "--short=12", "HEAD") + (CHANGED if changed else "")
    except (OSError, subprocess.SubprocessError):
        pass
    return f"version {package_version('ncsn-core')}"


def opened(record: Path) -> None:
    """Note that this process has read a record, by the path of its manifest."""
    _records.add(record.resolve())


def _notebook_changed(root: Path) -> bool:
    """Whether the cells of the executed notebook are others than those of the commit."""
    path = Path(os.environ.get(NOTEBOOK, "")).resolve()
    if NOTEBOOK not in os.environ or not path.is_relative_to(root):
        return False

    def cells(text: str) -> list[tuple[str, str]]:
        found = json.loads(text)["cells"]
        return [(cell["cell_type"], "".join(cell["source"])) for cell in found]

    try:
        committed = _git("show", f"HEAD:{path.relative_to(root).as_posix()}")
    except subprocess.CalledProcessError:  # not part of the commit
        return True
    return cells(committed) != cells(path.read_text(encoding="utf-8"))


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PACKAGE.parent), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=10,
    ).stdout.strip()


# --- versions, device, data ---------------------------------------------------------------------


def describe(device: "torch.device | str") -> dict[str, Any]:
    """Commit, device and versions, for a manifest."""
    return {
        "commit": commit(),
        "device": device_name(device),
        "python": platform.python_version(),
        "versions": {p: package_version(p) for p in ("torch", "torchvision", "lightning-fabric")},
    }


def package_version(name: str) -> str:
    """Installed version of a package, or "unknown"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def device_name(device: "torch.device | str") -> str:
    """What a reader would call the device, with the thread count on a CPU."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return device.type


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tensor_sha256(tensor: "Tensor") -> str:
    """SHA-256 of a tensor's bytes in row-major order."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


# --- an execution -------------------------------------------------------------------------------


def record() -> dict[str, Any]:
    """Commit, device, threads and time (UTC) of this process, for the metadata of an output."""
    torch = sys.modules.get("torch")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    threads = 1 if torch is None else int(torch.get_num_threads())
    return {"commit": commit(), "device": _accelerator(), "threads": threads, "time": now}


def _accelerator() -> str:
    """What torch offers this process: the GPU's name, "mps" or "cpu"."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "mps" if torch.backends.mps.is_available() else "cpu"


def reference_seconds() -> float:
    """How long a computation takes here and now that is always the same.

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


def watch() -> None:
    """Note from now on which files this process opens and which folders it lists, for `loaded`."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                _opened.add(os.path.abspath(os.fsdecode(path)))

    sys.addaudithook(note)


def loaded() -> list[str]:
    """What this process has loaded of the package: its modules, and all since `watch`.

    Paths begin with the package's name.  Folders of modules are left out, which every import lists.
    """
    name = PACKAGE.name
    modules = [sys.modules[module] for module in sys.modules if module.split(".")[0] == name]
    paths = {str(module.__file__) for module in modules} | {p for p in _opened if name in p}
    inside = {path for path in map(Path.resolve, map(Path, paths)) if path.is_relative_to(PACKAGE)}
    kept = (p for p in inside if "__pycache__" not in p.parts and not (p / "__init__.py").exists())
    return sorted(path.relative_to(PACKAGE.parent).as_posix() for path in kept)
