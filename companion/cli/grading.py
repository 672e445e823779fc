"""The command for who teaches: `grade`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from companion.cli.options import Json

if TYPE_CHECKING:
    from companion.exercises.broken_transformer import Seed
    from companion.grading.broken_transformer.collecting import Submission
    from companion.grading.deployment.collecting import ServerMarks

__all__ = ["grade"]


def grade(
    folder: Annotated[Path, typer.Argument(help="Holds a folder for each submission of exercise 2 or 3.")],
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
    exercise: Annotated[
        int | None,
        typer.Option(
            "--exercise",
            min=2,
            max=3,
            help="Which one. Default: 3 where one of the folders holds a serve.toml.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade all submissions of exercise 2 or 3 in a folder, each in a process of its own.

    A submission that is empty or broken gets 0 and the reason; none stops the others.
    """
    dealt = _seed(seed)
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for --out {out}: make it first")
    from companion.grading.broken_transformer.collecting import submissions_in
    from companion.grading.tables import write_rows

    folders = submissions_in(folder)
    if exercise is None:
        exercise = 3 if any((one / "serve.toml").is_file() for one in folders) else 2
    if exercise == 3 and dealt is not None:
        raise ValueError(
            "--seed is for exercise 2, where bugs are dealt: --draw draws the texts of exercise 3"
        )
    found = []
    for one in _graded(exercise, folders, dealt, draw):
        found.append(one)
        row = one.row()
        typer.echo(f"{row['total']:>6}  {row['name']}  {row['says']}".rstrip(), err=as_json)
        if out is not None:
            write_rows(out, list(row), [each.row() for each in found])
    if as_json:
        typer.echo(json.dumps({"submissions": [one.to_dict() for one in found]}, ensure_ascii=False))


def _graded(
    exercise: int, folders: Sequence[Path], dealt: Seed | None, draw: int | None
) -> Iterator[Submission | ServerMarks]:
    """Grade one folder after the other."""
    if exercise == 3:
        from companion.grading.deployment import collecting as servers

        yield from servers.grade_all(folders, seed=draw)
    else:
        from companion.grading.broken_transformer import collecting

        yield from collecting.grade_all(folders, dealt=dealt, seed=draw)


def _seed(text: str | None) -> Seed | None:
    """Read what was dealt."""
    if text is None or text == "default":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'--seed is {text!r}, expected a whole number or "default"') from None
