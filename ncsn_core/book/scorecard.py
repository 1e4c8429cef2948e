"""The scorecard: every claim of the ledger beside what the chapters measured."""

import dataclasses
import textwrap
from collections.abc import Collection, Iterable, Mapping

from ncsn_core.book.claims import Verdict
from ncsn_core.book.ledger import FAILS, HOLDS, NOT_MEASURED, UNDECIDED, Claim, Measurement


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


def rows(
    ledger: Mapping[int, Claim], verdicts: Iterable[Verdict], executed: Collection[str]
) -> list[Row]:
    """Return one row per measurement of the ledger and verdict, in the ledger's order.

    `executed` names the chapters (without folder and suffix) that were executed. A number that
    was reported twice has two rows: neither hides the other.
    """
    verdicts = list(verdicts)
    table = []
    for claim in ledger.values():
        for part in claim.parts:
            found: list[Verdict | None] = [
                verdict for verdict in verdicts if (verdict.claim, verdict.part) == (claim.id, part)
            ]
            ran = claim.chapter in executed
            table += [Row(claim, part, verdict, ran) for verdict in found or [None]]
    return table


def render(table: list[Row], width: int = 100) -> str:
    """Return the scorecard as text: claim, accepted band, measured value, verdict and chapter."""
    head = ("", "claim", "accepted", "measured", "verdict", "chapter")
    body = [_cells(row) for row in table]
    widths = [max(len(cells[i]) for cells in [head, *body]) for i in range(len(head))]
    others = sum(widths) - widths[1] + 2 * (len(head) - 1)
    widths[1] = min(widths[1], max(width - others, 24))
    lines = [_line(head, widths), _line(tuple("-" * w for w in widths), widths)]
    for cells in body:
        first, *rest = textwrap.wrap(cells[1], widths[1]) or [""]
        lines.append(_line((cells[0], first, *cells[2:]), widths))
        lines += [_line(("", more, "", "", "", ""), widths) for more in rest]
    return "\n".join([*lines, "", summary(table)])


def _cells(row: Row) -> tuple[str, ...]:
    title = f"{row.claim.title} ({row.part})" if row.part else row.claim.title
    measured = "" if row.verdict is None else row.verdict.measured()
    status = row.status
    if status != NOT_MEASURED and status != row.measurement.expected:
        status = f"{status} (expected: {row.measurement.expected})"
    chapter = row.claim.chapter if row.chapter_executed else f"{row.claim.chapter} (not executed)"
    return (
        str(row.claim.id),
        title,
        str(row.measurement.accept),
        measured,
        status,
        chapter,
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip()


def summary(table: list[Row]) -> str:
    """Return one line that counts the claims that hold, fail, are undecided, were not measured."""
    found = [status_of(rows) for rows in by_claim(table).values()]
    holds, fails, open_, missing = map(found.count, (HOLDS, FAILS, UNDECIDED, NOT_MEASURED))
    return f"Claims: {holds} hold, {fails} fail, {open_} undecided, {missing} not measured"


def by_claim(table: Iterable[Row]) -> dict[int, list[Row]]:
    """Return the rows of each claim, by its number."""
    found: dict[int, list[Row]] = {}
    for row in table:
        found.setdefault(row.claim.id, []).append(row)
    return found


def status_of(rows: Iterable[Row]) -> str:
    """Return the status of a claim: that of its worst part."""
    statuses = {row.status for row in rows}
    return next(s for s in (FAILS, UNDECIDED, NOT_MEASURED, HOLDS) if s in statuses)
