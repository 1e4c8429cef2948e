"""Checks that can fail: a defect is planted in the package, and the chapter's own check says so.

Each row is one wrong line, of the kind that a reader would write, a chapter, and the claims of it
that must then fail.  The chapter runs as it is, on a copy of the package that has the wrong line.
`make stress` runs them all.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ncsn_core.book import claims
from ncsn_core.book.ledger import load_ledger

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Defect:
    """One wrong line, where it is planted, and what must fail."""

    name: str
    module: str
    right: str
    wrong: str
    chapter: str
    fails: frozenset[str]
    parameters: str = "{}"


def defect(name, module, right, wrong, chapter, *fails, parameters="{}"):
    return Defect(name, module, right, wrong, chapter, frozenset(fails), parameters)


NO_HALF = ("samplers/langevin", "x + epsilon / 2 * s +", "x + epsilon * s +")
NEAREST = ("diagnostics", "modes.to(x)).argmin(1)", "modes.to(x)).argmax(1)")
UNIT = ("divergence", "    return v\n\n\ndef jac", "    return v / v.norm()\n\n\ndef jac")
DEFECTS = [
    defect(
        "the square counted twice",
        "objectives",
        "return trace + _half_square(score(x))",
        "return trace + 2 * _half_square(score(x))",
        "02_score_matching",
        "4 exact score",
        "4 random networks",
    ),
    defect("directions of length 1", *UNIT, "03_trace_jacobian_cost", "5"),
    defect(
        "half of the drift",
        "samplers/langevin",
        "x + epsilon / 2 * s +",
        "x + epsilon / 4 * s +",
        "06_langevin_dynamics",
        "14 langevin",
        "105 gaussian",
    ),
    defect(
        "proposals not in the ratio",
        "samplers/mala",
        "proposal_log_p - log_p + back - forth",
        "proposal_log_p - log_p",
        "06_langevin_dynamics",
        "14 mala",
        "106",
    ),
    defect("the farthest mode counted", *NEAREST, "09_slow_mixing", "8"),
    defect(
        "noise of one size at every level",
        "objectives",
        "return x + column * noise, noise / column",
        "return x + noise, noise / column",
        "10_ncsn",
        "17 weighted",
        "107",
    ),
    defect(
        "no half of the drift",
        *NO_HALF,
        "13_inpainting",
        "130 once a level",
        "130 at every step",
    ),
    defect(
        "the slope at the start alone",
        "samplers/ode",
        "(slope + end) / 2",
        "slope",
        "14_beyond",
        "140 heun",
    ),
]


def copy_with(defect: Defect, folder: Path) -> Path:
    """A copy of the package that has the wrong line; the large files are linked."""
    heavy = ("models", "results", "mnist")
    package = folder / "ncsn_core"
    shutil.copytree(
        ROOT / "ncsn_core", package, ignore=shutil.ignore_patterns("__pycache__", *heavy)
    )
    for name in ("models", "results", "data/mnist"):
        (package / name).symlink_to(ROOT / "ncsn_core" / name)
    shutil.copy(ROOT / "book" / "claims.yml", package / "book" / "claims.yml")
    path = package / f"{defect.module}.py"
    source = path.read_text(encoding="utf-8")
    assert source.count(defect.right) == 1, f"{defect.module} has changed: plant the defect anew"
    path.write_text(source.replace(defect.right, defect.wrong), encoding="utf-8")
    return folder


def verdicts(chapter: str, package: Path | None, parameters: str) -> dict[str, bool]:
    """Whether each claim of the chapter holds, by its name and part."""
    where = {} if package is None else {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "chapters.py", chapter, parameters],
        env=os.environ | where,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    return {f"{number} {part}".strip(): holds for number, part, _, holds in rows}


@pytest.mark.stress
@pytest.mark.parametrize("planted", DEFECTS, ids=lambda d: f"{d.chapter[:2]}, {d.name}")
def test_a_planted_defect_fails_the_chapters_own_check(planted, tmp_path, figures):
    found = verdicts(planted.chapter, copy_with(planted, tmp_path), planted.parameters)
    assert planted.fails <= found.keys()
    expected = {
        f"{claim.id} {part}".strip()
        for claim in load_ledger().values()
        for part, measurement in claim.parts.items()
        if measurement.expected == "fails"
    }
    failed = {name for name, holds in found.items() if not holds} - expected
    assert planted.fails <= failed, f"these do not notice: {planted.fails - failed}"
    figures(
        f"planted in {planted.chapter}, {planted.name}",
        chapter=planted.chapter,
        name=planted.name,
        lines=[planted.right.strip().splitlines()[0], planted.wrong.strip().splitlines()[0]],
        failed=sorted(failed),
    )


def test_every_defect_names_lines_that_exist_and_claims_of_the_chapter():
    names = {
        f"{claim.id} {part}".strip(): claim.chapter
        for claim in load_ledger().values()
        for part in claim.parts
    }
    for planted in DEFECTS:
        source = (ROOT / "ncsn_core" / f"{planted.module}.py").read_text(encoding="utf-8")
        assert source.count(planted.right) == 1, planted.name
        for name in planted.fails:
            assert names[name] == planted.chapter


def test_a_value_outside_of_its_band_fails():
    """The other half of every check: the band itself."""
    for claim in load_ledger().values():
        for part, measurement in claim.parts.items():
            accept = measurement.accept
            outside = accept.max + 1 if accept.max is not None else accept.min - 1
            verdict = claims.check(claim.id, outside, part=part or None)
            assert not verdict.holds


def test_few_outputs_are_left_out_of_the_comparison():
    outputs, ignored = 0, 0
    for folder in ("notebooks", "notebooks/training"):
        for path in (ROOT / folder).glob("*.ipynb"):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                if cell["cell_type"] == "code" and cell["outputs"]:
                    outputs += 1
                    ignored += "nbval-ignore-output" in cell["metadata"].get("tags", [])
    assert outputs > 500
    assert ignored / outputs <= 0.15
