"""The benchmark behind `ncsn book bench`: our training step and sampler against plain ones.

The plain path is `ncsn_core.book.plain`.  All paths are run in turn, round after round, so that a
slow moment of the machine falls on all of them, and a ratio is that of two times of one round.
What a machine could do at best is measured beside them.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import ncsn_core.provenance as provenance
from ncsn_core._checks import later
from ncsn_core.book import plain
from ncsn_core.config import TrainingConfig, load_config
from ncsn_core.convert import from_authors
from ncsn_core.data.datasets import batches, dequantize
from ncsn_core.devices import autocast_dtype, can_compile, pick_precision
from ncsn_core.distributed import fabric
from ncsn_core.metrics.cost import costs, flops, wait
from ncsn_core.networks.build import new_score
from ncsn_core.networks.refinenet import RefineNet
from ncsn_core.networks.score import NoiseConditionalScore
from ncsn_core.randomness import generator_for
from ncsn_core.run import Run
from ncsn_core.samplers.annealed import annealed_langevin
from ncsn_core.schedules import geometric_ladder
from ncsn_core.training import draw

LEVELS = 10
Report = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A network and the number of images that it sees at a time."""

    channels: int
    image_channels: int
    image_size: int
    batch: int


@dataclass(frozen=True)
class Path:
    """A way to run our network: whether its normalizations are compiled, and its precision."""

    compile: bool
    precision: str


@dataclass(frozen=True)
class Plan:
    """What a profile measures: sizes, batches at one size, rounds, and steps of the agreement."""

    sizes: tuple[Case, ...]
    sweep: tuple[Case, ...]
    rounds: int
    steps: int


PLANS = {
    "smoke": Plan((Case(4, 1, 14, 4),), (Case(4, 1, 14, 2), Case(4, 1, 14, 4)), 2, 3),
    "cpu": Plan(
        (Case(16, 1, 28, 64), Case(32, 1, 28, 32), Case(64, 1, 28, 16), Case(128, 3, 32, 4)),
        tuple(Case(64, 1, 28, batch) for batch in (2, 8, 32, 64)),
        7,
        500,
    ),
    "gpu": Plan(
        (Case(16, 1, 28, 128), Case(32, 1, 28, 128), Case(64, 1, 28, 128), Case(128, 3, 32, 128)),
        tuple(Case(64, 1, 28, batch) for batch in (8, 32, 128, 512)),
        15,
        500,
    ),
}


def measure(
    profile: str, device: torch.device, *, compiled: bool = True, report: Report = print
) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        profile: a key of `PLANS`.
        device: where.
        compiled: measure compiled normalizations too, where they are possible.
        report: receives a line for each measurement.

    Returns:
        Plain values for JSON: "device", "default" (the path that training takes here), "ceilings",
        and rows of "training", "sweep" and "sampling"; see `row`.  "agreement" says how far apart
        the paths end up.
    """
    plan = PLANS[profile]
    default = Path(compiled and can_compile(device), pick_precision("auto", device))
    low = "16-mixed" if default.precision == "16-mixed" else "bf16-mixed"
    ways = (False, True) if default.compile else (False,)
    paths = {
        name(path): path
        for path in [Path(compile, p) for p in ("32-true", low) for compile in ways]
    }
    smoke = profile == "smoke"
    before = measure_ceilings(device, smoke=smoke)
    result: dict[str, Any] = {
        "device": provenance.device_name(device),
        "kind": device.type,
        "default": name(default),
        "rounds": plan.rounds,
    }
    for section, cases, make in (
        ("training", plan.sizes, training_calls),
        ("sweep", plan.sweep, training_calls),
        ("sampling", plan.sizes, sampling_calls),
    ):
        result[section] = []
        for case in cases:
            torch.compiler.reset()  # or the shapes of all cases together exceed its limit
            chosen = paths if section != "sweep" else {name(default): default}
            with nullcontext() if smoke else _nothing_compiled():
                rows = compare(make(case, chosen, device), case, plan.rounds, device)
            if section == "sampling":
                rows = [r | {"per_second": r["per_second"] * LEVELS} for r in rows]
            for found in rows:
                report(f"{section}: {line(found)}")
            result[section] += rows
    after = measure_ceilings(device, smoke=smoke)  # a disturbed moment must not lower a ceiling
    ceilings = {key: max(before[key], after[key]) for key in before}
    result["ceilings"] = ceilings
    for section in ("training", "sweep", "sampling"):
        result[section] = [found | _speed(found, ceilings) for found in result[section]]
    report(", ".join(f"{key} {value:.3g}" for key, value in ceilings.items()))
    result["agreement"] = agreement(default, plan.steps, device)
    return result


def _nothing_compiled() -> AbstractContextManager[Any]:
    """Hide what an earlier run has compiled and left on disk, or compiling costs nothing."""
    from torch._inductor import utils

    fresh = getattr(utils, "fresh_cache", None)  # torch 2.8 renamed it
    return (fresh or utils.fresh_inductor_cache)()


def name(path: Path) -> str:
    """What a table calls a path."""
    precision = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}
    return f"{'compiled' if path.compile else 'eager'} {precision[path.precision]}"


def config_of(case: Case) -> TrainingConfig:
    """The paper's training of a network of this size."""
    return load_config(
        "cifar10" if case.image_channels == 3 else "mnist",
        "gpu",
        channels=case.channels,
        image_size=case.image_size,
        batch_size=case.batch,
    )


