"""What the build writes into pages: measured numbers in prose, the scorecard, indexes.

Prose never carries a measured number of its own.  It names a claim of the ledger, and the build
fills in what the chapters of this very build have measured:

    {measured}`16`            −0.98 [−1.01, −0.95]
    {measured}`24:annealing`  the same for one part of a claim
    {claim}`16`               a link to the claim on the scorecard, with its verdict
    {claims}`holds`           how many claims hold; also fails, undecided, ..., all
    {promise}`coverage:lines`  a number that `make stress` has measured
    {thumbnail}`10_ncsn:fig-ncsn-denoise`  a figure of a chapter by its name, small

and the directive `{ncsn-block} scorecard` becomes what `BLOCKS` makes of the book.
"""

import dataclasses
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from scipy.stats import binomtest

import ncsn_core.checkpoints as checkpoints
import ncsn_core.pretrained as pretrained
from ncsn_book import gallery
from ncsn_book.execution import BookError
from ncsn_book.plot import band_plot
from ncsn_book.scorecard import Row, by_claim, status_of
from ncsn_core.book.claims import METADATA_KEY
from ncsn_core.book.ledger import (
    FAILS,
    HOLDS,
    NOT_MEASURED,
    OUTCOMES,
    UNDECIDED,
    number_text,
)
from ncsn_core.provenance import PACKAGE

