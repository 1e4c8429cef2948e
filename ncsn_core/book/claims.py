"""Checking claims: what the paper says against what a chapter has measured.

A chapter ends a measurement with

    claims.check(16, slope, spread=slopes)

which shows one line: verdict, number, interval and what that is, accepted band.  In words it is the
same on every machine; nbval masks the numbers (`tests/nbval.cfg`).  The number at full precision,
device and commit are recorded in the metadata of that output.
`collect` reads these records back from executed notebooks.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
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
    chapter: str | None = None
    cell: int | None = None
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
        return f"{self._opening} {self._finding}"

    def markdown(self) -> str:
        """Return the same line with its opening in bold."""
        return f"**{self._opening}** {self._finding}"

    @property
    def _opening(self) -> str:
        name = f"{self.claim} ({self.part})" if self.part else str(self.claim)
        return f"Claim {name} {self.outcome}:"

    @property
    def _finding(self) -> str:
        asked = self.measurement
        parts = [
            f"{asked.metric} is {self.measured()} ({asked.measured_over()})",
            f"accepted: {asked.accept}",
            f"paper: {asked.paper_value}" if asked.paper_value else "",
            f"changed after looking: {asked.changed}" if asked.changed else "",
        ]
        return "; ".join(part for part in parts if part) + "."

    def measured(self) -> str:
        """Return the measured value in three digits with its interval: `−0.98 [−1.01, −0.95]`."""
        text = number_text(self.value, digits=3)
        if self.spread is None:
            return text
        low, high = self.spread
        return f"{text} [{number_text(low, digits=3)}, {number_text(high, digits=3)}]"

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
    measurement = claim.parts[name]
    if (measurement.interval is None) != (spread is None):
        known = measurement.interval or "no interval"
        raise LedgerError(
            f"the ledger has {known!r} for claim {claim_id}: "
            f"{'give it as' if spread is None else 'leave away'} spread, or change the ledger"
        )
    number = _scalar(value)
    record = here.record()
    if provenance is not None:
        record["measured"] = dict(provenance)
    verdict = Verdict(
        claim=claim.id,
        part=name,
        measurement=measurement,
        value=number,
        spread=_interval(spread, number),
        record=record,
        shown=True,
    )
    _show(verdict)
    return verdict


def two_standard_errors(values: Any) -> float:
    """Return 2s/√n of independent values, as the interval about their mean."""
    numbers = [_scalar(one) for one in values]
    return 2 * statistics.stdev(numbers) / math.sqrt(len(numbers))


def _look_up(claim_id: int, part: str | None) -> tuple[Claim, str]:
    ledger = load_ledger()
    if claim_id not in ledger:
        known = ", ".join(str(number) for number in ledger)
        raise LedgerError(f"the ledger holds no claim {claim_id!r}; it holds {known}")
    claim = ledger[claim_id]
    name = "" if part is None else part
    if name not in claim.parts:
        if "" in claim.parts:
            raise LedgerError(f"claim {claim_id} has no parts: leave part={part!r} away")
        known = " or ".join(f"part={name!r}" for name in claim.parts)
        raise LedgerError(f"claim {claim_id} is measured in parts: give {known}")
    return claim, name


def _scalar(value: Any) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is not a measurement")
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise TypeError(
            f"a claim is checked with one real number, not with {type(value).__name__}{shape}"
        ) from error


def _interval(spread: Any, value: float) -> tuple[float, float] | None:
    if spread is None:
        return None
    if getattr(spread, "ndim", None) == 0 or not isinstance(spread, Iterable):
        half = abs(_scalar(spread))
        return value - half, value + half
    values = [_scalar(one) for one in spread]
    if not values:
        raise ValueError("spread is empty: give the values measured with each seed")
    return min(values), max(values)


def _show(verdict: Verdict) -> None:
    """Display the line, with the numbers in the output's metadata, or print it outside IPython."""
    if not _in_ipython():
        print(verdict)
        return
    from IPython.display import display

    data = {"text/plain": str(verdict), "text/markdown": verdict.markdown()}
    metadata = {METADATA_KEY: _as_metadata(verdict)}
    display(data, raw=True, metadata=metadata)


def _in_ipython() -> bool:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None


def _as_metadata(verdict: Verdict) -> dict[str, Any]:
    return {
        "claim": verdict.claim,
        "part": verdict.part,
        "value": _json_number(verdict.value),
        "spread": None if verdict.spread is None else [_json_number(end) for end in verdict.spread],
        "holds": verdict.holds,
        **verdict.record,
    }


def _json_number(value: float) -> float | str:
    """Return a number that JSON can hold; NaN and infinity become text that `float` reads."""
    return value if math.isfinite(value) else str(value)


# --- reading verdicts back ----------------------------------------------------------------------


def collect(
    notebook_paths: Iterable[Path], ledger: Mapping[int, Claim] | None = None
) -> list[Verdict]:
    """Return the verdicts that executed notebooks hold, in order, judged by the `ledger` of today.

    A claim that has left the ledger is skipped.
    """
    from ncsn_core.book.notebook import read

    ledger = load_ledger() if ledger is None else ledger
    verdicts = []
    for path in notebook_paths:
        for position, cell in enumerate(read(path).cells, start=1):
            for output in cell.get("outputs", []):
                stored = output.get("metadata", {}).get(METADATA_KEY, {})
                verdict = from_metadata(stored, ledger, chapter=path.stem, cell=position)
                if verdict is not None:
                    verdicts.append(verdict)
    return verdicts


def from_metadata(
    stored: Mapping[str, Any],
    ledger: Mapping[int, Claim],
    *,
    chapter: str | None = None,
    cell: int | None = None,
) -> Verdict | None:
    """Return the verdict recorded in an output's metadata, or None where there is none."""
    claim = ledger.get(stored.get("claim", -1))
    measurement = None if claim is None else claim.parts.get(stored.get("part", ""))
    if claim is None or measurement is None:
        return None
    named = {"claim", "part", "value", "spread", "holds"}
    return Verdict(
        claim=claim.id,
        part=stored["part"],
        measurement=measurement,
        value=float(stored["value"]),
        spread=_stored_spread(stored.get("spread")),
        record={name: stored[name] for name in stored if name not in named},
        chapter=chapter,
        cell=cell,
    )


def _stored_spread(spread: Sequence[float | str] | None) -> tuple[float, float] | None:
    if spread is None:
        return None
    low, high = spread
    return float(low), float(high)
