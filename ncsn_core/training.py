"""Training an NCSN: the loop, with exact resume.

Step k of a run is a function of the configuration, k and the state after step k − 1 alone: its
images, levels and noise come from generators of the run's seed and k.  A run that was interrupted
anywhere continues from its last checkpoint with the losses that it would have had.
"""

import math
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

import ncsn_core.checkpoints as checkpoints
from ncsn_core._checks import later
from ncsn_core._types import Ladder
from ncsn_core.checkpoints import Record
from ncsn_core.config import OWN, TrainingConfig
from ncsn_core.data.datasets import DATASETS, batches, load_images
from ncsn_core.data.own import OwnImages, read_images
from ncsn_core.data.pixels import AnyImages
from ncsn_core.devices import choose
from ncsn_core.distributed import fabric, local_rank_first
from ncsn_core.divergence import projections
from ncsn_core.errors import NCSNError
from ncsn_core.networks.build import new_score
from ncsn_core.pretrained import Model, model
from ncsn_core.provenance import tensor_sha256
from ncsn_core.randomness import normal_like
from ncsn_core.run import PLANNED, Run, check_start
from ncsn_core.schedules import draw_levels, draw_log_uniform


def train(
    config: TrainingConfig,
    folder: Path | str,
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool | None = None,
    data_root: Path | str | None = None,
    download: bool = False,
    minutes: float | None = None,
    start_from: Record | None = None,
    images: str | Path | AnyImages | OwnImages | None = None,
    progress: bool = True,
    prepare: Callable[[Run], None] | None = None,
) -> Model:
    """Train an NCSN (Song & Ermon 2019, §4.2), or go on where an earlier call stopped.

    Under `torchrun` or `fabric run` the processes divide every batch (distributed data parallel).
    The losses are those of one process, to rounding, whatever their number, and a run may be
    continued by another number of them.

    Args:
        config: what to compute.
        folder: the run's folder.  Checkpoints replace each other in it; an unfinished run found
            there is continued, a finished one returned.  Other `steps` and `decay_steps` than
            planned before are accepted, and the change of plan is recorded.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".  "auto" is where a run that goes on was.
        precision: one of `PRECISIONS`.  "auto" is decided once, for a new run or another device.
        compile: compile the normalizations with `torch.compile`, which cannot be done for a sliced
            objective or an energy.  None means as before where a run goes on, and in a new run
            where it works and the run is long enough to repay it.
        data_root, download: see `ncsn_core.data.load_images`.
        minutes: stop after the first checkpoint beyond this many minutes, to be continued.
        start_from: a checkpoint whose weights a new run starts from, instead of random ones.  Which
            it was goes into the provenance.
        images: train on these instead of a data set: a folder, a file, a tensor or an array, see
            `ncsn_core.data.read_images`, at the configuration's size and channels.  A tenth of them
            is held out, see `OwnImages.split`.  The configuration's `dataset` becomes their path,
            or "own"; one that fits comes from `ncsn_core.config.config_for`.
        progress: show a bar with the loss and the speed.
        prepare: called with the run before its first step; may replace its `update`.

    Returns:
        The checkpoint: weights (the moving average where there is one), the state to go on from,
        the configuration, the loss history and its provenance.

    Raises:
        NCSNError: when `folder` holds a run that differs in more than these or began from others
            than `start_from`, an exported one, or no run and other files, or another process is
            training there; when `start_from` has other sizes; when the device is not here; when
            the data is missing; when the batch cannot be divided among the processes or one of
            them is gone; when a checkpoint cannot be written.
        NonFiniteLossError: at an infinite or NaN loss or weight; the last checkpoint is kept.
        KeyboardInterrupt: after finishing and saving the step that was under way.
    """
    folder = Path(folder)
    stop_at = math.inf if minutes is None else time.monotonic() + 60 * minutes
    if compile and config.differentiates_twice:
        raise NCSNError("compiled normalizations have no second derivatives, which this needs")
    config, own = _own(config, images)
    previous = previous_run(config, folder)
    if previous is not None and _is_finished(previous, config, start_from, own):
        return model(previous)
    check_start(config, start_from)
    before = {} if previous is None else previous.sessions[-1]
    calls = 0 if config.differentiates_twice else config.steps
    chosen = choose(device, precision, compile, before, calls)
    joined = fabric(chosen.device, chosen.precision)
    with local_rank_first():  # one process of a machine downloads, the others find it
        pixels = _load(config, chosen.device, data_root, download, own)
    start = 0 if previous is None else previous.manifest["step"]
    stream = batches(pixels, config.batch_size, seed=config.seed, start=start, flip=config.flip)
    score = new_score(config.to_dict(), config.sigmas, chosen.device, compile=chosen.compile)
    run = Run(config, joined, score)
    run.origin |= {"data_sha256": tensor_sha256(pixels), "images": len(pixels)}
    if previous is not None:
        _check_same_images(previous, run.origin["data_sha256"])
        run.restore(previous, previous.tensors("state"))
    elif start_from is not None:
        run.start_from(start_from)
    if prepare is not None:
        prepare(run)

    with run.under_way(folder, previous, progress=progress) as bar:
        for step, x, generator in stream:
            training_step(run, step, x, generator)
            bar.update()
            ends = run.step == config.steps
            logs = ends or run.step % config.log_every == 0
            if logs:
                bar.set_postfix_str(run.log())
            if ends or run.step % config.checkpoint_every == 0:
                record = run.save(folder)
                if ends or run.any_of(time.monotonic() > stop_at):
                    break
            run.heed_interrupt(together=logs)
    return model(record)


