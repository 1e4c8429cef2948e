"""One process or many: those that `torchrun` or `fabric run` starts share the work of one call.

Such a process is a *rank*.  Training divides every batch among the ranks, generation the batches.
What comes out does not depend on how many there are, and a program that no launcher started is one
rank of one.  The ranks read and write one folder, which all of them have to see.

The command line asks this module before there is anything to compute: torch is imported late.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING

from ncsn_core.errors import NCSNError

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

PATIENCE = timedelta(days=1)  # for ranks that are slower; one that is gone is noticed at once


def count() -> int:
    """How many ranks there are."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if _launched() else 0


def local_index() -> int:
    """Which of those on this machine this is, from 0: its GPU's number."""
    return int(os.environ["LOCAL_RANK"]) if _launched() else 0


def fabric(device: "torch.device", precision: str) -> "Fabric":
    """Lightning Fabric over all ranks: distributed data parallel where there are several.

    Args:
        device: of this rank.
        precision: Fabric's name of it.
    """
    # Fabric asks for the version of torchmetrics, which loads all of it, for seconds and in vain.
    sys.modules.setdefault("torchmetrics", None)  # type: ignore[arg-type]
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    if sys.modules["torchmetrics"] is None:
        del sys.modules["torchmetrics"]
    if count() == 1:
        devices = [device.index or 0] if device.type == "cuda" else 1
        return Fabric(accelerator=device.type, devices=devices, precision=precision)  # type: ignore[arg-type]
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    joined = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=count() // here,
        precision=precision,  # type: ignore[arg-type]
        strategy=DDPStrategy(timeout=PATIENCE, gradient_as_bucket_view=True),
    )
    joined.launch()
    return joined


def share(total: int) -> slice:
    """Which of `total` things are this rank's, when every rank has the same number.

    Raises:
        NCSNError: when they cannot be divided so.
    """
    each, left = divmod(total, count())
    if left:
        raise NCSNError(
            f"a batch of {total} cannot be divided among {count()} processes; "
            f"choose a batch_size that can, or another number of processes"
        )
    return slice(index() * each, (index() + 1) * each)


def wait() -> None:
    """Return when every rank has come here."""
    if count() > 1:
        _meet().barrier()


def all_of(flag: bool) -> bool:
    """Whether the flag is up in every rank."""
    if count() == 1:
        return flag
    import torch

    dist, raised = _meet(), torch.tensor(float(flag))
    dist.all_reduce(raised, dist.ReduceOp.MIN)
    return bool(raised)


def _meet() -> ModuleType:
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return dist


def leave() -> None:
    """Close the connections to the other ranks, at the end of a program."""
    if count() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def explained(advice: str) -> Iterator[None]:
    """Turn the many errors by which a rank notices that another one is gone into one.

    Raises:
        NCSNError: in their place, ending with `advice`.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        lost = isinstance(error, DistError) or "gloo" in str(error).lower()
        if count() == 1 or not lost:
            raise
        raise NCSNError(
            f"another of the {count()} processes is gone, and the work cannot go on without it. "
            f"{advice}"
        ) from error


def first_to_report() -> bool:
    """Whether no other rank has reported an error yet, so that one message is printed and not many.

    The launcher keeps the count, for any rank may be the one that is gone.
    """
    if count() == 1:
        return True
    import torch.distributed as dist

    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=10),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"ncsn/reports/{attempt}", 1) == 1
    except RuntimeError:  # the store went with the launcher
        return index() == 0


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
