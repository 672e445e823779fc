"""A figure in the site's style, finished as an SVG that stands inside a page and carries its words."""

from __future__ import annotations

import hashlib
import html
import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from companion.plots.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Figures are narrow on purpose: a wide one would shrink its text below reading size on a phone.
_WIDTH = 5.0
_HEIGHT = 3.0
_FONT_SIZE = 10.0


def _rc() -> dict[Any, Any]:
    """Return matplotlib's settings for one plot."""
    from cycler import cycler

    ink, grid = PALETTE.ink, PALETTE.grid
    return {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.transparent": True,
        "legend.frameon": False,
        "font.family": [
            "DejaVu Sans"
        ],  # measured with the font that comes with matplotlib, drawn with the page's
        "font.size": _FONT_SIZE,
        "axes.labelsize": _FONT_SIZE,
        "axes.titlesize": _FONT_SIZE + 1,
        "axes.titlelocation": "left",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": grid,
        "ytick.color": grid,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "axes.edgecolor": grid,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": grid,
        "grid.alpha": 0.28,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "axes.prop_cycle": cycler(color=list(PALETTE.series)),
        "svg.fonttype": "none",
        "svg.hashsalt": "companion",
    }


def style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws in the site's style.

    Returns
    -------
    AbstractContextManager
        Settings are put back on exit.
    """
    import matplotlib as mpl

    return mpl.rc_context(_rc())


def figure(
    *, width: float = _WIDTH, height: float = _HEIGHT, rows: int = 1, columns: int = 1
) -> tuple[Figure, Any]:
    """Return a figure in the site's style, with its axes.

    Parameters
    ----------
    width, height : float
        Size in inches. The default width keeps text readable on a phone.
    rows, columns : int
        Grid of axes.

    Returns
    -------
    tuple[Figure, Axes or array of Axes]
        As `matplotlib.pyplot.subplots` returns them, without pyplot: the figure is garbage-collected
        like any object.
    """
    from matplotlib.figure import Figure

    with style():
        drawn = Figure(figsize=(width, height), layout="constrained")
        axes = drawn.subplots(rows, columns)
    return drawn, axes


@dataclass(frozen=True)
class Plot:
    """A finished plot: an SVG document and what it says in words.

    Attributes
    ----------
    svg : str
        The SVG element, with identifiers that no other plot of the page has.
    alt : str
        The text alternative.
    """

    svg: str
    alt: str

    def html(self) -> str:
        """Return the inline SVG for a page: named for assistive technology, in the colours of the page."""
        attributes = f'role="img" aria-label="{html.escape(self.alt, quote=True)}" class="companion-plot"'
        return _themed(self.svg.replace("<svg ", f"<svg {attributes} ", 1))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Give Jupyter and `glue` the plot as HTML, and its text alternative as plain text."""
        return {"text/html": self.html(), "text/plain": self.alt}


def show(figure: Figure, *, alt: str) -> Plot:
    """Finish a figure: as the last line of a cell, this displays it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What to draw. The same figure always gives the same bytes.
    alt : str
        What a reader who cannot see the plot needs to know: the finding, not the drawing.

    Returns
    -------
    Plot
        Displayed by Jupyter and the book; `glue(key, plot, display=False)` stores it for other pages.

    Raises
    ------
    ValueError
        If `alt` says nothing, or an axis of numbers has no label.
    """
    if len(alt.split()) < 3:
        raise ValueError(
            f"alt text {alt!r} found, a sentence that says what the plot shows expected: pass alt="
        )
    for axes in figure.axes:
        _check_labels(axes)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with style():
        figure.savefig(buffer, format="svg", metadata=nothing)
    return Plot(svg=_clean(buffer.getvalue(), alt), alt=" ".join(alt.split()))


def _check_labels(axes: Axes) -> None:
    """Refuse axes whose numbers nobody can name; ticks that are words need no label."""
    if not axes.axison or not axes.get_visible():
        return
    sides: tuple[tuple[str, Axis], ...] = (("x", axes.xaxis), ("y", axes.yaxis))
    for name, axis in sides:
        ticks = [tick for tick in (label.get_text() for label in axis.get_ticklabels()) if tick]
        words = not any(re.fullmatch(r"[\W\d_eE]+", tick.replace("mathdefault", "")) for tick in ticks)
        named = bool(axis.get_label_text().strip())
        if axis.get_visible() and ticks and not words and not named:
            title = axes.get_title("left") or axes.get_title() or "untitled"
            raise ValueError(
                f"the {name} axis of the plot {title!r} has no label, a quantity and its unit expected: "
                f"call axes.set_{name}label(...)"
            )


def _clean(document: str, alt: str) -> str:
    """Make matplotlib's SVG document fit to stand inside a page beside others."""
    svg = document[document.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # This rule would reach every SVG of the page; as inherited properties it reaches this one alone.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg style="stroke-linejoin: round; stroke-linecap: butt" ', 1)
    prefix = "p" + hashlib.sha256((svg + alt).encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"'DejaVu Sans'(, [^;\"]+)?", "var(--font-text, system-ui), sans-serif", svg).strip()


def _themed(svg: str) -> str:
    """Let the page's theme choose the colours; elsewhere JupyterLab's text colour or the mid-tone holds."""
    svg = svg.replace(PALETTE.ink, f"var(--plot-ink, var(--jp-content-font-color1, {PALETTE.ink}))")
    svg = svg.replace(PALETTE.grid, f"var(--plot-grid, var(--jp-content-font-color2, {PALETTE.grid}))")
    for index, colour in enumerate(PALETTE.series, start=1):
        svg = svg.replace(colour, f"var(--plot-{index}, {colour})")
    return svg.replace(PALETTE.neutral, f"var(--plot-neutral, {PALETTE.neutral})")
