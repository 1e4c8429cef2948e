"""Checking claims: what the paper says against what a chapter has measured.

A chapter ends a measurement with

    claims.check(16, slope, spread=slopes)

which shows one line: verdict, number, interval and what that is, accepted band.  In words it is the
same on every machine; nbval masks the numbers (`tests/nbval.cfg`).  The number at full precision,
device and commit are recorded in the metadata of that output, which the scorecard is made from.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import ncsn_core.provenance as here
from ncsn_core.book.ledger import (
    FAILS,
    HOLDS,
    Claim,
    LedgerError,
    Measurement,
    load_ledger,
    number_text,
)

METADATA_KEY = "ncsn"
"""The key, in the metadata of a notebook or of one output, under which records are kept."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A measured value judged against the ledger, with where and how it was measured."""

    claim: int
    part: str
    measurement: Measurement
    value: float
    spread: tuple[float, float] | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shown: bool = dataclasses.field(default=False, repr=False, compare=False)

    @property
    def outcome(self) -> str:
        """Whether the value and its interval lie inside of the band: "holds", outside: "fails".

        "undecided" where the interval reaches across an end of the band.
        """
        ends = (self.value, *(self.spread or ()))
        if not all(map(math.isfinite, ends)):
            return FAILS
        return self.measurement.accept.judge(min(ends), max(ends))

    @property
    def holds(self) -> bool:
        """Whether that is "holds"."""
        return self.outcome == HOLDS

    def __str__(self) -> str:
        return ": ".join(self.line())

    def markdown(self) -> str:
        """Return the same line with its opening in bold."""
        opening, finding = self.line()
        return f"**{opening}:** {finding}"

    def line(self) -> tuple[str, str]:
        """Return what the line says: which claim holds or fails, and what was found."""
        asked = self.measurement
        parts = [
            f"{asked.metric} is {self.measured()} ({asked.measured_over()})",
            f"accepted: {asked.accept}",
            f"paper: {asked.paper_value}" if asked.paper_value else "",
            "the rule was changed after looking" if asked.changed else "",
        ]
        name = f"{self.claim} ({self.part})" if self.part else str(self.claim)
        return f"Claim {name} {self.outcome}", "; ".join(filter(None, parts)) + "."

    def measured(self) -> str:
        """Return the measured value in three digits with its interval: `−0.98 [−1.01, −0.95]`."""
        value, *ends = (number_text(n, digits=3) for n in (self.value, *(self.spread or ())))
        return f"{value} [{', '.join(ends)}]" if ends else value

    def _ipython_display_(self) -> None:
        """Show nothing twice: `check` at the end of a cell has already shown its line."""
        if not self.shown:
            print(self)


# --- checking a claim in a chapter --------------------------------------------------------------


def check(
    claim_id: int,
    value: Any,
    *,
    part: str | None = None,
    spread: Any = None,
    provenance: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge a measured `value` against claim `claim_id` of the ledger, and show the verdict.

    `value` is a number or an array that holds one; NaN and infinity fail. `spread` is its interval:
    several values (one a seed, say), of which the smallest and largest count, or one number s for
    [value − s, value + s]. What the interval is stands in the ledger. `part` names the measurement
    where a claim has several. `provenance` (of a results bundle, say) is recorded beside this
    process's own device and commit when the number was measured elsewhere.

    A claim that fails is shown failing; it raises nothing. Raises `LedgerError` for a claim or
    part that the ledger does not hold, and where it names an interval and there is none, or the
    other way round.
    """
    claim, name = _look_up(claim_id, part)
    interval = claim.parts[name].interval
    if (interval is None) != (spread is None):
        raise LedgerError(
            f"the ledger has {interval or 'no interval'!r} for claim {claim_id}: "
            f"{'give it as' if spread is None else 'leave away'} spread, or change the ledger"
        )
    number = _scalar(value)
    ends = None if spread is None else _interval(spread, number)
    record: dict[str, Any] = {"claim": claim.id, "part": name, "value": number, "spread": ends}
    record |= here.record() | ({} if provenance is None else {"measured": dict(provenance)})
    verdict = dataclasses.replace(_verdict(record, claim), shown=True)
    _show(verdict)
    return verdict


def from_metadata(record: Mapping[str, Any], ledger: Mapping[int, Claim]) -> Verdict | None:
    """Return the verdict that an output's metadata records, judged by a ledger of today.

    None where there is none, or its claim has left the ledger.
    """
    claim = ledger.get(record.get("claim", -1))
    return None if claim is None or record["part"] not in claim.parts else _verdict(record, claim)


def two_standard_errors(values: Any) -> float:
    """Return 2s/√n of independent values, as the interval about their mean."""
    numbers = [_scalar(one) for one in values]
    return 2 * statistics.stdev(numbers) / math.sqrt(len(numbers))


def _verdict(record: Mapping[str, Any], claim: Claim) -> Verdict:
    part, value, spread = record["part"], float(record["value"]), record["spread"]
    ends = None if spread is None else (float(spread[0]), float(spread[1]))
    return Verdict(claim.id, part, claim.parts[part], value, ends, record)


def _look_up(claim_id: int, part: str | None) -> tuple[Claim, str]:
    ledger = load_ledger()
    if claim_id not in ledger:
        known = ", ".join(map(str, ledger))
        raise LedgerError(f"the ledger holds no claim {claim_id!r}; it holds {known}")
    claim, name = ledger[claim_id], part or ""
    if name not in claim.parts:
        if "" in claim.parts:
            raise LedgerError(f"claim {claim_id} has no parts: leave part={part!r} away")
        known = " or ".join(f"part={name!r}" for name in claim.parts)
        raise LedgerError(f"claim {claim_id} is measured in parts: give {known}")
    return claim, name


def _scalar(value: Any) -> float:
    try:
        return float(value + 0)  # not of text
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise TypeError(
            f"a claim is checked with one real number, not with {type(value).__name__}{shape}"
        ) from error


def _interval(spread: Any, value: float) -> tuple[float, float]:
    if getattr(spread, "ndim", None) == 0 or not isinstance(spread, Iterable):
        half = abs(_scalar(spread))
        return value - half, value + half
    values = [_scalar(one) for one in spread]
    if not values:
        raise ValueError("spread is empty: give the values measured with each seed")
    return min(values), max(values)


def _show(verdict: Verdict) -> None:
    """Display the line, with the numbers in the output's metadata, or print it outside IPython."""
    if not getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)():
        print(verdict)
        return
    from IPython.display import display

    def json_number(number: float) -> float | str:  # JSON has no NaN; `float` reads the text
        return number if math.isfinite(number) else str(number)

    spread = None if verdict.spread is None else [*map(json_number, verdict.spread)]
    numbers = {"value": json_number(verdict.value), "spread": spread}
    data = {"text/plain": str(verdict), "text/markdown": verdict.markdown()}
    display(data, raw=True, metadata={METADATA_KEY: {**verdict.record, **numbers}})
