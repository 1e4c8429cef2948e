"""The state of a training run: what a step changes, what a checkpoint keeps, what interrupts it."""

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

import ncsn_core.checkpoints as checkpoints
import ncsn_core.provenance as provenance
from ncsn_core._checks import Checks, look
from ncsn_core.checkpoints import Record
from ncsn_core.config import TrainingConfig
from ncsn_core.distributed import lost_process_explained
from ncsn_core.errors import NCSNError, NonFiniteLossError
from ncsn_core.files import exclusive
from ncsn_core.networks.score import NoiseConditionalScore
from ncsn_core.objectives import denoising_score_matching, sliced_score_matching_vr
from ncsn_core.schedules import denoiser_weight, loss_weight

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ADVICE = "The last checkpoint is kept. Try a smaller learning_rate or a gradient_clip"
PLANNED = ("steps", "decay_steps")  # settings that may change while a run is under way


def objective(config: TrainingConfig) -> Callable[..., Tensor]:
    """The loss of a configuration, image by image: of (score, x, σ), noise and directions."""
    weight = partial(loss_weight, power=config.weight_power)
    if config.parametrization == "continuous":
        weight = partial(denoiser_weight, data_std=config.data_std)
    if config.objective == "sliced":
        return partial(sliced_score_matching_vr, weight=weight)
    return partial(denoising_score_matching, weight=weight)


def check_start(config: TrainingConfig, record: Record | None) -> None:
    """See that a run can start from the weights of a record, if one is given.

    Raises:
        NCSNError: when it is no NCSN, or its network has other sizes or other inputs.
    """
    if record is None:
        return
    if record.kind != "ncsn":
        raise NCSNError(f"a run cannot start from {record.name!r}, a {record.kind} and no NCSN")
    if "input_range" in record.config:
        raise NCSNError(
            f"a run cannot start from {record.name!r}, which was converted from a network of "
            f"pixels in another range than [0, 1]: it can be sampled and evaluated"
        )
    wanted = config.to_dict()
    names = ("channels", "image_channels", "levels", "conditional", "keep_means", "normalize")
    theirs = {name: record.config.get(name, True) for name in names}  # the flags' default
    differ = [name for name in names if theirs[name] != wanted[name]]
    if differ:
        those = ", ".join(f"{name} {theirs[name]}" for name in differ)
        these = ", ".join(f"{name} {wanted[name]}" for name in differ)
        raise NCSNError(
            f"a run cannot start from {record.name!r}: that network has {those} and this one "
            f"{these}. Give this run the same settings, or another start"
        )


