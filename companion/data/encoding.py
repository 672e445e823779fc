"""Text to token ids, and ids to a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from companion.data.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "Encoded", "Encoder"]

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Encoded:
    """One tokenized example."""

    index: int
    input_ids: list[int]
    token_type_ids: list[int] | None
    label: int | float | None


@dataclass(frozen=True)
class Encoder:
    """Text to ids, and ids to a padded batch."""

    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    pad_left: bool
    max_length: int
    multiple_of: int
    regression: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Encoder:
        """Read what padding needs from the tokenizer."""
        pad_id = tokenizer.pad_token_id
        if not isinstance(pad_id, int):
            raise ValueError(
                f"{type(tokenizer).__name__} has no padding token; set one first, for example "
                "`tokenizer.pad_token = tokenizer.eos_token`"
            )
        return cls(tokenizer, pad_id, tokenizer.padding_side == "left", **options)

    def encode(self, examples: Sequence[Example], first: int) -> list[Encoded]:
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
        # A text without a single token becomes one padding token: something has to be attended to.
        ids = [row or [self.pad_id] for row in encoding["input_ids"]]
        types = encoding.get("token_type_ids") if paired else None
        return [
            Encoded(first + row, ids[row], None if types is None else types[row] or [0], example.label)
            for row, example in enumerate(examples)
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

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Pad `rows` to one width."""
        longest = max(len(row.input_ids) for row in rows)
        # Never wider than texts may be: a position table may end there.
        width = min(-(-longest // self.multiple_of) * self.multiple_of, self.max_length)
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
