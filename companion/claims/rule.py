"""The rule that judges: one function, four words, no opinion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from companion.claims.records import Claim, Quantity, between, check_bounds, claim, with_unit
from companion.claims.store import StoredVerdict, keep
from companion.claims.words import DOES_NOT_HOLD, HOLDS, HOLDS_HERE, NOT_MEASURABLE, css_class


@dataclass(frozen=True, repr=False)
class Verdict:
    """What `judge` found.

    Attributes
    ----------
    claim : Claim
        The claim.
    quantity : Quantity
        Which of its quantities was compared, with the bounds that were used.
    verdict : str
        One of the four words in `VERDICTS`.
    measured : float or None
        The measured number, the median of several; `None` if there is none.
    spread : tuple of float, optional
        Smallest and largest of the repeats.
    detail : str
        One sentence: what was measured and what was claimed.
    """

    claim: Claim
    quantity: Quantity
    verdict: str
    measured: float | None
    spread: tuple[float, float] | None
    detail: str

    def __repr__(self) -> str:
        """Write the verdict for a terminal."""
        return f"{self.verdict.upper()}: {self.claim.says}\n  {self.detail}"

    def _repr_html_(self) -> str:
        return (
            f'<div class="claim-box {css_class(self.verdict)}" role="note">'
            f'<p class="claim-verdict">{escape(self.verdict)}</p>'
            f'<p class="claim-says">{escape(self.claim.says)}</p>'
            f'<p class="claim-measured">{escape(self.detail)}</p></div>'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


def judge(
    claim_id: str,
    measured: float | None,
    spread: tuple[float, float] | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    home: Path | None = None,
) -> Verdict:
    """Compare a claim with a measurement, and keep the verdict for the ledger page.

    The rule, in this order:

    1. Nothing measured: *not measurable here*.
    2. The measured number lies outside the bounds: *does not hold*. Bounds are included.
    3. It lies inside, comes out the same on every machine (`Quantity.anywhere`: arithmetic and published
       figures) and the whole spread lies inside too: *holds*.
    4. It lies inside: *holds here*. A measurement proves a rule of thumb only where it was made.

    The median decides; a spread that crosses a bound does not change the word, but the sentence says that the
    difference is within the noise.

    Parameters
    ----------
    claim_id : str
        An id of the ledger, or `id.name` for a further number of the same claim.
    measured : float or None
        The number, in the unit of the quantity; the median if it was measured several times. `None` if it
        cannot be measured on this machine.
    spread : tuple of float, optional
        Smallest and largest of the repeats.
    low, high : float, optional
        Other bounds than the ledger's, for a page that looks at one end of a claim only. Giving one of them
        replaces both.
    home : Path, optional
        Where verdicts are kept; by default the settings' home.

    Returns
    -------
    Verdict
        Draws itself as a box in a notebook.

    Raises
    ------
    ValueError
        For an unknown claim, a number that is not finite, a spread that does not contain the number, or
        bounds in the wrong order.
    """
    entry = claim(claim_id)
    quantity = _with_bounds(entry.quantity(claim_id), low, high)
    measured = None if measured is None else float(measured)
    spread = None if spread is None else (float(spread[0]), float(spread[1]))
    _check(claim_id, measured, spread)
    verdict = Verdict(
        claim=entry,
        quantity=quantity,
        verdict=_word(quantity, measured, spread),
        measured=measured,
        spread=spread,
        detail=_sentence(quantity, measured, spread),
    )
    keep(
        StoredVerdict(
            id=claim_id,
            verdict=verdict.verdict,
            measured=measured,
            spread=spread,
            low=quantity.low,
            high=quantity.high,
            detail=verdict.detail,
        ),
        home,
    )
    return verdict


def _with_bounds(quantity: Quantity, low: float | None, high: float | None) -> Quantity:
    if low is None and high is None:
        return quantity
    check_bounds(quantity.id, low, high)
    return Quantity(quantity.id, quantity.what, low, high, quantity.unit, True, quantity.anywhere)


def _check(claim_id: str, measured: float | None, spread: tuple[float, float] | None) -> None:
    if measured is None:
        if spread is not None:
            raise ValueError(
                f"claim {claim_id}: spread {spread} without a measured number, expected both or none."
            )
        return
    if not math.isfinite(measured):
        raise ValueError(f"claim {claim_id}: measured is {measured}, expected a finite number or None.")
    # NaN fails every comparison, so a spread with one is refused here too.
    if spread is not None and not -math.inf < spread[0] <= measured <= spread[1] < math.inf:
        raise ValueError(
            f"claim {claim_id}: spread is {spread} around {measured}, expected (smallest, largest) "
            "of the repeats with the measured number between them."
        )


def _inside(quantity: Quantity, value: float) -> bool:
    above = quantity.low is None or value >= quantity.low
    return above and (quantity.high is None or value <= quantity.high)


def _word(quantity: Quantity, measured: float | None, spread: tuple[float, float] | None) -> str:
    if measured is None:
        return NOT_MEASURABLE
    if not _inside(quantity, measured):
        return DOES_NOT_HOLD
    steady = spread is None or (_inside(quantity, spread[0]) and _inside(quantity, spread[1]))
    return HOLDS if quantity.anywhere and steady else HOLDS_HERE


def _sentence(quantity: Quantity, measured: float | None, spread: tuple[float, float] | None) -> str:
    reading = "read as" if quantity.ours else "claimed"
    claimed = f"{reading}: {between(quantity.low, quantity.high, quantity.unit)}"
    if measured is None:
        return f"{_capital(quantity.what)}: not measured; {claimed}."
    number = with_unit(measured, quantity.unit)
    if spread is not None and spread[0] < spread[1]:
        number += f" ({between(spread[0], spread[1], quantity.unit)})"
    distance, noise = _distance(quantity, measured), _noise(quantity, spread)
    return f"{_capital(quantity.what)}: {number}; {claimed}{distance}{noise}."


def _distance(quantity: Quantity, measured: float) -> str:
    """Say how far outside the bounds a number is: relative to the bound for ratios, else in its unit."""
    if _inside(quantity, measured):
        return ""
    below = quantity.low is not None and measured < quantity.low
    bound = quantity.low if below else quantity.high
    assert bound is not None
    gap = abs(measured - bound)
    relative = quantity.unit in ("x", "") and bound != 0
    by = with_unit(100 * gap / abs(bound), "%") if relative else with_unit(gap, quantity.unit)
    return f", {by} {'below' if below else 'above'} that"


def _noise(quantity: Quantity, spread: tuple[float, float] | None) -> str:
    if spread is None:
        return ""
    within = _inside(quantity, spread[0]) and _inside(quantity, spread[1])
    apart = (quantity.low is not None and spread[1] < quantity.low) or (
        quantity.high is not None and spread[0] > quantity.high
    )
    return "" if within or apart else "; within the noise, as the spread crosses a bound"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
