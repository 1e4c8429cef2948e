"""How the stored outputs were made: in which time, on whatever machine, and from which commit."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# In units of the reference computation: 25 and 12 seconds where that takes 0.16, two at a time.
CHAPTER, TRAINING = 155, 75
NOTEBOOKS = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/training/*.ipynb")]


def record_of(path):
    record = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("ncsn")
    assert record, f"{path.name} has no stored outputs: commit it, then `make refresh`"
    return record


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_to_its_time(path):
    """Counted in seconds of a computation at the same moment, so that a slow machine passes."""
    record = record_of(path)
    budget = TRAINING if path.parent.name == "training" else CHAPTER
    assert record["seconds"] / record["reference_seconds"] <= budget


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_come_from_a_commit_and_nothing_besides(path):
    """Whoever checks it out has the code, the cells and the records that made them."""
    commit = record_of(path)["commit"]
    assert re.fullmatch("[0-9a-f]{12}", commit), "commit everything, then `make refresh`"