def training_calls(
    case: Case, paths: dict[str, Path], device: torch.device
) -> dict[str, Callable[[], Any]]:
    """One training step by every path, from drawing the images to the update of the weights."""
    config = config_of(case)
    shape = (1024, case.image_channels, case.image_size, case.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator_for(0))
    sigmas = config.sigmas.to(device)

    network = plain.CondRefineNetDilated(case.channels, case.image_channels, LEVELS).to(device)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    step = plain.training_step(network, optimizer, sigmas)

    def plainly() -> float:
        chosen = images[torch.randint(len(images), (case.batch,))]
        return step(dequantize(chosen).to(device))

    calls: dict[str, Callable[[], Any]] = {"plain": plainly}
    resident = images.to(device)
    for title, path in paths.items():
        run = new_run(config, path, device)
        stream = batches(resident, case.batch, seed=0, flip=config.flip)
        calls[title] = partial(advance, run, stream)
    return calls


def advance(run: Run, stream: Iterator[tuple[int, Tensor, torch.Generator]]) -> None:
    """One step of the loop in `ncsn_core.training.train`, on the next batch of a stream."""
    step, x, generator = next(stream)
    with later(run.checks):
        run.set_learning_rate(run.config.learning_rate_at(step))
        loss = run.update(x, *draw(run.config, run.score.sigmas, x, generator))
        run.average_weights(run.config.ema_decay_at(step))
        run.advance(loss)


def new_run(config: TrainingConfig, path: Path, device: torch.device) -> Run:
    """What `ncsn_core.training.train` advances, by one path."""
    score = new_score(config.to_dict(), config.sigmas, device, compile=path.compile)
    return Run(config, fabric(device, path.precision), score)


def sampling_calls(
    case: Case, paths: dict[str, Path], device: torch.device
) -> dict[str, Callable[[], Any]]:
    """One Langevin step at each level by every path: as many network evaluations as levels."""
    sigmas = geometric_ladder(1.0, 0.01, LEVELS).to(device)
    network = plain.CondRefineNetDilated(case.channels, case.image_channels, LEVELS).to(device)
    shape = (case.batch, case.image_channels, case.image_size, case.image_size)
    x = torch.rand(shape, device=device)
    calls: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain.sample(network, x, sigmas, 1, 2e-5)
    }
    for title, path in paths.items():
        score = like(network, case, path, sigmas)
        calls[title] = partial(annealed_langevin, score, x, sigmas, steps_per_level=1)
    return calls


def like(
    network: plain.CondRefineNetDilated, case: Case, path: Path, sigmas: Tensor
) -> NoiseConditionalScore:
    """Our score with the weights of a plain network, for evaluation."""
    ours = RefineNet(case.channels, case.image_channels, case.image_size, len(sigmas))
    ours.load_state_dict(from_authors(network.state_dict()))
    ours.compile_normalizations(path.compile)
    autocast = autocast_dtype(path.precision)
    score = NoiseConditionalScore(ours, sigmas, autocast=autocast).to(sigmas.device)
    return score.eval().requires_grad_(False)


