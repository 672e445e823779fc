"""Where a command's labelled examples come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from companion.data import Example, Task, TaskData

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Where labelled examples come from: a task by name, or the user's file with its columns."""

    task: str | None
    data: Path | None
    text_column: str | None
    label_column: str | None
    pair_column: str | None

    def __post_init__(self) -> None:
        """Refuse options that do not go together."""
        columns = (self.text_column, self.label_column, self.pair_column)
        if self.task is not None and any(columns):
            raise ValueError(
                "--task brings its own columns: leave out --text-column, --label-column, --pair-column"
            )
        if self.task is not None:
            return
        if self.data is None:
            raise ValueError(
                "no data: give --task NAME (and --data DIR for a GLUE folder), "
                "or --data FILE --text-column C --label-column C"
            )
        if not (self.text_column and self.label_column):
            raise ValueError(
                f"--data {self.data} needs its columns: give --text-column C and --label-column C; "
                "for a GLUE folder give --task NAME"
            )

    def training_data(
        self, seed: int, max_examples: int | None, labels: tuple[str, ...] | None = None
    ) -> TaskData:
        """Load examples to train on and to score with; a file has the labels given, or those found."""
        from companion.data import load, split_file

        if self.task is not None:
            return load(self.task, data_dir=self.data, seed=seed, max_examples=max_examples)
        return split_file(*self._columns(), seed=seed, max_examples=max_examples, labels=labels)

    def labelled(self, split: str, labels: tuple[str, ...]) -> tuple[Task, str, Sequence[Example]]:
        """Load one split of a task, or a whole file whose labels are those of a model."""
        from companion.data import Task, load, load_file

        if self.task is None:
            file, text, label, pair = self._columns()
            if split:
                raise ValueError(f"--split is {split!r}, but a file has no splits: leave it out")
            if not labels:
                raise ValueError(
                    "the model predicts a number; score it with a --task that has numbers, such as stsb"
                )
            read = load_file(file, text_column=text, label_column=label, pair_column=pair, labels=labels)
            return Task(file.stem, "accuracy", labels, pair is not None, str(file)), "all", read.examples
        data = load(self.task, data_dir=self.data)
        name = split or ("test" if data.test else "dev")
        if name not in ("train", "dev", "test") or not getattr(data, name):
            found = ", ".join(part for part in ("train", "dev", "test") if getattr(data, part))
            raise ValueError(f"--split is {name!r}, but {self.task} has: {found}")
        examples: Sequence[Example] = getattr(data, name)
        return data.task, name, examples

    def _columns(self) -> tuple[Path, str, str, str | None]:
        assert self.data is not None and self.text_column is not None and self.label_column is not None
        return self.data, self.text_column, self.label_column, self.pair_column
