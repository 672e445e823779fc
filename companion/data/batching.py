"""Batches of token ids: which examples share one, and in which order they come."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, overload

import torch
from torch.utils.data import DataLoader, Dataset

from companion.data.encoding import Batch, Encoded, Encoder
from companion.data.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["WINDOW_BATCHES", "Batch", "Batches", "StreamedBatches", "batches"]

WINDOW_BATCHES = 100
"""Batches in a window: examples are sorted by length inside a window, so lengths stay mixed over time."""


@overload
def batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = ...,
    max_length: int = ...,
    shuffle: bool = ...,
    seed: int = ...,
    epoch: int = ...,
    bucket: bool = ...,
    multiple_of: int = ...,
    workers: int = ...,
    regression: bool = ...,
) -> Batches: ...
@overload
def batches(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = ...,
    max_length: int = ...,
    shuffle: bool = ...,
    seed: int = ...,
    epoch: int = ...,
    bucket: bool = ...,
    multiple_of: int = ...,
    workers: int = ...,
    regression: bool = ...,
) -> Batches | StreamedBatches: ...
def batches(
    examples: Sequence[Example] | Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
    max_length: int = 128,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    bucket: bool = True,
    multiple_of: int = 8,
    workers: int = 0,
    regression: bool = False,
) -> Batches | StreamedBatches:
    """Tokenize examples and cut them into padded batches; each example appears exactly once.

    Parameters
    ----------
    examples : sequence or iterable of Example
        A sequence is tokenized once, here. Anything else is a stream: it is read in windows of
        `WINDOW_BATCHES` batches and never held as a whole.
    tokenizer : transformers fast tokenizer
        Must have a padding token.
    batch_size : int
        Examples in a batch; only the last one cut may have fewer.
    max_length : int
        Longer texts are cut to this many tokens, special ones included.
    shuffle : bool
        New random order for each (`seed`, `epoch`): of a whole sequence, of each window of a stream.
    seed, epoch : int
        Where the random order comes from; the global random state is neither read nor changed.
    bucket : bool
        Put texts of like length together, which saves padding. Without `shuffle` a sequence is then sorted
        as a whole, longest first; `index` restores the input order.
    multiple_of : int
        Widths are rounded up to a multiple of this many tokens.
    workers : int
        Processes that build batches of a sequence; the batches do not depend on it. No effect on a stream.
    regression : bool
        Whether labels are numbers.

    Returns
    -------
    Batches or StreamedBatches
        Iterable of dicts: `input_ids` and `attention_mask`, int64 (batch, seq); `token_type_ids`, the same,
        for pairs, if the tokenizer makes them; `labels` (batch,), int64 or, for regression, float32, if the
        examples have labels; `index`, int64 (batch,), positions in `examples`. Only `Batches` has a length.

    Raises
    ------
    ValueError
        If a number is out of range, the tokenizer has no padding token, only some examples have a label or a
        pair, or a label is of the wrong kind.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("max_length", max_length, 1),
        ("multiple_of", multiple_of, 1),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    encoder = Encoder.of(tokenizer, max_length=max_length, multiple_of=multiple_of, regression=regression)
    order = _Order(batch_size, shuffle=shuffle, bucket=bucket, seed=seed, epoch=epoch)
    if isinstance(examples, Sequence):
        return Batches(encoder.encode(examples, 0), encoder, order, workers)
    return StreamedBatches(examples, encoder, order)


