"""Formulas as MathML: no script, no fonts from elsewhere, readable by assistive technology."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LOGGER = logging.getLogger(__name__)


def _convert(node: nodes.Element, *, block: bool) -> str:
    """Return the formula as MathML, or its source with a warning."""
    source = node.astext()
    try:
        return str(tex2mathml(source, as_block=block))
    except (SyntaxError, ValueError) as error:
        LOGGER.warning("formula %r is not understood: %s", source, error, location=node)
        return f"<code>{nodes.unescape(source)}</code>"


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula inside a line."""
    self.body.append(f'<span class="math">{_convert(node, block=False)}</span>')
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number where it has one."""
    identifier = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    # A long formula scrolls in its own box, which the keyboard must be able to reach.
    box = f'<div class="math" tabindex="0" role="group" aria-label="formula"{identifier}>'
    self.body.append(f"{box}{number}{_convert(node, block=True)}</div>\n")
    raise nodes.SkipNode
