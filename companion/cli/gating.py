"""The held-out data of `export --check-on`, read before the work begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from companion.cli.source import Source

if TYPE_CHECKING:
    from companion.data import Example, Task
    from companion.inference import Predictor

__all__ = ["HeldOut"]


@dataclass(frozen=True)
class HeldOut:
    """Labelled examples by name, for a comparison of an export with its source."""

    source: Source

    @classmethod
    def named(
        cls,
        check_on: str | None,
        data: Path | None,
        text_column: str | None,
        label_column: str | None,
        pair_column: str | None,
    ) -> HeldOut | None:
        """Tell a task from a file; refuse options that do not go together."""
        columns = (text_column, label_column, pair_column)
        if check_on is None:
            if data or any(columns):
                raise ValueError("--data and the columns belong to --check-on: give --check-on TASK or FILE")
            return None
        from companion.data import TASKS

        if check_on in TASKS:
            return cls(Source(check_on, data, *columns))
        if data is not None:
            raise ValueError(f"--data belongs to a task, but --check-on is {check_on!r}; known: {_known()}")
        if not Path(check_on).is_file():
            raise FileNotFoundError(
                f"--check-on is {check_on!r}: no such file, and no task; known: {_known()}"
            )
        if not (text_column and label_column):
            raise ValueError("--check-on FILE needs --text-column and --label-column")
        return cls(Source(None, Path(check_on), *columns))

    def open(self, folder: Path) -> tuple[Predictor, Task, list[Example]]:
        """Open the model and read the examples: a mistake is told before the export."""
        from companion.inference import load_predictor
        from companion.inference.quality import check_task

        predictor = load_predictor(folder)
        labels = () if predictor.is_regression else predictor.labels
        task, _, examples = self.source.labelled("", labels)
        check_task(predictor, task, str(folder))
        return predictor, task, list(examples)


def _known() -> str:
    from companion.data import TASKS

    return ", ".join(TASKS)