def training_step(run: Run, step: int, x: Tensor, generator: torch.Generator) -> None:
    """One step on a batch: σ and noise drawn, loss, gradient, Adam's step, the moving average.

    Args:
        run: what the step changes.
        step: its number, from 0.
        x, generator: from `ncsn_core.data.batches`.
    """
    config = run.config
    with later(run.checks):
        sigma, noise, v = draw(config, run.score.sigmas, x, generator)
        rate, decay = config.learning_rate_at(step), config.ema_decay_at(step)
        run.set_learning_rate(rate)
        loss = run.update(x, sigma, noise, v)
        run.average_weights(decay)
        run.advance(loss)


def previous_run(config: TrainingConfig, folder: Path) -> Record | None:
    """The run in a folder, of this configuration but for what may change; None in an empty one.

    Raises:
        NCSNError: when the folder holds another run, or no run and other files.
    """
    if not (folder / checkpoints.MANIFEST).exists():
        checkpoints.owned_files(folder)
        return None
    previous = checkpoints.load(folder)
    wanted = config.to_dict()
    # A setting that is newer than the run has its default.
    found = {field.name: field.default for field in fields(config)} | previous.config
    changed = [k for k, v in wanted.items() if found.get(k) != v and k not in PLANNED]
    if config.dataset not in DATASETS and found["dataset"] not in DATASETS and "dataset" in changed:
        changed.remove("dataset")  # where one's own images are; which they are, their hash tells
    if changed:
        raise NCSNError(
            f"the folder {folder.name!r} holds a run with another configuration "
            f"({', '.join(changed)} differ). Choose another folder, or delete that one"
        )
    return previous


def _is_finished(
    previous: Record, config: TrainingConfig, start_from: Record | None, own: OwnImages | None
) -> bool:
    """Whether a run has made all its steps.

    Raises:
        NCSNError: when it began from other weights, is of other images of one's own, or is an
            exported network and cannot go on.
    """
    began = previous.provenance.get("started_from", {}).get("weights_sha256")
    if start_from is not None and not start_from.has_weights(began):
        raise NCSNError(
            f"the run in {previous.folder} goes on and did not begin with the weights of "
            f"{start_from.name!r}. Leave out --start-from (start_from=), or choose another folder"
        )
    finished = previous.manifest["step"] >= config.steps
    if not finished and "state" not in previous.manifest["files"]:
        raise NCSNError(
            f"{previous.folder} holds a network without the state of its training, as `ncsn "
            f"export` ships it. Train into another folder, and begin with its weights: "
            f"--start-from {previous.folder} (start_from=)"
        )
    if finished and own is not None:  # a run that goes on looks at what it is going to train on
        _check_same_images(previous, tensor_sha256(own.split()[0][: config.train_images]))
    return finished


def draw(
    config: TrainingConfig, sigmas: Ladder, x: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the loss of a batch needs beside its images, drawn anew in every step.

    Every process draws for the whole batch, so that their number does not matter.

    Returns:
        σ [batch], noise like x, and for a sliced objective directions `[1, *x.shape]`.
    """
    if config.parametrization == "continuous":
        sigma = draw_log_uniform(config.sigma_max, config.sigma_min, len(x), generator)
    else:
        sigma = draw_levels(sigmas, len(x), generator)
    noise = normal_like(x, generator)
    v = projections(x, "gaussian", generator)[None] if config.objective == "sliced" else None
    return sigma, noise, v


def _own(
    config: TrainingConfig, images: str | Path | AnyImages | OwnImages | None
) -> tuple[TrainingConfig, OwnImages | None]:
    """The configuration that names images of one's own, and them as it needs them."""
    if images is None:
        if config.dataset in DATASETS:
            return config, None
        if config.dataset == OWN and not Path(OWN).exists():
            raise NCSNError(
                "this configuration is of images of your own, and none were given: pass images="
            )
        images = config.dataset
    size, channels = config.image_size, config.image_channels
    found = images
    if not isinstance(found, OwnImages):
        found = read_images(found, size=size, channels=channels)
    if found.images.shape[1:] != (channels, size, size):
        again = read_images(found.images, size=size, channels=channels)
        found = replace(again, source=found.source)
    return replace(config, dataset=found.source), found


def _load(
    config: TrainingConfig,
    device: torch.device,
    root: Path | str | None,
    download: bool,
    own: OwnImages | None,
) -> Tensor:
    """The images that a configuration trains on."""
    if own is not None:
        return own.split()[0][: config.train_images].to(device)
    images = load_images(
        config.dataset, device=device, root=root, download=download, size=config.image_size
    )
    images = images[: config.train_images]
    expected = (config.image_channels, config.image_size, config.image_size)
    if images.shape[1:] != expected:
        raise NCSNError(
            f"{config.dataset} has images of shape {tuple(images.shape[1:])}; "
            f"the configuration says {expected}"
        )
    return images


def _check_same_images(previous: Record, sha256: str) -> None:
    """Raise NCSNError when a run was of other images than those to go on with."""
    if previous.provenance.get("data_sha256", sha256) != sha256:
        raise NCSNError(
            f"the run in {previous.folder} was trained on other images than these, on those of "
            f"{previous.config['dataset']} as they were then. Restore them, or name another folder "
            f"for this run (--folder)"
        )
