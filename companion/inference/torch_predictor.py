"""The same predictions with torch: the reference that exports are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from companion.data import Example
from companion.inference.padding import settle_padding
from companion.inference.predictor import check_texts, probabilities_of
from companion.models import Classifier, load
from companion.training import predict_logits
from companion.training.device import choose_device

__all__ = ["TorchPredictor"]


class TorchPredictor:
    """Runs a fine-tuned model folder.

    Parameters
    ----------
    source : Path, str or Classifier
        A folder that `companion.training.save` or transformers wrote, or an already loaded classifier. Its
        padding is settled: see `companion.inference.padding`.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When it holds no fine-tuned text classifier, or one without a padding token.
    """

    def __init__(self, source: Path | str | Classifier) -> None:
        self.classifier = source if isinstance(source, Classifier) else load(source)
        if self.classifier.fresh:
            raise ValueError(
                f"{self.classifier.source} is not fine-tuned for classification: it lacks "
                f"{', '.join(self.classifier.fresh)}. Train it first: companion train"
            )
        settle_padding(self.classifier)
        torch.nn.Module.to(self.classifier.model, choose_device())

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of the logits."""
        return self.classifier.labels

    @property
    def is_regression(self) -> bool:
        """Whether the one logit is a number to predict rather than a score."""
        return self.classifier.is_regression

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute logits.

        Parameters
        ----------
        texts : sequence of str
        pairs : sequence of str, optional
            The second text of each, for a task on pairs.
        batch_size : int

        Returns
        -------
        ndarray of float32, shape (texts, num_labels)
            In the order of the texts.

        Raises
        ------
        ValueError
            When the arguments do not fit each other.
        """
        check_texts(texts, pairs, batch_size)
        seconds: Sequence[str | None] = pairs if pairs is not None else [None] * len(texts)
        examples = [Example(text, None, pair) for text, pair in zip(texts, seconds, strict=True)]
        model, tokenizer = self.classifier.model, self.classifier.tokenizer
        return predict_logits(
            model, tokenizer, examples, batch_size=batch_size, max_length=int(tokenizer.model_max_length)
        )

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute probabilities: the softmax of `logits`.

        Parameters
        ----------
        texts, pairs, batch_size
            As for `logits`.

        Returns
        -------
        ndarray of float32, shape (texts, num_labels)
            Each row sums to 1.

        Raises
        ------
        ValueError
            As `logits`, and for a regression.
        """
        return probabilities_of(
            self.logits(texts, pairs, batch_size=batch_size), is_regression=self.is_regression
        )
