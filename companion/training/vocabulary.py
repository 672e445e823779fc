"""Trains only the rows of the embedding table that the training texts use.

Of the 30,522 rows of BERT's table a fine-tuning run touches a few thousand. The others have no gradient, but
an optimizer that does not know this reads and writes their weights and both of their moments at every step,
and the backward pass fills their gradients with zeros. Leaving them out changes nothing but the time: the one
thing that happens to an unused row is weight decay, and that is one factor for all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["UsedRows", "use_rows", "whole_table"]


class UsedRows(nn.Module):
    """An embedding table cut down to the rows that can change.

    Parameters
    ----------
    full : torch.nn.Embedding
        Left as it is until `restored`.
    used : Tensor
        The rows that can change: sorted ids, int64 (rows,).
    """

    place: torch.Tensor
    table: torch.Tensor
    decay: torch.Tensor

    def __init__(self, full: nn.Embedding, used: torch.Tensor) -> None:
        super().__init__()
        self._full = [full]  # in a list, so that its parameters are not ours
        self.weight = nn.Parameter(full.weight.detach()[used].clone())
        place = torch.full((full.num_embeddings,), -1)
        place[used] = torch.arange(len(used))
        self.register_buffer("place", place)
        self.register_buffer("table", full.weight.detach())
        self.register_buffer("decay", torch.ones((), dtype=torch.float64))
        self.padding = None if full.padding_idx is None else int(place[full.padding_idx])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look ids up: (batch, seq) to (batch, seq, hidden)."""
        place = self.place[input_ids]
        if self.training:
            return functional.embedding(place, self.weight, self.padding)
        known = functional.embedding(place.clamp(min=0), self.weight)
        idle = functional.embedding(input_ids, self.table) * self.decay.to(self.table.dtype)
        return torch.where((place >= 0).unsqueeze(-1), known, idle)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the optimizer's weight decay to the rows that it does not see, after each of its steps."""
        group = next(
            group for group in optimizer.param_groups if any(p is self.weight for p in group["params"])
        )

        def shrink(*_: Any) -> None:
            self.decay.mul_(1 - group["lr"] * group["weight_decay"])

        optimizer.register_step_post_hook(shrink)

    @torch.no_grad()
    def restored(self) -> nn.Embedding:
        """Return the whole table, trained."""
        [full] = self._full
        weight = self.weight.full_tensor() if hasattr(self.weight, "full_tensor") else self.weight
        full.weight.copy_(whole_table(weight, self.table, self.place, self.decay))
        return full


def whole_table(
    weight: torch.Tensor, table: torch.Tensor, place: torch.Tensor, decay: torch.Tensor
) -> torch.Tensor:
    """Put the trained rows back among the others.

    Parameters
    ----------
    weight : Tensor
        The trained rows, (rows, hidden).
    table : Tensor
        The whole table as it was before, (vocabulary, hidden).
    place : Tensor
        The position of each id in `weight`, -1 for the others; int64 (vocabulary,).
    decay : Tensor
        What weight decay has left of the others; a scalar.

    Returns
    -------
    Tensor
        (vocabulary, hidden).
    """
    whole = table * decay.to(table.dtype)
    whole[place >= 0] = weight
    return whole


def use_rows(model: Any, used: torch.Tensor) -> UsedRows | None:
    """Put `UsedRows` in the place of a model's input embeddings, where that is possible and pays.

    Parameters
    ----------
    model : PreTrainedModel
        On the CPU.
    used : Tensor
        The ids of the training texts, sorted, int64.

    Returns
    -------
    UsedRows or None
        None, with the model as it was, when the table is frozen, shared with the output layer or no plain
        `torch.nn.Embedding`, or when nearly all of its rows are used.
    """
    full = model.get_input_embeddings()
    if type(full) is not nn.Embedding or not full.weight.requires_grad or full.max_norm or full.sparse:
        return None
    shared = sum(parameter is full.weight for _, parameter in model.named_parameters(remove_duplicate=False))
    if shared > 1 or len(used) > 0.9 * full.num_embeddings:
        return None
    rows = UsedRows(full, used)
    model.set_input_embeddings(rows)
    return rows
