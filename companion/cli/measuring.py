"""The command that measures speed: `benchmark`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from companion.cli.options import Json, PairColumn, TaskName, TextColumn, Threads

__all__ = ["benchmark"]


def benchmark(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...", help="Model folders and ONNX folders; the first is the reference."
        ),
    ],
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="A csv, tsv, jsonl or parquet file. Default: generated reviews."),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    task: TaskName = None,
    data: Annotated[Path | None, typer.Option("--data", help="With --task: a GLUE folder.")] = None,
    runs: Annotated[
        int, typer.Option("--runs", help="Single requests of each folder, for each group of lengths.")
    ] = 400,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", help="For the throughput, separated by commas.")
    ] = "1,8,32",
    rounds: Annotated[int, typer.Option("--rounds", help="Of the throughput.")] = 7,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Also send requests at this constant rate per second, late or not."),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure latency and throughput of folders, side by side: warm, in turns, with equal threads.

    Percentiles that so few runs cannot tell are not given; p99 needs 368.
    """
    from companion.inference.benchmarking.plan import BenchmarkPlan

    plan = BenchmarkPlan(runs=runs, batch_sizes=_sizes(batch_sizes), rounds=rounds, rate=rate)
    first, second = _texts(texts, text_column, pair_column, task, data)
    from companion.inference import benchmark as measure

    found = measure(folders, first, second, plan=plan, threads=threads)
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False) if as_json else found.text())


def _sizes(text: str) -> tuple[int, ...]:
    """Read numbers separated by commas."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--batch-sizes is {text!r}, expected whole numbers such as 1,8,32") from None


def _texts(
    file: Path | None, text_column: str | None, pair_column: str | None, task: str | None, data: Path | None
) -> tuple[list[str] | None, list[str] | None]:
    """Read the texts, and the second texts of pairs; None for the default."""
    if file is not None and task is not None:
        raise ValueError("--texts and --task both name texts: give one of them")
    if file is None and (text_column or pair_column):
        raise ValueError("--text-column and --pair-column belong to a file: give --texts FILE")
    if data is not None and task is None:
        raise ValueError("--data is a folder for a task: give --task NAME")
    if file is None and task is None:
        return None, None
    from companion.data import load, load_file

    if task is not None:
        loaded = load(task, data_dir=data)
        examples, paired = loaded.test or loaded.dev, loaded.task.paired
    elif file is not None and text_column:
        read = load_file(file, text_column=text_column, pair_column=pair_column)
        examples, paired = read.examples, pair_column is not None
    else:
        raise ValueError("--texts FILE needs --text-column")
    texts = [example.text for example in examples]
    return texts, [example.pair or "" for example in examples] if paired else None
