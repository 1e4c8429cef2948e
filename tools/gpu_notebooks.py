"""What a rented GPU does for the book through its own notebooks, in a number of minutes.

    make gpu MINUTES=9 OUT=gpu

It compares the speed with the authors' (`benchmarks/speed.py`), trains the paper's network for
MNIST (`train_ncsn`, profile `gpu`), and draws and measures its samples (`evaluate_ncsn`).  OUT gets
the executed notebooks, the network in half precision with its results, the benchmark and
`summary.json`.  The same command again goes on where the time ended.  A stage that fails does not
touch the others; their errors are in the summary, and their number is the exit code.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import papermill
import torch

from ncsn_core import checkpoints, provenance
from ncsn_core.devices import PRECISIONS, pick_device
from ncsn_core.files import write_atomically

TREE = Path(__file__).resolve().parents[1]
STARTING = 60.0  # seconds of a notebook for imports, compiling and its estimate
FEWEST, MOST = 1_000, 10_000  # samples


class Session(NamedTuple):
    """Where things go, and how they are computed."""

    out: Path
    profile: str
    device: str
    precision: str

    def execute(self, name: str, label: str, **parameters: Any) -> None:
        """Run a training notebook; its executed copy is OUT/label.ipynb, also if a cell fails."""
        papermill.execute_notebook(
            TREE / "notebooks" / "training" / f"{name}.ipynb",
            self.out / f"{label}.ipynb",
            parameters=parameters
            | {"profile": self.profile, "device": self.device, "precision": self.precision},
            cwd=TREE,
            progress_bar=False,
            kernel_name="python3",
        )


def bench(session: Session, seconds: float) -> dict[str, Any]:
    """Training steps and samplers against the authors' plain network: how many times as fast."""
    place = session.out / "benchmark"
    script = [sys.executable, str(TREE / "benchmarks" / "speed.py"), "--out", str(place)]
    options = ["--profile", session.profile, "--device", session.device]
    subprocess.run(script + options, check=True, cwd=TREE, timeout=max(300.0, 2 * seconds))
    found = checkpoints.load(place).metrics
    return {
        section: {f"{r['channels']} channels, {r['path']}": r["ratio"] for r in found[section]}
        for section in ("training", "sampling")
    }


def train(session: Session, seconds: float) -> dict[str, Any]:
    """The paper's network, at a constant rate that falls to zero in the last eleventh."""
    often = {} if session.profile == "smoke" else {"checkpoint_every": 500}
    run = session.out / "run"
    session.execute(
        "train_ncsn",
        "train",
        folder=str(run),
        overrides=often | {"rate_schedule": "constant"},
        minutes=max(0.0, seconds - STARTING) / 1.1 / 60,
        finish=True,
    )
    record = checkpoints.export(checkpoints.load(run), session.out / "mnist", half=True)
    return {"step": record.manifest["step"], "loss": record.history["loss"][-1]}


def evaluate(session: Session, seconds: float) -> dict[str, Any]:
    """A thousand samples of the network, and ten thousand where there is time for them."""
    began = time.monotonic()
    network, samples = str(session.out / "mnist"), str(session.out / "samples")
    given = {"checkpoint": network, "folder": network, "samples_folder": samples}
    few = 4 if session.profile == "smoke" else FEWEST
    session.execute("evaluate_ncsn", "evaluate", samples=few, **given)
    if session.profile != "smoke" and (time.monotonic() - began) * MOST / FEWEST < seconds:
        session.execute("evaluate_ncsn", "evaluate", samples=MOST, **given)
    bundle = checkpoints.load(next((session.out / "mnist" / "bundles").iterdir()))
    return {name: bundle.metrics[name] for name in ("count", "fid", "coverage", "classes")}


STAGES: dict[str, Callable[[Session, float], dict[str, Any]]] = {
    "bench": bench,
    "train": train,
    "evaluate": evaluate,
}
SHARES = (0.15, 0.5, 0.35)  # of the minutes, in the order of the stages


def work_through(session: Session, minutes: float) -> dict[str, Any]:
    """Each stage in its share of the time that is left; what it found or how it failed."""
    ends = time.monotonic() + 60 * minutes
    summary = provenance.describe(pick_device(session.device))
    summary |= {"cuda": torch.version.cuda, "stages": {}}
    for i, (name, stage) in enumerate(STAGES.items()):
        began = time.monotonic()
        seconds = max(0.0, ends - began) * SHARES[i] / sum(SHARES[i:])
        print(f"== {name}, {seconds:.0f} s", flush=True)
        try:
            found = stage(session, seconds)
        except Exception as error:
            print(f"{name} failed: {error}", flush=True)
            found = {"error": traceback.format_exc()}
        summary["stages"][name] = found | {"seconds": round(time.monotonic() - began, 1)}
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        write_atomically(session.out / "summary.json", text.encode())
    return summary


def main() -> None:
    """Read the arguments, do the work, say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--profile", choices=["smoke", "gpu"], default="gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    session = Session(given.out.resolve(), given.profile, given.device, given.precision)
    summary = work_through(session, given.minutes)
    print(given.out / "summary.json")
    sys.exit(sum("error" in found for found in summary["stages"].values()))


if __name__ == "__main__":
    main()
