"""What a rented GPU does for the book in one go, within a number of minutes.

    export PYTHONPATH=.:benchmarks
    python tools/gpu.py OUT --minutes 8 --commit "$(git rev-parse --short=12 HEAD)"

from the root of a copy of this tree: nothing has to be installed or downloaded.  Its stages are

- bench: training steps and samplers against the authors' plain network, and what the GPU can do;
- paper: the paper's network (64 channels, batches of 128), at a constant rate that falls to zero
  in the last tenth of its time;
- samples: 10,000 of that network, by 1,000 evaluations each, and how far they are from real digits;
- queue: the runs of `tools/long_runs.py`, as far as they come.

`--plan` names their order and their shares of the minutes.  What a stage leaves goes to those after
it.  The failure of one does not touch the others: on a GPU, whose errors can outlast their cause,
the work goes on in a new process, first with `--plain`, then without that stage.  Stages overrun
their shares by seconds: leave a minute between `--minutes` and the end of the lease.

OUT gets four files as they come, none above 16 MiB: `summary.json`, and records in three packs. The
runs themselves are in `--work`, where the same command goes on exactly.  On another machine it goes
on from the weights alone:

    python tools/gpu.py OUT --unpack RECORDS
    python tools/gpu.py OUT2 --minutes 8 --start-from RECORDS

RECORDS holds a folder for each run, as `ncsn export --half` writes it.
"""

import argparse
import gc
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import graphs
import long_runs
import speed
import torch
from graphs import first_line
from safetensors import safe_open
from safetensors.torch import save as dump_safetensors

from ncsn_core import checkpoints, generation, pretrained, provenance, training
from ncsn_core.checkpoints import MANIFEST, Record
from ncsn_core.config import TrainingConfig, load_config
from ncsn_core.data import batches, load_images, to_bytes
from ncsn_core.devices import autocast_dtype, can_compile, pick_device, pick_precision
from ncsn_core.errors import CorruptFileError, NCSNError
from ncsn_core.files import write_atomically
from ncsn_core.metrics.features import load_extractor
from ncsn_core.metrics.images import measure
from ncsn_core.randomness import generator_for
from ncsn_core.run import Run

STARTED = time.monotonic()
PLAN = {"bench": 1.0, "paper": 4.0, "samples": 3.0, "queue": 2.0}
MOST_BYTES = 16 * 2**20  # of a file that goes back
TINY: dict[str, Any] = {"image_size": 14, "channels": 2, "batch_size": 4, "train_images": 64}
TINY |= {"steps": 4, "log_every": 1, "checkpoint_every": 2}


@dataclass
class Session:
    """Where things go, until when the stage under way may last, and what is known so far."""

    out: Path
    work: Path
    device: torch.device
    smoke: bool = False
    plain: bool = False
    start_from: Path | None = None
    ends: float = 0.0
    summary: dict[str, Any] = field(default_factory=lambda: {"log": [], "stages": {}})

    @property
    def precision(self) -> str:
        """Of training; not "auto" on a CPU, where a stopwatch would decide."""
        on_gpu = self.device.type == "cuda"
        return pick_precision("auto" if on_gpu else "32-true", self.device)

    def left(self) -> float:
        """Seconds of the stage."""
        return max(0.0, self.ends - time.monotonic())

    def say(self, text: str) -> None:
        """Print a line and keep it."""
        self.summary["log"].append(f"{time.monotonic() - STARTED:6.1f} s  {text}")
        print(self.summary["log"][-1], flush=True)
        self.save()

    def note(self, stage: str, **found: Any) -> None:
        """Keep what a stage has found."""
        self.summary["stages"].setdefault(stage, {}).update(found)
        self.save()

    def save(self) -> None:
        """Write the summary, for the way back and for who goes on."""
        text = json.dumps(self.summary, indent=1, ensure_ascii=False)
        for folder in (self.work, self.out):
            write_atomically(folder / "summary.json", text.encode())

    def keep(self, pack: str, *names: str) -> None:
        """Write records into one file that goes back."""
        tensors, manifests = {}, {}
        for name in names:
            record = checkpoints.load(self.work / "records" / name)
            manifests[name] = record.manifest
            for part in record.manifest["files"]:
                tensors |= {f"{name}:{part}:{k}": t for k, t in record.tensors(part).items()}
        raw = dump_safetensors(tensors, {"manifests": json.dumps(manifests)})
        if len(raw) > MOST_BYTES:
            raise ValueError(f"{pack} has {len(raw):,} bytes, and {MOST_BYTES:,} may go back")
        write_atomically(self.out / f"{pack}.safetensors", raw)


def unpack(out: Path, folder: Path) -> list[Record]:
    """Make records of what came back, and see that they are those that were packed."""
    records = []
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            manifests = json.loads(file.metadata()["manifests"])
            parts: dict[str, Any] = {n: {p: {} for p in m["files"]} for n, m in manifests.items()}
            for key in file.keys():  # noqa: SIM118
                name, part, tensor = key.split(":")
                parts[name][part][tensor] = file.get_tensor(key)
        for name, manifest in manifests.items():
            said = {k: v for k, v in manifest.items() if k not in ("format", "files", "sha256")}
            records.append(checkpoints.save(folder / name, parts[name], **said))
            if records[-1].manifest != manifest:
                raise CorruptFileError(f"{name} in {path.name} is not what was packed")
    return records


