"""The training step and the sampler of the book against plain ones, and what the machine can do.

    python benchmarks/speed.py --profile cpu --out ncsn_core/results/benchmark_cpu

takes a quarter of an hour on two cores that have nothing else to do, and writes the record that the
page "Speed and scale" shows.  The paths, of which `plain.py` is one, are run in turn, so that a
slow moment of the machine falls on all of them, and a ratio is that of two times of one round.
"""

import argparse
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import plain
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncsn_core import checkpoints, provenance
from ncsn_core.config import TrainingConfig, load_config
from ncsn_core.convert import from_authors
from ncsn_core.data.datasets import batches, dequantize
from ncsn_core.devices import autocast_dtype, can_compile, pick_device, pick_precision
from ncsn_core.distributed import fabric
from ncsn_core.metrics.cost import costs, flops, wait
from ncsn_core.networks.build import new_score
from ncsn_core.randomness import generator_for
from ncsn_core.run import Run
from ncsn_core.samplers.annealed import annealed_langevin
from ncsn_core.training import draw, training_step

LEVELS = 10
Calls = dict[str, Callable[[], Any]]
Row = dict[str, Any]
Speeds = dict[str, float]
# A network with the number of images that it sees at a time; how ours is run.
Case = namedtuple("Case", "channels image_channels image_size batch")
Way = namedtuple("Way", "compile precision")
SIZES = ((16, 1, 28), (32, 1, 28), (64, 1, 28), (128, 3, 32))
PLANS = {  # batches of these sizes, and of the third alone; rounds; steps of the agreement
    "smoke": ((), (1, 2), 2, 3),
    "cpu": ((64, 32, 16, 4), (2, 8, 32, 64), 7, 500),
    "gpu": ((128, 128, 128, 128), (8, 32, 128, 512), 15, 500),
}


def measure(profile: str, device: torch.device) -> dict[str, Any]:
    """Run a plan and say how far it is; "default" is the way that training takes here."""
    from torch._inductor import utils

    fresh_cache = getattr(utils, "fresh_cache", None) or utils.fresh_inductor_cache  # torch < 2.8
    of_sizes, of_third, rounds, steps = PLANS[profile]
    smoke = profile == "smoke"
    cases = [Case(*size, batch) for size, batch in zip(SIZES, of_sizes, strict=not smoke)]
    sweep = [Case(*((4, 1, 14) if smoke else SIZES[2]), batch) for batch in of_third]
    default = Way(not smoke and can_compile(device), pick_precision("auto", device))
    low = "16-mixed" if default.precision == "16-mixed" else "bf16-mixed"
    ways = [Way(c, p) for p in ("32-true", low) for c in sorted({False, default.compile})]
    ceilings = measure_ceilings(device, smoke=smoke)
    found: dict[str, list[Row]] = {"training": [], "sweep": [], "sampling": []}
    for section, rows in found.items():
        for case in sweep if section == "sweep" else cases or sweep[:1]:
            torch.compiler.reset()  # or the shapes of all cases together exceed its limit
            with nullcontext() if smoke else fresh_cache():  # or compiling a second time is quick
                make = sampling_calls if section == "sampling" else training_calls
                calls = make(case, [default] if section == "sweep" else ways, device)
                rows += compare(calls, case, rounds, device, ceilings, section)
    here = {"device": provenance.device_name(device), "default": name(default)}
    return here | found | {"ceilings": ceilings, "agreement": agreement(default, steps, device)}


def name(way: Way) -> str:
    """What a table calls a way to run our network."""
    precision = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}
    return f"{'compiled' if way.compile else 'eager'} {precision[way.precision]}"


def config_of(case: Case) -> TrainingConfig:
    """The paper's training of a network of this size."""
    given = {"channels": case.channels, "image_size": case.image_size, "batch_size": case.batch}
    return load_config("cifar10" if case.image_channels == 3 else "mnist", "gpu", **given)


def random_images(count: int, case: Case) -> Tensor:
    """Noise in the form of a data set, uint8."""
    shape = (count, case.image_channels, case.image_size, case.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator_for(0))