class Run:
    """A run in memory: score, optimizer, moving average, step and losses.

    Args:
        config: what to compute.
        fabric: over all processes, launched.
        score: where it begins, on the device of this process.

    Raises:
        NCSNError: when the batch cannot be divided among the processes.
    """

    def __init__(
        self, config: TrainingConfig, fabric: "Fabric", score: NoiseConditionalScore
    ) -> None:
        each, left = divmod(config.batch_size, fabric.world_size)
        if left:
            raise NCSNError(
                f"a batch of {config.batch_size} cannot be divided among {fabric.world_size} "
                f"processes; choose a batch_size that can, or another number of processes"
            )
        self.share = slice(fabric.global_rank * each, (fabric.global_rank + 1) * each)
        self.config, self.fabric, self.score = config, fabric, score
        self.network, self.device = score.network, score.sigmas.device
        self.objective = objective(config)
        adam = torch.optim.Adam(self.network.parameters(), config.learning_rate, fused=True)
        self.optimizer: Any = fabric.setup_optimizers(adam)
        self.average = copy.deepcopy(self.network) if config.ema_decay else None
        self.step = 0
        self.whole = True  # False while a step is half done
        self.losses: list[Tensor] = []
        self.checks: Checks = []  # of the steps since the last log
        self.interrupted = threading.Event()
        self.history: dict[str, list[Any]] = {"step": [], "loss": []}
        self.seconds = 0.0
        self.clock = time.monotonic()
        session = provenance.describe(self.device) | {
            "device_type": self.device.type,
            "precision": str(fabric._precision.precision),
            "compiled": bool(getattr(self.network, "compiled", False)),
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

    # --- a step ---------------------------------------------------------------------------------

    def update(self, x: Tensor, sigma: Tensor, noise: Tensor, v: Tensor | None = None) -> Tensor:
        """Loss, gradient and the optimizer's step; returns the mean loss of this process's share.

        Args:
            x: clean images of all processes, `[batch, *shape]`.
            sigma, noise: σ [batch] and z, like x, of each.
            v: directions of a sliced objective, `[1, batch, *shape]`.
        """
        part = self.share
        drawn = {} if v is None else {"v": v[:, part]}
        with self.fabric.autocast():
            losses = self.objective(self.score, x[part], sigma[part], noise=noise[part], **drawn)
        loss = losses.mean()
        self.fabric.backward(loss)
        self._average_gradients()
        if self.config.gradient_clip is not None:
            # Gradients that are not finite show in the loss of the next step: no need to wait.
            self.fabric.clip_gradients(
                self.network,
                self.optimizer,
                max_norm=self.config.gradient_clip,
                error_if_nonfinite=False,
            )
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _average_gradients(self) -> None:
        """Give every process the mean of all gradients."""
        if self.fabric.world_size == 1:
            return
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)  # not Fabric's, which waits for the GPU before it
        parts = (flat / self.fabric.world_size).split([g.numel() for g in gradients])
        means = [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, means)

    def set_learning_rate(self, rate: float) -> None:
        """Adam's rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def average_weights(self, decay: float) -> None:
        """w̄ ← decay · w̄ + (1 − decay) · w, where the run keeps an average."""
        if self.average is not None:
            update_average(self.average, self.network, decay)

    def advance(self, loss: Tensor) -> None:
        """Count a step that has been made."""
        self.losses.append(loss)
        self.step += 1
        self.whole = True

    # --- what is told of it ---------------------------------------------------------------------

    def log(self) -> str:
        """Move the losses since the last log into the history; mean loss and images a second."""
        losses = self.finite_losses()
        elapsed = self.tick()
        self.losses = []
        mean = float(losses.mean())
        self.history["step"].append(self.step)
        self.history["loss"].append(round(mean, 4))
        speed = len(losses) * self.config.batch_size / elapsed
        return f"loss {mean:.2f}, {speed:.0f} images/s"

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

    # --- checkpoints ----------------------------------------------------------------------------

    def save(self, folder: Path) -> Record:
        """Write a checkpoint; of several processes, the first does."""
        pending = self.finite_losses()
        self.tick()
        if not torch.stack([p.isfinite().all() for p in self.network.parameters()]).all():
            raise NonFiniteLossError(
                f"the weights after step {self.step} are not finite, though the loss is. {ADVICE}"
            )
        if self.fabric.is_global_zero:
            self._write(folder, pending)
        self.fabric.barrier()
        self.clock = time.monotonic()
        return checkpoints.load(folder)

    def _write(self, folder: Path, pending: Tensor) -> None:
        """Write a checkpoint, with the losses since the last log."""
        state = state_of(self.network, self.optimizer) | {"losses": pending}
        if self.average is not None:
            state |= {f"average.{k}": t for k, t in _plain(self.average).items()}
        kept = "network." if self.average is None else "average."
        checkpoints.save(
            folder,
            {"weights": part_of(state, kept), "state": state},
            kind="ncsn",
            config=self.config.to_dict(),
            step=self.step,
            metrics={},
            history=self.history,
            provenance=self.origin | {"seconds": round(self.seconds, 1)},
        )

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

    def restore(self, record: Record, state: dict[str, Tensor]) -> None:
        """Go back to what `save` wrote, given its record and the state in it."""
        load_state(self.network, self.optimizer, state)
        if self.average is not None:
            self.average.load_state_dict(part_of(state, "average."))
        self.step = record.manifest["step"]
        self.losses = list(state["losses"].to(self.device))
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

    # --- a session ------------------------------------------------------------------------------

    @contextmanager
    def under_way(self, folder: Path, previous: Record | None, *, progress: bool) -> Iterator[tqdm]:
        """Keep the folder to this run, and save it when it is interrupted between two steps.

        Args:
            folder: the run's.
            previous: what it held when the run was opened.
            progress: show a bar, which is yielded either way.

        Raises:
            NCSNError: when another process is or was training there, or is gone.
            KeyboardInterrupt: after saving.
        """
        advice = (
            f"The last checkpoint in {folder.name!r} is kept: the same command goes on from there"
        )
        first = self.fabric.is_global_zero  # writes; the others wait for it when they meet
        with exclusive(folder) if first else nullcontext(), lost_process_explained(advice):
            there = (folder / checkpoints.MANIFEST).exists()
            if self.any_of(previous != (checkpoints.load(folder) if there else None)):
                raise NCSNError(
                    f"another process has trained in {folder} since this one began. Run the same "
                    f"command again: it goes on from there"
                )
            bar = tqdm(
                total=self.config.steps,
                initial=self.step,
                unit="step",
                desc=f"{self.config.preset} ({self.config.profile})",
                disable=not (progress and first),
            )
            try:
                with bar, interrupts_wait(alone=self.fabric.world_size == 1) as self.interrupted:
                    yield bar
            except KeyboardInterrupt:
                if self.whole:
                    self.save(folder)
                raise

    def heed_interrupt(self, *, together: bool) -> None:
        """Raise the KeyboardInterrupt that has waited for its step.

        Args:
            together: whether all processes call this after this step.  They have to stop at the
                same one, and ask each other seldom.
        """
        if (together or self.fabric.world_size == 1) and self.any_of(self.interrupted.is_set()):
            raise KeyboardInterrupt


@contextmanager
def interrupts_wait(*, alone: bool = True) -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM set an event, so that a step is never left half done.

    A second Ctrl-C interrupts at once, but for a process among several: the launcher repeats its
    signals.  Only the main thread can do this; elsewhere signals keep their way.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: object) -> None:
        if event.is_set() and alone:
            raise KeyboardInterrupt
        event.set()

    previous = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """w̄ ← decay · w̄ + (1 − decay) · w, for all weights at once."""
    update = get_ema_multi_avg_fn(decay)
    update(list(average.parameters()), list(network.parameters()), torch.zeros(()))


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments, by names that tell what they are."""
    state = {f"network.{k}": t for k, t in _plain(network).items()}
    names = [name for name, _ in network.named_parameters()]
    for i, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{names[i]}.{slot}": t for slot, t in slots.items()}
    return state


def load_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]
) -> None:
    """Go back to what `state_of` gave."""
    network.load_state_dict(part_of(state, "network."))
    slots: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter) in enumerate(network.named_parameters()):
        # Fused Adam walks parameter and moments in memory order: give them one layout.
        slots[i] = {
            slot: value if value.ndim == 0 else torch.empty_like(parameter.data).copy_(value)
            for slot, value in part_of(state, f"optimizer.{name}.").items()
        }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without it."""
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def _plain(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().contiguous() for name, t in network.state_dict().items()}
