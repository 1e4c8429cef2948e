"""Collect what `make stress` has measured into the record that the page of promises shows.

    python tools/promises.py

reads _build/stress/*.json, and replaces in ncsn_core/results/promises what was measured anew.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from ncsn_core import checkpoints, provenance
from ncsn_core.book.ledger import expected_to
from ncsn_core.checkpoints import RESULTS

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "_build" / "stress"
COVERAGE = ROOT / "_build" / "coverage" / "report.json"
SURVIVORS = ROOT / "tools" / "survivors.json"


def main() -> None:
    """Read, judge, write."""
    folder = RESULTS / "promises"
    known = (folder / checkpoints.MANIFEST).is_file()
    metrics: dict[str, Any] = dict(checkpoints.load(folder).metrics) if known else {}
    for path in sorted(FOUND.glob("*.json")):
        metrics[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    if COVERAGE.is_file():
        totals = json.loads(COVERAGE.read_text(encoding="utf-8"))["totals"]
        metrics["coverage"] = {
            "lines": 100 * totals["covered_lines"] / totals["num_statements"],
            "branches": 100 * totals["covered_branches"] / totals["num_branches"],
            "both": totals["percent_covered"],
        }
    if "false alarms" in metrics:
        metrics["false alarms"] = counted(metrics["false alarms"])
    if "mutants" in metrics:
        metrics["mutants"] = judged(metrics["mutants"])
    if not metrics:
        sys.exit(f"{FOUND} holds no measurement: run `make stress` first")
    origin = provenance.describe(torch.device("cpu")) | {"seed": 0}
    checkpoints.save(folder, {}, kind="bundle", metrics=metrics, provenance=origin)
    print(f"{len(metrics)} measurements in {folder.relative_to(ROOT)}")


def counted(alarms: dict[str, Any]) -> dict[str, Any]:
    """For each chapter and claim that should hold: the seeds that were run, and how many failed."""
    table: dict[str, Any] = {}
    for chapter, runs in alarms.items():
        if all(isinstance(value, list) for value in runs.values()):  # collected before
            table[chapter] = runs
            continue
        for holds in runs.values():
            for name, held in holds.items():
                if name not in expected:
                    row = table.setdefault(chapter, {}).setdefault(name, [0, 0])
                    row[0] += 1
                    row[1] += not held
    return table


def judged(mutants: dict[str, Any]) -> dict[str, Any]:
    """The counts, and the survivors with what was thought of each."""
    if "mutants" not in mutants:  # collected before
        return mutants
    reasons = json.loads(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.is_file() else {}
    rows = mutants.pop("mutants")
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
