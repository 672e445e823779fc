"""What the server needs of a model: tokens of texts, logits of tokens, and what the logits mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from companion.inference.predictor import TokenizedText

__all__ = ["ServedModel", "Versioned"]


class Versioned(Protocol):
    """What the server reads of a manifest."""

    @property
    def model_version(self) -> str:
        """Short id of the exported model."""


class ServedModel(Protocol):
    """A model behind the server; `companion.inference.predictor.OnnxPredictor` is one.

    Several threads call `encode` and `run` at once.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits; not used for a regression."""

    @property
    def is_regression(self) -> bool:
        """Whether the single logit is the answer."""

    @property
    def max_length(self) -> int:
        """Longer texts are cut to this many tokens."""

    @property
    def manifest(self) -> Versioned:
        """The export's description of itself."""

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Sequence[TokenizedText]:
        """Turn texts, or pairs of texts, into tokens."""

    def run(self, encodings: Sequence[TokenizedText]) -> npt.NDArray[np.float32]:
        """Give the logits of one batch, shape `(len(encodings), num_labels)`."""
