"""A teacher's answers for a whole training set, so that later passes need no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Batch, Example, batches
from companion.training.config import Precision
from companion.training.device import choose_device, choose_dtype
from companion.training.distillation.teacher import Taught, ask, borrowed

__all__ = ["TeacherCache"]


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """A teacher's answers for a fixed training set, by the position of each example.

    Attributes
    ----------
    logits : Tensor
        float32 (examples, labels).
    hidden : Tensor
        float16 (tokens, layers, hidden): the states of all tokens of all examples, padding left out.
    starts : Tensor
        int64 (examples + 1,): where the tokens of each example begin.
    marks : Tensor
        int64 (examples,): a number made of each example's ids, by which a batch of other texts is noticed.
    layers : tuple of int
        Which hidden states are held.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    starts: torch.Tensor
    marks: torch.Tensor
    layers: tuple[int, ...]

    @classmethod
    def compute(
        cls,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        *,
        layers: Sequence[int] = (),
        max_length: int = 128,
        batch_size: int = 32,
        precision: Precision = "auto",
    ) -> TeacherCache:
        """Ask a teacher about every example once.

        Parameters
        ----------
        teacher : PreTrainedModel
            Asked on the settings' device; given back as it came.
        tokenizer : PreTrainedTokenizerBase
        examples : sequence of Example
            In the order in which they are given to `companion.training.fit`; labels are ignored.
        layers : sequence of int
            Hidden states to keep: ``2 * hidden`` bytes per token and layer.
        max_length : int
            The same as in training.
        batch_size : int
        precision : {"auto", "fp32", "bf16", "fp16"}
            What the teacher computes in.

        Returns
        -------
        TeacherCache
        """
        device = choose_device()
        dtype = choose_dtype(precision, device)
        rows: list[torch.Tensor] = [torch.empty(0)] * len(examples)
        states: list[torch.Tensor] = [torch.empty(0)] * len(examples)
        marks = torch.zeros(len(examples), dtype=torch.int64)
        with borrowed(teacher), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            for batch in batches(
                [example._replace(label=None) for example in examples],
                tokenizer,
                batch_size=batch_size,
                max_length=min(max_length, int(tokenizer.model_max_length)),
                multiple_of=8 if dtype == torch.bfloat16 else 1,
            ):
                index = batch["index"]
                marks[index] = _marks(batch)
                taught = ask(teacher, {name: tensor.to(device) for name, tensor in batch.items()}, layers)
                for place, row in zip(index.tolist(), taught.logits.float().cpu(), strict=True):
                    rows[place] = row
                lengths = batch["attention_mask"].sum(dim=1).tolist()
                if layers:
                    kept = torch.stack(taught.hidden, dim=1).to("cpu", torch.float16)
                    for place, part in zip(index.tolist(), torch.split(kept, lengths), strict=True):
                        states[place] = part.clone()  # a view would keep the whole batch alive
                else:
                    for place, length in zip(index.tolist(), lengths, strict=True):
                        states[place] = torch.empty(length, 0)
        starts = torch.tensor([0] + [len(part) for part in states]).cumsum(0)
        hidden = torch.cat(states) if layers else torch.empty(0, 0, 0, dtype=torch.float16)
        return cls(torch.stack(rows), hidden, starts, marks, tuple(layers))

    @staticmethod
    def bytes_per_token(teacher: PreTrainedModel, layers: Sequence[int]) -> int:
        """Return what the hidden states of one token take, in bytes."""
        return int(torch.float16.itemsize * teacher.config.hidden_size * len(layers))

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        return sum(t.nbytes for t in (self.logits, self.hidden, self.starts, self.marks))

    def check(self, batch: Batch) -> None:
        """Refuse a batch of other texts than those that the teacher was asked about.

        Raises
        ------
        ValueError
            When an example's ids are not those at its place.
        """
        index = batch["index"]
        if int(index.max()) >= len(self.marks) or not torch.equal(self.marks[index], _marks(batch)):
            raise ValueError(
                "a batch holds other texts than the teacher's answers were computed for: expected the same "
                "examples in the same order, with the same tokenizer and max_length. To evaluate on others "
                "during a run, give `fit` the task too"
            )

    def taught(self, batch: Batch) -> Taught:
        """Look up the answers for a batch, on the batch's device."""
        index, device = batch["index"].cpu(), batch["index"].device
        logits = self.logits[index].to(device)
        if not self.layers:
            return Taught(logits, ())
        places = torch.cat(
            [torch.arange(int(self.starts[i]), int(self.starts[i + 1])) for i in index.tolist()]
        )
        return Taught(logits, self.hidden[places].to(device).unbind(dim=1))


def _marks(batch: Batch) -> torch.Tensor:
    """Make one number of each row's ids, the same however the row is padded."""
    mask = batch["attention_mask"]
    return (batch["input_ids"] * mask * mask.cumsum(dim=1)).sum(dim=1)
