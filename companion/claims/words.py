"""The four words of a verdict, and what each means."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HOLDS = "holds"
HOLDS_HERE = "holds here"
DOES_NOT_HOLD = "does not hold"
NOT_MEASURABLE = "not measurable here"

VERDICTS: Mapping[str, str] = MappingProxyType(
    {
        HOLDS: "The number lies within the claim, spread included, and comes out the same on every machine: "
        "it is arithmetic or a published figure.",
        HOLDS_HERE: "The median lies within the claim on this machine, with this model and this data. "
        "Elsewhere it may not.",
        DOES_NOT_HOLD: "The median lies outside the claim; the sentence says by how much. "
        "One counterexample is enough to say so.",
        NOT_MEASURABLE: "Nothing was measured: this machine lacks what it takes.",
    }
)
"""The four verdicts and what each means, for the ledger page."""


def css_class(verdict: str) -> str:
    """Name the CSS class of a verdict: `claim-holds-here` for `holds here`."""
    return "claim-" + verdict.replace(" ", "-")
