"""What the build writes into pages: measured numbers, the scorecard, indexes."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ncsn_book import scorecard
from ncsn_book.execution import BookError
from ncsn_book.inserts import BLOCKS, EXERCISE, ROLES, Book
from ncsn_book.plot import band_plot
from ncsn_core import checkpoints, pretrained
from ncsn_core.book import claims
from ncsn_core.book.ledger import Band, Claim, Measurement
from ncsn_core.provenance import PACKAGE

ROOT = Path(__file__).parents[1]
CHAPTER = Path("notebooks/10_ncsn.ipynb")


def claim(number, **parts):
    return Claim(
        id=number,
        title=f"Title {number}",
        statement="A statement.",
        paper="Section 4",
        setting="a setting",
        chapter="10_ncsn",
        kind="paper",
        parts=parts or {"": Measurement("the slope", Band(-1.1, -0.9), "a run", paper_value="−1")},
        note="A note.",
    )


LEDGER = {
    16: claim(16),
    24: claim(
        24,
        annealing=Measurement("a ratio", Band(1.0, None), "a run"),
        conditioning=Measurement("another ratio", Band(1.0, None), "a run"),
    ),
    28: claim(28),
}


def verdict(number, part, value):
    metadata = {"claim": number, "part": part, "value": value, "spread": [value, value]}
    metadata |= {"device": "cpu", "commit": "abc"}
    return new_output("display_data", {"text/plain": "…"}, metadata={"ncsn": metadata})


@pytest.fixture
def book():
    """A book of one chapter: claim 16 holds, one half of 24 fails, 28 is not measured."""
    outputs = [
        verdict(16, "", -0.98),
        verdict(24, "annealing", 3.0),
        verdict(24, "conditioning", 0.5),
    ]
    exercise = ":::{exercise} Sum ★★\n:label: exercise-10-1\n\nCount `x`\nof [it](a.md). Rest.\n:::"
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# Networks of $s$"),
            new_code_cell("check()", outputs=outputs, execution_count=1),
            new_markdown_cell(exercise),
        ],
        metadata={"ncsn": {"device": "cpu", "threads": 1, "seconds": 3.2, "commit": "abc"}},
    )
    notebooks = {CHAPTER: notebook}
    return Book(scorecard.of(notebooks, LEDGER), notebooks)


def test_a_measured_number_and_a_verdict_are_filled_in(book):
    assert ROLES["measured"]("16", book) == "−0.98 [−0.98, −0.98]"
    assert ROLES["measured"]("24:annealing", book) == "3 [3, 3]"
    assert ROLES["measured"]("28", book) == "not measured"
    assert ROLES["claim"]("16", book) == "{ref}`claim 16 (holds) <claim-16>`"
    assert ROLES["claim"]("24", book) == "{ref}`claim 24 (fails) <claim-24>`"
    assert ROLES["claim"]("24:annealing", book) == "{ref}`claim 24 (holds) <claim-24>`"
    counted = [ROLES["claims"](name, book) for name in ("all", "holds", "fails", "not measured")]
    assert counted == ["3", "1", "1", "1"]


@pytest.fixture
def promises(tmp_path, monkeypatch):
    """What `make stress` has measured."""
    metrics = {
        "kills of training": {"kills": {"SIGKILL": 20, "SIGINT": 19}, "checkpoints": 1203},
        "coverage": {"lines": 95.123},
        "planted in 10_ncsn, less": {
            "name": "less",
            "chapter": "10_ncsn",
            "where": "schedules.py",
            "lines": ["x < 1", "x <= 1"],
            "failed": ["16", "24 annealing"],
        },
        "planted in 10_ncsn, wrong variable": {
            "name": "wrong variable",
            "chapter": "10_ncsn",
            "where": "",
            "lines": ["y = x", "y = z"],
            "failed": ["16"],
        },
        "false alarms": {
            "02_score_matching": {"4": {"failed": 0, "runs": 3, "room": None}},
            "10_ncsn": {"16": {"failed": 1, "runs": 40, "room": 2.345}},
        },
        "mutants": {
            "survivors": [
                {
                    "module": "schedules.py",
                    "change": ["-    if a < b:", "+    if a <= b:"],
                    "judgement": "equivalent",
                }
            ]
        },
        "determinism of training, 32-true, eager": {"again": True, "resumed": True, "threads": 0.0},
        "determinism of sampling, bf16-mixed, eager": {"again": True, "threads": 0.0123},
    }
    checkpoints.save(tmp_path / "results" / "promises", {}, kind="bundle", metrics=metrics)
    monkeypatch.setattr(pretrained, "RESULTS", tmp_path / "results")


def test_what_stress_has_measured_is_filled_in(book, promises):
    assert ROLES["promise"]("kills of training:kills", book) == "20 SIGKILL, 19 SIGINT"
    assert ROLES["promise"]("kills of training:checkpoints", book) == "1,203"
    assert ROLES["promise"]("coverage:lines", book) == "95.1"
    with pytest.raises(BookError, match="has measured no 'age' of 'coverage'"):
        ROLES["promise"]("coverage:age", book)
    with pytest.raises(BookError, match="has measured no 'patience'"):
        ROLES["promise"]("patience:hours", book)
    text = BLOCKS["determinism"](book)
    assert "* - training, float32, eager\n  - equal\n  - equal\n  - equal" in text
    assert "* - sampling, bfloat16, eager\n  - equal\n  - –\n  - to 0.012" in text
    text = BLOCKS["planted"](book)
    assert "* - less\n  - {doc}" in text
    assert "10_ncsn>` `schedules.py`\n  - `x < 1`<br>`x <= 1`\n  - 16, 24 annealing" in text
    assert "10_ncsn>`\n  - `y = x`" in text


def test_false_alarms_have_the_interval_of_their_rate(book, promises):
    """Clopper & Pearson: for 1 of 40, 0.06% to 13.16%."""
    text = BLOCKS["alarms"](book)
    assert "* - 4\n  - 02_score_matching\n  - 0 of 3\n  - 0.0 to 70.8%\n  - –\n" in text
    row = text.split("* - ")[-1].splitlines()
    assert row[0] == "16"
    assert row[2:5] == ["  - 1 of 40", "  - 0.1 to 13.2%", "  - 2.3"]


def test_surviving_mutants_stand_with_their_change_and_our_judgement(book, promises):
    text = BLOCKS["survivors"](book)
    change = "`if a < b:`<br>`if a <= b:`"
    assert f"* - `schedules.py`\n  - {change}\n  - equivalent\n" in text


def test_outputs_that_are_not_compared_are_counted(book):
    (cell,) = (c for c in book.notebooks[CHAPTER].cells if c.cell_type == "code")
    assert "0 of 1 outputs are not compared (0%)" in BLOCKS["ignored"](book)
    assert "0 of 0 outputs" in BLOCKS["ignored"](Book(book.table, {}))
    cell.metadata["tags"] = ["nbval-ignore-output"]
    text = BLOCKS["ignored"](book)
    assert "1 of 1 outputs are not compared (100%)" in text
    assert "chapter\N{NO-BREAK SPACE}10 </notebooks/10_ncsn>`\n  - 1\n  - 1" in text


def test_records_of_runs_are_compared_with_nothing(book):
    (notebook,) = book.notebooks.values()
    runs = Book(book.table, {**book.notebooks, Path("notebooks/training/runs/a.ipynb"): notebook})
    assert "0 of 1 outputs are not compared" in BLOCKS["ignored"](runs)


@pytest.mark.parametrize(
    ("role", "text", "message"),
    [
        ("measured", "17", "holds no claim 17"),
        ("claim", "x", "holds no claim x"),
        ("measured", "16:tail", "claim 16 has no part 'tail'"),
        ("measured", "24", "measured in parts: name one of annealing, conditioning"),
        ("claims", "perhaps", "none are 'perhaps'"),
    ],
)
def test_what_does_not_exist_is_named(book, role, text, message):
    with pytest.raises(BookError, match=message):
        ROLES[role](text, book)


def test_the_scorecard_has_every_number_and_links_to_its_cell(book):
    text = BLOCKS["scorecard"](book)
    for number in LEDGER:
        assert f"::::{{dropdown}} {number}. Title {number} <span" in text
        assert f"(claim-{number})=\nA statement." in text
    assert 'href="../notebooks/10_ncsn.html#measured-24-annealing"' in text
    assert text.count("  - −0.98 [−0.98, −0.98] (a run) (<a") == 1
    assert text.count("within [−1.1, −0.9]") >= 2
    assert "  - –\n" in text  # no value in the paper
    assert text.count("not measured") == 2  # the verdict and the number of claim 28
    assert "Measured on device cpu, commit abc." in text


def test_a_claim_without_note_and_outside_of_the_book_has_neither_note_nor_link(book):
    rows = [
        dataclasses.replace(row, claim=dataclasses.replace(row.claim, chapter="99_x", note=None))
        for row in book.table
        if row.claim.id == 16
    ]
    text = BLOCKS["scorecard"](Book(rows, book.notebooks))
    assert "Measured in 99_x: a setting." in text
    assert "  - −0.98 [−0.98, −0.98] (a run) \n" in text
    assert "<a href" not in text
    assert text.splitlines()[-3] == "<small>Measured on device cpu, commit abc.</small>"


def test_the_overview_has_one_line_a_claim_and_those_that_fail_come_first(book):
    first, *rows = BLOCKS["overview"](book).split("* - ")[1:]
    assert first.startswith("Claim\n  - Verdict")
    assert [re.match(r"(\d+)\\\. {ref}`Title \1 <claim-\1>`", row)[1] for row in rows] == [
        "24",
        "28",
        "16",
    ]
    numbers = "a ratio: **3 [3, 3]** (at least 1)<br>another ratio: **0.5 [0.5, 0.5]** (at least 1)"
    assert f"  - –\n  - {numbers}\n" in rows[0]
    assert "  - −1\n  - the slope: **−0.98 [−0.98, −0.98]** (within [−1.1, −0.9])" in rows[2]
    squares = re.findall(r'<a class="(\S+)" href="(\S+)" title="([^"]+)"', BLOCKS["summary"](book))
    assert [kind for kind, *_ in squares] == ["fails", "not-measured", "holds"]
    assert squares[0][1:] == ("scorecard.html#claim-24", "24. Title 24: fails")


@pytest.mark.parametrize("text", ["10_ncsn:fig-no", "11_no:fig-x", "10_ncsn"])
def test_a_thumbnail_is_of_a_figure_that_exists(book, text):
    with pytest.raises(BookError, match="there is no figure '"):
        ROLES["thumbnail"](text, book)


def test_exercises_are_listed_with_links_and_titles(book):
    index = BLOCKS["exercises"](book)
    assert index.splitlines()[2:] == ["- {ref}`exercise-10-1` ★★ **Sum.** Count `x` of it."]


def test_every_exercise_says_how_hard_it_is():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
        assert len(EXERCISE.findall(text)) == text.count(":label: exercise-"), path.name


def test_a_notebook_without_exercises_is_left_out_of_their_list(book):
    plain = {
        Path("notebooks/intro.ipynb"): new_notebook(cells=[new_markdown_cell("# Begin: $x$")]),
        Path("notebooks/bare.ipynb"): new_notebook(cells=[new_markdown_cell("No heading.")]),
    }
    longer = Book(book.table, {**plain, **book.notebooks})
    index = BLOCKS["exercises"](longer)
    assert index == BLOCKS["exercises"](book)
    text = BLOCKS["execution"](longer)
    assert "* - {doc}`/notebooks/intro`\n  - –\n  - –\n  - –" in text
    assert "* - {doc}`/notebooks/bare`" in text


def test_the_last_execution_of_each_notebook_is_listed(book):
    text = BLOCKS["execution"](book)
    row = text.split("* - ")[-1].splitlines()
    cells = ["3 s", "cpu, 1 thread", "–", "abc"]
    assert [line.removeprefix("  - ") for line in row[2:6]] == cells


def test_every_record_that_ships_is_listed(book):
    text = BLOCKS["records"](book)
    assert text.count("* - ") == 1 + len(list(PACKAGE.glob("*/**/manifest.json")))
    assert "* - `models/mnist`\n" in text
    assert "* - `models/mnist/bundles/epsilon_2e-5`\n" in text


def numbers(value, spread=None, low=None, high=None):
    """One row of a scorecard."""
    row_claim = claim(16, **{"": Measurement("m", Band(low, high), "a run")})
    stored = {"claim": 16, "part": "", "value": value, "spread": spread}
    found = claims.from_metadata(stored, {16: row_claim})
    return scorecard.Row(row_claim, "", found, True)


def drawn(row):
    """Left and right end of the band, and the value, in the picture's units."""
    svg = ElementTree.fromstring(band_plot(row))
    rectangle, dot = svg.find("rect"), svg.find("circle")
    left, width = float(rectangle.get("x")), float(rectangle.get("width"))
    return left, left + width, float(dot.get("cx"))


@pytest.mark.parametrize("value", [-1.3, -1.1, -1.0, -0.9, 0.4])
def test_the_picture_shows_whether_the_value_lies_in_the_band(value):
    row = numbers(value, low=-1.1, high=-0.9)
    left, right, dot = drawn(row)
    assert (left - 0.11 <= dot <= right + 0.11) == row.verdict.holds
    assert f"measured {row.verdict.measured()}" in band_plot(row)


def test_an_open_band_reaches_to_the_edge_and_large_factors_are_logarithmic():
    left, right, dot = drawn(numbers(1000.0, [10.0, 100_000.0], low=1.0))
    assert right > 145
    assert left < dot < right
    middle = drawn(numbers(1000.0, [1.0, 1_000_000.0], low=1.0))[2]
    assert middle == pytest.approx(75, abs=1)  # 1, 1e3, 1e6: the value lies in the middle


def test_no_picture_without_a_finite_number():
    assert band_plot(numbers(float("nan"), low=1.0)) == ""
    assert band_plot(scorecard.Row(claim(16), "", None, True)) == ""
    assert "circle" in band_plot(numbers(2.0, low=2.0, high=2.0))