def training_calls(case: Case, ways: list[Way], device: torch.device) -> Calls:
    """One training step in every way, from drawing the images to the update of the weights."""
    config, images = config_of(case), random_images(1024, case)
    sigmas = config.sigmas.to(device)
    network = plain.CondRefineNetDilated(case.channels, case.image_channels, LEVELS).to(device)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)

    def plainly() -> float:
        x = dequantize(images[torch.randint(len(images), (case.batch,))]).to(device)
        labels = torch.randint(0, len(sigmas), (len(x),), device=device)
        return plain.training_step(network, optimizer, sigmas, x, labels, torch.randn_like(x))

    calls: Calls = {"plain": plainly}
    for way in ways:
        stream = batches(images.to(device), case.batch, seed=0, flip=config.flip)
        calls[name(way)] = partial(advance, new_run(config, way, device), stream)
    return calls


def new_run(config: TrainingConfig, way: Way, device: torch.device) -> Run:
    """What `ncsn_core.training.train` advances."""
    score = new_score(config.to_dict(), config.sigmas, device, compile=way.compile)
    return Run(config, fabric(device, way.precision), score)


def advance(run: Run, stream: Iterator[tuple[int, Tensor, torch.Generator]]) -> None:
    """Our training step, on the next batch of a stream."""
    training_step(run, *next(stream))


def sampling_calls(case: Case, ways: list[Way], device: torch.device) -> Calls:
    """One Langevin step at each level in every way: as many network evaluations as levels."""
    sigmas = config_of(case).sigmas.to(device)
    network = plain.CondRefineNetDilated(case.channels, case.image_channels, LEVELS).to(device)
    x = dequantize(random_images(case.batch, case)).to(device)
    calls: Calls = {"plain": partial(plain.sample, network, x, sigmas, 1, 2e-5)}
    for way in ways:
        score = like(network, case, way, sigmas)
        calls[name(way)] = partial(annealed_langevin, score, x, sigmas, steps_per_level=1)
    return calls


def like(network: nn.Module, case: Case, way: Way, sigmas: Tensor) -> nn.Module:
    """Our score with the weights of a plain network, for evaluation."""
    config = config_of(case).to_dict() | {"levels": len(sigmas)}
    score = new_score(config, sigmas, sigmas.device, compile=way.compile)
    score.network.load_state_dict(from_authors(network.state_dict()))
    score.autocast = autocast_dtype(way.precision)
    return score.eval().requires_grad_(False)


