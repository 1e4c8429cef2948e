"""The ledger of claims, `book/claims.yml`, whose form is that of `book/claims.schema.json`."""

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
HOLDS, FAILS, UNDECIDED, NOT_MEASURED = "holds", "fails", "undecided", "not measured"
OUTCOMES = (HOLDS, FAILS, UNDECIDED, NOT_MEASURED)


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
    ledger: dict[int, Claim] = {}
    for row in yaml.safe_load(text):
        try:
            claim = _claim(row)
        except (TypeError, KeyError, AttributeError) as error:
            raise LedgerError(f"`make lint` says what is wrong in {row} ({error})") from error
        if claim.id in ledger:
            raise LedgerError(f"claim {claim.id} is in the ledger twice")
        ledger[claim.id] = claim
    return ledger


def _claim(row: dict[str, Any]) -> Claim:
    own = {field.name for field in dataclasses.fields(Claim)}
    shared = {name: row[name] for name in row if name in own - {"parts", "requires"}}
    parts = row.get("parts", {"": {name: row[name] for name in row if name not in own}})
    return Claim(
        **_unwrapped(shared),
        requires=tuple(row.get("requires", ())),
        parts={str(name): _measurement(_unwrapped(part)) for name, part in parts.items()},
    )


def _measurement(row: dict[str, Any]) -> Measurement:
    ends = {name: float(end) for name, end in row.pop("accept").items()}
    return Measurement(accept=Band(ends.get("min"), ends.get("max")), **row)


def _unwrapped(row: dict[str, Any]) -> dict[str, Any]:
    """Texts that the file breaks into lines, in one."""
    texts = {name: " ".join(value.split()) for name, value in row.items() if type(value) is str}
    return row | texts
