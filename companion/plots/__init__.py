"""Plots that read well on light and dark pages, and say in words what they show.

A page draws with three calls::

    with plots.style():
        figure, axes = plots.figure()
        axes.plot(steps, losses)
        axes.set(xlabel="step", ylabel="loss")
    plots.show(figure, alt="The loss falls from ... to ... within ... steps.")

:func:`bars` and :func:`lines` draw the two charts that pages share. Everything returns a :class:`Plot`,
which Jupyter and the book display as an inline SVG with its text alternative, and which `glue` stores.
No call touches pyplot, so nothing is left behind between cells. Colours come from :data:`PALETTE`,
the same palette that the site uses.
"""

from __future__ import annotations

from companion.plots.charts import bars, lines
from companion.plots.figures import Plot, figure, show, style
from companion.plots.palette import PALETTE, Palette, Theme, css_variables

__all__ = ["PALETTE", "Palette", "Plot", "Theme", "bars", "css_variables", "figure", "lines", "show", "style"]
