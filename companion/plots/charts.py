"""The charts that pages share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from companion.plots.figures import Plot, figure, show, style
from companion.plots.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 13.0  # points from one line of text to the next
_FEW = 6  # values on an axis that have room for a label each


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    alt: str,
    unit: str,
    spreads: Sequence[tuple[float, float]] | None = None,
    highlight: str | None = None,
    decimals: int | None = None,
) -> Plot:
    """Compare a few measurements as horizontal bars from zero, each with its value.

    Parameters
    ----------
    labels : Sequence[str]
        What was measured, top to bottom.
    values : Sequence[float]
        The medians, in `unit`.
    alt : str
        The finding in words.
    unit : str
        Quantity and unit, written under the axis.
    spreads : Sequence[tuple[float, float]], optional
        Lowest and highest run, in `unit`, drawn as whiskers.
    highlight : str, optional
        The label to draw in the accent colour; the others are grey. Without it, all are in the accent.
    decimals : int, optional
        Decimals of the printed values; by default three significant digits.

    Returns
    -------
    Plot

    Raises
    ------
    ValueError
        If the lengths differ, `highlight` is not a label, or a spread does not hold its value.
    """
    _check_bars(labels, values, spreads, highlight)
    with style():
        drawn, axes = figure(height=0.75 + 0.46 * len(labels))
        places = range(len(labels))
        colours = [PALETTE.series[0] if highlight in (None, label) else PALETTE.neutral for label in labels]
        axes.barh(places, values, height=0.62, color=colours, edgecolor="none")
        ends = list(values)
        if spreads is not None:
            low_high = [
                (max(value - low, 0.0), max(high - value, 0.0))
                for value, (low, high) in zip(values, spreads, strict=True)
            ]
            errors = [list(side) for side in zip(*low_high, strict=True)]
            axes.errorbar(
                values, places, xerr=errors, fmt="none", ecolor=PALETTE.ink, elinewidth=1.2, capsize=3
            )
            ends = [high for _, high in spreads]
        limit = max([*ends, *values]) * 1.18 or 1.0
        for place, value, end in zip(places, values, ends, strict=True):
            text = f"{value:,.{decimals}f}" if decimals is not None else _three_digits(value)
            axes.text(max(end, value) + limit * 0.015, place, text, va="center", ha="left")
        axes.set(xlim=(0, limit), xlabel=unit)
        axes.set_yticks(list(places), labels=list(labels))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        return show(drawn, alt=alt)


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    logarithmic_x: bool = False,
) -> Plot:
    """Draw one line a series over a shared axis, each named at its end instead of in a legend.

    Parameters
    ----------
    x : Sequence[float]
        Positions, shape `(points,)`.
    series : Mapping[str, Sequence[float]]
        Name to values, each of shape `(points,)`; at most as many as the palette has colours.
    x_label, y_label : str
        Quantity and unit of each axis.
    alt : str
        The finding in words.
    logarithmic_x : bool
        Whether the horizontal axis is logarithmic.

    Returns
    -------
    Plot

    Raises
    ------
    ValueError
        If there is no series, there are more than colours, or a length differs from `x`.
    """
    if not 1 <= len(series) <= len(PALETTE.series):
        raise ValueError(
            f"{len(series)} series found, 1 to {len(PALETTE.series)} expected: draw fewer in one plot"
        )
    with style():
        drawn, axes = figure()
        for colour, (name, values) in zip(PALETTE.series, series.items(), strict=False):
            if len(values) != len(x):
                raise ValueError(
                    f"series {name!r} has {len(values)} values, {len(x)} expected: one for each x"
                )
            axes.plot(x, values, color=colour)
        axes.set(xlabel=x_label, ylabel=y_label, xscale="log" if logarithmic_x else "linear")
        if logarithmic_x and len(x) <= _FEW:  # the values themselves: powers of ten would run into each other
            axes.set_xticks(list(x), [f"{value:g}" for value in x])
            axes.minorticks_off()
        _name_ends(axes, x[-1], {name: values[-1] for name, values in series.items()})
        return show(drawn, alt=alt)


def _name_ends(axes: Axes, x: float, ends: Mapping[str, float]) -> None:
    """Write each line's name at its end, moved up or down where two names would run into each other."""
    drawn = axes.get_figure(root=True)
    assert drawn is not None
    names = {
        name: axes.annotate(
            name, (x, end), xytext=(6, 0), textcoords="offset points", color=colour, va="center"
        )
        for colour, (name, end) in zip(PALETTE.series, ends.items(), strict=False)
        if math.isfinite(end)
    }
    drawn.draw_without_rendering()  # the layout decides how far apart two values are
    points = 72 / drawn.dpi
    heights = {name: axes.transData.transform((x, ends[name]))[1] * points for name in names}
    for name, height in _apart(heights, _LINE).items():
        names[name].set_position((6, height - heights[name]))


def _apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move heights as little as needed for neighbours to be `gap` apart: a crowd stays around its middle."""
    crowds: list[list[str]] = []
    middles: list[float] = []
    for name in sorted(heights, key=lambda name: heights[name]):
        crowd, middle = [name], heights[name]
        while crowds and middle - middles[-1] < gap * (len(crowd) + len(crowds[-1])) / 2:
            crowd = crowds.pop() + crowd
            middles.pop()
            middle = sum(heights[one] for one in crowd) / len(crowd)
        crowds.append(crowd)
        middles.append(middle)
    return {
        name: middle + gap * (place - (len(crowd) - 1) / 2)
        for crowd, middle in zip(crowds, middles, strict=True)
        for place, name in enumerate(crowd)
    }


def _check_bars(
    labels: Sequence[str],
    values: Sequence[float],
    spreads: Sequence[tuple[float, float]] | None,
    highlight: str | None,
) -> None:
    """Refuse arguments of :func:`bars` that do not belong together."""
    if not labels or len(labels) != len(values) or (spreads is not None and len(spreads) != len(values)):
        found = (
            f"{len(labels)} labels, {len(values)} values, {'no' if spreads is None else len(spreads)} spreads"
        )
        raise ValueError(f"{found} found, as many of each expected: give each bar one")
    if highlight is not None and highlight not in labels:
        raise ValueError(f"highlight {highlight!r} found, one of {list(labels)} expected: name a bar")
    for label, value, (low, high) in zip(labels, values, spreads or [], strict=False):
        if not low <= value <= high:
            raise ValueError(f"{label!r}: value {value} is outside its spread {low}..{high}: check the order")


def _three_digits(value: float) -> str:
    """Write a number with three significant digits and no exponent."""
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}"
