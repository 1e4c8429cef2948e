"""Many samples, batch by batch: seeded so that a batch never depends on the others.

With a folder, every batch goes to disk when it is finished, and an interrupted run is continued.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from ncsn_core import checkpoints, provenance, ranks
from ncsn_core.errors import CorruptFileError, NCSNError
from ncsn_core.files import exclusive
from ncsn_core.networks import NoiseConditionalScore
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import State, annealed_langevin

ADVICE = "The finished batches are kept: the same command draws the others"


def generate(
    score: NoiseConditionalScore,
    image_shape: tuple[int, int, int],
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 100,
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    folder: Path | str | None = None,
    callback: Callable[[int, State], None] | None = None,
    progress: bool = True,
) -> Float[Tensor, "count channel height width"]:
    """Samples by annealed Langevin dynamics (Algorithm 1) from uniform noise in [0, 1].

    Batch b draws everything from (seed, b), so that drawing more samples later leaves the first
    full batches as they are.

    With a `folder`, each batch is written there as soon as it is finished.  The same call again
    reads the batches that it finds and draws the others: the samples are those of a run that was
    never interrupted, bit for bit.  A larger `count` goes on where a smaller one stopped.

    Under `torchrun` or `fabric run` the processes divide the batches; a folder that all of them see
    is needed then, through which each gets what the others have drawn.

    Args:
        score: a noise-conditional score; its device is used.
        image_shape: channels, height, width.
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
    device = score.sigmas.device
    samples = torch.empty(count, *image_shape)
    drawn = [(b, samples[b * batch_size :][:batch_size]) for b in range(-(-count // batch_size))]
    if folder is None:
        if ranks.count() > 1:
            raise NCSNError("several processes pass their samples on through a folder: name one")
        alone: AbstractContextManager[None] = nullcontext()
    else:
        folder = Path(folder).resolve()
        settings = _settings(score) | {
            "image_shape": list(image_shape),
            "seed": seed,
            "batch_size": batch_size,
            "epsilon": epsilon,
            "steps_per_level": steps_per_level,
            "denoise": denoise,
        }
        if not ranks.index():
            _is_ours(folder, settings)
        alone = nullcontext() if ranks.index() else exclusive(folder, folder.glob("batch_*"))
    with alone:
        if folder is not None:
            with ranks.explained(ADVICE):
                if ranks.index():  # the first one makes the folder
                    ranks.wait()
                if not _is_ours(folder, settings):
                    checkpoints.save(folder, {}, kind="samples", config=settings)
                if not ranks.index():
                    ranks.wait()
        others = [pair for pair in drawn if pair[0] % ranks.count() != ranks.index()]
        drawn = [pair for pair in drawn if pair[0] % ranks.count() == ranks.index()]
        if folder is not None:
            drawn = [(b, part) for b, part in drawn if not _read_batch(folder, b, part)]

        evaluations = len(score.sigmas) * steps_per_level
        began, updates = time.monotonic(), 0
        total = len(drawn) * evaluations
        quiet = not progress or ranks.index() > 0
        with tqdm(total=total, unit="step", desc="sampling", disable=quiet) as bar:
            for batch, part in drawn:
                generator = generator_for(seed, batch, device=device)

                def observe(state: State, first: int = batch * batch_size) -> None:
                    nonlocal updates
                    updates += len(state.x)
                    speed = updates / evaluations / max(time.monotonic() - began, 1e-9)
                    bar.set_postfix_str(f"{speed:.3g} images/s", refresh=False)
                    bar.update()
                    if callback is not None:
                        callback(first, state)

                start = torch.rand(part.shape, device=device, generator=generator)
                end = annealed_langevin(
                    score,
                    start,
                    score.sigmas,
                    epsilon=epsilon,
                    steps_per_level=steps_per_level,
                    denoise=denoise,
                    generator=generator,
                    callback=observe,
                )
                part.copy_(end)
                if folder is not None:
                    checkpoints.save(
                        _batch_folder(folder, batch, part), {"samples": {"x": part}}, kind="samples"
                    )
        with ranks.explained(ADVICE):
            ranks.wait()
        if folder is not None:
            missing = [b for b, part in others if not _read_batch(folder, b, part)]
            if missing:
                raise NCSNError(
                    f"batch {missing[0]}, which another process has drawn, is not in {folder}: the "
                    f"processes do not see one folder"
                )
        return samples


def _settings(score: NoiseConditionalScore) -> dict[str, Any]:
    """What a score contributes to its samples."""
    weights = hashlib.sha256()
    for name, tensor in score.state_dict().items():
        weights.update(f"{name} {provenance.tensor_sha256(tensor.float())}".encode())
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


def _batch_folder(folder: Path, batch: int, part: Tensor) -> Path:
    """Its size belongs to the name: a batch cut short by `count` is no prefix of the whole one."""
    return folder / f"batch_{batch:05d}_of_{len(part)}"


def _read_batch(folder: Path, batch: int, part: Tensor) -> bool:
    """Fill `part` from disk; False when the batch is not there."""
    place = _batch_folder(folder, batch, part)
    if not (place / checkpoints.MANIFEST).is_file():
        return False
    try:
        x = checkpoints.load(place).tensors("samples")["x"]
    except (NCSNError, KeyError) as error:
        raise CorruptFileError(
            f"{place} holds a damaged batch of samples. Delete that folder and run again: "
            f"the batch is then drawn anew"
        ) from error
    part.copy_(x)
    return True


class Recorder:
    """A callback for `generate` that keeps what the book shows of the chains, in little memory.

    Args:
        sigmas: the ladder.
        steps_per_level: T.
        dark: mask [channel, height, width] of pixels that are always black in the data.
        chains: how many chains to keep whole, the first ones; at most a batch.
        frames: about how many moments of these to keep for an animation; 0 keeps none.
    """

    def __init__(
        self,
        sigmas: Float[Tensor, " levels"],
        steps_per_level: int,
        dark: Bool[Tensor, "channel height width"],
        *,
        chains: int = 16,
        frames: int = 60,
    ) -> None:
        self.steps = steps_per_level
        self.levels = len(sigmas)
        self.dark = dark
        self.chains = chains
        moments = min(frames, self.levels * self.steps)
        self.moments = set(
            torch.linspace(0, self.levels * self.steps - 1, moments).round().long().tolist()
        )
        self.ends: list[Tensor] = []
        self.frames: list[Tensor] = []
        self.dark_sums = torch.zeros(self.levels, 3, dtype=torch.float64)
        self.ratio_sums = torch.zeros(self.levels, 2, dtype=torch.float64)

    def __call__(self, first: int, state: State) -> None:
        noise_norm = (state.alpha * state.x[0].numel()) ** 0.5
        drift_norm = state.alpha / 2 * state.score.flatten(1).norm(dim=1)
        self.ratio_sums[state.level, 0] += float((drift_norm / noise_norm).sum())
        self.ratio_sums[state.level, 1] += len(state.x)

        if state.step == self.steps - 1:
            pixels = state.x[:, self.dark.to(state.x.device)].double()
            sums = [float(pixels.sum()), float(pixels.square().sum()), float(pixels.numel())]
            self.dark_sums[state.level] += torch.tensor(sums, dtype=torch.float64)
            if first == 0:
                self.ends.append(state.x[: self.chains].half().cpu())
        if first == 0 and state.level * self.steps + state.step in self.moments:
            self.frames.append(to_bytes(state.x[: self.chains]).cpu())

    def tensors(self) -> dict[str, Tensor]:
        """What was seen.

        Returns:
            ends: float16 [chains, levels, channel, height, width], the state after each level.
            frames: uint8 [frames, chains, channel, height, width], unless none were kept.
            dark_mean, dark_std: float32 [levels], over chains and dark pixels, after each level.
            snr: float32 [levels], mean of ‖α/2 · s‖ / √(αD) over all chains and steps.
        """
        total, squares, count = self.dark_sums.unbind(1)
        mean = total / count
        frames = {"frames": torch.stack(self.frames)} if self.frames else {}
        return frames | {
            "ends": torch.stack(self.ends, dim=1),
            "dark_mean": mean.float(),
            "dark_std": (squares / count - mean**2).clamp(min=0).sqrt().float(),
            "snr": (self.ratio_sums[:, 0] / self.ratio_sums[:, 1]).float(),
        }


def to_bytes(x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """[0, 1] → uint8, rounded; what lies outside is clipped, as a screen would."""
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
