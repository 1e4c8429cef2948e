"""What a computation costs: seconds, bytes, and how both grow."""

import gc
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """The cost of one call.

    Attributes:
        seconds: of each repeat, in the order in which they were run.
        peak_bytes: the most tensor memory that was held at once beyond what was held before.
    """

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(low), float(high)


def costs(
    calls: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 5,
    shortest: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device | str = "cpu",
) -> dict[str, Cost]:
    """Time several calls side by side and find the memory that each needs.

    Memory is measured first, apart from time, which also warms everything up.  Then every round
    takes the calls in turn, so that a slow moment of the machine falls on all of them.  Python's
    garbage is collected between the rounds and not while the clock runs: a step with thousands of
    products leaves so much of it that the next call would pay many times its own price.

    Args:
        calls: name → what to run.
        repeats: number of rounds, at least 1.
        shortest: seconds, to be filled by a call of less than ten times as many.  The first of its
            runs pays for the caches and the memory pages that a large call before it has taken away
            and does not count; of the others, which take so many seconds together, the mean counts.
        clock: in seconds.  `time.process_time` leaves out what other programs take of the
            processor; it adds up the threads of this one.
        device: where the calls compute.

    Raises:
        ValueError: without a repeat.
    """
    if repeats < 1:
        raise ValueError(f"a measurement needs at least one repeat; got {repeats}")
    device = torch.device(device)
    peaks = {name: peak_bytes(call, device) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _no_collection():
        for _ in range(repeats):
            gc.collect()
            for name, call in calls.items():
                seconds[name].append(_timed(call, shortest, clock, device))
    return {name: Cost(tuple(seconds[name]), peaks[name]) for name in calls}


def training_steps(
    network: nn.Module, losses: Mapping[str, Callable[[nn.Module], Tensor]]
) -> dict[str, Callable[[], tuple[Tensor | None, ...]]]:
    """For each loss, a call that computes its mean and returns the gradient in the parameters.

    The network is left as it was, so that no call finds what another one left behind.

    Args:
        network: any score network.
        losses: name → a function from the network to one loss per sample, for example
            `lambda s: sliced_score_matching(s, x)`.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]

    def step(loss: Callable[[nn.Module], Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss(network).mean(), parameters, allow_unused=True)

    return {name: partial(step, loss) for name, loss in losses.items()}


def peak_bytes(call: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most tensor memory that a call holds at once, beyond what was held before it."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _TensorMemory() as memory:
        call()
    return memory.peak


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, two for each product and sum.

    Matrix products and convolutions are counted, in which nearly all of a network's work lies.
    The count is exact, and the same on every machine.
    """
    with _Operations() as counted:
        call()
    return counted.total


class _Operations(TorchDispatchMode):
    """Adds up the floating-point operations for which torch has a formula.

    Unlike `FlopCounterMode` it does not ask which module they are for, and so allows the
    derivatives of `torch.func` inside a module's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class _TensorMemory(TorchDispatchMode):
    """Follows the storage of every tensor that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        old = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in old:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.held -= size


@dataclass(frozen=True)
class Slope:
    """The exponent b of a power law y ∝ xᵇ, with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Least-squares slope of log y against log x, with a 95% interval from Student's t.

    Raises:
        ValueError: for fewer than three points or a number that is not positive.
    """
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"a slope with an interval needs at least 3 pairs; got {len(x)}, {len(y)}")
    if not all(math.isfinite(value) and value > 0 for value in [*x, *y]):
        raise ValueError("a log-log slope needs positive numbers")
    if len(set(x)) < 2:
        raise ValueError("a slope needs at least two different x")
    u, v = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    slope = float(u @ v / (u @ u))
    variance = ((v - slope * u) ** 2).sum() / (len(x) - 2) / (u @ u)
    margin = float(stdtrit(len(x) - 2, 0.975) * math.sqrt(variance))
    return Slope(slope, slope - margin, slope + margin)


def _timed(
    call: Callable[[], Any], shortest: float, clock: Callable[[], float], device: torch.device
) -> float:
    """Seconds of a call; of a quick one, the mean of as many as fill `shortest` after a first."""
    first = _elapsed(call, clock, device)
    if first >= 10 * shortest:
        gc.collect()
        return first
    runs = [_elapsed(call, clock, device)]
    while sum(runs) < shortest:
        runs.append(_elapsed(call, clock, device))
    return sum(runs) / len(runs)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Turn Python's garbage collection off, as `timeit` does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _elapsed(call: Callable[[], Any], clock: Callable[[], float], device: torch.device) -> float:
    wait(device)
    start = clock()
    call()
    wait(device)
    return clock() - start


def wait(device: torch.device) -> None:
    """Return when a GPU has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
