"""Options that several commands share, and how a report is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="A task by name: sentiment, sst2, cola, mrpc, rte, ...")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="With --task: a GLUE folder. Without: a csv, tsv, jsonl or parquet file."),
]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="The file's column with the texts.")]
PairColumn = Annotated[
    str | None, typer.Option("--pair-column", help="The column with second texts, for pairs.")
]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="The file's column with the labels.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts per step or run.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads to compute with. Default: all cores.")
]
Folder = Annotated[Path, typer.Argument(help="A model folder or an ONNX folder.")]


def show(report: dict[str, Any], as_json: bool) -> None:
    """Print a report: aligned lines for people, or one JSON object."""
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    for name, value in report.items():
        text = f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, dict):
            text = ", ".join(
                f"{key} {item:.4g}" if isinstance(item, float) else f"{key} {item}"
                for key, item in value.items()
            )
        typer.echo(f"{name.replace('_', ' '):20} {text}")
