"""Padded batches of token ids: the one module of `companion.data` that imports torch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import torch
from torch.utils.data import DataLoader, Dataset

from companion.data.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["WINDOW_BATCHES", "Batch", "Batches", "StreamedBatches", "batches"]

Batch = dict[str, torch.Tensor]

WINDOW_BATCHES = 50
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
    encoder = _Encoder.of(tokenizer, max_length=max_length, multiple_of=multiple_of, regression=regression)
    order = _Order(batch_size, shuffle=shuffle, bucket=bucket, seed=seed, epoch=epoch)
    if isinstance(examples, Sequence):
        return Batches(encoder.encode(examples, 0), encoder, order, workers)
    return StreamedBatches(examples, encoder, order)


@dataclass(frozen=True)
class _Encoded:
    """One tokenized example."""

    index: int
    input_ids: list[int]
    token_type_ids: list[int] | None
    label: int | float | None


@dataclass(frozen=True)
class _Encoder:
    """Text to ids, and ids to a padded batch."""

    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    pad_left: bool
    max_length: int
    multiple_of: int
    regression: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, **options: Any) -> _Encoder:
        pad_id = tokenizer.pad_token_id
        if not isinstance(pad_id, int):
            raise ValueError(
                f"{type(tokenizer).__name__} has no padding token; set one first, for example "
                "`tokenizer.pad_token = tokenizer.eos_token`"
            )
        return cls(tokenizer, pad_id, tokenizer.padding_side == "left", **options)

    def encode(self, examples: Sequence[Example], first: int) -> list[_Encoded]:
        """Tokenize `examples`, whose positions start at `first`."""
        if not examples:
            return []
        paired = examples[0].pair is not None
        labelled = examples[0].label is not None
        for index, example in enumerate(examples, start=first):
            self._check(example, index, paired=paired, labelled=labelled)
        special = self.tokenizer.num_special_tokens_to_add(pair=paired)
        if self.max_length <= special + paired:
            raise ValueError(f"max_length is {self.max_length}, but {special} special tokens alone must fit")
        texts = [example.text for example in examples]
        pairs = [example.pair or "" for example in examples] if paired else None
        encoding = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
        types = encoding.get("token_type_ids") if paired else None
        return [
            _Encoded(index, ids, types[index - first] if types is not None else None, example.label)
            for index, ids, example in zip(
                range(first, first + len(examples)), encoding["input_ids"], examples, strict=True
            )
        ]

    def _check(self, example: Example, index: int, *, paired: bool, labelled: bool) -> None:
        if (example.pair is not None) != paired:
            raise ValueError(f"example {index}: only some have a second text; give all of them one, or none")
        if (example.label is not None) != labelled:
            raise ValueError(f"example {index}: only some have a label; give all of them one, or none")
        if labelled and not self.regression and not isinstance(example.label, int):
            raise ValueError(
                f"example {index}: label {example.label!r} is not a class index; for a numeric target pass "
                "`regression=True`"
            )

    def collate(self, rows: Sequence[_Encoded]) -> Batch:
        """Pad `rows` to one width."""
        longest = max(len(row.input_ids) for row in rows)
        width = max(-(-longest // self.multiple_of) * self.multiple_of, self.multiple_of)
        input_ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
        batch: Batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if rows[0].token_type_ids is not None:
            batch["token_type_ids"] = torch.zeros((len(rows), width), dtype=torch.int64)
        for position, row in enumerate(rows):
            length = len(row.input_ids)
            place = slice(width - length, width) if self.pad_left else slice(0, length)
            input_ids[position, place] = torch.tensor(row.input_ids, dtype=torch.int64)
            attention_mask[position, place] = 1
            if row.token_type_ids is not None:
                batch["token_type_ids"][position, place] = torch.tensor(row.token_type_ids, dtype=torch.int64)
        if rows[0].label is not None:
            kind = torch.float32 if self.regression else torch.int64
            batch["labels"] = torch.tensor([row.label for row in rows], dtype=kind)
        batch["index"] = torch.tensor([row.index for row in rows], dtype=torch.int64)
        return batch


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


class _Rows(Dataset[_Encoded]):
    """Tokenized examples as torch's DataLoader wants them."""

    def __init__(self, rows: Sequence[_Encoded]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> _Encoded:
        return self._rows[position]


class Batches:
    """Batches of a sequence: tokenized once, iterated as often as wanted, always in the same order.

    Made by `batches`.
    """

    def __init__(self, rows: Sequence[_Encoded], encoder: _Encoder, order: _Order, workers: int) -> None:
        self._rows, self._encoder, self._order, self._workers = rows, encoder, order, workers

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._rows) // self._order.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        plan = self._order.plan([len(row.input_ids) for row in self._rows])
        loader: DataLoader[Batch] = DataLoader(
            _Rows(self._rows),  # type: ignore[arg-type]
            batch_sampler=plan,
            collate_fn=self._encoder.collate,
            num_workers=self._workers,
            # A generator of its own: without one the loader draws from torch's global random state.
            generator=torch.Generator().manual_seed(self._order.seed),
        )
        return iter(loader)

    def at_epoch(self, epoch: int) -> Batches:
        """Return the same examples in the order of another epoch, without tokenizing again."""
        return Batches(self._rows, self._encoder, replace(self._order, epoch=epoch), self._workers)


class StreamedBatches:
    """Batches of a stream: at most one window of examples in memory.

    Made by `batches`. A stream that can be read only once (a generator) can be iterated only once.
    """

    def __init__(self, examples: Iterable[Example], encoder: _Encoder, order: _Order) -> None:
        self._examples, self._encoder, self._order = examples, encoder, order
        self._read = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; a stream that can be read only once raises ValueError the second time."""
        stream = iter(self._examples)
        if stream is self._examples and self._read:
            raise ValueError("this stream has been read already; open it again and make new batches of it")
        self._read = True
        return self._windows(stream)

    def _windows(self, stream: Iterator[Example]) -> Iterator[Batch]:
        rng = self._order.generator()
        first = 0
        while window := list(islice(stream, self._order.window)):
            rows = self._encoder.encode(window, first)
            first += len(window)
            for positions in self._order.plan_window([len(row.input_ids) for row in rows], rng):
                yield self._encoder.collate([rows[position] for position in positions])
