"""The drift of label shares over time, as a plot."""

from __future__ import annotations

from companion.deployment.watching.history import DriftHistory
from companion.plots import PALETTE, Plot, figure, show, style

__all__ = ["share_plot"]

_UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def share_plot(history: DriftHistory, *, label: str | None = None) -> Plot:
    """Draw how often a label was the answer, window by window, with the windows that are alarms.

    Parameters
    ----------
    history : DriftHistory
        Of a model with labels.
    label : str, optional
        Default: the one whose share moved furthest.

    Returns
    -------
    Plot
        A point per window with its interval, the reference's share as a line, and a mark on each alarm,
        whatever measure gave it. The text alternative says the same in words.

    Raises
    ------
    ValueError
        When the model has no labels, or not this one.
    """
    windows = history.windows
    if not windows[0].labels:
        raise ValueError("this model gives a number, expected one with labels: there are no shares to draw")
    names = [share.label for share in windows[0].labels]
    if label is not None and label not in names:
        raise ValueError(f"label is {label!r}, expected one of {', '.join(names)}")
    if label is None:
        places = range(len(names))
        place = max(places, key=lambda at: max(abs(one.labels[at].difference.value) for one in windows))
        label = names[place]
    place = names.index(label)
    shares = [window.labels[place] for window in windows]
    before = shares[0].reference
    times, unit = _elapsed([(one.window.start + one.window.end) / 2 for one in windows])
    ends = [(before + one.difference.low, before + one.difference.high) for one in shares]
    with style():
        drawn, axes = figure()
        axes.axhline(before, color=PALETTE.neutral, linestyle="--")
        axes.errorbar(
            times,
            [share.window for share in shares],
            yerr=[
                [max(0.0, share.window - low) for share, (low, _) in zip(shares, ends, strict=True)],
                [max(0.0, high - share.window) for share, (_, high) in zip(shares, ends, strict=True)],
            ],
            color=PALETTE.series[0],
            marker="o",
            capsize=2,
        )
        if history.alarms:
            axes.plot(
                [times[one] for one in history.alarms],
                [0.04] * len(history.alarms),
                transform=axes.get_xaxis_transform(),
                linestyle="none",
                marker="^",
                markersize=9,
                color=PALETTE.series[1],
                label="alarm",
            )
            axes.legend(loc="best")
        axes.set(xlabel=f"time since the first window, {unit}", ylabel=f"share of {label}")
        axes.annotate(
            "reference", (1, before), xycoords=("axes fraction", "data"), va="center", xytext=(4, 0),
            textcoords="offset points", color=PALETTE.neutral,
        )  # fmt: skip
        return show(drawn, alt=_alt(history, label, before, [share.window for share in shares]))


def _alt(history: DriftHistory, label: str, before: float, shares: list[float]) -> str:
    """Say the plot in words."""
    windows = history.windows
    begin = (
        f"The share of answers {label!r} in {len(windows)} windows of {windows[0].window.answers:,} answers "
        f"goes from {shares[0]:.0%} to {shares[-1]:.0%}, between {min(shares):.0%} and {max(shares):.0%}; "
        f"in the reference it is {before:.0%}."
    )
    if not history.alarms:
        return f"{begin} No window is an alarm."
    first = history.alarms[0]
    return (
        f"{begin} {len(history.alarms)} of the windows are alarms, the first is number {first + 1}, "
        f"for {', '.join(windows[first].moved)}."
    )


def _elapsed(times: list[float]) -> tuple[list[float], str]:
    """Count from the first, in a unit of which the last has several."""
    since = [time - times[0] for time in times]
    seconds, unit = next(((size, name) for size, name in _UNITS if since[-1] >= 2 * size), _UNITS[-1])
    return [value / seconds for value in since], unit
