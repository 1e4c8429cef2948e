"""Many samples, batch by batch: seeded so that a batch never depends on the others.

With a folder, every batch goes to disk when it is finished, and an interrupted run is continued.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

import ncsn_core.checkpoints as checkpoints
from ncsn_core.distributed import barrier, global_rank, lost_process_explained, world_size
from ncsn_core.errors import CorruptFileError, NCSNError
from ncsn_core.files import exclusive
from ncsn_core.networks.score import NoiseConditionalScore
from ncsn_core.provenance import tensor_sha256
from ncsn_core.randomness import generator_for
from ncsn_core.samplers.annealed import annealed_langevin
from ncsn_core.samplers.state import State

ADVICE = "The finished batches are kept: the same command draws the others"
Key = tuple[int, int]
"""Index and size of a batch.  One that is cut short by the count is no prefix of the whole one."""


def draw_batch(
    score: NoiseConditionalScore,
    seed: int,
    index: int,
    size: int,
    *,
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    callback: Callable[[State], None] | None = None,
) -> Float[Tensor, "{size} channel height width"]:
    """One batch by annealed Langevin dynamics (Algorithm 1) from uniform noise in [0, 1].

    A function of its arguments alone: everything is drawn from (seed, index).

    Args:
        score: a noise-conditional score; its device is used.
        seed, index: which batch of which samples.
        size: how many chains.
        epsilon, steps_per_level, denoise, callback: see `ncsn_core.samplers.annealed_langevin`.
    """
    device = score.sigmas.device
    generator = generator_for(seed, index, device=device)
    return annealed_langevin(
        score,
        torch.rand(size, *score.image_shape, device=device, generator=generator),
        score.sigmas,
        epsilon=epsilon,
        steps_per_level=steps_per_level,
        denoise=denoise,
        generator=generator,
        callback=callback,
    )


def sample(
    score: NoiseConditionalScore,
    count: int = 16,
    *,
    seed: int = 0,
    batch_size: int = 100,
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    folder: Path | str | None = None,
    callback: Callable[[int, State], None] | None = None,
    progress: bool = True,
) -> Float[Tensor, "{count} channel height width"]:
    """Samples by annealed Langevin dynamics, in the batches of `draw_batch`.

    Drawing more samples later leaves the first full batches as they are.  With a `folder`, each is
    written there as soon as it is finished.  The same call again reads the batches that it finds
    and draws the others: the samples are those of a run that was never interrupted, bit for bit.  A
    larger `count` goes on where a smaller one stopped.

    Under `torchrun` or `fabric run` each process draws its own batches; a folder that all of them
    see is needed then, through which each gets what the others have drawn.

    Args:
        score: a noise-conditional score; its device is used.
        count: how many samples; at least 1.
        seed: at least 0.
        batch_size: chains at a time.
        epsilon, steps_per_level, denoise: see `ncsn_core.samplers.annealed_langevin`.
        folder: where the batches go; None keeps them in memory only.
        callback: called with the index of the batch's first sample and the sampler's `State`, for
            the batches that this call draws.  Those read from the folder are not observed: whoever
            has to see every chain needs an empty folder or none.
        progress: show a bar over the network evaluations, with images a second.

    Returns:
        The samples on the CPU, not clipped.

    Raises:
        ValueError: when `count` or `batch_size` is less than 1.
        NCSNError: when the folder holds samples of other weights or settings, or something else,
            or another process is drawing into it; when it cannot be written to; when several
            processes have no folder, or one of them is gone.
        CorruptFileError: when a batch in the folder was altered or cut short.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1; got {count} and {batch_size}")
    options: dict[str, Any] = {
        "epsilon": epsilon,
        "steps_per_level": steps_per_level,
        "denoise": denoise,
    }
    evaluations = len(score.sigmas) * steps_per_level
    samples = torch.empty(count, *score.image_shape)
    parts = {(i, len(part)): part for i, part in enumerate(samples.split(batch_size))}
    with _store(score, {"seed": seed, "batch_size": batch_size, **options}, folder) as store:
        missing = [key for key, part in parts.items() if not _read(store, key, part)]
        mine = [key for key in missing if key[0] % world_size() == global_rank()]
        with tqdm(
            total=len(mine) * evaluations,
            unit="step",
            desc="sampling",
            disable=not progress or global_rank() > 0,
        ) as bar:
            for index, size in mine:
                watch = _watch(bar, evaluations, index * batch_size, callback)
                x = draw_batch(score, seed, index, size, callback=watch, **options)
                parts[index, size].copy_(x)
                store[index, size] = parts[index, size]
        with lost_process_explained(ADVICE):
            barrier()
        for key in missing:
            if key not in mine:
                parts[key].copy_(store[key])
    return samples