def compare(
    calls: Calls, case: Case, rounds: int, device: torch.device, ceilings: Speeds, section: str
) -> list[Row]:
    """A row for every call; the first of them, in float32, is what the others are compared with.

    Its numbers are those of the median round, "per_second" is images or, in "sampling",
    evaluations, and "flop" is of the first, for all do the same work.  "ratio" is the median of
    those of the rounds, with quartiles.  "peak_bytes" is on a CPU that of what is not compiled, and
    "warm_up_seconds" what the first call took beyond an ordinary one.
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
    rows = []
    for title, cost in found.items():
        ratios = np.array(found[first].seconds) / np.array(cost.seconds)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        gflop = flop / cost.median / 1e9
        ceiling = ceilings[f"convolution {'float32' if title == first else title.split()[-1]}"]
        measured = {
            "path": title,
            "seconds": [round(s, 5) for s in cost.seconds],
            "per_second": case.batch * (LEVELS if section == "sampling" else 1) / cost.median,
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
            "flop": flop,
            "peak_bytes": cost.peak_bytes,
            "warm_up_seconds": max(0.0, warm_up[title] - cost.median),
            "gflop_per_second": gflop,
            "of_ceiling": gflop / ceiling,
        }
        rows.append(case._asdict() | measured)
        print(f"{section}, {case}, {title}: {middle:.2f} ({low:.2f}–{high:.2f})", flush=True)
    return rows


def measure_ceilings(device: torch.device, *, smoke: bool = False) -> Speeds:
    """What the machine can do: products and convolutions in Gflop/s, copies in GB/s.

    The convolution is the network's most frequent one, 3 × 3 from 128 to 128 feature maps of 14 ×
    14 pixels at a dilation of 1, in the faster of two memory formats.
    """
    size, batch = (64, 2) if smoke else (2048, 64) if device.type == "cpu" else (8192, 512)
    kinds = [torch.float32, torch.bfloat16, torch.float16][: 3 if device.type == "cuda" else 2]

    def speed(work: int, call: Callable[..., Any], *arguments: Tensor) -> float:
        calls = {"call": partial(call, *arguments)}
        cost = costs(calls, repeats=1 if smoke else 14, device=device)["call"]
        return work / min(cost.seconds) / 1e9  # a disturbed moment must not lower a ceiling

    found: Speeds = {}
    with torch.no_grad():
        for kind in kinds:
            label, make = str(kind).removeprefix("torch."), partial(torch.randn, device=device)
            a = make(size, size, dtype=kind)
            found[f"product {label}"] = speed(2 * size**3, torch.mm, a, a)
            x, w = make(batch, 128, 14, 14, dtype=kind), make(128, 128, 3, 3, dtype=kind)
            call, work = partial(F.conv2d, padding=1), 2 * batch * 128 * 128 * 9 * 14 * 14
            found[f"convolution {label}"] = max(
                speed(work, call, x.to(memory_format=layout), w.to(memory_format=layout))
                for layout in (torch.contiguous_format, torch.channels_last)
            )
    x = torch.empty((16 if smoke else 256) * 2**20 // 4, device=device)
    return found | {"copy GB/s": speed(2 * x.nbytes, torch.empty_like(x).copy_, x)}


def agreement(way: Way, steps: int, device: torch.device) -> dict[str, Any]:
    """Whether the same start, images, levels and noise lead both paths to the same losses.

    "first" is the largest relative difference of the first ten losses, "plain" and "ours" are means
    of the last fifth, and "samples" is the largest difference between the pixels of two samplers.
    """
    case = Case(8, 1, 14, 32)
    config = config_of(case)
    sigmas = config.sigmas.to(device)
    torch.manual_seed(0)
    network = plain.CondRefineNetDilated(case.channels, case.image_channels, LEVELS).to(device)
    run = new_run(config, way, device)
    run.network.load_state_dict(from_authors(network.state_dict()))
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    losses, stream = [], batches(random_images(4096, case).to(device), case.batch, seed=0)
    for step, x, generator in islice(stream, steps):
        state = generator.get_state()
        sigma, noise, _ = draw(config, sigmas, x, generator)
        levels = (sigma[:, None] == sigmas).int().argmax(1)
        loss = plain.training_step(network, optimizer, sigmas, x, levels, noise)
        generator.set_state(state)
        advance(run, iter([(step, x, generator)]))
        losses.append((loss, float(run.losses[-1])))
    plains, ours = np.array(losses).T
    last = max(1, steps // 5)
    start = torch.rand_like(x)
    torch.manual_seed(2)
    expected = plain.sample(network, start, sigmas, 2, 2e-5)[-1]
    torch.manual_seed(2)
    found = annealed_langevin(like(network, case, way, sigmas), start, sigmas, steps_per_level=2)
    return {
        "steps": steps,
        "first": float(np.abs(ours / plains - 1)[:10].max()),
        "plain": float(plains[-last:].mean()),
        "ours": float(ours[-last:].mean()),
        "samples": float((found.cpu() - expected).abs().max()),
    }


def main() -> None:
    """Measure and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--profile", choices=PLANS, default="cpu")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder of the record")
    options = parser.parse_args()
    device = pick_device(options.device)
    checkpoints.owned_files(options.out)  # refuses other files before the time is spent
    found = measure(options.profile, device)
    origin = provenance.describe(device) | {"profile": options.profile, "seed": 0}
    checkpoints.save(options.out, {}, kind="bundle", metrics=found, provenance=origin)
    print(options.out / checkpoints.MANIFEST)


if __name__ == "__main__":
    main()
