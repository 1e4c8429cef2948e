"""Collect what `make stress` has measured into the record that the page of promises shows.

    python tools/promises.py

reads _build/stress/*.json, and replaces in ncsn_core/results/promises what was measured anew.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from ncsn_core import checkpoints, provenance
from ncsn_core.book.ledger import expected_to, measurements
from ncsn_core.pretrained import RESULTS

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "_build" / "stress"
COVERAGE = ROOT / "_build" / "coverage" / "report.json"
ENOUGH = 20  # runs, to speak of a standard deviation
SURVIVORS = ROOT / "tools" / "survivors.json"


def main() -> None:
    """Read, judge, write."""
    folder = RESULTS / "promises"
    known = (folder / checkpoints.MANIFEST).is_file()
    metrics: dict[str, Any] = dict(checkpoints.load(folder).metrics) if known else {}
    found = {
        path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOUND.glob("*.json"))
    }
    for kind in ("determinism of", "fuzzing of", "kills of", "planted in"):  # whole tables
        if any(name.startswith(kind) for name in found):
            metrics = {name: row for name, row in metrics.items() if not name.startswith(kind)}
    metrics |= found
    if COVERAGE.is_file():
        totals = json.loads(COVERAGE.read_text(encoding="utf-8"))["totals"]
        metrics["coverage"] = {
            "lines": 100 * totals["covered_lines"] / totals["num_statements"],
            "branches": 100 * totals["covered_branches"] / totals["num_branches"],
            "both": totals["percent_covered"],
        }
    if "false alarms" in found:
        metrics["false alarms"] = counted(found["false alarms"])
    if "mutants" in found:
        metrics["mutants"] = judged(found["mutants"])
    if not metrics:
        sys.exit(f"{FOUND} holds no measurement: run `make stress` first")
    origin = provenance.describe(torch.device("cpu")) | {"seed": 0}
    checkpoints.save(folder, {}, kind="bundle", metrics=metrics, provenance=origin)
    print(f"{len(metrics)} measurements in {folder.relative_to(ROOT)}")


def counted(alarms: dict[str, Any]) -> dict[str, Any]:
    """For each chapter and claim that should hold: runs, failures, and the room in its band.

    The room is the distance from the mean to the nearer end of the band, in standard deviations.
    Claims that no random number of the run changes are left out.
    """
    expected = expected_to("holds")
    table: dict[str, Any] = {}
    for chapter, runs in sorted(alarms.items()):
        for name in sorted(next(iter(runs.values())).keys() & expected):
            values = [row[name][0] for row in runs.values()]
            mean, deviation = statistics.mean(values), statistics.pstdev(values)
            if deviation > 1e-9 * abs(mean):
                band = measurements()[name][1].accept
                room = min(abs(mean - end) for end in (band.min, band.max) if end is not None)
                table.setdefault(chapter, {})[name] = {
                    "runs": len(values),
                    "failed": sum(not band.contains(value) for value in values),
                    "room": room / deviation if len(values) >= ENOUGH else None,
                }
    return table


def judged(mutants: dict[str, Any]) -> dict[str, Any]:
    """The counts, and the survivors with what was thought of each."""
    reasons = json.loads(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.is_file() else {}
    rows = mutants.pop("mutants")
    for name in ("rate", "low", "high"):
        mutants[name] *= 100
    mutants["survivors"] = [
        {
            "module": row["module"],
            "change": row["change"],
            "judgement": reasons.get(f"{row['module']}: {' '.join(row['change'])}", "not judged"),
        }
        for row in rows
        if row["outcome"] == "survived"
    ]
    return mutants


if __name__ == "__main__":
    main()
