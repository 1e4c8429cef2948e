"""Training an NCSN: the loop, on Lightning Fabric, with exact resume.

Step k of a run is a function of the configuration, k and the state after step k − 1 alone: its
images, levels and noise come from generators seeded by (seed, k).  A run that was interrupted
anywhere continues from its last checkpoint with the losses that it would have had.
"""

import copy
import functools
import math
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from ncsn_core import checkpoints, provenance, ranks
from ncsn_core.checkpoints import Record, build_network, build_score
from ncsn_core.checks import Checks, later, look
from ncsn_core.config import TrainingConfig
from ncsn_core.data import batches, load_images
from ncsn_core.divergence import projections
from ncsn_core.errors import NCSNError, NonFiniteLossError
from ncsn_core.files import exclusive
from ncsn_core.networks import NoiseConditionalScore, RefineNet
from ncsn_core.objectives import (
    continuous_denoising_score_matching,
    multilevel_denoising_score_matching,
    multilevel_sliced_score_matching,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ADVICE = "The last checkpoint is kept. Try a smaller learning_rate or a gradient_clip"
Batch = tuple[int, Tensor, torch.Generator]
COMPILING_REPAYS = 1000  # training steps or evaluations of a batch; it takes half a minute
PLANNED = ("steps", "decay_steps")  # settings that may change while a run is under way
PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true")


def pick_device(device: str = "auto") -> torch.device:
    """The device to use: "auto" is the first GPU where there is one, else the CPU.

    Of several processes that a launcher started, each takes a GPU of its own.
    """
    if torch.cuda.is_available() and device in ("auto", "cuda"):
        return torch.device("cuda", ranks.local_index())
    if device != "auto":
        return torch.device(device)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(precision: str, device: torch.device) -> str:
    """Fabric's name of the precision; "auto" picks what the hardware is fast in.

    bfloat16 where the processor is fast in it (a CPU is measured), float16 with loss scaling on
    older GPUs (a Colab T4), float32 elsewhere.  Weights and optimizer stay in float32 in each case.
    """
    if precision not in PRECISIONS:
        raise NCSNError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        capable = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16-mixed" if capable else "16-mixed"
    if device.type == "cpu" and ranks.all_of(_cpu_is_fast_in_bf16()):
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
    """Whether a small function can be compiled; warns when it cannot."""
    try:
        torch.compile(torch.exp)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a compiler, its headers and its cache can do
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"going on without torch.compile, which fails here: {reason}", stacklevel=3)
        return False
    return True


def worth_compiling(device: torch.device, calls: int) -> bool:
    """Whether to compile for so many calls of a network: where that works and repays itself."""
    return calls >= COMPILING_REPAYS and can_compile(device)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Adam's rate at a step, counted from 0.

    Half a cosine down to zero, or constant and then down to zero in `decay_steps` (the
    warmup-stable-decay schedule of Hu et al. 2024, without its warm-up).
    """
    if config.rate_schedule == "constant":
        left = config.steps - step
        return config.learning_rate * min(1.0, left / max(1, config.decay_steps))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def averaging_decay(decay: float, step: int) -> float:
    """The moving average's decay at a step, counted from 0: min(decay, step / (step + 9)).

    The average begins as the first weights, and a young one forgets quickly: its memory is a tenth
    of the run until it is 1 / (1 − decay) steps long.  With 0.999 from the start, the average
    after 300 steps would still be the first weights to three quarters.
    """
    return min(decay, step / (step + 9))


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
    progress: bool = True,
    prepare: Callable[["Run"], None] | None = None,
) -> Record:
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
        compile: fuse the normalizations with `torch.compile`, which cannot be done for a sliced
            objective or an energy.  None means as before where a run goes on, and in a new run
            where it works and the run is long enough to repay it.
        data_root, download: see `ncsn_core.data.load_images`.
        minutes: stop after the first checkpoint beyond this many minutes, to be continued.
        start_from: a checkpoint whose weights a new run starts from, instead of random ones.  Which
            it was goes into the provenance.
        progress: show a bar with the loss and the speed.
        prepare: called with the run before its first step; may replace `Run.update`.

    Returns:
        The checkpoint: weights (the moving average where there is one), the state to go on from,
        the configuration, the loss history and its provenance.

    Raises:
        NCSNError: when `folder` holds a run that differs in more than these, or no run and other
            files, or another process is training there; when the run's device is not here; when
            the data is missing; when the batch cannot be divided among the processes or one of
            them is gone; when a checkpoint cannot be written.
        NonFiniteLossError: at an infinite or NaN loss or weight; the last checkpoint is kept.
        KeyboardInterrupt: after finishing and saving the step that was under way.
    """
    folder = Path(folder)
    previous = _previous_run(config, folder)
    if previous is not None and previous.manifest["step"] >= config.steps:
        return previous

    before = None if previous is None else previous.sessions[-1]
    target = pick_device(device) if before is None else _device_as_before(device, before)
    if before is not None and before.get("device_type", target.type) == target.type:
        precision = before["precision"] if precision == "auto" else precision
    share = ranks.share(config.batch_size)
    fabric = ranks.fabric(target, pick_precision(precision, target))
    images = _load(config, target, data_root, download)
    if compile is None and before is not None:
        compile = before["fused"] and can_compile(target)
    elif compile is None:
        calls = 0 if config.differentiates_twice else config.steps
        compile = worth_compiling(target, calls)
    elif compile and config.differentiates_twice:
        raise NCSNError("compiled normalizations have no second derivatives, which this needs")
    run = Run(config, fabric, target, share, compile)
    run.origin |= {"data_sha256": provenance.tensor_sha256(images), "images": len(images)}
    if previous is not None:
        run.restore(previous)
    elif start_from is not None:
        run.start_from(start_from)
    if prepare is not None:
        prepare(run)
    stream = batches(images, config.batch_size, seed=config.seed, start=run.step, flip=config.flip)

    # Only the first of several processes writes; the others wait for it when they meet.
    with nullcontext() if ranks.index() else exclusive(folder):
        now = _previous_run(config, folder)
        if not ranks.index() and now != previous:
            raise NCSNError(
                f"another process has trained in {folder} since this one began. Run the same "
                f"command again: it goes on from there"
            )
        return _finish(run, stream, folder, minutes, progress)


