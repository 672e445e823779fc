"""A load test as a folder: a page with plots that needs no network, and the numbers."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

from companion.artifacts import staged_folder
from companion.deployment.loadtest.pictures import distribution_plot, ramp_plot, time_plot
from companion.deployment.loadtest.text import notes, percentile_in_words, summary
from companion.plots import Plot, css_variables

if TYPE_CHECKING:
    from companion.deployment.loadtest.report import LoadReport
    from companion.deployment.loadtest.wrk import WrkReport

__all__ = ["PAGE", "write_report"]

PAGE = "report.html"

_STYLE = """
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--background); }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: 0.25rem 0.75rem; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
caption { text-align: left; font-weight: bold; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--muted); }
svg { max-width: 100%; height: auto; }
"""


def write_report(report: LoadReport, folder: Path | str, *, other: WrkReport | None = None) -> Path:
    """Write a page, its plots and the numbers into a folder, all or nothing.

    Parameters
    ----------
    report : LoadReport
    folder : Path or str
        New, empty, or of an earlier report, which is replaced.
    other : WrkReport, optional
        What wrk measured beside it.

    Returns
    -------
    Path
        The page: ``report.html``. Beside it ``report.json`` and one SVG for each plot.

    Raises
    ------
    ValueError, OSError
        When the folder cannot be written or holds other things.
    """
    folder = Path(folder)
    plots = _plots(report)
    with staged_folder(folder, marker=PAGE) as staging:
        (staging / PAGE).write_text(_page(report, plots, other), encoding="utf-8")
        numbers = report.to_dict() | {"witness": None if other is None else other.to_dict()}
        text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
        (staging / "report.json").write_text(text + "\n", encoding="utf-8")
        for name, (_, plot) in plots.items():
            (staging / f"{name}.svg").write_text(plot.svg, encoding="utf-8")
    return folder / PAGE


def _plots(report: LoadReport) -> dict[str, tuple[str, Plot]]:
    """Draw what there is, each with its caption."""
    found = {}
    if report.knee is not None:
        found["ramp"] = ("Answers against requests due, step by step.", ramp_plot(report))
    found["latency-over-time"] = ("Latency and throughput, second by second.", time_plot(report))
    if report.latencies:
        found["latency-distribution"] = ("How many requests took longer.", distribution_plot(report))
    return found


def _page(report: LoadReport, plots: dict[str, tuple[str, Plot]], other: WrkReport | None) -> str:
    from companion.deployment.loadtest.text import side_by_side

    said = "".join(f"<p>{html.escape(line)}</p>\n" for line in summary(report).splitlines())
    remarks = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes(report))
    figures = "".join(
        f"<figure>{plot.html()}<figcaption>{html.escape(f'{caption} {plot.alt}')}</figcaption></figure>\n"
        for caption, plot in plots.values()
    )
    beside = "" if other is None else f"<pre>{html.escape(side_by_side(report, other))}</pre>\n"
    return (
        '<!doctype html>\n<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Load test of {html.escape(report.url)}</title>\n"
        f"<style>{css_variables()}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>Load test of {html.escape(report.url)}</h1>\n{said}{_latency(report)}{beside}{_steps(report)}"
        f"{_troubles(report)}<h2>How to read it</h2>\n<ul>\n{remarks}</ul>\n{figures}"
        f"<h2>Plan</h2>\n<pre>{html.escape(json.dumps(report.plan.to_dict(), indent=1))}</pre>\n"
        "</main>\n</body>\n</html>\n"
    )


def _latency(report: LoadReport) -> str:
    total = report.total
    rows = [["due", *map(percentile_in_words, total.latency)]]
    if report.plan.mode != "users":
        rows.append(["real sending", *map(percentile_in_words, total.service)])
    heads = ["counted from", *(found.name for found in total.latency)]
    return _table("Latency, milliseconds (95% intervals)", heads, rows)


def _steps(report: LoadReport) -> str:
    if not report.steps:
        return ""
    rows = [
        [
            f"{step.rate:,.1f}" if step.rate is not None else "-",
            f"{step.offered:,.1f}",
            f"{step.throughput:,.1f}",
            str(step.counts.refused),
            str(step.counts.failed),
            f"{step.generator.cpu:.0%}",
            step.broke or "followed",
        ]
        for step in report.steps
    ]
    return _table("Steps", ["rate/s", "due/s", "answers/s", "refused", "failed", "generator", ""], rows)


def _troubles(report: LoadReport) -> str:
    if not report.troubles:
        return ""
    rows = [
        [found.title, found.outcome, str(found.status or "-"), str(found.count)] for found in report.troubles
    ]
    return _table("No answer", ["why", "what", "status", "times"], rows)


def _table(caption: str, heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return (
        f"<table>\n<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n"
    )