EXERCISE = re.compile(
    r"^:::\{exercise(?:-start)?\} (?P<title>.+?) (?P<difficulty>★+)\n"
    r":label: (?P<label>\S+)\n(?::.*\n)*\s*"
    r"(?P<first>(?:.|\n)+?[.?:])(?=\s)",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Book:
    """What is known about the book when its pages are written.

    Attributes:
        table: the scorecard.
        notebooks: the notebooks that are executed, by their path in the tree, in reading order.
    """

    table: list[Row]
    notebooks: Mapping[Path, NotebookNode]


# --- roles --------------------------------------------------------------------------------------


def _measured(text: str, book: Book) -> str:
    rows = _rows(text, book)
    if len({row.part for row in rows}) > 1:
        parts = ", ".join(dict.fromkeys(row.part for row in rows))
        raise BookError(f"claim {text} is measured in parts: name one of {parts}")
    return " and ".join(row.verdict.measured() if row.verdict else NOT_MEASURED for row in rows)


def _claim_link(text: str, book: Book) -> str:
    rows = _rows(text, book)
    number = rows[0].claim.id
    return f"{{ref}}`claim {number} ({status_of(rows)}) <claim-{number}>`"


def _count(wanted: str, book: Book) -> str:
    statuses = [status_of(rows) for rows in by_claim(book.table).values()]
    if wanted not in (*OUTCOMES, "all"):
        raise BookError(f"claims are {', '.join(OUTCOMES)}; none are {wanted!r}")
    return str(len(statuses) if wanted == "all" else statuses.count(wanted))


def _rows(text: str, book: Book) -> list[Row]:
    number, _, part = text.partition(":")
    rows = [row for row in book.table if str(row.claim.id) == number]
    if not rows:
        raise BookError(f"the ledger holds no claim {number}")
    found = [row for row in rows if row.part == part]
    if part and not found:
        parts = ", ".join(repr(row.part) for row in rows)
        raise BookError(f"claim {number} has no part {part!r}, but {parts}")
    return found if part else rows


def _promise(text: str, book: Book) -> str:
    name, _, key = text.partition(":")
    value = _stress(name).get(key)
    if value is None:
        raise BookError(f"`make stress` has measured no {key!r} of {name!r}")
    if isinstance(value, dict):
        return ", ".join(f"{count} {kind}" for kind, count in value.items())
    return f"{value:,}" if isinstance(value, int) else number_text(value, digits=3)


def _thumbnail(text: str, book: Book) -> str:
    chapter, _, name = text.partition(":")
    found = [notebook for page, notebook in book.notebooks.items() if page.stem == chapter]
    if not found or not (image := gallery.thumbnail(found[0], name)):
        raise BookError(f"there is no figure {name!r} in a chapter {chapter!r}")
    return image


ROLES: dict[str, Callable[[str, Book], str]] = {
    "measured": _measured,
    "claim": _claim_link,
    "claims": _count,
    "promise": _promise,
    "thumbnail": _thumbnail,
}


# --- blocks: the claims -------------------------------------------------------------------------


def _summary(book: Book) -> str:
    """Every claim as a square in the color of its verdict, those that do not hold first."""
    squares = ""
    for rows in _failing_first(book):
        claim, status = rows[0].claim, status_of(rows)
        title = html.escape(f"{claim.id}. {claim.title}: {status}")
        look = status.replace(" ", "-")
        target = f"scorecard.html#claim-{claim.id}"
        squares += f'<a class="{look}" href="{target}" title="{title}">{claim.id}</a>'
    legend = " ".join(map(_verdict, (FAILS, UNDECIDED, NOT_MEASURED, HOLDS)))
    note = f"<p><small>{legend} Claims above 100 are ours, the others the paper's.</small></p>"
    return f'<nav class="ncsn-claims" aria-label="Claims">{squares}</nav>\n{note}'


def _failing_first(book: Book) -> list[list[Row]]:
    order = (FAILS, UNDECIDED, NOT_MEASURED, HOLDS)
    return sorted(by_claim(book.table).values(), key=lambda rows: order.index(status_of(rows)))


def _overview(book: Book) -> str:
    """Every claim in one line, with the paper's value and ours."""
    table = []
    for rows in _failing_first(book):
        claim = rows[0].claim
        link = f"{claim.id}\\. {{ref}}`{claim.title} <claim-{claim.id}>`"
        paper = dict.fromkeys(row.measurement.paper_value or "–" for row in rows)
        ours = [
            f"{_metric(row)}: **{row.verdict.measured() if row.verdict else '–'}** "
            f"({row.measurement.accept})"
            for row in rows
        ]
        verdict = _verdict(status_of(rows))
        table.append((link, verdict, "; ".join(paper), "<br>".join(ours)))
    caption = "Every claim of the ledger, those that do not hold first; those above 100 are ours."
    header = {"Claim": 26, "Verdict": 12, "Paper": 14, "Measured (accepted)": 48}
    return _table(caption, header, table, "claims")


def _metric(row: Row) -> str:
    """What was measured, without the comma that leads over to the number in a verdict."""
    return row.measurement.metric.rstrip(",")


def _scorecard(book: Book) -> str:
    """Every claim with its numbers, a plot, and where each was measured, folded."""
    return "\n\n".join(_claim(rows, book) for rows in _failing_first(book))


def _claim(rows: list[Row], book: Book) -> str:
    claim = rows[0].claim
    parts = [
        f"::::{{dropdown}} {claim.id}. {claim.title} {_verdict(status_of(rows))}",
        f"(claim-{claim.id})=\n{claim.statement}",
        f"In the paper: {claim.paper}. Measured in {_chapter(claim.chapter, book)}: "
        f"{claim.setting}.",
        _table(
            "",
            {"Number": 34, "Paper": 12, "Accepted": 16, "Measured": 18, "Band and value": 20},
            [_numbers(row, book) for row in rows],
            style="ncsn-scores",
        ),
        *[line for line in map(_origin, rows) if line][:1],
        claim.note or "",
    ]
    if claim.requires:
        links = ", ".join(f"{{ref}}`{number} <claim-{number}>`" for number in claim.requires)
        parts.append(f"Rests on claim {links}.")
    return "\n\n".join([*(part for part in parts if part), "::::"])


def _numbers(row: Row, book: Book) -> tuple[str, ...]:
    asked = row.measurement
    number = f"*{row.part}*: " * bool(row.part) + _metric(row)
    if asked.changed:
        number += f" (changed after looking: {asked.changed})"
    measured = NOT_MEASURED
    if row.verdict is not None:
        measured = f"{row.verdict.measured()} ({asked.measured_over()}) {_where(row, book)}"
    return number, asked.paper_value or "–", str(asked.accept), measured, band_plot(row)


def _where(row: Row, book: Book) -> str:
    """A link to the cell that measured a number."""
    page = next((page for page in book.notebooks if page.stem == row.claim.chapter), None)
    if page is None:
        return ""
    target = f"../{page.with_suffix('.html').as_posix()}#{anchor(row.claim.id, row.part)}"
    label = html.escape(f"the cell that measures claim {row.claim.id} {row.part}".strip())
    return f'(<a href="{target}" aria-label="{label}">cell</a>)'


def _origin(row: Row) -> str:
    """Where a number was measured; that of a results bundle lies deeper."""
    record = {} if row.verdict is None else row.verdict.record
    record = {**record, **record.get("measured", {})}
    facts = [f"{name} {record[name]}" for name in ("device", "commit") if record.get(name)]
    return f"<small>Measured on {', '.join(facts)}.</small>" if facts else ""


# --- blocks: the notebooks ----------------------------------------------------------------------


def _exercises(book: Book) -> str:
    """The exercises of all chapters."""
    parts = []
    for page, notebook in book.notebooks.items():
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        found = list(EXERCISE.finditer(prose))
        parts += [f"**{_chapter(page.stem, book)}**\n"] * bool(found)
        for match in found:
            first = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(match["first"].split()))
            title = match["title"] + "." * (not match["title"].endswith("?"))
            label, difficulty = match["label"], match["difficulty"]
            parts.append(f"- {{ref}}`{label}` {difficulty} **{title}** {first}")
        parts += [""] * bool(found)
    return "\n".join(parts)


