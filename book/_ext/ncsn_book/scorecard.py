"""The scorecard: every claim of the ledger beside what the chapters have measured."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from nbformat import NotebookNode

from ncsn_book.execution import records
from ncsn_core.book.claims import Verdict, from_metadata
from ncsn_core.book.ledger import (
    FAILS,
    HOLDS,
    NOT_MEASURED,
    OUTCOMES,
    UNDECIDED,
    Claim,
    Measurement,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of one claim: its verdict, or the reason why there is none."""

    claim: Claim
    part: str
    verdict: Verdict | None
    chapter_executed: bool

    @property
    def measurement(self) -> Measurement:
        """The metric and band that the ledger asks for."""
        return self.claim.parts[self.part]

    @property
    def status(self) -> str:
        """One of "holds", "fails", "undecided", "not measured"."""
        return NOT_MEASURED if self.verdict is None else self.verdict.outcome

    @property
    def regressed(self) -> bool:
        """Whether a number that the ledger expects to hold fails or is undecided."""
        return self.status in (FAILS, UNDECIDED) and self.measurement.expected == HOLDS

    @property
    def forgotten(self) -> bool:
        """Whether the chapter ran to its end and never reported this number, though it should."""
        left_out = self.verdict is None and self.chapter_executed
        return left_out and self.measurement.expected != NOT_MEASURED


def of(notebooks: Mapping[Path, NotebookNode], ledger: Mapping[int, Claim]) -> list[Row]:
    """The scorecard of executed notebooks, by their paths."""
    verdicts: list[Verdict] = []
    for notebook in notebooks.values():
        found = (from_metadata(record, ledger) for _, record in records(notebook))
        verdicts += [verdict for verdict in found if verdict is not None]
    executed = {
        page.stem
        for page, notebook in notebooks.items()
        if any(cell.get("execution_count") is not None for cell in notebook.cells)
    }
    return rows(ledger, verdicts, executed)


def rows(
    ledger: Mapping[int, Claim], verdicts: Iterable[Verdict], executed: Collection[str]
) -> list[Row]:
    """One row per measurement of the ledger and verdict, in the ledger's order.

    `executed` names the chapters (without folder and suffix) that were executed. A number that
    was reported twice has two rows: neither hides the other.
    """
    found: dict[tuple[int, str], list[Verdict | None]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.claim, verdict.part), []).append(verdict)
    return [
        Row(claim, part, verdict, claim.chapter in executed)
        for claim in ledger.values()
        for part in claim.parts
        for verdict in found.get((claim.id, part), [None])
    ]


def by_claim(table: Iterable[Row]) -> dict[int, list[Row]]:
    """The rows of each claim, by its number."""
    found: dict[int, list[Row]] = {}
    for row in table:
        found.setdefault(row.claim.id, []).append(row)
    return found


def status_of(rows: Iterable[Row]) -> str:
    """The status of a claim: that of its worst part."""
    statuses = {row.status for row in rows}
    return next(s for s in (FAILS, UNDECIDED, NOT_MEASURED, HOLDS) if s in statuses)


def summary(table: list[Row]) -> str:
    """How many claims hold, fail, are undecided, were not measured, and which do not hold."""
    found = [status_of(rows) for rows in by_claim(table).values()]
    lines = ["Claims: " + ", ".join(f"{found.count(status)} {status}" for status in OUTCOMES)]
    for row in (row for row in table if row.status != HOLDS):
        name = f"{row.claim.title} ({row.part})" if row.part else row.claim.title
        expected = "as expected" if row.status == row.measurement.expected else "NOT expected"
        measured = "" if row.verdict is None else f": {row.verdict.measured()}"
        lines.append(f"  {row.claim.id} {row.status}, {expected}: {name}{measured}")
    return "\n".join(lines)
