"""The command `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from companion.cli.held_out import HeldOut, calibration, inputs_of
from companion.cli.options import Json, LabelColumn, PairColumn, TextColumn, show

if TYPE_CHECKING:
    from companion.inference.exporting import Precision

__all__ = ["PRECISIONS", "export"]

PRECISIONS = ("int8", "int8-fixed", "int8-weights", "int4-weights", "int2-weights", "fp32")


def export(
    folder: Annotated[Path, typer.Argument(help="A fine-tuned model folder.")],
    out: Annotated[Path, typer.Argument(help="The ONNX folder to write.")],
    precision: Annotated[str, typer.Option("--precision", help=f"One of {', '.join(PRECISIONS)}.")] = "int8",
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            help="With int8-fixed, texts like those that will be served: a task by name, or a file with "
            "--text-column.",
        ),
    ] = None,
    check_on: Annotated[
        str | None,
        typer.Option(
            "--check-on",
            help="Held-out labelled data: a task by name, or a file with --text-column and --label-column. "
            "Compares the export with its source on them, and writes the result into the manifest.",
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="With --check-on: points that the metric may drop.")
    ] = 0.5,
    data: Annotated[Path | None, typer.Option("--data", help="Of a task: a GLUE folder.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    as_json: Json = False,
) -> None:
    """Turn a model folder into an ONNX folder, and compare the two.

    With --check-on it ends with 1 when the export does not pass; the folder is written all the same, and its
    manifest says what was found.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"--precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if (precision == "int8-fixed") != (calibrate is not None):
        raise ValueError("int8-fixed finds its scales with --calibrate TASK or FILE, and no other needs it")
    columns = (text_column, label_column, pair_column)
    if check_on is None and calibrate is None and any((data, *columns)):
        raise ValueError("--data and the columns belong to --check-on or --calibrate: give one of them")
    held_out = (
        None if check_on is None else HeldOut.named(check_on, data, text_column, label_column, pair_column)
    )
    texts = () if calibrate is None else calibration(calibrate, data, text_column, pair_column)
    from companion.artifacts import staged_folder

    # Entered before the heavy imports: a mistake in OUT is told at once.
    inputs = inputs_of(folder, check_on, calibrate, data)
    with staged_folder(out, marker="manifest.json", inputs=inputs) as staging:
        from companion import inference

        opened = None if held_out is None else held_out.open(folder)
        manifest = inference.export(
            folder, staging, precision=cast("Precision", precision), calibration=texts
        )
        quality = None
        if opened is not None:
            reference, task, examples = opened
            quality = inference.assess(reference, inference.load_predictor(staging), examples, task)
            inference.state_quality(staging, quality)
    size = sum(path.stat().st_size for path in out.iterdir())
    report = {
        "folder": str(out),
        "precision": manifest.precision,
        "model_version": manifest.model_version,
        "bytes": size,
        "check": asdict(manifest.check),
        "operators": manifest.operators,
    }
    gate = None if quality is None else quality.passes(max_drop)
    if as_json and quality is not None and gate is not None:
        report |= {"quality": quality.to_dict(), "gate": gate.to_dict()}
    show(report, as_json)
    if not as_json and quality is not None and gate is not None:
        typer.echo(f"\n{quality.text()}\n{gate.detail}")
    if gate is not None and not gate:
        raise typer.Exit(1)