def _execution(book: Book) -> str:
    """When, where and for how long each notebook ran last."""
    rows = []
    for page, notebook in book.notebooks.items():
        known = notebook.metadata.get(METADATA_KEY, {})
        threads = known.get("threads")
        row = (
            known.get("parameters", {}).get("profile"),
            f"{known['seconds']:.0f} s" if "seconds" in known else None,
            f"{known['device']}, {threads} thread{'s' * (threads != 1)}" if known else None,
            known.get("time", "")[:10],
            known.get("commit"),
        )
        rows.append((_chapter(page.stem, book), *(cell or "–" for cell in row)))
    header = ("Notebook", "Profile", "Time", "Device", "Date", "Commit")
    return _table("The last execution of every notebook.", dict.fromkeys(header), rows)


def _ignored(book: Book) -> str:
    """The cells whose output is not compared with the stored one."""
    rows, outputs, ignored = [], 0, 0
    for page, notebook in book.notebooks.items():
        cells = [c for c in notebook.cells if c.cell_type == "code" and c.outputs]
        volatile = [c for c in cells if "nbval-ignore-output" in c.metadata.get("tags", [])]
        if "runs" not in page.parts:
            outputs, ignored = outputs + len(cells), ignored + len(volatile)
            rows += [(_chapter(page.stem, book), len(volatile), len(cells))] * bool(volatile)
    share = f"{ignored} of {outputs} outputs are not compared ({ignored / max(outputs, 1):.0%})."
    return _table(share, dict.fromkeys(("Notebook", "Not compared", "Outputs")), rows, "ignored")


def _records(book: Book) -> str:
    """What ships, with the time and the machine that it took, from the manifests."""
    rows = []
    kinds = ("models/**/manifest.json", "results/*/manifest.json")
    for path in [path for kind in kinds for path in sorted(PACKAGE.glob(kind))]:
        record = checkpoints.load(path.parent)
        origin, last = record.provenance, record.sessions[-1]
        seconds = f"{origin['seconds']:,.0f}" if "seconds" in origin else "–"
        name = path.parent.relative_to(PACKAGE).as_posix()
        rows.append((f"`{name}`", seconds, last["device"], last["commit"]))
    header = {"Record": 38, "Seconds": 12, "Device": 28, "Commit": 22}
    return _table("The networks and results that ship.", header, rows, "records")


# --- blocks: what `make stress` has measured ----------------------------------------------------


def _stress(name: str) -> Mapping[str, Any]:
    """What `make stress` has measured under a name."""
    metrics = pretrained.results("promises").metrics
    if name not in metrics:
        raise BookError(f"`make stress` has measured no {name!r}")
    found: Mapping[str, Any] = metrics[name]
    return found


def _all_stress(kind: str) -> dict[str, Mapping[str, Any]]:
    """What `make stress` has measured under all names of a kind, by the rest of the name."""
    metrics = pretrained.results("promises").metrics
    return {name.removeprefix(kind): metrics[name] for name in metrics if name.startswith(kind)}


def _determinism(book: Book) -> str:
    """What is the same to the last bit, by what is computed and how."""
    rows = []
    for what, found in _all_stress("determinism of ").items():
        apart = found["threads"]
        words = ["equal" if found.get(key) else "–" for key in ("again", "resumed")]
        words.append(f"to {number_text(apart, digits=2)}" if apart else "equal")
        rows.append((what.replace("32-true", "float32").replace("bf16-mixed", "bfloat16"), *words))
    caption = "On one CPU, the same seed: equal to the last bit, or how far apart."
    header = {"Computation": 40, "Again": 18, "Resumed": 18, "One thread": 24}
    return _table(caption, header, rows, "determinism")


