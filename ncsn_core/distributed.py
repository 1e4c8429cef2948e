"""One process or many: those that `torchrun` or `fabric run` starts share the work of one call.

Training divides every batch among the processes, sampling the batches.  What comes out does not
depend on how many there are, and a program that no launcher started is one of one.  All of them
read and write one folder, which they have to see.

The command line asks this module before there is anything to compute: torch is imported late.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ncsn_core.errors import NCSNError

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

TIMEOUT = timedelta(days=1)  # for processes that are slower; one that is gone is noticed at once


def world_size() -> int:
    """The number of processes."""
    return _launched("WORLD_SIZE", 1)


def global_rank() -> int:
    """This process's number among all of them, from 0."""
    return _launched("RANK", 0)


def local_rank() -> int:
    """This process's number among those of its machine, from 0; the number of its GPU."""
    return _launched("LOCAL_RANK", 0)


def fabric(device: "torch.device", precision: str) -> "Fabric":
    """Lightning Fabric over all processes, launched.

    Args:
        device: of this process.
        precision: Fabric's name of it.
    """
    # Fabric asks for the version of torchmetrics, which loads all of it, for seconds and in vain.
    sys.modules.setdefault("torchmetrics", None)  # type: ignore[arg-type]
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.strategies import DDPStrategy

    if sys.modules["torchmetrics"] is None:
        del sys.modules["torchmetrics"]
    how: dict[str, Any] = {"precision": precision}
    if precision in ("bf16-mixed", "16-mixed"):  # by its name, Fabric takes no float16 on a CPU
        how = {"plugins": MixedPrecision(precision, device.type)}  # type: ignore[arg-type]
    if world_size() == 1:
        devices = [device.index or 0] if device.type == "cuda" else 1
        return Fabric(accelerator=device.type, devices=devices, **how)
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    joined = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=world_size() // here,
        strategy=DDPStrategy(timeout=TIMEOUT),
        **how,
    )
    joined.launch()
    return joined


def barrier() -> None:
    """Block until every process has reached this."""
    if world_size() > 1:
        _group().barrier()


@contextmanager
def local_rank_first() -> Iterator[None]:
    """Let the first process of each machine go through a block before the others."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def all_of(flag: bool) -> bool:
    """Whether the flag is up in every process."""
    if world_size() == 1:
        return flag
    import torch

    dist, raised = _group(), torch.tensor(float(flag))
    dist.all_reduce(raised, dist.ReduceOp.MIN)
    return bool(raised)


def _group() -> ModuleType:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return dist


def close() -> None:
    """Close the connections to the other processes, at the end of a program."""
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def lost_process_explained(advice: str) -> Iterator[None]:
    """Turn the many errors by which a process notices that another one is gone into one.

    Raises:
        NCSNError: in their place, ending with `advice`.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        lost = isinstance(error, DistError) or "gloo" in str(error).lower()
        if world_size() == 1 or not lost:
            raise
        raise NCSNError(
            f"another of the {world_size()} processes is gone, and the work cannot go on without "
            f"it. {advice}"
        ) from error


def _launched(variable: str, default: int) -> int:
    """What a launcher has said; the default in a process that none has started."""
    return int(os.environ[variable]) if "TORCHELASTIC_RUN_ID" in os.environ else default
