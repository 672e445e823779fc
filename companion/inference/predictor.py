"""Texts in, logits out, with onnxruntime and a tokenizer and nothing else.

A server imports this module: it must never import torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from companion.inference.manifest import MODEL, Manifest, read_manifest
from companion.inference.processor import check_processor
from companion.inference.sessions import open_session

__all__ = ["OnnxPredictor", "Predictor", "probabilities_of"]

_MULTIPLE = 8
"""Lengths are padded to a multiple of this: few shapes, and sums in one order whatever the batch."""


class Predictor(Protocol):
    """Turns texts into logits and probabilities, whatever runs underneath."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of the logits."""

    @property
    def is_regression(self) -> bool:
        """Whether the one logit is a number to predict rather than a score."""

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute logits, shape (texts, num_labels), in the order of the texts."""

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute probabilities, shape (texts, num_labels); each row sums to 1."""


def probabilities_of(logits: NDArray[np.float32], *, is_regression: bool) -> NDArray[np.float32]:
    """Apply the softmax to each row of logits.

    Parameters
    ----------
    logits : ndarray of float32, shape (texts, num_labels)
    is_regression : bool

    Returns
    -------
    ndarray of float32, shape (texts, num_labels)

    Raises
    ------
    ValueError
        For a regression: its one output is a number, not a score.
    """
    if is_regression:
        raise ValueError("this model predicts a number, not labels: use logits()")
    exact = logits.astype(np.float64)
    scores = np.exp(exact - exact.max(axis=1, keepdims=True)) if len(exact) else exact
    shares: NDArray[np.float32] = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


class OnnxPredictor:
    """Runs an ONNX folder.

    Parameters
    ----------
    folder : Path
        Made by `companion.inference.export`; its files are compared with the manifest first.
    threads : int, optional
        Threads per run. Default: the settings' threads.
    processor : collection of str, optional
        The processor's instruction sets. Default: those of this one.

    Raises
    ------
    FileNotFoundError, ValueError
        When the folder is missing, incomplete, or not what its manifest says, or when the processor lacks an
        instruction set without which its answers would be wrong.

    Attributes
    ----------
    manifest : Manifest
    """

    def __init__(
        self, folder: Path, *, threads: int | None = None, processor: Collection[str] | None = None
    ) -> None:
        folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder)
        check_processor(folder, self.manifest.cpu_features, processor)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.manifest.max_length)
        self._pad = _padding(folder, self._tokenizer)
        self._session = self._open(folder, threads)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of the logits."""
        return self.manifest.labels

    @property
    def is_regression(self) -> bool:
        """Whether the one logit is a number to predict rather than a score."""
        return self.manifest.is_regression

    @property
    def max_length(self) -> int:
        """Longer texts are cut to this many tokens."""
        return self.manifest.max_length

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
            Texts per run. They are sorted by length first, so that little is padded.

        Returns
        -------
        ndarray of float32, shape (texts, num_labels)
            In the order of the texts. Bit-identical for every batch size where the manifest's check says so.

        Raises
        ------
        ValueError
            When the texts are one string, the pairs are not as many as the texts, or `batch_size` is below 1.
        """
        check_texts(texts, pairs, batch_size)
        inputs: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self._tokenizer.encode_batch(inputs)
        logits = np.empty((len(encodings), self._width()), dtype=np.float32)
        for index, feed in self._batches(encodings, batch_size):
            logits[index] = self._session.run(None, feed)[0]
        return logits

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

    def _open(self, folder: Path, threads: int | None) -> onnxruntime.InferenceSession:
        """Open the graph; refuse one that does not score these labels."""
        try:
            session = open_session(folder / MODEL, threads=threads)
        except Exception as error:  # onnxruntime raises classes of its own
            raise ValueError(
                f"onnxruntime cannot open {folder / MODEL}: {str(error).splitlines()[0]}. "
                "Export the model again."
            ) from error
        width, (output, *_) = self._width(), session.get_outputs()
        if isinstance(output.shape[-1], int) and output.shape[-1] != width:
            raise ValueError(
                f"{folder} has {width} label{'s' * (width != 1)} ({', '.join(self.labels)}), but its graph "
                f"gives {output.shape[-1]} numbers a text. Export the model again."
            )
        return session

    def _width(self) -> int:
        return 1 if self.is_regression else len(self.labels)

    def _batches(
        self, encodings: Sequence[Encoding], batch_size: int
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]]:
        """Cut the texts, longest first, into padded batches; yield their positions and the graph's inputs."""
        # A text without a single token is sent as one padding token.
        lengths = np.array([max(1, len(encoding.ids)) for encoding in encodings], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            longest = -(-int(lengths[index[0]]) // _MULTIPLE) * _MULTIPLE
            shape = (len(index), min(longest, self.manifest.positions))
            feed = {name: np.zeros(shape, dtype=np.int64) for name in self.manifest.inputs}
            feed["input_ids"].fill(self._pad)
            for row, position in enumerate(index):
                encoding, length = encodings[position], lengths[position]
                feed["input_ids"][row, :length] = encoding.ids or self._pad
                feed["attention_mask"][row, :length] = 1
                if "token_type_ids" in feed:
                    feed["token_type_ids"][row, :length] = encoding.type_ids or 0
            yield index, feed


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int) -> None:
    """Refuse arguments that would be misread.

    Parameters
    ----------
    texts, pairs, batch_size
        As for `Predictor.logits`.

    Raises
    ------
    ValueError
        As described there.
    """
    if isinstance(texts, str) or isinstance(pairs, str):
        raise ValueError("texts is one string, expected a list of strings: write [text]")
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"there are {len(texts)} texts but {len(pairs)} pairs, expected as many")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")


def _padding(folder: Path, tokenizer: Tokenizer) -> int:
    """Return the padding token's id from the configuration; refuse a tokenizer of another model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows, tokens = config.get("vocab_size"), tokenizer.get_vocab_size()
    if isinstance(rows, int) and tokens > rows:
        raise ValueError(
            f"{folder} has a tokenizer of {tokens:,} tokens, but its model knows {rows:,}: it belongs to "
            "another model. Export the model again."
        )
    return int(config.get("pad_token_id") or 0)
