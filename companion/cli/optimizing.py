"""The command `optimize`: one model folder in, the best ONNX folder for it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from companion.cli.held_out import HeldOut, calibration, inputs_of, set_aside
from companion.cli.options import Json, LabelColumn, PairColumn, TextColumn, Threads

if TYPE_CHECKING:
    from companion.inference.optimizing.record import Aim

__all__ = ["OBJECTIVES", "optimize"]

OBJECTIVES = ("latency", "throughput", "size")


def optimize(
    folder: Annotated[Path, typer.Argument(help="A fine-tuned model folder.")],
    out: Annotated[Path, typer.Argument(help="The ONNX folder to write.")],
    check_on: Annotated[
        str | None,
        typer.Option(
            "--check-on",
            help="Held-out data: a task by name, or a file with --text-column and, where there are labels, "
            "--label-column. Without labels the share of changed answers stands for the drop in accuracy.",
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-accuracy-drop", min=0, help="Points that the metric may drop.")
    ] = 0.5,
    objective: Annotated[
        str, typer.Option("--objective", help=f"One of {', '.join(OBJECTIVES)}.")
    ] = "latency",
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            help="Texts for the scales of int8-fixed: a task by name, or a file with --text-column. Default: "
            "the task's training examples, or a fifth of the file, which is then not judged on.",
        ),
    ] = None,
    accept_undecided: Annotated[
        bool,
        typer.Option(
            "--accept-undecided",
            help="Where examples are too few to show that a drop is small enough, go by what it seems to be.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="For the throughput.")] = 32,
    runs: Annotated[
        int, typer.Option("--runs", help="Single requests of each candidate, for each group of lengths.")
    ] = 60,
    data: Annotated[Path | None, typer.Option("--data", help="Of a task: a GLUE folder.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Try every precision, measure all that keep the accuracy, write the best one, and say why.

    It ends with 1 when no narrow candidate is shown to stay within the budget: then OUT holds the model in
    fp32, unless not even that answers as the source does.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"--objective is {objective!r}, expected one of {', '.join(OBJECTIVES)}")
    if check_on is None:
        raise ValueError(
            "no held-out data, without which nobody knows what a candidate costs: give --check-on TASK, or "
            "--check-on FILE --text-column C --label-column C"
        )
    columns = (text_column, label_column, pair_column)
    held_out = HeldOut.named(check_on, data, *columns, labelled=False)
    texts = None if calibrate is None else calibration(calibrate, data, text_column, pair_column)
    from companion.artifacts import check_folder

    # Before the heavy imports: a mistake in OUT is told at once.
    check_folder(out, marker="manifest.json", inputs=inputs_of(folder, check_on, calibrate, data))
    from dataclasses import replace

    from companion.inference import optimize as search
    from companion.inference.optimizing.optimization import SHORT_PLAN
    from companion.settings import get_settings

    _, task, examples = held_out.open(folder)
    if texts is None and held_out.is_task:
        texts = calibration(check_on, data, None, None)
    elif texts is None:
        examples, texts = set_aside(examples)
    shown = get_settings().progress
    found = search(
        folder,
        out,
        held_out=examples,
        task=task,
        calibration=texts,
        max_drop=max_drop,
        objective=cast("Aim", objective),
        accept_undecided=accept_undecided,
        plan=replace(SHORT_PLAN, runs=runs, batch_sizes=(batch_size,)),
        threads=threads,
        progress=lambda line: typer.echo(f"companion optimize: {line}", err=True) if shown else None,
    )
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False) if as_json else found.text())
    if found.chosen is None or found.fallback:
        raise typer.Exit(1)
