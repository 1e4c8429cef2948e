"""The ledger of claims: reading it, judging a measurement, and collecting verdicts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import nbformat
import numpy as np
import pytest
import yaml
from nbclient import NotebookClient

from ncsn_book import scorecard
from ncsn_core.book import claims
from ncsn_core.book import ledger as books

REPOSITORY = Path(__file__).resolve().parents[1]

LEDGER = """
- id: 1
  title: one number
  statement: a statement
  paper: Section 1
  setting: a setting
  metric: the slope
  paper_value: "-1"
  accept: {min: -1.1, max: -0.9}
  over: one run
  seeds: 1
  chapter: 01_first
  kind: paper
- id: 2
  title: two numbers
  statement: a statement
  paper: Section 2
  setting: a setting
  chapter: 02_second
  kind: derived
  parts:
    small: {metric: the small ratio, accept: {max: 10}, over: one run}
    large: {metric: the large ratio, accept: {min: 1000}, over: one run}
- id: 3
  title: a claim known to fail
  statement: a statement
  paper: Section 3
  setting: a setting
  metric: the distance
  accept: {max: 0.5}
  over: one run
  chapter: 03_third
  kind: paper
  requires: [1, 2]
  expected: fails
  note: the network is too small
- id: 4
  title: a number with an interval
  statement: a statement
  paper: Section 4
  setting: a setting
  metric: the ratio
  accept: {min: 1, max: 2}
  over: 3 seeds
  interval: range
  seeds: 3
  changed: "the upper end was 1.5"
  chapter: 03_third
  kind: paper
