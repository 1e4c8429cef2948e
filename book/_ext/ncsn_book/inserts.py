"""What the build writes into pages: measured numbers in prose, the scorecard, indexes.

Prose never carries a measured number of its own.  It names a claim of the ledger, and the build
fills in what the chapters of this very build have measured:

    {measured}`16`            −0.98 [−1.01, −0.95]
    {measured}`24:annealing`  the same for one part of a claim
    {claim}`16`               a link to the claim on the scorecard, with its verdict
    {claims}`holds`           how many claims hold; also fails, undecided, ..., all
    {promise}`coverage:lines`  a number that `make stress` has measured

and the directive `{ncsn-block} scorecard` becomes what `BLOCKS` makes of the book.
"""

import dataclasses
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from scipy.stats import binomtest

import ncsn_core.checkpoints as checkpoints
import ncsn_core.pretrained as pretrained
from ncsn_book.plot import band_plot
from ncsn_core.book.claims import METADATA_KEY
from ncsn_core.book.ledger import NOT_MEASURED, OUTCOMES, number_text
from ncsn_core.book.scorecard import Row, by_claim, status_of
from ncsn_core.book.tree import BookError
from ncsn_core.provenance import PACKAGE

EXERCISE = re.compile(r"^:::\{admonition\} Exercise (\d+): (.+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Book:
    """What is known about the book when its pages are written.

    Attributes:
        table: the scorecard.
        notebooks: the notebooks that are executed, by their path in the tree, in reading order.
    """

    table: list[Row]
    notebooks: Mapping[Path, NotebookNode]


def name_exercises(text: str, page: Path) -> str:
    """Return the text of a chapter with a name for each exercise, which `exercises` links to."""
    return EXERCISE.sub(rf":::{{admonition}} Exercise \1: \2\n:name: {_exercise(page)}-\1", text)


def _exercise(page: Path) -> str:
    return f"exercise-{page.stem}"


# --- roles --------------------------------------------------------------------------------------


def _measured(text: str, book: Book) -> str:
    rows = _rows(text, book)
    if len({row.part for row in rows}) > 1:
        parts = ", ".join(dict.fromkeys(row.part for row in rows))
        raise BookError(f"claim {text} is measured in parts: name one of {parts}")
    return " and ".join(
        NOT_MEASURED if row.verdict is None else row.verdict.measured() for row in rows
    )


def _claim_link(text: str, book: Book) -> str:
    rows = _rows(text, book)
    number = rows[0].claim.id
    return f"{{ref}}`claim {number} ({status_of(rows)}) <claim-{number}>`"


def _count(wanted: str, book: Book) -> str:
    statuses = [status_of(rows) for rows in by_claim(book.table).values()]
    if wanted == "all":
        return str(len(statuses))
    if wanted not in OUTCOMES:
        raise BookError(f"claims are {', '.join(OUTCOMES)}; none are {wanted!r}")
    return str(statuses.count(wanted))


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
    found = _stress(name)
    if key not in found:
        raise BookError(f"`make stress` has measured no {key!r} of {name!r}")
    value = found[key]
    if isinstance(value, dict):
        return ", ".join(f"{count} {kind}" for kind, count in value.items())
    return f"{value:,}" if isinstance(value, int) else number_text(value, digits=3)


ROLES: dict[str, Callable[[str, Book], str]] = {
    "measured": _measured,
    "claim": _claim_link,
    "claims": _count,
    "promise": _promise,
}


# --- blocks -------------------------------------------------------------------------------------


def _overview(book: Book) -> str:
    """Every claim in one line."""
    table = []
    for number, rows in by_claim(book.table).items():
        claim, status = rows[0].claim, status_of(rows)
        link = f"{{ref}}`{claim.title} <claim-{number}>`"
        table.append((str(number), link, _chapter(claim.chapter, book), _verdict(status)))
    return _table(
        "Every claim of the ledger; those above 100 are ours.",
        ("No.", "Claim", "Chapter", "Verdict"),
        table,
        name="tab-claims",
        widths="8 64 14 14",
    )


def _scorecard(book: Book) -> str:
    """Every claim with its numbers, a plot, and where each was measured."""
    return "\n\n".join(_claim(rows, book) for rows in by_claim(book.table).values())


def _claim(rows: list[Row], book: Book) -> str:
    claim = rows[0].claim
    lines = [
        f"(claim-{claim.id})=",
        f"### {claim.id}. {claim.title}",
        "",
        f"{_verdict(status_of(rows))} {claim.statement}",
        "",
        f"In the paper: {claim.paper}. Measured in {_chapter(claim.chapter, book)}: "
        f"{claim.setting}.",
        "",
        "```{list-table}",
        ":header-rows: 1",
        ":widths: 34 12 16 18 20",
        ":class: ncsn-scores",
        "",
        *_row("Number", "Paper", "Accepted", "Measured", "Band and value"),
    ]
    for row in rows:
        name = f"*{row.part}*: " if row.part else ""
        metric = f"{name}{row.measurement.metric.rstrip(',')}"
        if row.measurement.changed:
            metric += f" (changed after looking: {row.measurement.changed})"
        measured = NOT_MEASURED
        if row.verdict is not None:
            over = row.measurement.measured_over()
            measured = f"{row.verdict.measured()} ({over}) {_where(row, book)}"
        lines += _row(
            metric,
            row.measurement.paper_value or "–",
            str(row.measurement.accept),
            measured,
            band_plot(row),
        )
    lines += ["```", ""]
    lines += [line for line in map(_origin, rows) if line][:1]
    if claim.note:
        lines += ["", claim.note]
    if claim.requires:
        links = ", ".join(f"{{ref}}`{number} <claim-{number}>`" for number in claim.requires)
        lines += ["", f"Rests on claim {links}."]
    return "\n".join(lines)


def _where(row: Row, book: Book) -> str:
    """A link to the cell that measured a number."""
    assert row.verdict is not None
    page = _page(row.claim.chapter, book)
    if page is None:
        return ""
    target = f"../{page.with_suffix('.html').as_posix()}#{anchor(row.claim.id, row.part)}"
    label = html.escape(f"the cell that measures claim {row.claim.id} {row.part}".strip())
    return f'(<a href="{target}" aria-label="{label}">cell</a>)'


def _origin(row: Row) -> str:
    """Where a number was measured; that of a results bundle lies deeper."""
    if row.verdict is None:
        return ""
    record = {**row.verdict.record, **row.verdict.record.get("measured", {})}
    facts = [f"{name} {record[name]}" for name in ("device", "commit") if record.get(name)]
    return f"<small>Measured on {', '.join(facts)}.</small>" if facts else ""


def _exercises(book: Book) -> str:
    """The exercises of all chapters."""
    parts = []
    for page, notebook in book.notebooks.items():
        found = [match for cell in _prose(notebook) for match in EXERCISE.finditer(cell)]
        if found:
            parts.append(f"**{_chapter(page.stem, book)}**\n")
            parts += [
                f"{match[1]}. {{ref}}`{match[2]} <{_exercise(page)}-{match[1]}>`" for match in found
            ]
            parts.append("")
    return "\n".join(parts)


def _execution(book: Book) -> str:
    """When, where and for how long each notebook ran last."""
    table = []
    for page in book.notebooks:
        record = book.notebooks[page].metadata.get(METADATA_KEY, {})
        threads = record.get("threads")
        row = (
            _chapter(page.stem, book),
            str(record.get("parameters", {}).get("profile", "–")),
            f"{record['seconds']:.0f} s" if "seconds" in record else "–",
            f"{record['device']}, {threads} thread{'s' * (threads != 1)}" if record else "–",
            str(record.get("time", "–"))[:10],
            str(record.get("commit", "–")),
        )
        table.append(row)
    return _table(
        "The last execution of every notebook.",
        ("Notebook", "Profile", "Time", "Device", "Date", "Commit"),
        table,
    )


def _records(book: Book) -> str:
    """What ships, with the time and the machine that it took, from the manifests."""
    table = []
    for path in sorted(PACKAGE.glob("models/**/manifest.json")) + sorted(
        PACKAGE.glob("results/*/manifest.json")
    ):
        record = checkpoints.load(path.parent)
        origin, last = record.provenance, record.sessions[-1]
        seconds = f"{origin['seconds']:,.0f}" if "seconds" in origin else "–"
        name = path.parent.relative_to(PACKAGE).as_posix()
        table.append((f"`{name}`", seconds, last["device"], last["commit"]))
    return _table(
        "The networks and results that ship.",
        ("Record", "Seconds", "Device", "Commit"),
        table,
        name="tab-records",
        widths="38 12 28 22",
    )


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
    return {
        name.removeprefix(kind): found for name, found in metrics.items() if name.startswith(kind)
    }


def _determinism(book: Book) -> str:
    """What is the same to the last bit, by what is computed and how."""
    table = []
    for what, found in _all_stress("determinism of ").items():
        words = ["equal" if found.get(key) else "–" for key in ("again", "resumed")]
        apart = found["threads"]
        words.append("equal" if apart == 0 else f"to {number_text(apart, digits=2)}")
        for fabrics, ours in (("32-true", "float32"), ("bf16-mixed", "bfloat16")):
            what = what.replace(fabrics, ours)
        table.append((what, *words))
    return _table(
        "On one CPU, the same seed: equal to the last bit, or how far apart.",
        ("Computation", "Again", "Resumed", "One thread"),
        table,
        name="tab-determinism",
        widths="40 18 18 24",
    )


def _planted(book: Book) -> str:
    """The defects that were planted, and the claims that then failed."""
    table = []
    for found in _all_stress("planted in ").values():
        where = f" `{found['where']}`" if found["where"] else ""
        chapter = _chapter(found["chapter"], book) + where
        table.append((found["name"], chapter, _code(found["lines"]), ", ".join(found["failed"])))
    return _table(
        f"{len(table)} defects, one at a time, and the claims that failed. A function is named "
        "where it was one of the package.",
        ("Defect", "Chapter", "Right and wrong", "Failed"),
        table,
        name="tab-planted",
        widths="22 18 42 18",
    )


def _alarms(book: Book) -> str:
    """How often each claim failed with other random numbers."""
    table = []
    for chapter, claims in _stress("false alarms").items():
        for name, found in claims.items():
            interval = binomtest(found["failed"], found["runs"]).proportion_ci()
            ends = (f"{100 * end:.1f}" for end in (interval.low, interval.high))
            row = (name, _chapter(chapter, book), f"{found['failed']} of {found['runs']}")
            room = "–" if found["room"] is None else number_text(found["room"], digits=2)
            table.append((*row, f"{' to '.join(ends)} %", room))
    return _table(
        "Claims with other random numbers: how often each failed, the 95 % interval of its rate, "
        "and the room between its mean and the nearer end of its band, in standard deviations.",
        ("Claim", "Chapter", "Failed", "Rate, 95 %", "Room"),
        table,
        name="tab-alarms",
        widths="28 20 20 20 12",
    )


def _survivors(book: Book) -> str:
    """The mutants that no test noticed, and what we think of each."""
    table = []
    for found in _stress("mutants")["survivors"]:
        code = _code([line[1:].strip() for line in found["change"]])
        table.append((f"`{found['module']}`", code, found["judgement"]))
    return _table(
        "The mutants that survived.",
        ("Module", "Before and after", "Judgement"),
        table,
        name="tab-survivors",
        widths="18 47 35",
    )


def _ignored(book: Book) -> str:
    """The cells whose output is not compared with the stored one."""
    table, outputs, ignored = [], 0, 0
    for page, notebook in book.notebooks.items():
        if "runs" in page.parts:
            continue
        cells = [c for c in notebook.cells if c.cell_type == "code" and c.outputs]
        volatile = [c for c in cells if "nbval-ignore-output" in c.metadata.get("tags", [])]
        outputs, ignored = outputs + len(cells), ignored + len(volatile)
        if volatile:
            table.append((_chapter(page.stem, book), str(len(volatile)), str(len(cells))))
    return _table(
        f"{ignored} of {outputs} outputs are not compared ({ignored / max(outputs, 1):.0%}).",
        ("Notebook", "Not compared", "Outputs"),
        table,
        name="tab-ignored",
    )


BLOCKS: dict[str, Callable[[Book], str]] = {
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


def anchor(claim: int, part: str) -> str:
    """The id of a verdict on its chapter's page."""
    slug = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")
    return f"measured-{claim}-{slug}" if slug else f"measured-{claim}"


def _table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    name: str = "",
    widths: str = "",
) -> str:
    """A table that readers can refer to by its name."""
    options = [f":name: {name}"] * bool(name) + [":header-rows: 1"]
    options += [f":widths: {widths}"] * bool(widths)
    lines = [f"```{{list-table}} {caption}", *options, ""]
    for row in (header, *rows):
        lines += _row(*row)
    return "\n".join([*lines, "```"])


def _code(lines: Sequence[str]) -> str:
    """Lines of code in a cell of a table."""
    return "<br>".join(f"`{line}`" for line in lines)


def _row(*cells: str) -> list[str]:
    first, *others = cells
    return [f"* - {first}", *(f"  - {cell}" for cell in others)]


def _verdict(status: str) -> str:
    kind = status.replace(" ", "-")
    return f'<span class="ncsn-verdict {kind}">{status}</span>'


def _page(chapter: str, book: Book) -> Path | None:
    return next((page for page in book.notebooks if page.stem == chapter), None)


def _chapter(chapter: str, book: Book) -> str:
    """A link to a chapter: by its number, or by its title where it has none."""
    page = _page(chapter, book)
    if page is None:
        return chapter
    number, target = re.match(r"(\d+)_", chapter), f"/{page.with_suffix('').as_posix()}"
    if number is None:
        return f"{{doc}}`{target}`"
    return f"{{doc}}`chapter\N{NO-BREAK SPACE}{int(number[1])} <{target}>`"


def _prose(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
