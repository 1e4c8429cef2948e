"""False alarms: the claims of chapters again and again, each time with another seed.

    python tools/alarms.py

runs the cells that a chapter's claims rest on (`tests/chapters.py`) and keeps what each claim
measures.  Not only the chapter's parameter is another one: every random number is, those of the
repetitions within a chapter and of the networks' first weights too.  A chapter about a network that
took an hour is run on small ones, trained for it.  A run that was interrupted is continued;
`tools/promises.py` takes the results up.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "_build" / "stress" / "false alarms.json"
sys.path.insert(0, str(ROOT / "tests"))

import chapters  # noqa: E402  (of the tests)

SEEDS = {  # fewer where a chapter trains networks or runs large ones
    "01_generative_models": 4,
    "02_score_matching": 300,
    "03_trace_jacobian_cost": 300,
    "04_denoising_score_matching": 300,
    "06_langevin_dynamics": 300,
    "07_manifold_hypothesis": 300,
    "09_slow_mixing": 300,
    "10_ncsn": 3,
    "12_experiments": 10,
    "13_inpainting": 300,
}
TRAINED = ("10_ncsn",)
SMALL = {"channels": 8, "steps": 2000, "batch_size": 32}
Found = dict[str, tuple[float, bool]]


def give_other_numbers(run: int) -> None:
    """From now on make every seed stand for other random numbers, the same ones in the same run."""
    import numpy as np
    import torch

    def other(seed: int) -> int:
        mixed = np.random.SeedSequence(seed, spawn_key=(run,)).generate_state(1, np.uint64)[0]
        return int(mixed >> np.uint64(1))

    class Generator(torch._C.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(other(seed))

    class Default:
        def manual_seed(self, seed: int) -> torch.Generator:
            return torch._C.default_generator.manual_seed(other(seed))

    torch.Generator = Generator
    torch.default_generator = Default()


def run(wanted: tuple[str, int]) -> tuple[str, int, Found]:
    """The value of each claim of a chapter with a seed, and whether it holds."""
    chapter, seed = wanted
    parameters: dict[str, object] = {"seed": seed}
    if chapter in TRAINED:
        parameters["checkpoint"] = str(small_network(seed))
    give_other_numbers(seed)
    return chapter, seed, chapters.verdicts(chapter, parameters, live=True)


def small_network(seed: int) -> Path:
    """The run of a small network on MNIST, trained if it is not there."""
    folder = OUT.parent / "networks" / str(seed)
    command = [sys.executable, "-m", "ncsn_core", "train", "mnist", "--profile", "cpu"]
    command += [f"--set={name}={value}" for name, value in SMALL.items()]
    command += [f"--seed={seed}", f"--folder={folder}"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # a progress bar
    return folder


def main() -> None:
    """Run, keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("chapters", nargs="*", default=list(SEEDS), help="all, if none is named")
    parser.add_argument("--jobs", type=int, default=2, help="chapters at a time, one core each")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    out = options.out
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    wanted = [
        (chapter, seed)
        for chapter in options.chapters
        for seed in range(1, SEEDS[chapter] + 1)  # 0 is the one that the book shows
        if str(seed) not in found.get(chapter, {})
    ]
    os.environ["OMP_NUM_THREADS"] = "1"  # before a process imports PyTorch
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for chapter, seed, named in pool.imap_unordered(run, wanted):
            found.setdefault(chapter, {})[str(seed)] = named
            out.parent.mkdir(parents=True, exist_ok=True)
            out.with_suffix(".tmp").write_text(json.dumps(found, indent=1), encoding="utf-8")
            out.with_suffix(".tmp").replace(out)
            failed = [name for name, (_, held) in named.items() if not held]
            print(chapter, seed, failed or "", flush=True)


if __name__ == "__main__":
    main()