"""


PART = {"metric": "m", "accept": {"max": 1}, "over": "a run"}
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((REPOSITORY / "book" / "claims.schema.json").read_text())
)


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "claims.yml"
    path.write_text(LEDGER)
    monkeypatch.setattr(books, "find_ledger", lambda: path)
    return books.load_ledger()


# --- the book's own ledger ----------------------------------------------------------------------


def test_every_claim_is_measured_by_a_chapter_of_the_book():
    toc = yaml.safe_load((REPOSITORY / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    chapters = {Path(file).name for file in files}
    ledger = books.load_ledger(REPOSITORY / "book" / "claims.yml")
    assert {claim.chapter for claim in ledger.values()} <= chapters


@pytest.mark.parametrize(
    ("number", "part", "good", "bad"),
    [
        (16, "", -1.0, -1.2),
        (17, "weighted", 6.1, 60.0),
        (17, "unweighted", 6e4, 6.1),
        (18, "", 0.05, 0.25),
        (29, "", 0.1, 0.4),
    ],
)
def test_the_ledger_tells_a_measured_value_from_a_wrong_one(number, part, good, bad):
    band = books.load_ledger(REPOSITORY / "book" / "claims.yml")[number].parts[part].accept
    assert band.contains(good)
    assert not band.contains(bad)


def test_the_ledger_packed_into_the_package_comes_first(tmp_path, monkeypatch):
    packed = tmp_path / "claims.yml"
    packed.write_text(LEDGER)
    monkeypatch.setattr(books, "__file__", str(tmp_path / "claims.py"))
    assert books.find_ledger() == packed
    packed.unlink()
    assert books.find_ledger() == REPOSITORY / "book" / "claims.yml"


def test_without_a_ledger_both_places_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(books, "__file__", str(tmp_path / "claims.py"))
    monkeypatch.setattr(books, "PACKAGE", tmp_path / "lib" / "ncsn_core")
    with pytest.raises(books.LedgerError, match="reinstall") as error:
        books.find_ledger()
    assert str(tmp_path / "claims.yml") in str(error.value)
    assert str(tmp_path / "lib" / "book" / "claims.yml") in str(error.value)


# --- reading a ledger ---------------------------------------------------------------------------


def row(**changes):
    fields = yaml.safe_load(LEDGER)[0] | changes
    return {name: value for name, value in fields.items() if value is not None}


def without_number(**changes):
    none = dict.fromkeys(("metric", "accept", "over", "seeds", "paper_value"))
    return row(**none | changes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"id": 1}, "is not of type 'array'"),
        ([row(id="one")], "'one' is not of type 'integer'"),
        ([row(title=None)], "'title' is a required property"),
        ([row(title=" ")], "' ' does not match"),
        ([row(accept=None)], "'accept' is a required property"),
        ([row(accept={})], "{} should be non-empty"),
        ([row(accept={"max": "1e3"})], "'1e3' is not of type 'number'"),
        ([row(accept={"most": 1})], "('most' was unexpected)"),
        ([row(band=1)], "('band' was unexpected)"),
        ([row(kind="rumor")], "'rumor' is not one of"),
        ([row(over=None)], "'over' is a required property"),
        ([row(interval="sigma")], "'sigma' is not one of"),
        ([row(seeds="many")], "'many' is not of type 'integer'"),
        ([row(seeds=-1)], "-1 is less than the minimum of 0"),
        ([row(requires=1)], "1 is not of type 'array'"),
        ([row(expected="maybe")], "'maybe' is not one of"),
        ([row(expected="fails")], "'note' is a required property"),
        (
            [without_number(parts={"a": PART | {"expected": "fails"}})],
            "'note' is a required property",
        ),
        ([row(parts={"a": PART})], "were unexpected"),
        ([without_number(parts={})], "{} should be non-empty"),
        ([without_number(parts={"a": {"accept": {"max": 1}}})], "'metric' is a required property"),
        ([without_number(parts={"a": PART | {"band": 1}})], "('band' was unexpected)"),
    ],
)
def test_the_schema_refuses_a_malformed_ledger(rows, message):
    errors = list(SCHEMA.iter_errors(rows))
    found = [*errors, *(inner for error in errors for inner in error.context)]
    assert any(message in error.message for error in found), [error.message for error in found]


def test_the_schema_accepts_the_ledgers():
    SCHEMA.validate(yaml.safe_load(LEDGER))
    SCHEMA.validate([without_number(parts={"a": PART | {"expected": "fails"}}, note="why")])


def test_what_a_schema_cannot_say_holds_for_the_ledger():
    ledger = books.load_ledger(REPOSITORY / "book" / "claims.yml")
    for claim in ledger.values():
        assert set(claim.requires) <= ledger.keys() - {claim.id}
        for part in claim.parts.values():
            ends = (part.accept.min, part.accept.max)
            assert None in ends or ends[0] <= ends[1], claim.id


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row()], "claim 1 is in the ledger twice"),
        ([row(accept=None)], "`make lint` says what is wrong in {'"),
        ([row(band=1)], "unexpected keyword argument 'band'"),
        ([1], "`make lint` says what is wrong in 1"),
    ],
)
def test_a_malformed_row_is_shown(tmp_path, rows, message):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump(rows))
    with pytest.raises(books.LedgerError, match=message):
        books.load_ledger(path)


# --- judging ------------------------------------------------------------------------------------


ONE = "(one run); accepted: within [−1.1, −0.9]; paper: -1."


@pytest.mark.parametrize(
    ("number", "part", "value", "line"),
    [
        (1, None, -1.0, f"Claim 1 holds: the slope is −1 {ONE}"),
        (1, None, -0.9, f"Claim 1 holds: the slope is −0.9 {ONE}"),
        (1, None, -0.89, f"Claim 1 fails: the slope is −0.89 {ONE}"),
        (1, None, float("nan"), f"Claim 1 fails: the slope is nan {ONE}"),
        (
            2,
            "small",
            10.1,
            "Claim 2 (small) fails: the small ratio is 10.1 (one run); accepted: at most 10.",
        ),
        (
            2,
            "large",
            float("inf"),
            "Claim 2 (large) fails: the large ratio is inf (one run); accepted: at least 1000.",
        ),
    ],
)
def test_a_verdict_is_one_line_with_number_and_band(ledger, capsys, number, part, value, line):
    verdict = claims.check(number, value, part=part)
    assert capsys.readouterr().out == f"{line}\n"
    assert verdict.holds is ("holds" in line)


@pytest.mark.parametrize(
    ("value", "spread", "outcome"),
    [
        (1.5, [1.0, 2.0], "holds"),
        (1.5, [0.99, 1.6], "undecided"),
        (1.5, [1.2, 2.01], "undecided"),
        (1.5, [0.5, 2.5], "undecided"),
        (2.1, [1.9, 2.2], "undecided"),
        (0.9, [0.8, 0.95], "fails"),
        (0.9, [1.2, 1.6], "undecided"),  # a value outside of its own interval
        (2.5, [2.1, 3.0], "fails"),
        (float("nan"), [1.2, 1.6], "fails"),
        (1.5, [1.2, float("inf")], "fails"),
    ],
)
def test_an_interval_across_an_end_of_the_band_decides_nothing(ledger, value, spread, outcome):
    verdict = claims.check(4, value, spread=spread)
    assert verdict.outcome == outcome
    assert str(verdict).startswith(f"Claim 4 {outcome}: the ratio is ")


def test_a_verdict_says_what_its_interval_is_and_that_its_band_was_changed(ledger):
    line = (
        "Claim 4 holds: the ratio is 1.5 [1.4, 1.6] (range of 3 seeds); accepted: within [1, 2]; "
    )
    line += "the rule was changed after looking."
    assert str(claims.check(4, 1.5, spread=[1.4, 1.6])) == line


def test_ledger_and_call_agree_on_whether_there_is_an_interval(ledger):
    with pytest.raises(books.LedgerError, match="'range' for claim 4: give it as spread"):
        claims.check(4, 1.5)
    with pytest.raises(books.LedgerError, match="'no interval' for claim 1: leave away spread"):
        claims.check(1, -1.0, spread=0.1)


@pytest.mark.parametrize("value", [np.float32(-1), np.array(-1.0), np.array([-1.0])[0]])
def test_a_value_may_be_an_array_of_one_number(ledger, value):
    assert claims.check(1, value).value == -1.0


def test_the_spread_is_the_range_over_seeds(ledger):
    assert claims.check(4, -1.0, spread=[-1.02, -0.97, -1.01]).spread == (-1.02, -0.97)
    assert claims.check(4, -1.0, spread=np.array([-1.0, -0.9])).measured() == "−1 [−1, −0.9]"
    assert claims.check(4, -1.0, spread=0.25).spread == (-1.25, -0.75)
    with pytest.raises(ValueError, match="spread is empty"):
        claims.check(4, -1.0, spread=[])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"claim_id": 99, "value": 1.0}, books.LedgerError, "no claim 99; it holds 1, 2, 3, 4"),
        ({"claim_id": 2, "value": 1.0}, books.LedgerError, "part='small' or part='large'"),
        ({"claim_id": 2, "value": 1.0, "part": "x"}, books.LedgerError, "part='small'"),
        ({"claim_id": 1, "value": 1.0, "part": "x"}, books.LedgerError, "has no parts"),
        ({"claim_id": 1, "value": "-1"}, TypeError, "one real number, not with str"),
        ({"claim_id": 1, "value": np.ones(3)}, TypeError, r"ndarray of shape \(3,\)"),
    ],
)
def test_a_wrong_call_says_what_is_accepted(ledger, arguments, error, message):
    with pytest.raises(error, match=message):
        claims.check(**arguments)


# --- from a notebook to the scorecard -----------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook that checks claims of the book's ledger, executed by a real kernel."""
    sources = [
        "from ncsn_core.book import claims",
        "claims.check(16, -0.98, spread=[-1.0, -0.96], provenance={'device': 'a GPU'})",
        "claims.check(17, float('nan'), part='unweighted')\nclaims.check(17, 6.1, part='weighted')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    path = tmp_path_factory.mktemp("executed") / "10_ncsn.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
def test_a_notebook_shows_each_verdict_once_as_text_and_markdown(executed):
    cells = nbformat.read(executed, as_version=4).cells
    line = "the slope of log ‖s‖ against log σ is −0.98 [−1, −0.96] (95% confidence interval of "
    line += (
        "a line through ten noise levels of one network); accepted: within [−1.1, −0.9]; paper: −1."
    )
    (output,) = cells[1].outputs
    assert output.output_type == "display_data"
    assert output.data == {
        "text/plain": f"Claim 16 holds: {line}",
        "text/markdown": f"**Claim 16 holds:** {line}",
    }
    assert len(cells[2].outputs) == 2


@pytest.mark.slow
def test_the_numbers_are_in_the_metadata_as_strict_json(executed):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    notebook = json.loads(executed.read_text(), parse_constant=refuse)
    record = notebook["cells"][1]["outputs"][0]["metadata"]["ncsn"]
    assert record["claim"] == 16
    assert record["value"] == -0.98
    assert record["spread"] == [-1.0, -0.96]
    assert record["measured"] == {"device": "a GPU"}
    assert {"commit", "device", "threads", "time"} <= record.keys()


@pytest.mark.slow
def test_a_verdict_that_was_read_back_shows_its_line_and_one_of_check_not_again(
    ledger, executed, capsys
):
    checked = claims.check(1, -1.0)
    capsys.readouterr()
    checked._ipython_display_()
    assert capsys.readouterr().out == ""
    book = books.load_ledger(REPOSITORY / "book" / "claims.yml")
    record = nbformat.read(executed, as_version=4).cells[1].outputs[0].metadata["ncsn"]
    claims.from_metadata(record, book)._ipython_display_()
    line = "the slope of log ‖s‖ against log σ is −0.98 [−1, −0.96] (95% confidence interval of "
    line += (
        "a line through ten noise levels of one network); accepted: within [−1.1, −0.9]; paper: −1."
    )
    assert capsys.readouterr().out == f"Claim 16 holds: {line}\n"


def test_a_verdict_is_printed_where_ipython_is_not_installed(ledger, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    claims.check(1, -1.0)
    assert "Claim 1 holds" in capsys.readouterr().out


@pytest.mark.slow
def test_the_scorecard_reads_back_what_check_recorded_and_judges_by_the_ledger_of_today(executed):
    notebooks = {Path("10_ncsn.ipynb"): nbformat.read(executed, as_version=4)}
    ledger = books.load_ledger(REPOSITORY / "book" / "claims.yml")
    table = scorecard.of(notebooks, {number: ledger[number] for number in (16, 17, 18)})
    found = {row.part or row.claim.id: row.verdict for row in table}
    assert (found[16].value, found[16].spread, found[16].holds) == (-0.98, (-1.0, -0.96), True)
    assert np.isnan(found["unweighted"].value)
    assert (found["weighted"].value, found[18]) == (6.1, None)
    (only,) = scorecard.of(notebooks, {16: ledger[16]})
    assert only.status == "holds"


@pytest.mark.slow
def test_nbval_compares_the_line_and_ignores_the_numbers(executed, tmp_path):
    """Another machine's digits still validate; another verdict does not."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata = {}
    numbers = notebook.cells[1].outputs[0]
    numbers.metadata["ncsn"].update(value=-1.03, device="another", time="")
    for kind, text in numbers.data.items():
        numbers.data[kind] = text.replace("−0.98 [−1, −0.96]", "−1.03 [−1.1, −1]")
    assert numbers.data != nbformat.read(executed, as_version=4).cells[1].outputs[0].data
    flipped = notebook.cells[2].outputs[1]
    for kind, text in flipped.data.items():
        assert "(weighted) holds:" in text
        flipped.data[kind] = text.replace("(weighted) holds:", "(weighted) fails:")
    nbformat.write(notebook, tmp_path / "stored.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "nbval.plugin", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", "-rA", "-c", "/dev/null", "--rootdir=."]
    command += [f"--nbval-sanitize-with={REPOSITORY / 'tests' / 'nbval.cfg'}"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "PASSED stored.ipynb::Cell 1" in result.stdout
    assert "FAILED stored.ipynb::Cell 2" in result.stdout


def verdict(ledger, number, value, part=""):
    measurement = ledger[number].parts[part]
    return claims.Verdict(number, part, measurement, value)


def test_the_scorecard_has_a_row_for_every_number(ledger):
    verdicts = [verdict(ledger, 1, -1.0), verdict(ledger, 2, 20.0, "small")]
    table = scorecard.rows(ledger, verdicts, executed={"01_first", "02_second"})
    assert [(r.claim.id, r.part, r.status) for r in table] == [
        (1, "", "holds"),
        (2, "small", "fails"),
        (2, "large", "not measured"),
        (3, "", "not measured"),
        (4, "", "not measured"),
    ]
    assert [r.regressed for r in table] == [False, True, False, False, False]
    assert [r.forgotten for r in table] == [False, False, True, False, False]
    head = "Claims: 1 holds, 1 fails, 0 undecided, 2 not measured\n"
    assert scorecard.summary(table).startswith(head)


def test_an_undecided_number_is_a_regression_where_it_is_expected_to_hold(ledger):
    found = dataclasses.replace(verdict(ledger, 4, 1.0), spread=(0.9, 1.1))
    (row_of_4,) = scorecard.rows({4: ledger[4]}, [found], {"03_third"})
    assert row_of_4.status == "undecided"
    assert row_of_4.regressed
    assert "  4 undecided, NOT expected: " in scorecard.summary([row_of_4])


def test_a_number_reported_twice_hides_neither_report(ledger):
    verdicts = [verdict(ledger, 1, -1.0), verdict(ledger, 1, -2.0)]
    table = scorecard.rows({1: ledger[1]}, verdicts, executed={"01_first"})
    assert [r.status for r in table] == ["holds", "fails"]
    assert scorecard.summary(table).startswith("Claims: 0 holds, 1 fails,")


def test_a_claim_expected_to_fail_is_no_regression(ledger):
    (failing,) = scorecard.rows({3: ledger[3]}, [verdict(ledger, 3, 0.9)], {"03_third"})
    assert failing.status == "fails"
    assert not failing.regressed
    (holding,) = scorecard.rows({3: ledger[3]}, [verdict(ledger, 3, 0.1)], {"03_third"})
    assert not holding.regressed
    assert "  3 fails, as expected: a claim known to fail: 0.9" in scorecard.summary([failing])


def test_a_claim_that_cannot_be_measured_is_not_forgotten(ledger):
    measurement = dataclasses.replace(ledger[1].parts[""], expected="not measured")
    claim = dataclasses.replace(ledger[1], parts={"": measurement})
    (unmeasured,) = scorecard.rows({1: claim}, [], {"01_first"})
    assert unmeasured.status == "not measured"
    assert not unmeasured.forgotten
    assert not unmeasured.regressed


def test_one_part_of_a_claim_may_be_expected_to_fail(tmp_path):
    path = tmp_path / "claims.yml"
    known = LEDGER.replace(
        "accept: {max: 10}, over", "accept: {max: 10}, expected: fails, over"
    ).replace("kind: derived", "kind: derived\n  note: what was learnt")
    path.write_text(known)
    ledger = books.load_ledger(path)
    verdicts = [verdict(ledger, 2, 20.0, "small"), verdict(ledger, 2, 20.0, "large")]
    table = scorecard.rows({2: ledger[2]}, verdicts, {"02_second"})
    assert [(r.status, r.regressed) for r in table] == [("fails", False), ("fails", True)]


def test_two_standard_errors_of_a_mean():
    assert claims.two_standard_errors(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 3**0.5)
