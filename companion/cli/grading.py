"""The command for who teaches: `grade`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from companion.cli.options import Json

if TYPE_CHECKING:
    from companion.exercises.broken_transformer import Seed

__all__ = ["grade"]


def grade(
    folder: Annotated[Path, typer.Argument(help="Holds a folder for each submission of exercise 2.")],
    seed: Annotated[
        str | None,
        typer.Option(
            "--seed",
            help='What was dealt: a whole number, or "default". Without it each exercise.json is believed, '
            "which a learner can edit.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a csv file with a row for each.")] = None,
    draw: Annotated[
        int | None,
        typer.Option("--draw", help="Draws inputs and unseen bugs, the same for all. Default: new ones."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade all submissions of exercise 2 in a folder, each in a process of its own.

    A submission that is empty or broken gets 0 and the reason; none stops the others.
    """
    dealt = _seed(seed)
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for --out {out}: make it first")
    from companion.grading.broken_transformer.collecting import grade_all, submissions_in, write_table

    found = []
    for one in grade_all(submissions_in(folder), dealt=dealt, seed=draw):
        found.append(one)
        row = one.row()
        typer.echo(f"{row['total']:>6}  {row['name']}  {row['says']}".rstrip(), err=as_json)
        if out is not None:
            write_table(out, found)
    if as_json:
        typer.echo(json.dumps({"submissions": [one.to_dict() for one in found]}, ensure_ascii=False))


def _seed(text: str | None) -> Seed | None:
    """Read what was dealt."""
    if text is None or text == "default":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'--seed is {text!r}, expected a whole number or "default"') from None
