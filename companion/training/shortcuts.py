"""Work that a training step can leave out without changing what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from companion.artifacts import machine
from companion.training.objectives import Classification, Objective, Regression

__all__ = ["FastDropout", "dropout_drawn_fast", "first_position_only", "shortcuts"]

_READS_THE_FIRST = ("BertForSequenceClassification", "RobertaForSequenceClassification")


@contextmanager
def shortcuts(model: nn.Module, objective: Objective, device: torch.device) -> Iterator[None]:
    """Take every shortcut that fits a run, until its end."""
    with ExitStack() as stack:
        if type(objective) in (Classification, Regression):  # others may read hidden states
            stack.enter_context(first_position_only(model))
        stack.enter_context(dropout_drawn_fast(model, device))
        yield


@contextmanager
def first_position_only(model: Any) -> Iterator[None]:
    """Compute the last layer's feed-forward block, and what follows, for the first token alone.

    A BERT classifier reads that token and no other, so the other positions of the last block have no
    gradient. Evaluation is left alone.

    Parameters
    ----------
    model : PreTrainedModel
        Models whose head reads something else are left as they are.
    """
    if type(model).__name__ not in _READS_THE_FIRST:
        yield
        return

    def cut(module: nn.Module, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return tuple(state[:, :1] for state in states) if module.training else None

    # The attention's output block takes the attended values and the residual, both (batch, seq, hidden).
    handle = model.base_model.encoder.layer[-1].attention.output.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


class FastDropout(nn.Dropout):
    """Dropout whose mask is drawn from whole random words.

    On CPUs that are not Intel's, torch draws one double per element, one after the other. One 32-bit word per
    element decides as well, to a probability that is off by less than 2^-32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Zero each element with probability `p`, and scale up the others."""
        if not self.training or self.p == 0:
            return input
        below = round(self.p * 2**32)
        words = torch.empty(-(-input.numel() // 2), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int32)[: input.numel()].view(input.shape)  # uniform from -2^31
        keep = (drawn >= below - 2**31).to(input.dtype)
        return input * keep.mul_(1 / (1 - below / 2**32))


@contextmanager
def dropout_drawn_fast(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put `FastDropout` in the place of a model's dropout layers, where it is faster.

    Parameters
    ----------
    model : torch.nn.Module
    device : torch.device
        Nothing is done on a GPU, nor on Intel's CPUs, where torch has a fast generator of its own.
    """
    with ExitStack() as undo:
        if device.type == "cpu" and "intel" not in str(machine()["cpu"]).lower():
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if type(child) is nn.Dropout and 0 < child.p < 1:
                        fast = FastDropout(child.p)
                        fast.train(child.training)
                        setattr(parent, name, fast)
                        undo.callback(setattr, parent, name, child)
        yield
