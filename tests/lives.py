"""Work that is killed at random moments and begun again, in fresh processes that start quickly."""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from ncsn_book import execution
from ncsn_core import checkpoints, generation, training
from ncsn_core.config import load_config
from ncsn_core.data.download import Archive, fetch
from ncsn_core.networks import NoiseConditionalScore, RefineNet
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import geometric_ladder

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

# A server that has imported what takes long forks a process for every life.
processes = multiprocessing.get_context("forkserver")
OURS = ["ncsn_core.training", "ncsn_core.generation", "ncsn_book.execution"]
processes.set_forkserver_preload([*OURS, "torch._dynamo", "lightning_fabric", "papermill"])


def begin(work: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """Start `work(*arguments)` in a process of its own, and wait until it has begun."""
    begun = processes.Event()
    process = processes.Process(target=_live, args=(begun, work, arguments))
    process.start()
    assert begun.wait(120)
    return process


def _live(begun: object, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:  # the tracebacks of interrupts are expected
        os.dup2(nowhere.fileno(), 2)
    begun.set()
    work(*arguments)


def finish(work: Callable[..., None], *arguments: object, seconds: float = 120) -> int:
    """Run `work(*arguments)` in a process of its own to its end; returns its exit code."""
    process = begin(work, *arguments)
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{work.__name__} has not ended within {seconds} s")
    return process.exitcode


def kill_often(
    work: Callable[..., None],
    *arguments: object,
    kills: int,
    longest: float,
    check: Callable[[], None],
    seed: int = 0,
) -> Counter:
    """Kill the work so many times, check after every death, and let it finish.

    Args:
        kills: by the three signals in turn.
        longest: the moment is uniform up to so many seconds after the beginning.
        check: called when the process is gone.

    Returns:
        How many died by which signal.
    """
    chance, died = random.Random(seed), Counter()
    for number in range(kills):
        wanted = SIGNALS[number % len(SIGNALS)]
        process = begin(work, *arguments)
        children = psutil.Process(process.pid)
        time.sleep(chance.uniform(0, longest))
        try:
            family = children.children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        if process.is_alive():
            os.kill(process.pid, wanted)
            died[wanted.name] += 1
        process.join(60)
        assert not process.is_alive(), f"{wanted.name} did not end it"
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, f"{alive} outlived their parent"
        check()
    assert finish(work, *arguments) == 0
    return died


# --- the work: small, and always the same ------------------------------------------------------


def train(folder: Path, steps: int = 40) -> None:
    """A network of 2 channels; a checkpoint every fourth step."""
    config = load_config(
        "mnist",
        "smoke",
        channels=2,
        train_images=64,
        batch_size=4,
        steps=steps,
        rate_schedule="constant",
        log_every=1,
        checkpoint_every=4,
    )
    shape = (64, 1, config.image_size, config.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator_for(0))
    training.load_images = lambda *_, **__: images
    training.train(config, folder, device="cpu", precision="32-true", compile=False, progress=False)


def sample(folder: Path, count: int = 40) -> None:
    """Batches of two samples from an untrained network."""
    torch.manual_seed(0)
    network = RefineNet(2, 1, 8, levels=3)
    score = NoiseConditionalScore(network, geometric_ladder(1.0, 0.1, 3)).requires_grad_(False)
    samples = generation.sample(
        score, count, batch_size=2, steps_per_level=3, folder=folder, progress=False
    )
    checkpoints.save(folder.with_name("samples"), {"samples": {"x": samples}}, kind="samples")


def execute(root: Path, notebook: Path) -> None:
    """A notebook."""
    with execution.alone(root):
        execution.execute(root, notebook, report=lambda line: None)


def download(archive: Archive, root: Path) -> None:
    """An archive."""
    fetch(archive, root)
