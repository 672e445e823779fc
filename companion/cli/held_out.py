"""Data that a command is given by one name: to check an export on, and to find scales with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from companion.cli.source import Source

if TYPE_CHECKING:
    from companion.data import Example, Task
    from companion.inference import Predictor

__all__ = ["HeldOut", "calibration", "inputs_of", "set_aside"]

_CALIBRATION = 256
"""Texts, at most: more do not move the ranges."""

_SHARE = 0.2
"""Of a file, at most: what finds the scales cannot be judged on."""


@dataclass(frozen=True)
class HeldOut:
    """Examples by name, for a comparison of exports with their source: a task, or a file with its columns."""

    name: str
    data: Path | None
    text_column: str | None
    label_column: str | None
    pair_column: str | None

    @classmethod
    def named(
        cls,
        check_on: str,
        data: Path | None,
        text_column: str | None,
        label_column: str | None,
        pair_column: str | None,
        *,
        labelled: bool = True,
    ) -> HeldOut:
        """Tell a task from a file; refuse options that do not go together, and a file without the columns."""
        found = cls(check_on, data, text_column, label_column, pair_column)
        if found.is_task:
            found._source()
            return found
        if data is not None:
            raise ValueError(f"--data belongs to a task, but --check-on is {check_on!r}; known: {_known()}")
        if not Path(check_on).is_file():
            raise FileNotFoundError(
                f"--check-on is {check_on!r}: no such file, and no task; known: {_known()}"
            )
        if labelled and not (text_column and label_column):
            raise ValueError("--check-on FILE needs --text-column and --label-column")
        if not text_column:
            raise ValueError("--check-on FILE needs --text-column, and --label-column where there are labels")
        return found

    @property
    def is_task(self) -> bool:
        """Whether it is one of the tasks with a name."""
        from companion.data import TASKS

        return self.name in TASKS

    def open(self, folder: Path) -> tuple[Predictor, Task, list[Example]]:
        """Open the model and read the examples: a mistake is told before the export."""
        from companion.data import Task, load_file
        from companion.inference import load_predictor
        from companion.inference.quality.assessment import check_task

        predictor = load_predictor(folder)
        labels = () if predictor.is_regression else predictor.labels
        if self.is_task or self.label_column:
            task, _, examples = self._source().labelled("", labels)
            check_task(predictor, task, str(folder))
            return predictor, task, list(examples)
        file, paired = Path(self.name), self.pair_column is not None
        assert self.text_column is not None
        read = load_file(file, text_column=self.text_column, pair_column=self.pair_column)
        return predictor, Task(file.stem, "accuracy", labels, paired, str(file)), list(read.examples)

    def _source(self) -> Source:
        columns = (self.text_column, self.label_column, self.pair_column)
        return (
            Source(self.name, self.data, *columns)
            if self.is_task
            else Source(None, Path(self.name), *columns)
        )


def calibration(
    name: str, data: Path | None, text_column: str | None, pair_column: str | None
) -> Sequence[Example]:
    """Read texts to find scales with: of a task, or of a file."""
    from companion.data import TASKS, load, load_file

    if name in TASKS:
        return load(name, data_dir=data, max_examples=_CALIBRATION).train
    if not Path(name).is_file():
        raise FileNotFoundError(f"--calibrate is {name!r}: no such file, and no task; known: {_known()}")
    if not text_column:
        raise ValueError("--calibrate FILE needs --text-column")
    return load_file(Path(name), text_column=text_column, pair_column=pair_column).examples[:_CALIBRATION]


def inputs_of(folder: Path, *names: str | Path | None) -> list[Path]:
    """Return what a command reads: a model folder, and those of the names that are files or folders."""
    return [folder, *(Path(name) for name in names if name and Path(name).exists())]


def set_aside(examples: Sequence[Example], seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Divide the rows of a file: most to be judged on, and a part to find scales with."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    count = min(_CALIBRATION, int(_SHARE * len(order)))
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]


def _known() -> str:
    from companion.data import TASKS

    return ", ".join(TASKS)
