"""The long trainings behind the book, one after the other, each going on where it stopped.

    OMP_NUM_THREADS=1 nice -n 19 python tools/long_runs.py FOLDER --precision bf16-mixed

Their rates are constant, so that a run may be stopped, and looked at, anywhere.  When there is no
more time for one, `--harvest NAME` adds a tenth to the steps that it has made, during which the
rate falls to zero.  `--list` shows how far each has come.

Precision is named and not measured, because the answer of a stopwatch depends on what else the
machine does.  bfloat16 pays where `lscpu` shows avx512_bf16 or amx_bf16, and on GPUs.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ncsn_core import checkpoints, training
from ncsn_core.config import TrainingConfig, load_config
from ncsn_core.devices import PRECISIONS

sys.path.insert(0, str(Path(__file__).parent))
import figure1

CONSTANT: dict[str, Any] = {"rate_schedule": "constant", "log_every": 100, "checkpoint_every": 500}
SMALL = {"image_size": 14, "channels": 8, "batch_size": 32, "steps": 20_000, "ema_decay": 0.995}
ABLATIONS: dict[str, dict[str, Any]] = {
    "ncsn": {},
    "plain_norm": {"keep_means": False},
    "unconditional": {"conditional": False},
    "single_0.01": {"levels": 1, "sigma_max": 0.01},
    "sliced": {"objective": "sliced"},
    "no_norm": {"normalize": False},
}
SEEDS = 3


def networks() -> dict[str, TrainingConfig]:
    """The score networks of the queue, by name, in the order of their importance."""
    queue = {
        "mnist": load_config("mnist", "cpu", **CONSTANT, steps=60_000),
        "mnist_continuous": load_config(
            "mnist",
            "cpu",
            **CONSTANT,
            steps=40_000,
            parametrization="continuous",
            sigma_max=17.0,  # the largest distance of two digits, rounded up
            data_mean=0.13,
            data_std=0.31,
        ),
        "fashion_mnist": load_config("fashion_mnist", "cpu", **CONSTANT, steps=24_000),
    }
    for seed in range(SEEDS):
        for name, change in ABLATIONS.items():
            config = load_config("mnist", "cpu", **CONSTANT | SMALL | change, seed=seed)
            queue[f"ablations/{name}-{seed}"] = config
    return queue


def jobs() -> dict[str, TrainingConfig | figure1.Figure1]:
    """The queue: the networks, then Figure 1 with blocks as in the code and as in the paper."""
    figures = {f"figure1/post-{seed}": figure1.Figure1(seed) for seed in range(SEEDS)}
    return networks() | figures | {"figure1/pre-0": figure1.Figure1(0, preactivation=True)}


def steps_of(folder: Path) -> int:
    """How many steps a run has made."""
    if not (folder / checkpoints.MANIFEST).exists():
        return 0
    return checkpoints.load(folder).manifest["step"]


def harvest(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """The configuration that brings a run to its end, a tenth beyond where it is."""
    record = checkpoints.load(folder)
    decay = record.config["decay_steps"]
    if decay:  # begun before
        return replace(config, steps=record.config["steps"], decay_steps=decay)
    return config.ended_after(record.manifest["step"])


def main() -> None:
    """Train what has not been trained to its end."""
    queue = jobs()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where every run has a folder of its own")
    parser.add_argument("--precision", choices=[p for p in PRECISIONS if p != "auto"])
    parser.add_argument("--only", choices=queue, nargs="+", metavar="NAME", help="these alone")
    ended = [name for name, job in queue.items() if isinstance(job, TrainingConfig)]
    parser.add_argument("--harvest", choices=ended, metavar="NAME", help="end this one")
    parser.add_argument("--data-root", type=Path, help="where Fashion-MNIST is")
    parser.add_argument("--list", action="store_true", help="how far each has come, and no more")
    given = parser.parse_args()
    if given.list:
        for name, config in queue.items():
            print(f"{name:28} {steps_of(given.folder / name):>8,} of {config.steps:,} steps")
        return
    if given.precision is None:
        parser.error("name a --precision")
    if given.harvest:
        config = harvest(queue[given.harvest], given.folder / given.harvest)
        queue = {given.harvest: config}
    for name in given.only or queue:
        config = queue[name]
        if steps_of(given.folder / name) >= config.steps:
            continue
        print(f"{name}: {config.steps:,} steps, {torch.get_num_threads()} thread(s)", flush=True)
        if isinstance(config, figure1.Figure1):  # differentiated twice: always in float32
            figure1.train(config, given.folder / name)
            continue
        training.train(
            config, given.folder / name, precision=given.precision, data_root=given.data_root
        )


if __name__ == "__main__":
    main()
