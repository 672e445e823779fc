"""The claims themselves: read from `ledger.toml`, checked once, looked up by id."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LEDGER = Path(__file__).with_name("ledger.toml")
HOWS = ("measure", "compute", "cite", "gpu")
SOURCES = ("guide", "card", "both")
_ATTACHED = ("x", "%", "M")


@dataclass(frozen=True)
class Quantity:
    """What of a claim can be compared with a number.

    Attributes
    ----------
    id : str
        What `judge` takes: the claim's id, or `claim-id.name` for its further numbers.
    what : str
        The measured quantity, in words.
    low, high : float or None
        Bounds, both included; `None` where the claim sets none ("at least", "at most").
    unit : str
        Written after the number: `x`, `%`, `points`, ...
    ours : bool
        Whether the bounds are our reading of the claim's words, not the claim's own figures.
    anywhere : bool
        Whether the number comes out the same on every machine.
    """

    id: str
    what: str
    low: float | None
    high: float | None
    unit: str
    ours: bool
    anywhere: bool


@dataclass(frozen=True)
class Claim:
    """One statement of the source texts, in our words.

    Attributes
    ----------
    id : str
        Stable name.
    chapter : str
        Where it is judged.
    source : str
        `guide`, `card` or `both`.
    how : str
        `measure`, `compute`, `cite` or `gpu`: how it can be judged.
    says : str
        The statement.
    quantities : tuple of Quantity
        What is compared with numbers; the first one is the claim's own.
    published, published_source : str
        What others found, and who; empty where nothing is known.
    """

    id: str
    chapter: str
    source: str
    how: str
    says: str
    quantities: tuple[Quantity, ...]
    published: str
    published_source: str

    def quantity(self, quantity_id: str) -> Quantity:
        """Look up one of the quantities by its id.

        Raises
        ------
        ValueError
            If the claim has no such quantity.
        """
        for quantity in self.quantities:
            if quantity.id == quantity_id:
                return quantity
        expected = ", ".join(quantity.id for quantity in self.quantities)
        raise ValueError(f"there is no claim {quantity_id!r}, expected one of: {expected}.")


@cache
def ledger() -> tuple[Claim, ...]:
    """Read all claims, in the order of the ledger: by chapter.

    Returns
    -------
    tuple of Claim

    Raises
    ------
    ValueError
        If the ledger contradicts itself; the message names the claim.
    """
    with LEDGER.open("rb") as file:
        return parse(tomllib.load(file))


def claim(claim_id: str) -> Claim:
    """Look up one claim.

    Parameters
    ----------
    claim_id : str
        The id, with or without the name of one of its numbers (`int8-ptq`, `int8-ptq.accuracy`).

    Raises
    ------
    ValueError
        If there is no such claim; the message gives the closest ids.
    """
    by_id = {entry.id: entry for entry in ledger()}
    root = claim_id.partition(".")[0]
    if root not in by_id:
        close = difflib.get_close_matches(root, by_id, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "companion.claims.ledger() lists them all."
        raise ValueError(f"there is no claim {root!r}: {hint}")
    found = by_id[root]
    if root != claim_id:
        found.quantity(claim_id)
    return found


def parse(document: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Turn a parsed TOML document into claims and check that they make sense.

    Raises
    ------
    ValueError
        On a repeated id, an unknown word, or bounds that nothing can meet.
    """
    claims = tuple(_claim(entry) for entry in document["claim"])
    ids = [entry.id for entry in claims]
    for repeated in {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"claim {repeated}: the id is used twice, expected it once.")
    return claims


def _claim(entry: Mapping[str, Any]) -> Claim:
    name, how = entry["id"], entry["how"]
    if how not in HOWS or entry["source"] not in SOURCES:
        raise ValueError(
            f"claim {name}: how is {how!r} and source is {entry['source']!r}, "
            f"expected one of {HOWS} and one of {SOURCES}."
        )
    if "." in name:
        raise ValueError(f"claim {name}: the id has a dot, expected none: dots separate names of numbers.")
    quantities = tuple(_quantity(name, how, number) for number in entry["numbers"])
    ids = [quantity.id for quantity in quantities]
    if not ids or ids[0] != name or len(set(ids)) < len(ids):
        raise ValueError(
            f"claim {name}: its numbers are {ids}, expected the first without a name, all distinct."
        )
    return Claim(
        id=name,
        chapter=entry["chapter"],
        source=entry["source"],
        how=how,
        says=entry["says"],
        quantities=quantities,
        published=entry.get("published", ""),
        published_source=entry.get("published_source", ""),
    )


def _quantity(claim_id: str, how: str, number: Mapping[str, Any]) -> Quantity:
    low, high = number.get("low"), number.get("high")
    check_bounds(claim_id, low, high)
    return Quantity(
        id=f"{claim_id}.{number['name']}" if "name" in number else claim_id,
        what=number["what"],
        low=low,
        high=high,
        unit=number.get("unit", ""),
        ours=number.get("ours", False),
        anywhere=number.get("anywhere", how in ("compute", "cite")),
    )


def check_bounds(claim_id: str, low: float | None, high: float | None) -> None:
    """Refuse bounds that say nothing or that no number can meet.

    Raises
    ------
    ValueError
        If both are missing, if one is not finite, or if they are in the wrong order.
    """
    if low is None and high is None:
        raise ValueError(f"claim {claim_id}: no bound, expected low, high or both.")
    if any(bound is not None and not math.isfinite(bound) for bound in (low, high)):
        raise ValueError(
            f"claim {claim_id}: the bounds are {low} and {high}, expected finite numbers or None."
        )
    if low is not None and high is not None and low > high:
        raise ValueError(f"claim {claim_id}: low is {low} and high is {high}, expected low <= high.")


def with_unit(value: float, unit: str) -> str:
    """Write a number for people: three significant digits, thousands apart, then the unit."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e9):
        digits = f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")
        digits = digits.replace(".00e", "e").replace("0e", "e")
    elif abs(value) >= 100:
        digits = f"{value:,.1f}".removesuffix(".0") if abs(value) < 1000 else f"{value:,.0f}"
    else:
        digits = f"{value:.3g}"
    return digits + (unit if unit in _ATTACHED or not unit else f" {unit}")


def between(low: float | None, high: float | None, unit: str) -> str:
    """Write bounds for people: `2x to 4x`, `at least 95%`, `at most 5 steps`, `64 days`."""
    if low is None and high is None:
        return "anything"
    if low is None:
        return f"at most {with_unit(high or 0.0, unit)}"
    if high is None:
        return f"at least {with_unit(low, unit)}"
    if low == high:
        return with_unit(low, unit)
    return f"{with_unit(low, unit)} to {with_unit(high, unit)}"
