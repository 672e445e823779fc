"""The ledger of claims as a page: what the course's sources say, and what this machine found.

The notebooks judge claims while the book is read, in any order. So the outline of the page is made when it is
read, and its tables are filled when it is written, in every build.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class LedgerPlace(nodes.General, nodes.Element):
    """Where the table of one chapter goes."""


class ClaimsLedger(SphinxDirective):
    """`{claims-ledger}`: what each verdict means, then one section and table for each chapter."""

    def run(self) -> list[nodes.Node]:
        """Return the outline, in the ledger's order."""
        from companion import claims

        result: list[nodes.Node] = [_verdicts(claims.VERDICTS)]
        for chapter in dict.fromkeys(claim.chapter for claim in claims.ledger()):
            title = chapter.replace("-", " ").capitalize()
            section = nodes.section(ids=[f"claims-{chapter}"], names=[f"claims-{chapter}"])
            section += [nodes.title(text=title), LedgerPlace(chapter=chapter)]
            result.append(section)
        self.env.metadata[self.env.docname]["claims-ledger"] = True
        return result


def fill_tables(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the tables in their places, with the verdicts of the notebooks that have run by now."""
    for place in list(doctree.findall(LedgerPlace)):
        from companion import claims

        html = claims.ledger_table(place["chapter"])._repr_html_()
        html = re.sub(r'<dl class="claim-rule">.*?</dl>', "", html, flags=re.DOTALL)
        place.replace_self(nodes.raw("", html, format="html"))


def rewrite_ledger(app: Sphinx, env: Any) -> Iterable[str]:
    """Name the pages to write in every build, because verdicts change without their source changing."""
    return [name for name, metadata in env.metadata.items() if metadata.get("claims-ledger")]


def _verdicts(meanings: dict[str, str]) -> nodes.definition_list:
    """Return the four words and what they mean."""
    result = nodes.definition_list()
    for word, meaning in meanings.items():
        definition = nodes.definition("", nodes.paragraph(text=meaning))
        result += nodes.definition_list_item("", nodes.term(text=word), definition)
    return result