def compare(
    calls: dict[str, Callable[[], Any]], case: Case, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row for every call; the first of them is what the others are compared with.

    Returns:
        For each: the case and "path"; "seconds" of every round; "per_second", images in the
        median round (and in "sampling" times their network evaluations); "ratio" to the first path,
        the median of those of the rounds, with its quartiles in "ratio_low" and "ratio_high";
        "flop", of the first path,
        for they all do the same work; "peak_bytes", on a CPU that of operations that are not
        compiled; and "warm_up_seconds", what the first call took beyond an ordinary one.
    """
    warm_up = {}
    for title, call in calls.items():
        began = time.perf_counter()
        call()
        wait(device)
        warm_up[title] = time.perf_counter() - began
    first = next(iter(calls))
    flop = flops(calls[first])
    found = costs(calls, repeats=rounds, device=device)
    base = np.array(found[first].seconds)
    rows = []
    for title, cost in found.items():
        ratios = base / np.array(cost.seconds)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows.append(
            asdict(case)
            | {
                "path": title,
                "seconds": [round(s, 5) for s in cost.seconds],
                "per_second": case.batch / cost.median,
                "ratio": float(middle),
                "ratio_low": float(low),
                "ratio_high": float(high),
                "flop": flop,
                "peak_bytes": cost.peak_bytes,
                "warm_up_seconds": max(0.0, warm_up[title] - cost.median),
            }
        )
    return rows


def _speed(found: dict[str, Any], ceilings: dict[str, float]) -> dict[str, float]:
    """Floating-point operations a second, and what part that is of the best convolution's."""
    speed = found["flop"] / float(np.median(found["seconds"]))
    precision = "float32" if found["path"] == "plain" else found["path"].split()[-1]
    best = ceilings[f"convolution {precision}"] * 1e9
    return {"gflop_per_second": speed / 1e9, "of_ceiling": speed / best}


def measure_ceilings(device: torch.device, *, smoke: bool = False) -> dict[str, float]:
    """What the machine can do: products and convolutions in Gflop/s, copies in GB/s.

    The convolution is the network's most frequent one, 3 × 3 from 128 to 128 feature maps of 14 ×
    14 pixels at a dilation of 1, in the faster of two memory formats.
    """
    size, batch = (64, 2) if smoke else (2048, 64) if device.type == "cpu" else (8192, 512)
    repeats = 1 if smoke else 7
    found: dict[str, float] = {}
    kinds = [torch.float32, torch.bfloat16]
    if device.type == "cuda":
        kinds.append(torch.float16)
    with torch.no_grad():
        for kind in kinds:
            label = str(kind).removeprefix("torch.")
            a = torch.randn(size, size, device=device, dtype=kind)
            cost = _quickest(partial(torch.mm, a, a), device, repeats)
            found[f"product {label}"] = 2 * size**3 / cost / 1e9
            speeds = []
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(batch, 128, 14, 14, device=device, dtype=kind)
                w = torch.randn(128, 128, 3, 3, device=device, dtype=kind)
                x, w = x.to(memory_format=layout), w.to(memory_format=layout)
                cost = _quickest(partial(F.conv2d, x, w, padding=1), device, repeats)
                speeds.append(2 * batch * 128 * 128 * 9 * 14 * 14 / cost / 1e9)
            found[f"convolution {label}"] = max(speeds)
    x = torch.empty((16 if smoke else 256) * 2**20 // 4, device=device)
    y = torch.empty_like(x)
    found["copy GB/s"] = 2 * x.nbytes / _quickest(lambda: y.copy_(x), device, repeats) / 1e9
    return found


def _quickest(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of the quickest of several calls, for a ceiling."""
    return min(costs({"call": call}, repeats=repeats, device=device)["call"].seconds)


def agreement(path: Path, steps: int, device: torch.device) -> dict[str, Any]:
    """Whether the same start, images, levels and noise lead both paths to the same losses.

    Returns:
        "steps"; "first", the largest relative difference of the losses over the first ten; the
        mean losses of the last fifth, "plain" and "ours"; their "difference", relative, and its
        "standard_error", that of a mean of so many losses; "samples", the largest difference
        between the pixels of two samplers with one network and one noise.
    """
    case = Case(8, 1, 14, 32)
    config = config_of(case)
    sigmas = config.sigmas.to(device)
    torch.manual_seed(0)
    network = plain.CondRefineNetDilated(case.channels, 1, LEVELS).to(device)
    run = new_run(config, path, device)
    run.network.load_state_dict(from_authors(network.state_dict()))
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    plain_step = plain.training_step(network, optimizer, sigmas)

    shape = (4096, 1, case.image_size, case.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator_for(0)).to(device)
    losses = []
    for step, x, generator in batches(images, case.batch, seed=0):
        state = generator.get_state()
        sigma, noise, _ = draw(config, sigmas, x, generator)
        levels = (sigma[:, None] == sigmas).int().argmax(1)
        first = plain_step(x, levels, noise)
        generator.set_state(state)
        advance(run, iter([(step, x, generator)]))
        losses.append((first, float(run.losses[-1])))
        if step + 1 == steps:
            break
    table = np.array(losses)
    tail = table[-max(1, steps // 5) :]
    error = tail[:, 0].std() / math.sqrt(len(tail)) / abs(tail[:, 0].mean())

    start = torch.rand(16, *shape[1:], device=device, generator=generator_for(1, device=device))
    seeded = [generator_for(2, device=device) for _ in range(2)]
    expected = plain.sample(network, start, sigmas, 2, 2e-5, seeded[0])[-1]
    found = annealed_langevin(
        like(network, case, path, sigmas), start, sigmas, steps_per_level=2, generator=seeded[1]
    )
    early = table[:10]
    return {
        "steps": steps,
        "first": float(np.abs(early[:, 1] / early[:, 0] - 1).max()),
        "plain": float(tail[:, 0].mean()),
        "ours": float(tail[:, 1].mean()),
        "difference": float(abs(tail[:, 1].mean() / tail[:, 0].mean() - 1)),
        "standard_error": float(error),
        "samples": float((found.cpu() - expected).abs().max()),
    }


def line(found: dict[str, Any]) -> str:
    """One row as text."""
    size = "{channels:3d} channels, {image_channels}×{image_size}×{image_size}, batch {batch:3d}"
    return (
        size.format(**found)
        + f"  {found['path']:18s} {found['per_second']:9.1f}/s"
        + f"  {found['ratio']:5.2f}× ({found['ratio_low']:.2f}–{found['ratio_high']:.2f})"
        + f"  {found['flop'] / np.median(found['seconds']) / 1e9:7.0f} Gflop/s"
        + f"  {found['peak_bytes'] / 2**20:6.0f} MiB"
    )


def repaid_after(rows: list[dict[str, Any]], case: Case, precision: str = "float32") -> int | None:
    """Training steps after which compiled normalizations have saved what compiling cost.

    None where they were not measured or save nothing.
    """
    of = {r["path"]: r for r in rows if asdict(case).items() <= r.items()}
    names = [f"{kind} {precision}" for kind in ("eager", "compiled")]
    if not of.keys() >= set(names):
        return None
    eager, compiled = (float(np.median(of[name]["seconds"])) for name in names)
    saved = eager - compiled
    return math.ceil(of[names[1]]["warm_up_seconds"] / saved) if saved > 0 else None


def plot(result: dict[str, Any]) -> Any:
    """Ratios by size for training and sampling, and speed against the batch; returns the figure."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    colors: dict[str, Any] = {}
    for ax, section in zip(axes[:2], ("training", "sampling"), strict=True):
        rows = result[section]
        paths = list(dict.fromkeys(r["path"] for r in rows if r["path"] != "plain"))
        sizes = list(dict.fromkeys((r["channels"], r["image_size"]) for r in rows))
        width = 0.8 / len(paths)
        for i, path in enumerate(paths):
            chosen = [r for r in rows if r["path"] == path]
            at = np.arange(len(sizes)) + (i - (len(paths) - 1) / 2) * width
            middle = np.array([r["ratio"] for r in chosen])
            spread = [
                middle - [r["ratio_low"] for r in chosen],
                [r["ratio_high"] for r in chosen] - middle,
            ]
            bars = ax.bar(at, middle, width, yerr=spread, label=path, error_kw={"lw": 1})
            colors[path] = bars.patches[0].get_facecolor()
        ax.axhline(1, color="black", lw=1)
        ax.set_xticks(range(len(sizes)), [f"{c} ch\n{s}×{s}" for c, s in sizes])
        ax.set(title=section, ylabel="speed over the plain path's")
        ax.grid(axis="x", visible=False)
    for path in dict.fromkeys(r["path"] for r in result["sweep"]):
        chosen = [r for r in result["sweep"] if r["path"] == path]
        axes[2].plot(
            [r["batch"] for r in chosen],
            [r["per_second"] for r in chosen],
            "o-",
            color="black" if path == "plain" else colors.get(path),
            label="plain" if path == "plain" else None,
        )
    first = result["sweep"][0]
    axes[2].set(
        title=f"training, {first['channels']} channels",
        xscale="log",
        xlabel="images a step",
        ylabel="images a second",
        ylim=(0, None),
    )
    sizes = [r["batch"] for r in result["sweep"] if r["path"] == first["path"]]
    axes[2].set_xticks(sizes, [str(size) for size in sizes])
    axes[2].set_xticks([], minor=True)
    handles, labels = axes[0].get_legend_handles_labels()
    lines, names = axes[2].get_legend_handles_labels()
    fig.legend(handles + lines, labels + names, loc="outside upper center", ncols=5)
    return fig