def _device_as_before(device: str, before: dict[str, Any]) -> torch.device:
    """The device to go on with: the one of the last session unless another is named."""
    kind = before.get("device_type", "auto")  # not known of records of before there were sessions
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto" and not here.get(kind, True):
        raise NCSNError(
            f"this run was computed on a device of type {kind!r}, which is not here. Name the one "
            f"to go on with, as in device='cpu': the numbers will then differ in rounding"
        )
    return pick_device(kind if device == "auto" else device)


def _load(
    config: TrainingConfig, device: torch.device, root: Path | str | None, download: bool
) -> Tensor:
    """The images that a configuration trains on."""
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


def _finish(
    run: "Run", stream: Iterator[Batch], folder: Path, minutes: float | None, progress: bool
) -> Record:
    """Take a run to its last step, or to the first checkpoint beyond so many minutes."""
    config = run.config
    stop_at = math.inf if minutes is None else time.monotonic() + 60 * minutes
    bar = tqdm(
        total=config.steps,
        initial=run.step,
        unit="step",
        desc=f"{config.preset} ({config.profile})",
        disable=not progress or not run.fabric.is_global_zero,
    )
    advice = f"The last checkpoint in {folder.name!r} is kept: the same command goes on from there"
    with ranks.explained(advice):
        try:
            with bar, _interrupts_wait() as interrupted:
                for step, x, generator in stream:
                    run.advance(step, x, generator)
                    bar.update()
                    logs = run.step % config.log_every == 0 or run.step == config.steps
                    if logs:
                        loss, speed = run.log()
                        bar.set_postfix_str(f"loss {loss:.2f}, {speed:.0f} images/s")
                    if run.step == config.steps:
                        break
                    # Several processes have to stop at the same step: they ask each other, seldom.
                    if (logs or run.fabric.world_size == 1) and run.any_of(interrupted.is_set()):
                        raise KeyboardInterrupt
                    if run.step % config.checkpoint_every == 0:
                        record = run.save(folder)
                        if run.any_of(time.monotonic() > stop_at):
                            return record
        except KeyboardInterrupt:
            if run.whole:
                run.save(folder)
            raise
        return run.save(folder)


@contextmanager
def _interrupts_wait() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM set an event, so that a step is never left half done.

    A second Ctrl-C interrupts at once, but for a process among several: the launcher repeats its
    signals.  Only the main thread can do this; elsewhere signals keep their way.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: object) -> None:
        if event.is_set() and ranks.count() == 1:
            raise KeyboardInterrupt
        event.set()

    previous = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _previous_run(config: TrainingConfig, folder: Path) -> Record | None:
    if not (folder / checkpoints.MANIFEST).exists():
        checkpoints.owned_files(folder)
        return None
    previous = checkpoints.load(folder)
    wanted = config.to_dict()
    # A setting that is newer than the run has its default.
    found = {field.name: field.default for field in fields(config)} | previous.config
    changed = [k for k, v in wanted.items() if found.get(k) != v and k not in PLANNED]
    if changed:
        raise NCSNError(
            f"the folder {folder.name!r} holds a run with another configuration "
            f"({', '.join(changed)} differ). Choose another folder, or delete that one"
        )
    return previous


