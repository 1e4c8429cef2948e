"""Where a result came from: commit, device, versions, data."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes in row-major order."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def commit() -> str:
    """The commit of the checkout that this package was imported from, or its version."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root.resolve():
            changed = git("status", "--porcelain", "--untracked-files=no", "--", "ncsn_core/*.py")
            return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        pass
    return f"version {package_version('ncsn-core')}"


def package_version(name: str) -> str:
    """Installed version of a package, or "unknown"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def device_name(device: torch.device | str) -> str:
    """What a reader would call the device, with the thread count on a CPU."""
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


def describe(device: torch.device | str) -> dict[str, Any]:
    """Commit, device and versions, for a manifest."""
    return {
        "commit": commit(),
        "device": device_name(device),
        "python": platform.python_version(),
        "versions": {p: package_version(p) for p in ("torch", "torchvision", "lightning-fabric")},
    }
