"""Many samples, batch by batch: seeded so that a batch never depends on the others.

With a folder, every batch goes to disk when it is finished, and an interrupted run is continued.
"""

import hashlib
import inspect
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
from ncsn_core._types import Ladder
from ncsn_core.distributed import barrier, global_rank, lost_process_explained, world_size
from ncsn_core.errors import CorruptFileError, NCSNError, UnknownNameError
from ncsn_core.files import exclusive
from ncsn_core.networks.score import NoiseConditionalScore
from ncsn_core.provenance import tensor_sha256
from ncsn_core.randomness import generator_for, normal_like
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
    sampler: str = "annealed_langevin",
    callback: Callable[[State], None] | None = None,
    **options: Any,
) -> Float[Tensor, "{size} channel height width"]:
    """One batch by annealed Langevin dynamics (Algorithm 1), or another sampler.

    A function of its arguments alone: everything is drawn from (seed, index).  Algorithm 1 starts
    from uniform noise in [0, 1], as in the paper; the others do not linger at the first level, and
    start from that with the first level's noise.

    Args:
        score: a noise-conditional score; its device is used.
        seed, index: which batch of which samples.
        size: how many chains.
        sampler: one of `samplers()`.
        callback, options: see that sampler in `ncsn_core.samplers`.
    """
    device, sigmas = score.sigmas.device, score.sigmas
    generator = generator_for(seed, index, device=device)
    x = torch.rand(size, *score.image_shape, device=device, generator=generator)
    if sampler != "annealed_langevin":
        x = x + sigmas[0] * normal_like(x, generator)
    draw = _known()[sampler]
    if "generator" in inspect.signature(draw).parameters:
        options = options | {"generator": generator}
    return draw(score, x, sigmas, callback=callback, **options)


def samplers() -> tuple[str, ...]:
    """Names of the samplers that need nothing but a noise-conditional score and numbers."""
    found = {name: inspect.signature(draw).parameters for name, draw in _known().items()}
    return tuple(
        sorted(n for n, given in found.items() if "sigmas" in given and "images" not in given)
    )


def options_for(sampler: str, sigmas: Ladder, evaluations: int) -> dict[str, Any]:
    """Options with which a sampler asks for so many scores of a batch, or a few less.

    Args:
        sampler: one of `samplers()`, or "inpaint".
        sigmas: the ladder.
        evaluations: at most so many.

    Returns:
        For Langevin dynamics T and ε, with a denoising at the end; for the reverse diffusion the
        number of corrector steps and their size.  The steps of a level go as far together as the
        paper's, ε T = 20 σ_L², as long as none is longer than ε = σ_L², half of what denoises.

    Raises:
        UnknownNameError: for another sampler.
        NCSNError: when the ladder needs more evaluations.
    """
    levels, least = len(sigmas), sigmas[-1].item()
    options: dict[str, Any]
    if sampler in ("annealed_langevin", "inpaint"):
        steps, fewest = (evaluations - 1) // levels, levels + 1
        epsilon = least**2 * min(1, 20 / max(1, steps))
        options = {"steps_per_level": steps, "epsilon": epsilon, "denoise": True}
    elif sampler == "reverse_diffusion":  # whose α = 4 (snr σ)² is ε σ²/σ_L²
        steps, fewest = evaluations // levels - 1, levels
        options = {"corrector_steps": steps, "snr": min(1, 20 / max(1, steps)) ** 0.5 / 2}
    elif sampler == "consistent_annealed":  # to the mean of the clean images and back to the noise
        fewest, options = levels + 1, {"epsilon": 2 * least**2, "denoise": True}
    elif sampler == "probability_flow":
        heun = evaluations >= 2 * levels - 1
        fewest, options = levels, {"method": "heun" if heun else "multistep"}
    else:
        _check_sampler(sampler)
        raise NCSNError(f"{sampler} has no rule for a number of evaluations: leave the number out")
    if evaluations < fewest:
        raise NCSNError(
            f"{sampler} needs at least {fewest} evaluations for {levels} noise levels; "
            f"got {evaluations}"
        )
    return options


def runaways(samples: Float[Tensor, "count channel height width"]) -> int:
    """How many samples have a pixel that is not finite, or farther than 1 outside of [0, 1]."""
    return int((~((samples - 0.5).abs() <= 1.5)).flatten(1).any(1).sum())