def draws(
    config: TrainingConfig, x: Tensor, sigmas: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """What the loss of a batch draws, image by image.

    Every process draws for the whole batch, so that their number does not matter.
    """
    device, count = x.device, len(x)
    drawn = {}
    if config.parametrization == "continuous":
        u = torch.rand(count, device=device, generator=generator)
        drawn["sigma"] = config.sigma_last * (config.sigma_first / config.sigma_last) ** u
    else:
        drawn["levels"] = torch.randint(len(sigmas), (count,), device=device, generator=generator)
    drawn["noise"] = torch.randn(x.shape, device=device, generator=generator)
    if config.objective == "sliced":
        drawn["v"] = projections(x, "gaussian", generator)
    return drawn


class _Batch:
    """Clean images, and what `draws` has drawn for them.

    An object of its own because Fabric rounds the tensors that a module is called with to the
    precision of its products, and images and noise have to stay as they are.
    """

    def __init__(self, x: Tensor, drawn: dict[str, Any]) -> None:
        self.x, self.drawn = x, drawn


class _Loss(nn.Module):
    """The loss of a batch as a module, so that precision and devices are managed around all of it.

    An energy and a sliced objective differentiate inside, where nothing may stand between.
    """

    def __init__(self, score: NoiseConditionalScore, config: TrainingConfig) -> None:
        super().__init__()
        self.score, self.config = score, config

    def forward(self, batch: _Batch) -> Tensor:
        """The mean loss of a batch."""
        config, score, x, drawn = self.config, self.score, batch.x, batch.drawn
        if config.parametrization == "continuous":
            ends = (config.sigma_first, config.sigma_last)
            return continuous_denoising_score_matching(
                score, x, ends, data_std=config.data_std, **drawn
            ).mean()
        power = config.weight_power
        if config.objective == "sliced":
            drawn = drawn | {"v": drawn["v"][None]}
            loss = multilevel_sliced_score_matching(
                score, x, score.sigmas, weight_power=power, **drawn
            )
        else:
            loss = multilevel_denoising_score_matching(
                score, x, score.sigmas, weight_power=power, **drawn
            )
        return loss.mean()


class Run:
    """The state of a run in memory: network, optimizer, moving average, step and losses."""

    def __init__(
        self,
        config: TrainingConfig,
        fabric: "Fabric",
        device: torch.device,
        share: slice,
        fuse: bool,
    ) -> None:
        self.config, self.fabric, self.share = config, fabric, share
        torch.manual_seed(config.seed)
        network = build_network(config.to_dict())
        network.fuse_normalizations(fuse)
        self.network: RefineNet = network.to(device)
        optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, fused=True)
        self.score = build_score(config.to_dict(), network, config.sigmas.to(device))
        self.loss, self.optimizer = fabric.setup(_Loss(self.score, config), optimizer)
        self.average = copy.deepcopy(network) if config.ema_decay else None
        self.step = 0
        self.whole = True  # False while a step is half done
        self.losses: list[Tensor] = []
        self.checks: Checks = []  # of the steps since the last log
        self.history: dict[str, list[Any]] = {"step": [], "loss": []}
        self.seconds = 0.0
        self.clock = time.monotonic()
        session = provenance.describe(device) | {
            "device_type": device.type,
            "precision": str(fabric._precision.precision),
            "fused": fuse,
            "processes": fabric.world_size,
        }
        self.origin: dict[str, Any] = {
            "seed": config.seed,
            "plans": [{"from_step": 0} | self.plan()],
            "sessions": [{"from_step": 0} | session],
        }

    def plan(self) -> dict[str, int]:
        """The settings that may change while a run is under way."""
        return {name: getattr(self.config, name) for name in PLANNED}

    def advance(self, step: int, x: Tensor, generator: torch.Generator) -> None:
        """One optimizer step on the batch of step `step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        drawn = draws(self.config, x, self.score.sigmas, generator)
        part = {name: t[self.share] for name, t in drawn.items()}
        with later(self.checks):
            loss = self.update(x[self.share], part)
        if self.average is not None:
            decay = averaging_decay(self.config.ema_decay, step)
            update_average(self.average, self.network, decay)
        self.losses.append(loss)
        self.step = step + 1
        self.whole = True

    def update(self, x: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Loss, gradient and the optimizer's step, on images and what `draws` drew; the loss."""
        loss = self.loss(_Batch(x, drawn))
        self.fabric.backward(loss)
        if self.config.gradient_clip is not None:
            # Gradients that are not finite show in the loss of the next step: no need to wait.
            self.fabric.clip_gradients(
                self.loss,
                self.optimizer,
                max_norm=self.config.gradient_clip,
                error_if_nonfinite=False,
            )
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def log(self) -> tuple[float, float]:
        """Move the losses since the last log into the history; mean loss and images a second."""
        losses = self.finite_losses()
        elapsed = self.tick()
        self.losses = []
        mean = float(losses.mean())
        self.history["step"].append(self.step)
        self.history["loss"].append(round(mean, 4))
        return mean, len(losses) * self.config.batch_size / elapsed

    def tick(self) -> float:
        """Add the time since the last call to the run's; returns it."""
        now = time.monotonic()
        elapsed, self.clock = now - self.clock, now
        self.seconds += elapsed
        return elapsed

    def finite_losses(self) -> Tensor:
        """The losses since the last log; raises `NonFiniteLossError` at the first that is none."""
        look(self.checks)
        losses = torch.stack(self.losses).float() if self.losses else torch.zeros(0)
        if self.fabric.world_size > 1 and self.losses:
            losses = self.fabric.all_reduce(losses)  # type: ignore[assignment]
        losses = losses.cpu()
        first = self.step - len(losses)
        finite = torch.isfinite(losses)
        if not finite.all():
            bad = first + int((~finite).nonzero()[0])
            raise NonFiniteLossError(
                f"the loss of step {bad + 1} is {losses[bad - first].item()}. {ADVICE}"
            )
        return losses

    def any_of(self, flag: bool) -> bool:
        """Whether the flag is up in any of the processes."""
        if self.fabric.world_size == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.fabric.device)
        return bool(self.fabric.all_reduce(raised, reduce_op="sum") > 0)  # type: ignore[operator]

    def save(self, folder: Path) -> Record:
        """Write a checkpoint; of several processes, the first does."""
        pending = self.finite_losses()
        self.tick()
        weights = _plain(self.network.state_dict())
        if not all(torch.isfinite(w).all() for w in weights.values()):
            raise NonFiniteLossError(
                f"the weights after step {self.step} are not finite, though the loss is. {ADVICE}"
            )
        if not self.fabric.is_global_zero:
            self.fabric.barrier()
            return checkpoints.load(folder)
        state = {f"network.{k}": v for k, v in weights.items()} | {"losses": pending}
        names = [name for name, _ in self.network.named_parameters()]
        for name, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                state[f"optimizer.{names[name]}.{slot}"] = value
        if self.average is not None:
            weights = _plain(self.average.state_dict())
            state |= {f"average.{k}": v for k, v in weights.items()}
        record = checkpoints.save(
            folder,
            {"weights": weights, "state": state},
            kind="ncsn",
            config=self.config.to_dict(),
            step=self.step,
            metrics={},
            history=self.history,
            provenance=self.origin | {"seconds": round(self.seconds, 1)},
        )
        self.fabric.barrier()
        self.clock = time.monotonic()
        return record

    def start_from(self, record: Record) -> None:
        """Take the weights of another run, whose averaged ones are the better start."""
        self.network.load_state_dict(record.tensors())
        if self.average is not None:
            self.average.load_state_dict(record.tensors())
        self.origin["started_from"] = {
            "name": record.name,
            "step": record.manifest["step"],
            "commit": record.sessions[-1]["commit"],
            "weights_sha256": record.weights_sha256,
        }

    def restore(self, record: Record) -> None:
        """Go back to what `save` wrote."""
        state = record.tensors("state")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        if self.average is not None:
            self.average.load_state_dict(part("average."))
        slots: dict[int, dict[str, Tensor]] = {}
        for i, (name, parameter) in enumerate(self.network.named_parameters()):
            # Fused Adam walks parameter and moments in memory order: give them one layout.
            slots[i] = {
                slot: value if value.ndim == 0 else torch.empty_like(parameter.data).copy_(value)
                for slot, value in part(f"optimizer.{name}.").items()
            }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        self.step = record.manifest["step"]
        self.losses = list(state["losses"].to(self.score.sigmas.device))
        self.history = record.history
        self.seconds = record.provenance["seconds"]
        plans = record.provenance["plans"]
        if {"decay_steps": 0} | plans[-1] != plans[-1] | self.plan():
            plans = [*plans, {"from_step": self.step} | self.plan()]
        self.origin["plans"] = plans
        now = self.origin["sessions"][0] | {"from_step": record.sessions[-1]["from_step"]}
        if now == record.sessions[-1]:
            self.origin["sessions"] = record.sessions
        else:
            self.origin["sessions"] = [*record.sessions, now | {"from_step": self.step}]
        if "started_from" in record.provenance:
            self.origin["started_from"] = record.provenance["started_from"]
        self.clock = time.monotonic()


def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """w̄ ← decay · w̄ + (1 − decay) · w, for all weights at once."""
    update = get_ema_multi_avg_fn(decay)
    update(list(average.parameters()), list(network.parameters()), torch.zeros(()))


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}
