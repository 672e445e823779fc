"""What a teacher says about a batch, and at which positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Batch
from companion.training.objectives import model_inputs

__all__ = ["Pairs", "Taught", "ask", "borrowed", "logits_at", "ready", "same_vocabulary"]

Pairs = tuple[tuple[int, int], ...]
"""Hidden states that are compared: (student's, teacher's). 0 is the embeddings' output, i that of the i-th
layer counted from 1, -1 the last."""


@dataclass(frozen=True)
class Taught:
    """A teacher's answers for one batch.

    Attributes
    ----------
    logits : Tensor
        (batch, labels).
    hidden : tuple of Tensor
        One per asked layer: the states of the tokens that are not padding, row after row, (tokens, hidden).
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


def ask(teacher: PreTrainedModel, batch: Batch, layers: Sequence[int] = ()) -> Taught:
    """Run a teacher without gradients and without dropout.

    Parameters
    ----------
    teacher : PreTrainedModel
        Is put into evaluation mode and onto the batch's device; see `borrowed`.
    batch : dict
        With ``input_ids`` and ``attention_mask``, (batch, seq).
    layers : sequence of int
        Which hidden states to return.

    Returns
    -------
    Taught
    """
    teacher = ready(teacher, batch)
    with torch.no_grad():
        output = teacher(**model_inputs(batch), output_hidden_states=bool(layers))
    real = batch["attention_mask"].bool()
    return Taught(output.logits, tuple(output.hidden_states[layer][real] for layer in layers))


def logits_at(
    model: PreTrainedModel, batch: Batch, chosen: torch.Tensor, *, hidden_states: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Compute a masked language model's logits at some positions only.

    A vocabulary of 30,522 makes the output layer of a small encoder dearer than the encoder. The head sees
    nothing but the chosen positions; the encoder sees them all.

    Parameters
    ----------
    model : PreTrainedModel
        With a head that reads the encoder's last hidden states position by position.
    batch : dict
        With ``input_ids`` and ``attention_mask``, (batch, seq).
    chosen : Tensor
        bool (batch, seq).
    hidden_states : bool
        Whether to return the encoder's too.

    Returns
    -------
    logits : Tensor
        (chosen, vocabulary), row after row.
    hidden_states : tuple of Tensor
        Each (batch, seq, hidden); empty unless asked for.

    Raises
    ------
    ValueError
        When the head does not work position by position.
    """

    def narrow(_module: object, _arguments: object, output: object) -> object:
        output.last_hidden_state = output.last_hidden_state[chosen].unsqueeze(0)  # type: ignore[attr-defined]
        return output

    hook = model.base_model.register_forward_hook(narrow)
    try:
        output = model(**model_inputs(batch), output_hidden_states=hidden_states)
    finally:
        hook.remove()
    logits = output.logits
    if logits.shape[:2] != (1, int(chosen.sum())):
        raise ValueError(
            f"the head of {type(model).__name__} gave logits of shape {tuple(logits.shape)} for "
            f"{int(chosen.sum())} positions: expected a masked language model's head"
        )
    return logits[0], tuple(output.hidden_states or ())


@contextmanager
def borrowed(teacher: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Give a teacher back on the device and in the mode that it came in. Its weights never change.

    Parameters
    ----------
    teacher : PreTrainedModel

    Yields
    ------
    PreTrainedModel
        The same one.
    """
    device, was_training = teacher.device, teacher.training
    try:
        yield teacher
    finally:
        torch.nn.Module.to(teacher, device)
        teacher.train(was_training)


def same_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse a student and a teacher that would read the same ids as different texts.

    Raises
    ------
    ValueError
        When vocabulary, special tokens or the kinds of input differ.
    """
    if student.get_vocab() != teacher.get_vocab():
        own, given = student.get_vocab(), teacher.get_vocab()
        moved = sum(given.get(token) != place for token, place in own.items())
        raise ValueError(
            f"the tokenizers differ: {moved} of the student's {len(own)} tokens have another id, or none, in "
            f"the teacher's {len(given)}. Expected one vocabulary: take a student made from this teacher"
        )
    if student.all_special_ids != teacher.all_special_ids:
        raise ValueError(
            f"the tokenizers have different special tokens: {student.all_special_tokens} and "
            f"{teacher.all_special_tokens}; expected the same"
        )
    if student.model_input_names != teacher.model_input_names:
        raise ValueError(
            f"the student is fed {', '.join(student.model_input_names)}, the teacher "
            f"{', '.join(teacher.model_input_names)}: expected the same, or the teacher would be asked about "
            "pairs of texts without knowing where the second begins"
        )


def ready(teacher: PreTrainedModel, batch: Batch) -> PreTrainedModel:
    """Put a teacher where the batch is, without dropout."""
    device = batch["input_ids"].device
    if teacher.device != device:
        torch.nn.Module.to(teacher, device)
    teacher.eval()
    return teacher