def sample(
    score: NoiseConditionalScore,
    count: int = 16,
    *,
    seed: int = 0,
    batch_size: int = 100,
    sampler: str = "annealed_langevin",
    folder: Path | str | None = None,
    callback: Callable[[int, State], None] | None = None,
    progress: bool = True,
    **options: Any,
) -> Float[Tensor, "{count} channel height width"]:
    """Samples by annealed Langevin dynamics, or another sampler, in the batches of `draw_batch`.

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
        sampler: one of `samplers()`.
        folder: where the batches go; None keeps them in memory only.
        callback: called with the index of the batch's first sample and the sampler's `State`, for
            the batches that this call draws.  Those read from the folder are not observed: whoever
            has to see every chain needs an empty folder or none.
        progress: show a bar over the sampler's steps, with images a second.
        options: of the sampler; `epsilon`, `steps_per_level` and `denoise` of
            `ncsn_core.samplers.annealed_langevin`.  `options_for` has those for a budget.

    Returns:
        The samples on the CPU, not clipped.

    Raises:
        ValueError: when `count` or `batch_size` is less than 1.
        UnknownNameError: for another sampler or option.
        NCSNError: when the folder holds samples of other weights or settings, or something else,
            or another process is drawing into it; when it cannot be written to; when several
            processes have no folder, or one of them is gone.
        CorruptFileError: when a batch in the folder was altered or cut short.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1; got {count} and {batch_size}")
    options = _with_defaults(sampler, options)
    a_level = options.get("steps_per_level", 1) + options.get("corrector_steps", 0)
    updates = len(score.sigmas) * a_level
    which = {} if sampler == "annealed_langevin" else {"sampler": sampler}
    samples = torch.empty(count, *score.image_shape)
    parts = {(i, len(part)): part for i, part in enumerate(samples.split(batch_size))}
    settings = {"seed": seed, "batch_size": batch_size, **which, **options}
    with _store(score, settings, folder) as store:
        missing = [key for key, part in parts.items() if not _read(store, key, part)]
        mine = [key for key in missing if key[0] % world_size() == global_rank()]
        with tqdm(
            total=len(mine) * updates,
            unit="step",
            desc="sampling",
            disable=not progress or global_rank() > 0,
        ) as bar:
            for index, size in mine:
                watch = _watch(bar, updates, index * batch_size, callback)
                x = draw_batch(score, seed, index, size, callback=watch, **which, **options)
                parts[index, size].copy_(x)
                store[index, size] = parts[index, size]
        with lost_process_explained(ADVICE):
            barrier()
        for key in missing:
            if key not in mine:
                parts[key].copy_(store[key])
    return samples


def _known() -> dict[str, Callable[..., Tensor]]:
    """Every sampler by name; they are loaded when asked for."""
    from ncsn_core.samplers import SAMPLERS

    return SAMPLERS


def _check_sampler(name: str) -> None:
    if name not in samplers():
        hint = "`ncsn_core.samplers` has others, which need more than a score of images"
        raise UnknownNameError("sampler", name, samplers(), hint)


def _with_defaults(sampler: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a sampler, as given or as they are without."""
    _check_sampler(sampler)
    known = {
        name: given.default
        for name, given in inspect.signature(_known()[sampler]).parameters.items()
        if given.kind is given.KEYWORD_ONLY and name not in ("generator", "callback")
    }
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {sampler}", name, known)
    whole = known | options
    for name, value in whole.items():
        if value is inspect.Parameter.empty:
            raise NCSNError(f"{sampler} needs the option {name!r}; `options_for` has one that fits")
    return whole


def _read(store: "dict[Key, Tensor] | SampleFolder", key: Key, part: Tensor) -> bool:
    """Fill a part of the samples with a batch that is there; False when it is not."""
    if key not in store:
        return False
    part.copy_(store[key])
    return True


def _watch(
    bar: tqdm, updates: int, first: int, callback: Callable[[int, State], None] | None
) -> Callable[[State], None]:
    """Move the bar at every update of a batch, and pass the state on."""
    began, before = time.monotonic(), bar.n

    def watch(state: State) -> None:
        bar.update()
        images = len(state.x) * (bar.n - before) / updates
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