def forget_compiled(device: torch.device) -> None:
    """Or the shapes of all networks together exceed what torch.compile allows."""
    if device.type == "cuda":
        torch.compiler.reset()


def trained(session: Session, name: str, config: TrainingConfig, seconds: float | None) -> Record:
    """Train or go on, in the fastest way that works, and export what came of it."""
    start = session.start_from / name if session.start_from else None
    ways = []

    def prepare(run: Run) -> None:
        ways.append("eager" if session.plain else graphs.speed_up(run, session.say))
        run.origin["step"] = ways[-1]

    for compile in (False,) if session.plain else (None, False):
        try:
            record = training.train(
                config,
                session.work / name,
                device=str(session.device),
                precision=session.precision,
                compile=compile,
                minutes=None if seconds is None else seconds / 60,
                start_from=checkpoints.load(start) if start and start.exists() else None,
                progress=False,
                prepare=prepare,
            )
            break
        except NCSNError:
            raise
        except Exception as error:
            if compile is False:
                raise
            session.say(f"{name}, without compiled normalizations: {first_line(error)}")
    gc.collect()  # a graph holds the memory of a whole step
    session.say(
        f"{name}: step {record.manifest['step']:,}, {record.provenance['seconds']} s in all, "
        f"loss {record.history['loss'][-1:]}, {ways}"
    )
    return checkpoints.export(record, session.work / "records" / name, half=True)


def benchmark(session: Session) -> None:
    """Rows like those of `benchmarks/speed.py`, and one of the captured step."""
    if "agreement" in session.summary["stages"]["bench"]:
        return  # a session before this one has measured it
    device, low, smoke = session.device, session.precision, session.smoke
    cases = [(speed.Case(64, 1, 28, 128), 1000), (speed.Case(16, 1, 28, 64), 64)]
    if smoke:
        cases = [(speed.Case(2, 1, 14, 2), 2)]
    ways = [speed.Way(False, "32-true"), speed.Way(False, low)]
    if not (smoke or session.plain) and can_compile(device):
        ways.append(speed.Way(True, low))
    ceilings = speed.measure_ceilings(device, smoke=smoke)
    found: dict[str, Any] = {"ceilings": ceilings, "training": [], "sampling": []}

    def compare(section: str, case: speed.Case, calls: speed.Calls) -> None:
        for name, call in list(calls.items()):
            try:
                call()
            except Exception as error:
                session.say(f"{name}: {first_line(error)}")
                del calls[name]
        rounds = 1 if smoke else 10
        found[section] += speed.compare(calls, case, rounds, device, ceilings, section)
        session.note("bench", **found)

    for case, chains in cases:
        forget_compiled(device)
        calls = speed.training_calls(case, ways, device)
        run = speed.new_run(speed.config_of(case), ways[-1], device)
        if not session.plain and graphs.speed_up(run, session.say) == "graph":
            images = torch.randint(256, (1024, 1, case.image_size, case.image_size), device=device)
            stream = batches(images.byte(), case.batch, seed=0)
            calls["graph " + speed.name(ways[-1]).split()[-1]] = partial(speed.advance, run, stream)
        compare("training", case, calls)
        case = case._replace(batch=chains)
        compare("sampling", case, speed.sampling_calls(case, ways, device))
    session.note("bench", agreement=speed.agreement(ways[1], 2 if smoke else 100, device))


def paper(session: Session) -> None:
    """Ten parts of the time at a constant rate, and one in which it falls."""
    config = load_config("mnist", "gpu", **long_runs.CONSTANT | {"checkpoint_every": 1000})
    config = replace(config, **TINY) if session.smoke else config
    folder, spent, falling = session.work / "paper", 0.0, 0
    if (folder / MANIFEST).exists():
        before = checkpoints.load(folder)
        spent = before.provenance["seconds"]
        falling = before.manifest["step"] < before.config["steps"] and before.config["decay_steps"]
    if not falling:
        trained(session, "paper", config, max(0.0, session.left() - spent / 10) / 1.1)
        session.keep("paper", "paper")
    record = trained(session, "paper", long_runs.harvest(config, folder), None)
    session.keep("paper", "paper")
    session.note("paper", step=record.manifest["step"], provenance=record.provenance)