@dataclass(frozen=True)
class _Order:
    """Which examples share a batch, and in which order the batches come."""

    batch_size: int
    shuffle: bool
    bucket: bool
    seed: int
    epoch: int

    @property
    def window(self) -> int:
        """Examples in a window."""
        return WINDOW_BATCHES * self.batch_size

    def generator(self) -> random.Random:
        """Fresh random numbers for this seed and epoch."""
        return random.Random(f"companion/batches/{self.seed}/{self.epoch}")

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Batches of positions for a whole sequence with these token counts."""
        positions = list(range(len(lengths)))
        if not self.shuffle:
            if self.bucket:
                positions.sort(key=lambda position: -lengths[position])
            return self._cut(positions)
        rng = self.generator()
        rng.shuffle(positions)
        if not self.bucket:
            return self._cut(positions)
        plan: list[list[int]] = []
        for start in range(0, len(positions), self.window):
            plan += self._cut(sorted(positions[start : start + self.window], key=lengths.__getitem__))
        rng.shuffle(plan)
        return plan

    def plan_window(self, lengths: Sequence[int], rng: random.Random) -> list[list[int]]:
        """Batches of positions inside one window of a stream."""
        positions = list(range(len(lengths)))
        if self.shuffle:
            rng.shuffle(positions)
        if self.bucket:
            positions.sort(key=lengths.__getitem__)
        plan = self._cut(positions)
        if self.shuffle:
            rng.shuffle(plan)
        return plan

    def _cut(self, positions: Sequence[int]) -> list[list[int]]:
        starts = range(0, len(positions), self.batch_size)
        return [list(positions[start : start + self.batch_size]) for start in starts]


class _Rows(Dataset[Encoded]):
    """Tokenized examples as torch's DataLoader wants them."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Encoded:
        return self._rows[position]


class Batches:
    """Batches of a sequence: tokenized once, iterated as often as wanted, always in the same order.

    Made by `batches`.
    """

    def __init__(
        self, rows: Sequence[Encoded], encoder: Encoder, order: _Order, workers: int, first: int = 0
    ) -> None:
        self._rows, self._encoder, self._order, self._workers = rows, encoder, order, workers
        self._first = first

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return -(-len(self._rows) // self._order.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        plan = self._order.plan([len(row.input_ids) for row in self._rows])[self._first :]
        loader: DataLoader[Batch] = DataLoader(
            _Rows(self._rows),  # type: ignore[arg-type]
            batch_sampler=plan,
            collate_fn=self._encoder.collate,
            num_workers=self._workers,
            # A generator of its own: without one the loader draws from torch's global random state.
            generator=torch.Generator().manual_seed(self._order.seed),
        )
        return iter(loader)

    def at(self, epoch: int, first: int = 0) -> Batches:
        """Return the same examples in the order of an epoch, from one of its batches on.

        Nothing is tokenized again, and the batches before `first` are not made.
        """
        return Batches(self._rows, self._encoder, replace(self._order, epoch=epoch), self._workers, first)

    def token_ids(self) -> torch.Tensor:
        """Return the token ids that occur, padding included: sorted, int64 (ids,)."""
        used = {self._encoder.pad_id}.union(*(row.input_ids for row in self._rows))
        return torch.tensor(sorted(used))


class StreamedBatches:
    """Batches of a stream: at most one window of examples in memory.

    Made by `batches`. A stream that can be read only once (a generator) can be iterated only once.
    """

    def __init__(self, examples: Iterable[Example], encoder: Encoder, order: _Order) -> None:
        self._examples, self._encoder, self._order = examples, encoder, order
        self._read = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; a stream that can be read only once raises ValueError the second time."""
        return self.at(self._order.epoch)

    def at(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Read the stream in the order of an epoch, and skip its first batches.

        Those are read and tokenized too: a stream has no index.
        """
        stream = iter(self._examples)
        if stream is self._examples and self._read:
            raise ValueError("this stream has been read already; open it again and make new batches of it")
        self._read = True
        return islice(self._windows(stream, replace(self._order, epoch=epoch)), first, None)

    def _windows(self, stream: Iterator[Example], order: _Order) -> Iterator[Batch]:
        rng = order.generator()
        first = 0
        while window := list(islice(stream, order.window)):
            rows = self._encoder.encode(window, first)
            first += len(window)
            for positions in order.plan_window([len(row.input_ids) for row in rows], rng):
                yield self._encoder.collate([rows[position] for position in positions])
