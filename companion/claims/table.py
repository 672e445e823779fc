"""The ledger as a table: every claim, and what this machine has found about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from companion.claims.records import Claim, between, ledger
from companion.claims.store import StoredVerdict, verdicts
from companion.claims.words import VERDICTS, css_class

NOT_JUDGED = "not judged yet"


@dataclass(frozen=True, repr=False)
class LedgerTable:
    """Claims with their verdicts; draws itself in a notebook.

    Attributes
    ----------
    claims : tuple of Claim
        The rows.
    found : mapping
        Verdicts by id, those of further numbers included.
    """

    claims: tuple[Claim, ...]
    found: Mapping[str, StoredVerdict]

    def __repr__(self) -> str:
        """Write one line per claim."""
        width = max(len(word) for word in (*VERDICTS, NOT_JUDGED))
        lines = [f"{self._word(entry):{width}}  {entry.chapter:12}  {entry.says}" for entry in self.claims]
        return "\n".join(lines)

    def _word(self, entry: Claim) -> str:
        return self.found[entry.id].verdict if entry.id in self.found else NOT_JUDGED

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{name}</th>' for name in ("Chapter", "Claim", "Verdict", "Measured"))
        body = "".join(self._row(entry) for entry in self.claims)
        terms = "".join(
            f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in VERDICTS.items()
        )
        return (
            f'<div class="claim-ledger"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
            f'<dl class="claim-rule">{terms}</dl></div>'
        )

    def _row(self, entry: Claim) -> str:
        word = self._word(entry)
        published = ""
        if entry.published:
            text = f"Published: {entry.published} ({entry.published_source})"
            published = f'<p class="claim-published">{escape(text)}</p>'
        return (
            f'<tr class="{css_class(word)}"><td>{escape(entry.chapter)}</td>'
            f"<td><p>{escape(entry.says)}</p>{published}</td>"
            f'<td class="claim-verdict">{escape(word)}</td><td>{self._measured(entry)}</td></tr>'
        )

    def _measured(self, entry: Claim) -> str:
        """List what was found about each quantity; for one not judged yet, what it would have to be."""
        lines = []
        for quantity in entry.quantities:
            stored = self.found.get(quantity.id)
            if stored is not None:
                further = quantity.id != entry.id
                prefix = f"{stored.verdict.capitalize()}. " if further else ""
                lines.append(f'<p title="{escape(stored.date)}">{escape(prefix + stored.detail)}</p>')
            elif quantity.id == entry.id:
                bounds = between(quantity.low, quantity.high, quantity.unit)
                lines.append(f"<p>{escape(f'{quantity.what}: {bounds}?')}</p>")
        return "".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


def ledger_table(chapter: str | None = None, *, home: Path | None = None) -> LedgerTable:
    """Show every claim with what this machine has found about it.

    Parameters
    ----------
    chapter : str, optional
        Only the claims of this chapter.
    home : Path, optional
        Where verdicts are kept; by default the settings' home.

    Returns
    -------
    LedgerTable
        Verdicts that another machine found, or this one with other versions, count as not judged.

    Raises
    ------
    ValueError
        If no claim belongs to the chapter.
    """
    claims = tuple(entry for entry in ledger() if chapter in (None, entry.chapter))
    if not claims:
        known = ", ".join(sorted({entry.chapter for entry in ledger()}))
        raise ValueError(f"no claim belongs to the chapter {chapter!r}, expected one of: {known}.")
    found = {name: stored for name, stored in verdicts(home).items() if stored.here}
    return LedgerTable(claims, found)