def _planted(book: Book) -> str:
    """The defects that were planted, and the claims that then failed."""
    rows = []
    for found in _all_stress("planted in ").values():
        place = f"{_chapter(found['chapter'], book)} `{found['where']}`".removesuffix(" ``")
        rows.append((found["name"], place, _code(found["lines"]), ", ".join(found["failed"])))
    caption = (
        f"{len(rows)} defects, one at a time, and the claims that failed. A function is named "
        "where it was one of the package."
    )
    header = {"Defect": 22, "Chapter": 18, "Right and wrong": 42, "Failed": 18}
    return _table(caption, header, rows, "planted")


def _alarms(book: Book) -> str:
    """How often each claim failed with other random numbers."""
    rows = []
    for chapter, claims in _stress("false alarms").items():
        for name, found in claims.items():
            interval = binomtest(found["failed"], found["runs"]).proportion_ci()
            rate = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%"
            room = "–" if found["room"] is None else number_text(found["room"], digits=2)
            failed = f"{found['failed']} of {found['runs']}"
            rows.append((name, _chapter(chapter, book), failed, rate, room))
    caption = (
        "Claims with other random numbers: how often each failed, the 95% interval of its rate, "
        "and the room between its mean and the nearer end of its band, in standard deviations."
    )
    header = {"Claim": 28, "Chapter": 20, "Failed": 20, "Rate, 95%": 20, "Room": 12}
    return _table(caption, header, rows, "alarms")


def _survivors(book: Book) -> str:
    """The mutants that no test noticed, and what we think of each."""
    rows = [
        (f"`{m['module']}`", _code([line[1:].strip() for line in m["change"]]), m["judgement"])
        for m in _stress("mutants")["survivors"]
    ]
    header = {"Module": 18, "Before and after": 47, "Judgement": 35}
    return _table("The mutants that survived.", header, rows, "survivors")


BLOCKS: dict[str, Callable[[Book], str]] = {
    "emerging": lambda book: gallery.emerging(),
    "summary": _summary,
    "overview": _overview,
    "scorecard": _scorecard,
    "exercises": _exercises,
    "execution": _execution,
    "records": _records,
    "determinism": _determinism,
    "planted": _planted,
    "alarms": _alarms,
    "survivors": _survivors,
    "ignored": _ignored,
}


# --- pieces -------------------------------------------------------------------------------------


def anchor(claim: int, part: str) -> str:
    """The id of a verdict on its chapter's page."""
    slug = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")
    return f"measured-{claim}-{slug}" if slug else f"measured-{claim}"


def _table(
    caption: str,
    header: Mapping[str, int | None],
    rows: Iterable[Sequence[object]],
    name: str = "",
    style: str = "",
) -> str:
    """A table; `header` has the width of each column, in percent, or None."""
    options = [f":name: tab-{name}"] * bool(name) + [":header-rows: 1"]
    options += [f":class: {style}"] * bool(style)
    if all(header.values()):
        options.append(f":widths: {' '.join(map(str, header.values()))}")
    lines = [f"```{{list-table}} {caption}".rstrip(), *options, ""]
    for first, *others in ([*header], *rows):
        lines += [f"* - {first}", *(f"  - {cell}" for cell in others)]
    return "\n".join([*lines, "```"])


def _code(lines: Iterable[str]) -> str:
    """Lines of code in a cell of a table."""
    return "<br>".join(f"`{line}`" for line in lines)


def _verdict(status: str) -> str:
    return f'<span class="ncsn-verdict {status.replace(" ", "-")}">{status}</span>'


def _chapter(chapter: str, book: Book) -> str:
    """A link to a chapter: by its number, or by its title where it has none."""
    page = next((page for page in book.notebooks if page.stem == chapter), None)
    if page is None:
        return chapter
    number, target = re.match(r"(\d+)_", chapter), f"/{page.with_suffix('').as_posix()}"
    if number is None:
        return f"{{doc}}`{target}`"
    return f"{{doc}}`chapter\N{NO-BREAK SPACE}{int(number[1])} <{target}>`"