def samples(session: Session) -> None:
    """As many as there is time for, of the weights that go back."""
    record = pretrained.load(session.work / "records" / "paper")
    size, data = record.config["image_size"], record.config["dataset"]
    count, batch, steps = (8, 4, 1) if session.smoke else (10_000, 1000, 100)
    autocast = autocast_dtype(session.precision)
    compile = record.sessions[-1]["compiled"] and not session.plain
    score = record.score(session.device, autocast=autocast, compile=compile)
    graph = not session.plain and graphs.speed_up_score(score, (batch, 1, size, size), session.say)
    settings = {"seed": 0, "batch_size": batch, "epsilon": 2e-5, "steps_per_level": steps}

    def keep(metrics: dict[str, Any]) -> None:
        origin = {"weights_sha256": record.weights_sha256, "graph": graph}
        checkpoints.save(
            session.work / "records" / "samples",
            {"results": {"samples": images}},
            kind="bundle",
            config=settings | {"autocast": str(autocast)},
            metrics=metrics,
            provenance=provenance.describe(session.device) | origin,
        )
        session.keep("samples", "samples")

    drawn, took, folder = 0, 0.0, session.work / f"samples-{record.weights_sha256[:12]}"
    while drawn < count and (not drawn or session.left() > took):
        began, drawn = time.monotonic(), drawn + batch
        drawn_so_far = generation.sample(score, drawn, folder=folder, progress=False, **settings)
        images, took = to_bytes(drawn_so_far), time.monotonic() - began
        session.say(f"{drawn:,} samples, {took:.1f} s for the last {batch:,}")
        keep({})
    noise = to_bytes(torch.rand(images.shape, generator=generator_for(0)))
    held_out = load_images(data, "test", size=size)
    rows = measure(
        {"held-out images": held_out, "samples": images, "uniform noise": noise},
        load_images(data, size=size)[: 2000 if session.smoke else None],
        load_extractor(data, session.device),
        sorted({min(1000, drawn), drawn}),
        subset_size=min(100, drawn),
    )
    for n, row in rows.items():
        session.say(f"{n:,} images: " + ", ".join(f"{k} {d.fid:.2f}" for k, d in row.items()))
    metrics = {str(n): {k: asdict(d) for k, d in row.items()} for n, row in rows.items()}
    keep(metrics)
    session.note("samples", distances=metrics)


def queue(session: Session) -> None:
    """One run after the other, as far as the time goes; one that fails is left out."""
    jobs, done = long_runs.networks(), []
    if session.smoke:
        jobs = {name: replace(jobs[name], **TINY) for name in ("mnist", "ablations/no_norm-0")}
    for name, config in jobs.items():
        try:
            if session.left() or not done:
                trained(session, name, config, session.left())
            if (session.work / "records" / name).exists():
                done.append(name)
                session.keep("queue", *done)
        except Exception as error:
            session.say(f"{name} is left out: {first_line(error)}")
    session.note("queue", runs=done)


STAGES = {"bench": benchmark, "paper": paper, "samples": samples, "queue": queue}


def work_through(session: Session, plan: dict[str, float], ends: float) -> None:
    """Every stage in its share of the time."""
    shares = list(plan.values())
    for i, (name, share) in enumerate(plan.items()):
        forget_compiled(session.device)
        began = time.monotonic()
        session.ends = began + (ends - began) * share / sum(shares[i:])
        session.note(name, error=None)
        session.say(f"== {name}, {session.left():.0f} s")
        try:
            STAGES[name](session)
        except Exception as error:
            session.note(name, error=traceback.format_exc())
            session.say(f"{name} failed: {first_line(error)}")
            rest = list(plan.items())[i + session.plain :]
            if rest and session.device.type == "cuda":
                left = f"--minutes={max(0.0, ends - time.monotonic()) / 60}"
                stages = [f"{stage}={share}" for stage, share in rest]
                command = [sys.executable, *sys.argv, "--plain", left, "--plan", *stages]
                os.execv(sys.executable, command)
        session.note(name, seconds=round(time.monotonic() - began, 1))


def main() -> None:
    """Read the arguments, do the work, say what failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="what goes back")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=Path("_build/gpu"), help="runs under way")
    parser.add_argument("--plan", nargs="+", metavar="STAGE=SHARE", help="stages, in their order")
    parser.add_argument("--start-from", type=Path, metavar="RECORDS", help="what --unpack wrote")
    parser.add_argument("--unpack", type=Path, metavar="RECORDS", help="make records of OUT")
    parser.add_argument("--commit", help="of the copy, where git does not know it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plain", action="store_true", help="no graphs, nothing compiled")
    parser.add_argument("--smoke", action="store_true", help="everything, in seconds")
    given = parser.parse_args()
    if given.unpack:
        print(*(record.folder for record in unpack(given.out, given.unpack)), sep="\n")
        return
    plan = {n: float(s) for n, s in (e.split("=") for e in given.plan or ())} or PLAN
    if unknown := plan.keys() - STAGES.keys():
        parser.error(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    if given.commit:
        provenance.commit = lambda: given.commit
    device = pick_device(given.device)
    options = {name: getattr(given, name) for name in ("smoke", "plain", "start_from")}
    session = Session(given.out, given.work, device, **options)
    if (given.work / "summary.json").exists():
        session.summary = json.loads((given.work / "summary.json").read_text("utf-8"))
    session.summary |= provenance.describe(device) | {"cuda": torch.version.cuda}
    work_through(session, plan, STARTED + 60 * given.minutes)
    failed = [name for name, found in session.summary["stages"].items() if found["error"]]
    session.say(f"failed: {', '.join(failed) or 'nothing'}")
    sys.exit(len(failed))


if __name__ == "__main__":
    main()
