"""Where to compute, in which precision, and whether to compile."""

import functools
import math
import shutil
import sys
import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn

from ncsn_core.distributed import all_of, local_rank
from ncsn_core.errors import NCSNError, NCSNWarning, UnknownNameError

COMPILING_REPAYS = 1000  # training steps or evaluations of a batch; it takes half a minute
PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true")


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device to use: "auto" is the first GPU where there is one, else the CPU.

    Of several processes that a launcher started, each takes a GPU of its own.

    Raises:
        UnknownNameError: for what is no name of a device; the message lists the names.
        NCSNError: for a device that is not here.
    """
    kind, _, number = str(device).strip().lower().partition(":")
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": 0}
    here["mps"] = int(torch.backends.mps.is_available())
    if kind == "auto" and not number:
        kind = next(name for name in ("cuda", "mps", "cpu") if here[name])
    elif kind not in here or (":" in str(device) and not number.isdecimal()):
        known = ("auto", "cpu", "cuda", "cuda:1", "mps")
        raise UnknownNameError("device", device, known, "A GPU of NVIDIA or AMD is 'cuda'")
    if int(number or 0) >= here[kind]:
        found = ", ".join(f"{name}:{i}" for name, n in here.items() for i in range(n))
        raise NCSNError(
            f"the device {str(device)!r} is not here; here are {found}. Choose one, or 'auto'"
        )
    if kind != "cuda":
        return torch.device(kind)
    return torch.device("cuda", int(number) if number else local_rank())


def pick_precision(precision: str, device: torch.device) -> str:
    """Fabric's name of the precision; "auto" picks what the hardware is fast in.

    bfloat16 where the processor is fast in it (a CPU is measured), float16 with loss scaling on
    older GPUs (a Colab T4), float32 elsewhere.  Weights and optimizer stay in float32 in each case.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        capable = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16-mixed" if capable else "16-mixed"
    if device.type == "cpu" and all_of(_cpu_is_fast_in_bf16()):
        return "bf16-mixed"
    return "32-true"


@functools.cache
def _cpu_is_fast_in_bf16() -> bool:
    """Whether the network's most frequent convolution is faster in bfloat16, by a third or more.

    Measured, in less than a second, because no list of instructions tells: some processors have
    them and are slow, some lack them and are slower than in float32 by ten times and more.
    """
    shortest = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for _ in range(5):
        for kind in shortest:
            x, w = torch.ones(8, 128, 14, 14, dtype=kind), torch.ones(128, 128, 3, 3, dtype=kind)
            began = time.perf_counter()
            nn.functional.conv2d(x, w, padding=1)
            shortest[kind] = min(shortest[kind], time.perf_counter() - began)
    return shortest[torch.float32] > 4 / 3 * shortest[torch.bfloat16]


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What a precision's name means for inference: the autocast type, None for float32."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works: on a GPU that Triton knows, on a CPU with a C++ compiler.

    Whether it does is tried, once, because a compiler may be there and broken.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0) and _compiles(device)
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    possible = device.type == "cpu" and sys.platform != "win32" and compiler is not None
    return possible and _compiles(device)


@functools.cache
def _compiles(device: torch.device) -> bool:
    """Whether a normalization can be compiled, forth and back; warns when it cannot."""
    x, rows = torch.zeros(2, 2, 4, 4, device=device), torch.zeros(2, 2, device=device)
    try:
        from ncsn_core.networks.refinenet import normalize

        with torch.enable_grad():
            y = normalize(x.requires_grad_(), rows, rows, rows, elu=True, compiled=True)
            y.sum().backward()
    except Exception as error:  # whatever a compiler, its headers and its cache can do
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"going on without torch.compile, which fails here: {reason}", NCSNWarning, stacklevel=3
        )
        return False
    return True


def worth_compiling(device: torch.device, calls: int) -> bool:
    """Whether to compile for so many calls of a network: where that works and repays itself."""
    return calls >= COMPILING_REPAYS and can_compile(device)


def compilation(compile: bool | None, device: torch.device, calls: int) -> bool:
    """Whether to compile: as asked, and None where that is `worth_compiling`.

    Raises:
        NCSNError: when it is asked for and does not work.
    """
    if compile and not can_compile(device):
        raise NCSNError(
            f"torch.compile does not work on this machine for the device {str(device)!r}. Leave "
            f"out --compile (compile=True)"
        )
    return worth_compiling(device, calls) if compile is None else compile


def preferred_autocast(device: torch.device) -> torch.dtype | None:
    """The autocast type of `pick_precision("auto", device)`."""
    return autocast_dtype(pick_precision("auto", device))


class Choice(NamedTuple):
    """Where a run is computed, in which precision, and whether its normalizations are compiled."""

    device: torch.device
    precision: str
    compile: bool


def choose(
    device: str, precision: str, compile: bool | None, before: dict[str, Any], calls: int
) -> Choice:
    """What to compute with: as named, else as in the session before, else what is fast here.

    Args:
        device, precision: as for `ncsn_core.training.train`; "auto" leaves the choice.
        compile: None leaves the choice.
        before: the last session of a run that goes on; empty for a new one.
        calls: how often a compiled network would be called; 0 where none can be.

    Raises:
        NCSNError: when the device of the session before is not here and no other is named; for a
            device that is not here or compiling that does not work.
    """
    kind = before.get("device_type", "auto")  # not known of records of before there were sessions
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto" and not here.get(kind, True):
        raise NCSNError(
            f"this run was computed on a device of type {kind!r}, which is not here. Name the one "
            f"to go on with, as in device='cpu': the numbers will then differ in rounding"
        )
    target = pick_device(kind if device == "auto" else device)
    if precision == "auto" and before.get("device_type", target.type) == target.type:
        precision = before.get("precision", "auto")
    if compile is None and "compiled" in before:
        compile = before["compiled"] and can_compile(target)
    else:
        compile = compilation(compile, target, calls)
    return Choice(target, pick_precision(precision, target), compile)