def _read(store: "dict[Key, Tensor] | SampleFolder", key: Key, part: Tensor) -> bool:
    """Fill a part of the samples with a batch that is there; False when it is not."""
    if key not in store:
        return False
    part.copy_(store[key])
    return True


def _watch(
    bar: tqdm, evaluations: int, first: int, callback: Callable[[int, State], None] | None
) -> Callable[[State], None]:
    """Move the bar at every update of a batch, and pass the state on."""
    began, before = time.monotonic(), bar.n

    def watch(state: State) -> None:
        bar.update()
        images = len(state.x) * (bar.n - before) / evaluations
        speed = images / max(time.monotonic() - began, 1e-9)
        bar.set_postfix_str(f"{speed:.3g} images/s", refresh=False)
        if callback is not None:
            callback(first, state)

    return watch


@contextmanager
def _store(
    score: NoiseConditionalScore, settings: dict[str, Any], folder: Path | str | None
) -> Iterator["dict[Key, Tensor] | SampleFolder"]:
    """Where the batches go: into memory, or into a folder that is this call's until it ends."""
    if folder is None:
        if world_size() > 1:
            raise NCSNError("several processes pass their samples on through a folder: name one")
        yield {}
        return
    folder = Path(folder).resolve()
    settings = _origin(score) | {"image_shape": list(score.image_shape)} | settings
    first = global_rank() == 0  # makes the folder, and keeps it to these processes
    if first:
        _is_ours(folder, settings)
    with exclusive(folder, folder.glob("batch_*")) if first else nullcontext():
        if first and not _is_ours(folder, settings):
            checkpoints.save(folder, {}, kind="samples", config=settings)
        with lost_process_explained(ADVICE):
            barrier()
        yield SampleFolder(folder, settings)


class SampleFolder:
    """Batches of samples as records in a folder, by index and size.

    Args:
        folder: of samples of these settings.
        settings: what they are a function of.

    Raises:
        NCSNError: when the folder holds something else.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        if not _is_ours(folder, settings):
            raise NCSNError(f"{folder} holds no samples: the processes do not see one folder")
        self.folder = folder

    def _place(self, batch: Key) -> Path:
        return self.folder / f"batch_{batch[0]:05d}_of_{batch[1]}"

    def __contains__(self, batch: Key) -> bool:
        return (self._place(batch) / checkpoints.MANIFEST).is_file()

    def __getitem__(self, batch: Key) -> Tensor:
        if batch not in self:
            raise NCSNError(
                f"batch {batch[0]}, which another process has drawn, is not in {self.folder}: the "
                f"processes do not see one folder"
            )
        try:
            return checkpoints.load(self._place(batch)).tensors("samples")["x"]
        except (NCSNError, KeyError) as error:
            raise CorruptFileError(
                f"{self._place(batch)} holds a damaged batch of samples. Delete that folder and "
                f"run again: the batch is then drawn anew"
            ) from error

    def __setitem__(self, batch: Key, x: Tensor) -> None:
        checkpoints.save(self._place(batch), {"samples": {"x": x}}, kind="samples")


def _origin(score: NoiseConditionalScore) -> dict[str, Any]:
    """What a score contributes to its samples."""
    weights = hashlib.sha256()
    for name, tensor in score.state_dict().items():
        weights.update(f"{name} {tensor_sha256(tensor.float())}".encode())
    return {
        "weights": weights.hexdigest(),
        "score": type(score).__name__,
        "conditional": score.conditional,
        "sigmas": score.sigmas.tolist(),
        "autocast": str(score.autocast),
        "device": score.sigmas.device.type,  # its random numbers differ from another's
    }


def _is_ours(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds samples of these settings; False when it holds nothing yet.

    Raises:
        NCSNError: when it holds something else.
    """
    checkpoints.owned_files(folder)
    if not (folder / checkpoints.MANIFEST).is_file():
        return False
    found = checkpoints.load(folder)
    if found.kind != "samples":
        raise NCSNError(
            f"{folder} holds a record of kind {found.kind!r} and no samples. Choose another folder"
        )
    changed = sorted(k for k in settings if found.config.get(k) != settings[k])
    if changed:
        raise NCSNError(
            f"{folder} holds samples of other settings ({', '.join(changed)} differ). "
            f"Choose another folder, or delete that one"
        )
    return True
