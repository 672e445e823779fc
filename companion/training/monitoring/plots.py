"""Draws what a monitor has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from companion import plots
from companion.plots import PALETTE, Plot
from companion.training.monitoring.observations import HEALTHY_LAYER, Observation

__all__ = ["plot_attention_entropy", "plot_gradient_norms", "plot_update_ratios"]


def plot_gradient_norms(observations: Sequence[Observation]) -> Plot:
    """Draw the gradient norm of each layer over the steps, with the healthy band behind it.

    Parameters
    ----------
    observations : sequence of Observation

    Returns
    -------
    Plot

    Raises
    ------
    ValueError
        When there are none.
    """
    series = _by_layer([seen.grad_norm_by_layer for seen in observations], "gradient norm")
    low, high = HEALTHY_LAYER
    values = {name: [value for value in line if not math.isnan(value)] for name, line in series.items()}
    outside = [name for name, line in values.items() if not all(low <= value <= high for value in line)]
    where = f"outside it: {', '.join(outside)}" if outside else "all layers stay inside it"
    largest = max(values, key=lambda name: max(values[name]))
    alt = (
        f"Gradient norm by layer over {_steps(observations)}, with the healthy band from {low:g} to "
        f"{high:g}: {where}. The largest is {max(values[largest]):.2g}, in {largest}."
    )
    return _draw(observations, series, "gradient norm (L2, unclipped)", alt, band=HEALTHY_LAYER)


def plot_update_ratios(observations: Sequence[Observation]) -> Plot:
    """Draw how much of itself each layer changes in one step; parameters and errors as for the norms."""
    series = _by_layer([seen.update_ratio_by_layer for seen in observations], "update ratio")
    last = {name: line[-1] for name, line in series.items()}
    most, least = max(last, key=lambda n: last[n]), min(last, key=lambda n: last[n])
    alt = (
        f"Update-to-weight ratio by layer over {_steps(observations)}. In the last one it lies between "
        f"{last[least]:.2g} ({least}) and {last[most]:.2g} ({most})."
    )
    return _draw(observations, series, "update / weights (ratio of norms)", alt)


def plot_attention_entropy(observations: Sequence[Observation]) -> Plot:
    """Draw the normalised attention entropy of each layer; parameters and errors as for the norms."""
    series = _by_layer([seen.attention_entropy_by_layer for seen in observations], "attention entropy")
    last = {name: line[-1] for name, line in series.items()}
    lowest = min(last, key=lambda name: last[name])
    alt = (
        f"Attention entropy by layer over {_steps(observations)}; 1 is uniform, 0 is all on one token. "
        f"In the last one the lowest is {last[lowest]:.2f}, in {lowest}."
    )
    return _draw(observations, series, "attention entropy (of maximum)", alt, logarithmic=False)


def _by_layer(seen: Sequence[Mapping[str, float]], what: str) -> dict[str, list[float]]:
    """Turn one mapping per observation into one line per layer; NaN where a layer was not measured."""
    names = dict.fromkeys(name for values in seen for name in values)
    if not names:
        raise ValueError(f"no observation tells the {what} by layer: expected those of a monitored run")
    return {name: [values.get(name, math.nan) for values in seen] for name in names}


def _steps(observations: Sequence[Observation]) -> str:
    return f"{len(observations)} observations, steps {observations[0].step} to {observations[-1].step}"


def _draw(
    observations: Sequence[Observation],
    series: Mapping[str, Sequence[float]],
    y_label: str,
    alt: str,
    *,
    band: tuple[float, float] | None = None,
    logarithmic: bool = True,
) -> Plot:
    steps = [seen.step for seen in observations]
    with plots.style():
        figure, axes = plots.figure(height=3.6)
        if band:
            axes.axhspan(*band, color=PALETTE.neutral, alpha=0.15, linewidth=0, label="healthy")
        for name, (colour, label) in _colours(list(series)).items():
            # Zero has no place on a logarithmic axis: a gap.
            line = [value if value > 0 or not logarithmic else math.nan for value in series[name]]
            axes.plot(steps, line, color=colour, label=label, marker="o", markersize=3)
        axes.set(xlabel="step", ylabel=y_label)
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.02)
        figure.legend(loc="outside upper left", ncols=3)
        return plots.show(figure, alt=alt)


def _colours(names: list[str]) -> dict[str, tuple[str, str]]:
    """Give each layer a colour and a label; of a deep model the layers in the middle share the grey."""
    if len(names) <= len(PALETTE.series):
        return {name: (colour, name) for name, colour in zip(names, PALETTE.series, strict=False)}
    ends = [*names[:2], *names[-2:]]
    middle = [name for name in names if name not in ends]
    found = {name: (PALETTE.neutral, "_") for name in middle}  # a label that a legend leaves out
    found[middle[0]] = (PALETTE.neutral, f"{middle[0]} to {middle[-1]}")
    return found | {name: (colour, name) for name, colour in zip(ends, PALETTE.series, strict=False)}
