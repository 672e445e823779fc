"""The reliability diagram, and what it says in words."""

from __future__ import annotations

import numpy as np

from companion import plots
from companion.training.calibration.binning import Reliability

__all__ = ["reliability_diagram"]


def reliability_diagram(reliability: Reliability, *, alt: str | None = None) -> plots.Plot:
    """Draw accuracy over confidence, bin by bin, with the number of examples below.

    Parameters
    ----------
    reliability : Reliability
    alt : str, optional
        The finding in words; by default it is written from the numbers.

    Returns
    -------
    Plot
    """
    filled = np.flatnonzero(reliability.count)
    left, width = reliability.edges[:-1][filled], np.diff(reliability.edges)[filled]
    confidence, accuracy, count = (
        values[filled] for values in (reliability.confidence, reliability.accuracy, reliability.count)
    )
    palette = plots.PALETTE
    with plots.style():
        figure, (top, bottom) = plots.figure(height=4.2, rows=2)
        top.get_gridspec().set_height_ratios([3, 1.3])
        middle = left + width / 2
        width = np.maximum(width, 0.004)  # a quantile bin of one value still has to be seen
        top.bar(middle, accuracy, width * 0.92, color=palette.series[0], label="accuracy")
        top.plot([0, 1], [0, 1], color=palette.neutral, linestyle="--", label="perfect calibration")
        top.vlines(confidence, accuracy, confidence, color=palette.series[1], linewidth=2.2, label="gap")
        bottom.bar(middle, count, width * 0.92, color=palette.neutral)
        start = max(0.0, float(left[0]) - 0.02)
        for middle_of_bin, width_of_bin, examples in zip(middle, width, count, strict=True):
            if width_of_bin > 0.03 * (1 - start):  # narrower bars leave no room for their number
                bottom.text(
                    middle_of_bin, examples, f" {examples}", ha="center", va="bottom", rotation=90, fontsize=8
                )
        top.set(xlim=(start, 1.01), ylim=(0, 1.02), ylabel="accuracy (share)")
        bottom.set(
            xlim=(start, 1.01),
            ylim=(0, 1.9 * count.max()),
            ylabel="examples",
            xlabel="confidence (probability)",
        )
        top.tick_params(labelbottom=False)
        top.legend(loc="upper left", fontsize=8)
        return plots.show(figure, alt=alt if alt is not None else _in_words(reliability))


def _in_words(found: Reliability) -> str:
    """Say what a reliability diagram shows."""
    difference = found.mean_confidence - found.overall_accuracy
    whole = f", {'over' if difference > 0 else 'under'}confident by {abs(difference):.3f} on the whole"
    worst = int(np.nanargmax(np.abs(found.accuracy - found.confidence)))
    examples = f"{found.count[worst]} {'example' if found.count[worst] == 1 else 'examples'}"
    return (
        f"Reliability of {found.n} predictions: mean confidence {found.mean_confidence:.3f} against accuracy "
        f"{found.overall_accuracy:.3f}{whole if abs(difference) >= 0.0005 else ''}; expected calibration "
        f"error {found.ece:.3f}. The largest gap is {found.mce:.3f}, in the bin from "
        f"{found.edges[worst]:.2f} to {found.edges[worst + 1]:.2f} with {examples}: confidence "
        f"{found.confidence[worst]:.3f}, accuracy {found.accuracy[worst]:.3f}."
    )
