"""What the long measurements of the repository, ``benchmarks/``, have stored for its pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["benchmark_file", "benchmark_rows", "benchmark_stamp"]


def benchmark_file(name: str) -> Path | None:
    """Find ``benchmarks/results/NAME.json`` beside or above the working folder; None where there is none.

    An installed package has no such file, and neither has a benchmark that was never run.
    """
    here = Path.cwd()
    files = (folder / "benchmarks" / "results" / f"{name}.json" for folder in (here, *here.parents))
    return next((file for file in files if file.is_file()), None)


def benchmark_rows(name: str) -> dict[str, dict[str, Any]]:
    """Read what a benchmark has stored: a row for each measurement, by its name; none where there is no file.

    Parameters
    ----------
    name : str
        Of the file, without folder and ending.
    """
    file = benchmark_file(name)
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"] if file else {}
    return rows


def benchmark_stamp(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how many rows there are, of which days and which processors."""
    days = sorted({row["date"][:10] for row in rows.values()})
    machines = sorted({row["machine"].get("cpu", "unknown") for row in rows.values()})
    period = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "never"
    return f"stored runs: {len(rows)}, {period}, on {' and '.join(machines) or 'no machine'}"
