"""Texts in, logits out, with onnxruntime and a tokenizer and nothing else.

A server imports this module: it must never import torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from companion.inference.manifest import MODEL, Manifest, read_manifest
from companion.inference.processor import check_processor
from companion.inference.sessions import Memory, open_session
from companion.inference.throughput.grouping import by_length, padded_length

__all__ = ["OnnxPredictor", "Predictor", "TokenizedText", "probabilities_of"]


class TokenizedText(Protocol):
    """The tokens of a text, such as `tokenizers.Encoding`: all that a batch needs of it."""

    @property
    def ids(self) -> Sequence[int]:
        """Number of each token."""

    @property
    def type_ids(self) -> Sequence[int]:
        """Which text of a pair each token belongs to."""


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
    memory : Memory, optional
        How intermediate results get their memory: see `companion.inference.soak` for what that costs.
    anyway : bool
        Whether to open a folder even where its answers are wrong: to measure how wrong.

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
        self,
        folder: Path,
        *,
        threads: int | None = None,
        processor: Collection[str] | None = None,
        memory: Memory | None = None,
        anyway: bool = False,
    ) -> None:
        folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder)
        if not anyway:
            check_processor(folder, self.manifest.cpu_features, processor)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.manifest.max_length)
        self._pad = _padding(folder, self._tokenizer)
        memory = memory or Memory()
        self._session = self._open(folder, threads, memory)
        self._run_options = memory.run_options()

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
        encodings = self.encode(texts, pairs)
        logits = np.empty((len(encodings), self._width()), dtype=np.float32)
        for places in by_length([len(encoding.ids) for encoding in encodings], batch_size=batch_size):
            logits[places] = self.run([encodings[place] for place in places])
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

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoding]:
        """Turn texts into tokens: the first part of `logits`, for who groups texts into batches otherwise.

        Parameters
        ----------
        texts, pairs
            As for `logits`.

        Returns
        -------
        list of tokenizers.Encoding
            ``len(encoding.ids)`` is the number of tokens, at most `max_length`.
        """
        inputs: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return self._tokenizer.encode_batch(inputs)

    def feed(self, encodings: Sequence[TokenizedText]) -> dict[str, NDArray[np.int64]]:
        """Pad encoded texts to one batch.

        Parameters
        ----------
        encodings : sequence of TokenizedText
            At least one, such as `encode` gives.

        Returns
        -------
        dict of str to ndarray of int64, shape (texts, padded length)
            The graph's inputs.
        """
        # A text without a single token is sent as one padding token.
        lengths = [max(1, len(encoding.ids)) for encoding in encodings]
        longest = padded_length(max(lengths))
        shape = (len(encodings), min(longest, self.manifest.positions))
        feed = {name: np.zeros(shape, dtype=np.int64) for name in self.manifest.inputs}
        feed["input_ids"].fill(self._pad)
        for row, (encoding, length) in enumerate(zip(encodings, lengths, strict=True)):
            feed["input_ids"][row, :length] = encoding.ids or self._pad
            feed["attention_mask"][row, :length] = 1
            if "token_type_ids" in feed:
                feed["token_type_ids"][row, :length] = encoding.type_ids or 0
        return feed

    def run(self, encodings: Sequence[TokenizedText]) -> NDArray[np.float32]:
        """Compute the logits of one batch, as it is: the last part of `logits`.

        Several threads may call this at once.

        Parameters
        ----------
        encodings : sequence of TokenizedText
            At least one, such as `encode` gives.

        Returns
        -------
        ndarray of float32, shape (texts, num_labels)
            In their order.
        """
        logits: NDArray[np.float32] = self._session.run(None, self.feed(encodings), self._run_options)[0]
        return logits

    def _open(self, folder: Path, threads: int | None, memory: Memory) -> onnxruntime.InferenceSession:
        """Open the graph; refuse one that does not score these labels."""
        try:
            session = open_session(folder / MODEL, threads=threads, memory=memory)
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
