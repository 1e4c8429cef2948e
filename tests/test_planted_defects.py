"""Checks that can fail: a defect is planted, and the chapter's own check says so.

`defects.py` has the wrong functions and lines, and the claims that must then fail.  The chapter
runs as it is otherwise, in a process of its own.  `make stress` runs them all.
"""

import ast
import inspect
import json
import subprocess
import sys
from functools import reduce
from importlib import import_module
from pathlib import Path

import chapters
import pytest
from defects import DEFECTS, READ, Defect

from ncsn_core.book import claims
from ncsn_core.book.ledger import expected_to, load_ledger, measurements

ROOT = Path(__file__).parents[1]


def verdicts(planted: Defect) -> dict[str, bool]:
    """Whether each claim of the chapter holds in spite of the defect, by its name and part."""
    command = [sys.executable, ROOT / "tests" / "chapters.py", planted.chapter, "{}", planted.name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: holds for name, (_, holds) in found.items()}


def lines(planted: Defect) -> list[str]:
    """What the page of promises shows: a chapter's line, right and wrong, or a wrong result."""
    if planted.where:
        return [inspect.getsource(planted.wrong).strip().splitlines()[-1].strip()]
    return [line.strip().splitlines()[0] for line in (planted.right, planted.wrong)]


@pytest.mark.stress
@pytest.mark.parametrize("planted", DEFECTS, ids=lambda d: f"{d.chapter[:2]}, {d.name}")
def test_a_planted_defect_fails_the_chapters_own_check(planted, figures):
    found = verdicts(planted)
    assert planted.fails <= found.keys()
    known = expected_to("fails") | expected_to("undecided")
    failed = {name for name, holds in found.items() if not holds} - known
    assert planted.fails <= failed, f"these do not notice: {planted.fails - failed}"
    figures(
        f"planted in {planted.chapter}, {planted.name}",
        chapter=planted.chapter,
        where=planted.where.replace(":", "."),
        name=planted.name,
        lines=lines(planted),
        failed=sorted(failed),
    )


def test_every_defect_names_what_exists_and_claims_of_the_chapter():
    known = measurements()
    assert len({planted.name for planted in DEFECTS}) == len(DEFECTS)
    for planted in DEFECTS:
        if planted.where:
            module, _, name = planted.where.partition(":")
            assert callable(reduce(getattr, name.split("."), import_module(f"ncsn_core.{module}")))
        else:
            cells = chapters.code_cells(planted.chapter)
            source = "\n".join("".join(cell["source"]) for cell in cells)
            assert source.count(planted.right) == 1, planted.name
            assert "claims.check(" not in planted.right, "a band is not tried in this way"
        for name in planted.fails:
            assert known[name][0].chapter == planted.chapter


def test_every_claim_that_holds_is_spoiled_by_a_defect_or_read_from_a_record():
    spoiled = set().union(*(planted.fails for planted in DEFECTS))
    missing = expected_to("holds") - spoiled - READ
    assert not missing, f"tests/defects.py has no defect that spoils {missing}; plant one"
    assert spoiled | READ == expected_to("holds")
    assert not spoiled & READ


@pytest.mark.parametrize("name", sorted(READ))
def test_what_no_defect_can_spoil_is_checked_on_a_record(name):
    claim = measurements()[name][0]
    source = "\n".join("".join(c["source"]) for c in chapters.code_cells(claim.chapter))
    checks = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "claims.check"
        and ast.unparse(node.args[0]) == str(claim.id)
    ]
    assert checks
    assert all("provenance" in {keyword.arg for keyword in check.keywords} for check in checks)


def test_a_value_outside_of_its_band_fails():
    """The other half of every check: the band itself."""
    for claim in load_ledger().values():
        for part, measurement in claim.parts.items():
            accept = measurement.accept
            outside = accept.max + 1 if accept.max is not None else accept.min - 1
            spread = None if measurement.interval is None else 0.5
            verdict = claims.check(claim.id, outside, part=part or None, spread=spread)
            assert not verdict.holds


def test_few_outputs_are_left_out_of_the_comparison():
    outputs, ignored = 0, 0
    for folder in ("notebooks", "notebooks/training"):
        for path in (ROOT / folder).glob("*.ipynb"):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                if cell["cell_type"] == "code" and cell["outputs"]:
                    outputs += 1
                    ignored += "nbval-ignore-output" in cell["metadata"].get("tags", [])
    assert outputs > 350
    assert ignored / outputs <= 0.15
