"""What a file's answers are made of, and how to tell that it has changed since they were begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from companion.artifacts import digest

if TYPE_CHECKING:
    from companion.inference.predictor import Predictor

__all__ = ["LoadPredictor", "OfflineJob", "OnError", "fingerprint", "name_the_change"]

OnError = Literal["stop", "record"]
LoadPredictor = Callable[[Path, int | None], "Predictor"]
"""Opens a folder with so many threads. A function of a module, so that other processes find it."""

_FORMAT = 1  # of the lines and of the windows: another one makes begun work worthless
_NAMES = {
    "file": "the content of FILE",
    "model": "the model's files",
    "text_column": "--text-column",
    "pair_column": "--pair-column",
    "batch_size": "--batch-size",
    "format": "the version of companion",
}


@dataclass(frozen=True)
class OfflineJob:
    """The answers of one model to the texts of one file.

    Parameters
    ----------
    folder : Path
        A model folder or an ONNX folder.
    file : Path
        csv, tsv, jsonl or parquet.
    text_column : str
    pair_column : str, optional
        The column with second texts.
    batch_size : int
        Texts per run of the model.
    threads : int, optional
        Threads to compute with, in all. Default: the settings'.
    on_error : {"stop", "record"}
        What a row does that cannot be read or answered: end everything, or get a line that says why.

    Raises
    ------
    ValueError
        For a batch size below 1, or an `on_error` that is neither.
    """

    folder: Path
    file: Path
    text_column: str
    pair_column: str | None = None
    batch_size: int = 32
    threads: int | None = None
    on_error: OnError = "stop"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1")
        if self.on_error not in get_args(OnError):
            raise ValueError(f"on_error is {self.on_error!r}, expected stop or record")


def fingerprint(job: OfflineJob) -> dict[str, str | int | None]:
    """Return all that the bytes of the answers depend on.

    Threads and processes are not among it: they do not move an answer of an ONNX folder. Nor is what becomes
    of bad rows: the lines before the first one are the same.

    Parameters
    ----------
    job : OfflineJob

    Returns
    -------
    dict
        Values that JSON can hold; files by their content.

    Raises
    ------
    FileNotFoundError
        When the file is missing.
    """
    # Other files may lie in a model's folder; answers are even kept there.
    files = [path for path in job.folder.glob("[!.]*") if path.suffix not in (".jsonl", ".md")]
    return {
        "file": digest(job.file),
        "model": digest({path.name: path for path in files if path.is_file()}),
        "text_column": job.text_column,
        "pair_column": job.pair_column,
        "batch_size": job.batch_size,
        "format": _FORMAT,
    }


def name_the_change(begun: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Say what differs between two fingerprints, or None when nothing does."""
    changed = [name for name in _NAMES if begun.get(name) != now.get(name)]
    if not changed:
        return None
    told = []
    for name in changed:
        detail = f" ({begun.get(name)}, now {now.get(name)})" if name not in ("file", "model") else ""
        told.append(f"{_NAMES[name]}{detail}")
    return " and ".join(told)
