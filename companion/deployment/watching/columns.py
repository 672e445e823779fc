"""Predictions of one model version as columns of numbers: what windows are cut from."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from companion.deployment.answering import Question
from companion.deployment.watching.features import CountTokens, measure_text
from companion.deployment.watching.records import Prediction

__all__ = ["Columns", "ColumnsBuilder", "VersionedModel", "columns_of_texts"]

Floats = NDArray[np.float64]

_INPUTS = (
    "characters",
    "letters_per_word",
    "non_letters",
    "upper_case",
    "non_ascii",
    "tokens_per_word",
    "unknown_tokens",
)


@dataclass(frozen=True)
class Columns:
    """Answers of one model version, in the order of time.

    Attributes
    ----------
    version : str
    labels : tuple of str
        Empty for a regression.
    times : ndarray of float64, shape (answers,)
        Seconds since 1970.
    chosen : ndarray of int64, shape (answers,)
        The most probable label's place in `labels`; 0 for a regression.
    scores : ndarray of float64, shape (answers,)
        The largest probability; for a regression the number itself.
    inputs : dict of str to ndarray of float64, shape (answers,)
        What is known of the texts: see `TextFeatures`. NaN where nobody counted.
    """

    version: str
    labels: tuple[str, ...]
    times: Floats
    chosen: NDArray[np.int64]
    scores: Floats
    inputs: dict[str, Floats]

    def __len__(self) -> int:
        """Count the answers."""
        return len(self.times)

    @property
    def is_regression(self) -> bool:
        """Whether the model gives a number and no label."""
        return not self.labels

    def take(self, places: slice | NDArray[Any]) -> Columns:
        """Choose answers.

        Parameters
        ----------
        places : slice or ndarray
            As numpy indexes: a slice, indices or a mask.

        Returns
        -------
        Columns
        """
        return replace(
            self,
            times=self.times[places],
            chosen=self.chosen[places],
            scores=self.scores[places],
            inputs={name: values[places] for name, values in self.inputs.items()},
        )

    def between(self, start: float | None, end: float | None) -> NDArray[np.bool_]:
        """Mark the answers from `start` on and before `end`, in seconds since 1970; None for an open end."""
        inside = np.ones(len(self), dtype=np.bool_)
        if start is not None:
            inside &= self.times >= start
        if end is not None:
            inside &= self.times < end
        return inside


@dataclass
class ColumnsBuilder:
    """Collects predictions of one version, at 80 bytes each.

    Parameters
    ----------
    version : str
    labels : tuple of str
    """

    version: str
    labels: tuple[str, ...]
    _columns: dict[str, array[float]] = field(
        default_factory=lambda: {name: array("d") for name in ("time", "chosen", "score", *_INPUTS)}
    )

    def add(self, prediction: Prediction) -> None:
        """Add one.

        Parameters
        ----------
        prediction : Prediction
            Of this version.

        Raises
        ------
        ValueError
            When it has other labels.
        """
        if prediction.labels != self.labels:
            raise ValueError(
                f"model version {self.version} answers with {_named(self.labels)} in one line and with "
                f"{_named(prediction.labels)} in another: two models have one name; keep their logs apart"
            )
        values = prediction.values
        chosen = max(range(len(values)), key=values.__getitem__)
        measured = (getattr(prediction.features, name) for name in _INPUTS)
        row = (prediction.time, chosen, values[chosen], *measured)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(float("nan") if value is None else value)

    def build(self) -> Columns:
        """Return what was added, in the order of time."""
        columns = {name: np.array(column, dtype=np.float64) for name, column in self._columns.items()}
        order = np.argsort(columns["time"], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        times, chosen, scores = (columns.pop(name) for name in ("time", "chosen", "score"))
        return Columns(self.version, self.labels, times, chosen.astype(np.int64), scores, columns)


class VersionedModel(Protocol):
    """What a reference from texts needs; `companion.inference.predictor.OnnxPredictor` has it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of the logits."""

    @property
    def is_regression(self) -> bool:
        """Whether the one logit is a number to predict rather than a score."""

    @property
    def manifest(self) -> Any:
        """The export's description of itself, with its `model_version`."""

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute logits, shape (texts, num_labels)."""

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute probabilities, shape (texts, num_labels)."""


def columns_of_texts(
    model: VersionedModel,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    count_tokens: CountTokens | None = None,
) -> Columns:
    """Make a reference from texts, such as those that were held out from training.

    Parameters
    ----------
    model : VersionedModel
        An opened ONNX folder: the version that is watched.
    texts : sequence of str
        At least one. They are put into a random order: theirs, such as sorted by label, says nothing.
    pairs : sequence of str, optional
        The second text of each.
    count_tokens : callable, optional
        As the log's: without it the reference has no features about tokens to compare with.

    Returns
    -------
    Columns

    Raises
    ------
    ValueError
        When there are no texts.
    """
    if not texts:
        raise ValueError("there are no texts to make a reference from, expected at least one")
    infer = model.logits if model.is_regression else model.probabilities
    builder = ColumnsBuilder(model.manifest.model_version, () if model.is_regression else model.labels)
    for place, row in enumerate(infer(texts, pairs)):
        question = Question(texts[place], None if pairs is None else pairs[place])
        values = tuple(float(value) for value in row)
        measured = measure_text(question, count_tokens)
        builder.add(Prediction(float("nan"), None, builder.version, builder.labels, values, measured, ""))
    built = builder.build()
    return built.take(np.random.default_rng(0).permutation(len(built)))


def _named(labels: Iterable[str]) -> str:
    return ", ".join(labels) or "a number"
