"""Sees which rows of which table a model looks up, whatever the module that does it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Lookup", "lookups"]


@dataclass(frozen=True)
class Lookup:
    """One look into a table.

    Attributes
    ----------
    name : str
        The table's name in the model, without ``.weight``.
    weight : Tensor
        The table, (rows, width).
    rows : Tensor
        Int64, of any shape: the rows that were asked for.
    padding : int or None
        The row of the padding token, where the table's module says which that is.
    """

    name: str
    weight: Tensor
    rows: Tensor
    padding: int | None

    @property
    def first(self) -> list[int]:
        """The rows asked for by the first text."""
        if not self.rows.dim():
            return []
        return [int(row) for row in self.rows.reshape(-1, self.rows.size(-1))[0].tolist()]


@contextmanager
def lookups(model: nn.Module) -> Iterator[list[Lookup]]:
    """Collect what `torch.nn.functional.embedding` is asked for, of the model's own tables.

    What goes into a module says less: those of OPT and BART count the places themselves.
    """
    owners = {
        id(parameter): (
            f"{name}.{leaf}".lstrip(".").removesuffix(".weight"),
            getattr(module, "padding_idx", None),
        )
        for name, module in model.named_modules()
        for leaf, parameter in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    found: list[Lookup] = []
    real = functional.embedding

    def embedding(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if id(weight) in owners:
            name, padding = owners[id(weight)]
            found.append(Lookup(name, weight, input.detach().clone(), padding))
        return real(input, weight, *args, **kwargs)

    vars(functional)["embedding"] = embedding
    try:
        yield found
    finally:
        vars(functional)["embedding"] = real
