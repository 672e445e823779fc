"""Shows the out-of-memory ladder: as text, as a table for a page, and as a plot."""

from __future__ import annotations

from html import escape

from companion import plots
from companion.plots import PALETTE, Plot
from companion.training.memory.records import MIB, Ladder, Rung

__all__ = ["as_html", "as_text", "ladder_plot"]

_COLUMNS = (
    "Rung",
    "Activations, MiB",
    "Saved by the rung",
    "Peak, MiB",
    "Peak saved by the rung",
    "Peak saved since start",
    "Step, s",
    "Time against the rung below",
    "Time against start",
    "Gives up",
)


def as_text(ladder: Ladder) -> str:
    """Write a ladder as a table of plain text.

    Parameters
    ----------
    ladder : Ladder

    Returns
    -------
    str
    """
    table = [_COLUMNS, *(_row(ladder, rung) for rung in ladder.rungs)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join([_caption(ladder), "", *lines, "", ladder.verdict])


def as_html(ladder: Ladder) -> str:
    """Write a ladder as a table for a page.

    Parameters
    ----------
    ladder : Ladder

    Returns
    -------
    str
        With a caption, and headers that name the row or column they belong to.
    """
    numbers = range(1, len(_COLUMNS) - 1)

    def right(column: int) -> str:
        return ' class="text-right"' if column in numbers else ""

    head = "".join(f'<th scope="col"{right(i)}>{escape(name)}</th>' for i, name in enumerate(_COLUMNS))
    body = ""
    for rung in ladder.rungs:
        name, *cells = _row(ladder, rung)
        mark = ' class="memory-fits"' if rung is ladder.fitting else ""
        data = "".join(f"<td{right(i)}>{escape(cell)}</td>" for i, cell in enumerate(cells, start=1))
        body += f'<tr{mark}><th scope="row">{escape(name)}</th>{data}</tr>'
    return (
        f'<div class="memory-ladder"><table><caption>{escape(_caption(ladder))}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(ladder.verdict)}</p></div>"
    )


def ladder_plot(ladder: Ladder) -> Plot:
    """Draw the peak of every rung, split into what it is made of.

    Parameters
    ----------
    ladder : Ladder

    Returns
    -------
    Plot
        A bar a rung: the states that are always there, what is saved for the backward pass, the rest. The
        computed rung is grey, the budget a line.
    """
    shown = [rung for rung in ladder.rungs if rung.peak_bytes is not None]
    names = ("weights and AdamW", "activations", "gradients, other")
    colours = (PALETTE.series[2], PALETTE.series[1], PALETTE.series[0])
    with plots.style():
        drawn, axes = plots.figure(height=1.2 + 0.42 * len(shown))
        for place, rung in enumerate(shown):
            left = 0.0
            for colour, part in zip(colours, _parts(rung), strict=True):
                axes.barh(place, part, left=left, height=0.62, color=colour, edgecolor="none")
                left += part
            if not rung.measured:
                axes.barh(place, (rung.peak_bytes or 0) / MIB, height=0.62, color=PALETTE.neutral)
        if ladder.budget_bytes is not None:
            axes.axvline(ladder.budget_bytes / MIB, color=PALETTE.ink, linestyle="--", linewidth=1.2)
        handles = [axes.barh(0, 0, color=colour) for colour in colours]
        axes.legend(
            handles, names, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, borderpad=0
        )
        axes.set(xlabel="peak memory of a step, MiB")
        axes.set_yticks(range(len(shown)), labels=[rung.name for rung in shown])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
    peaks = ", ".join(f"{rung.name} {(rung.peak_bytes or 0) / MIB:,.0f} MiB" for rung in shown)
    return plots.show(drawn, alt=f"Peak memory by rung: {peaks}. {ladder.verdict}")


def _parts(rung: Rung) -> tuple[float, float, float]:
    """Split a measured peak, in MiB."""
    if (memory := rung.memory) is None:
        return 0.0, 0.0, 0.0
    states = memory.parameter_bytes + memory.optimizer_bytes
    rest = memory.peak_bytes - states - memory.activation_bytes
    return states / MIB, memory.activation_bytes / MIB, max(0, rest) / MIB


def _caption(ladder: Ladder) -> str:
    """Say what was measured, and what is the same on every rung."""
    first = ladder.rungs[0]
    says = (
        f"A training step of {ladder.model} on {ladder.device} with AdamW and the {ladder.batch_size} "
        f"longest texts, at first cut to {first.length} tokens."
    )
    memory = next((rung.memory for rung in ladder.rungs if rung.memory is not None), None)
    if memory is None:
        return says
    sizes = (memory.parameter_bytes, memory.gradient_bytes, memory.optimizer_bytes)
    parameters, gradients, optimizer = (f"{size / MIB:,.0f}" for size in sizes)
    return (
        f"{says} On every measured rung: parameters {parameters} MiB, gradients {gradients} MiB, "
        f"optimizer states {optimizer} MiB. Activations are what the backward pass needs. "
        "1 MiB is 1,048,576 bytes."
    )


def _row(ladder: Ladder, rung: Rung) -> tuple[str, ...]:
    """Write a rung's cells."""
    start, memory = ladder.rungs[0], rung.memory
    peak = "out of memory" if rung.peak_bytes is None else f"{rung.peak_bytes / MIB:,.0f}"
    if rung.processes > 1:
        peak = f"≥ {peak}, computed" if rung.peak_bytes is not None else "–"
    seconds = "–"
    if memory is not None:
        seconds = f"{memory.seconds:.3g}"
        if memory.seconds_low < memory.seconds_high:  # one repeat has no spread to show
            seconds += f" ({memory.seconds_low:.3g}–{memory.seconds_high:.3g})"
    first = rung is start
    return (
        rung.name,
        f"{memory.activation_bytes / MIB:,.1f}" if memory is not None else "–",
        _share(rung.activations_saved(rung.below)),
        peak,
        _share(rung.saved(rung.below)),
        _share(None if first else rung.saved(start)),
        seconds,
        _times(rung.slowdown(rung.below)),
        _times(None if first else rung.slowdown(start)),
        rung.gives_up,
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}".replace("-", "−")


def _times(value: float | None) -> str:
    return "–" if value is None else f"× {value:.2f}"
