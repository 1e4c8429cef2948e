"""The ledger of claims, `book/claims.yml`: reading it and rejecting what is malformed in it."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ncsn_core.errors import NCSNError
from ncsn_core.provenance import PACKAGE

LEDGER = "claims.yml"
KINDS = {
    "paper": "the paper states it",
    "derived": "it follows from the paper, which does not state it",
}
HOLDS, FAILS, UNDECIDED, NOT_MEASURED = "holds", "fails", "undecided", "not measured"
OUTCOMES = (HOLDS, FAILS, UNDECIDED, NOT_MEASURED)
INTERVALS = ("range", "two standard errors", "one standard error", "95 % confidence interval")


class LedgerError(NCSNError, ValueError):
    """The ledger is malformed, or was asked for a claim that it does not hold."""


@dataclasses.dataclass(frozen=True)
class Band:
    """The values that count as agreement; an absent end is open."""

    min: float | None
    max: float | None

    def contains(self, value: float) -> bool:
        """Return whether `value` is a number inside the band (ends included)."""
        if not math.isfinite(value):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def judge(self, low: float, high: float) -> str:
        """Return "holds", "fails", or "undecided" where a finite interval reaches across an end."""
        if self.contains(low) and self.contains(high):
            return HOLDS
        below = self.min is not None and high < self.min
        above = self.max is not None and low > self.max
        return FAILS if below or above else UNDECIDED

    def __str__(self) -> str:
        if self.min is None:
            return f"at most {number_text(self.max)}"
        if self.max is None:
            return f"at least {number_text(self.min)}"
        return f"within [{number_text(self.min)}, {number_text(self.max)}]"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number that decides a claim: what it is, the paper's value and the accepted band.

    Attributes:
        over: what it was measured over, "20 sampling seeds" or "one training run".
        interval: what the interval beside it is, one of `INTERVALS`; None where there is none.
        seeds: how many random seeds it rests on; 0 where nothing is random.
        changed: how the band or the metric was changed after the data had been seen.
        expected: "holds"; "fails" or "undecided" where that is known; or "not measured".
    """

    metric: str
    accept: Band
    over: str
    interval: str | None = None
    seeds: int = 0
    changed: str | None = None
    paper_value: str | None = None
    expected: str = HOLDS

    def measured_over(self) -> str:
        """Return what the interval is, as in "range of 20 sampling seeds"."""
        return self.over if self.interval is None else f"{self.interval} of {self.over}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the ledger. `parts` maps a part's name ("" if there is only one) to its number.

    `requires` are the claims that it rests on.
    """

    id: int
    title: str
    statement: str
    paper: str
    setting: str
    chapter: str
    kind: str
    parts: Mapping[str, Measurement]
    requires: tuple[int, ...] = ()
    note: str | None = None


def number_text(value: float | None, digits: int = 6) -> str:
    """A number in so many digits, with a real minus sign."""
    return f"{value:.{digits}g}".replace("-", "−")


def find_ledger() -> Path:
    """Return the ledger: packed into an installed wheel, or in `book/` of a checkout.

    Raises `LedgerError` naming both places when it is in neither.
    """
    places = [Path(__file__).with_name(LEDGER), PACKAGE.parent / "book" / LEDGER]
    for place in places:
        if place.is_file():
            return place
    raise LedgerError(
        f"no ledger of claims: looked for {' and '.join(str(place) for place in places)}; "
        "reinstall ncsn_core, or run inside a clone of the book"
    )


def load_ledger(path: Path | None = None) -> dict[int, Claim]:
    """Return the claims of the ledger by number, in the order of the file.

    Raises `LedgerError` naming the row and what is wrong with it.
    """
    path = find_ledger() if path is None else path
    return _parse(path.read_text(encoding="utf-8"))


def measurement_name(claim_id: int, part: str) -> str:
    """Return the number of a claim, and its part where it has several: "16", "24 annealing"."""
    return f"{claim_id} {part}".strip()


def measurements() -> dict[str, tuple[Claim, Measurement]]:
    """Return every measurement of the ledger with its claim, by `measurement_name`."""
    return {
        measurement_name(claim.id, part): (claim, measurement)
        for claim in load_ledger().values()
        for part, measurement in claim.parts.items()
    }


def expected_to(outcome: str) -> set[str]:
    """Return the names of the measurements that are expected to be so.

    `outcome` is "holds", "fails", "undecided" or "not measured".
    """
    return {name for name, (_, found) in measurements().items() if found.expected == outcome}


@functools.lru_cache(maxsize=4)
def _parse(text: str) -> dict[int, Claim]:
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LedgerError(f"the ledger is not valid YAML: {error}") from error
    if not isinstance(rows, list):
        raise LedgerError("the ledger must be a list of claims")
    ledger: dict[int, Claim] = {}
    for position, row in enumerate(rows, start=1):
        claim = _claim(row, position)
        if claim.id in ledger:
            raise LedgerError(f"claim {claim.id} is in the ledger twice")
        ledger[claim.id] = claim
    for claim in ledger.values():
        unknown = [number for number in claim.requires if number not in ledger]
        if unknown or claim.id in claim.requires:
            raise LedgerError(f"claim {claim.id} requires {unknown or 'itself'}: no other claim")
    return ledger


_TEXTS = ("title", "statement", "paper", "setting", "chapter", "kind")
_MEASUREMENT = (
    "metric", "accept", "over", "interval", "seeds", "changed", "paper_value", "expected"
)  # fmt: skip
_FIELDS = {"id", *_TEXTS, *_MEASUREMENT, "parts", "requires", "note"}


def _claim(row: Any, position: int) -> Claim:
    number = row.get("id") if isinstance(row, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise LedgerError(f"row {position} of the ledger needs a whole number as its id")
    where = f"claim {number}"
    _reject_unknown(row, _FIELDS, where)
    texts = {name: _text(row, name, where) for name in _TEXTS}
    if texts["kind"] not in KINDS:
        raise LedgerError(f"{where}: kind is one of {', '.join(KINDS)}, not {texts['kind']!r}")
    parts = _parts(row, where)
    note = row.get("note")
    if any(part.expected != HOLDS for part in parts.values()) and not note:
        raise LedgerError(f"{where} is not expected to hold: say why in a note")
    requires = row.get("requires", [])
    if not isinstance(requires, list) or not all(type(other) is int for other in requires):
        raise LedgerError(f"{where}: requires is a list of the numbers of other claims")
    return Claim(id=number, **texts, parts=parts, requires=tuple(requires), note=note)


def _parts(row: dict[str, Any], where: str) -> dict[str, Measurement]:
    if "parts" not in row:
        return {"": _measurement(row, where)}
    doubled = [name for name in _MEASUREMENT if name in row]
    if doubled:
        raise LedgerError(f"{where} has parts: write {', '.join(doubled)} inside each of them")
    parts = row["parts"]
    if not isinstance(parts, dict) or not parts:
        raise LedgerError(f"{where}: parts maps the name of each part to its metric and accept")
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise LedgerError(f"{where}, part {name}: write its metric and accept")
        _reject_unknown(part, set(_MEASUREMENT), f"{where}, part {name}")
    return {str(name): _measurement(part, f"{where}, part {name}") for name, part in parts.items()}


def _measurement(row: dict[str, Any], where: str) -> Measurement:
    accept = row.get("accept")
    if not isinstance(accept, dict) or not accept:
        raise LedgerError(f"{where}: accept needs a min, a max or both")
    _reject_unknown(accept, {"min", "max"}, f"{where}, accept")
    ends = {name: _end(accept[name], f"{where}, {name}") for name in accept}
    band = Band(ends.get("min"), ends.get("max"))
    if band.min is not None and band.max is not None and band.min > band.max:
        raise LedgerError(f"{where}: min {band.min:g} is above max {band.max:g}")
    expected = row.get("expected", HOLDS)
    if expected not in OUTCOMES:
        raise LedgerError(f"{where}: expected is one of {', '.join(OUTCOMES)}; got {expected!r}")
    interval = row.get("interval")
    if interval is not None and interval not in INTERVALS:
        raise LedgerError(f"{where}: interval is one of {', '.join(INTERVALS)}; got {interval!r}")
    seeds = row.get("seeds", 0)
    if type(seeds) is not int or seeds < 0:
        raise LedgerError(f"{where}: seeds is how many there are, 0 or more; got {seeds!r}")
    paper_value = row.get("paper_value")
    return Measurement(
        metric=_text(row, "metric", where),
        accept=band,
        over=_text(row, "over", where),
        interval=interval,
        seeds=seeds,
        changed=_text(row, "changed", where) if "changed" in row else None,
        paper_value=None if paper_value is None else str(paper_value),
        expected=expected,
    )


def _end(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LedgerError(f"{where} must be a finite number, not {value!r} (write 1000, not 1e3)")
    return float(value)


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise LedgerError(f"{where} needs {name}, as text")
    return " ".join(value.split())


def _reject_unknown(row: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(map(str, row)) - known)
    if unknown:
        accepted = ", ".join(sorted(known))
        raise LedgerError(f"{where}: unknown {', '.join(unknown)}; accepted are {accepted}")
