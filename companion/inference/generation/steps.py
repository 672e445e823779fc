"""Reading tokens and scoring what may follow: without a cache, with one, and with a compiled step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from companion.inference.generation.cost import Work
from companion.models.cache import FixedShapeCache, KeyValueCache
from companion.models.transformer import Transformer

__all__ = ["CompiledStep", "Reader", "WithCache", "WithCompiledStep", "WithoutCache", "compile_step"]


class Reader(Protocol):
    """Reads texts side by side, and says what may come next."""

    @property
    def work(self) -> Work:
        """What was computed so far."""

    def read(self, input_ids: Tensor) -> Tensor:
        """Read the next tokens, int64 (rows, new); return the scores of the words after: (rows, words).

        The first call reads the prompt.
        """

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; a row may come several times, or not at all."""


class WithoutCache:
    """Reads everything again for each token.

    Parameters
    ----------
    model : Transformer
    attention_mask : Tensor
        int64 (rows, seq), of the prompt.
    """

    def __init__(self, model: Transformer, attention_mask: Tensor) -> None:
        self.model, self.mask, self.work = model, attention_mask, Work()
        self.ids = attention_mask[:, :0]

    def read(self, input_ids: Tensor) -> Tensor:
        """Score the words after the last token, from the whole text."""
        self.ids = torch.cat((self.ids, input_ids), dim=1)
        self.mask = _covering(self.mask, self.ids.size(1))
        rows, length = self.ids.shape
        self.work = self.work.after(rows, length, length)
        return _last_scores(self.model, self.ids, self.mask)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]


class WithCache:
    """Reads each token once.

    Parameters
    ----------
    model : Transformer
    attention_mask : Tensor
        int64 (rows, seq), of the prompt.
    capacity : int
        Tokens that will be read of each row, at most.
    """

    def __init__(self, model: Transformer, attention_mask: Tensor, capacity: int) -> None:
        self.model, self.mask, self.work = model, attention_mask, Work()
        weight = model.head.weight
        self.cache = KeyValueCache(
            model.config, len(attention_mask), capacity=capacity, dtype=weight.dtype, device=weight.device
        )

    def read(self, input_ids: Tensor) -> Tensor:
        """Score the words after the last token, from the new tokens and the cache."""
        (rows, new), past = input_ids.shape, self.cache.length
        self.mask = _covering(self.mask, past + new)
        self.work = self.work.after(rows, new, past + new, self.cache.nbytes)
        return _last_scores(self.model, input_ids, self.mask, self.cache)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self.cache.select(rows)
        self.mask = self.mask[rows]


@dataclass(frozen=True)
class CompiledStep:
    """A decoder's step of one token, compiled once for each number of rows. `compile_step` makes it.

    Attributes
    ----------
    model : Transformer
    capacity : int
        Tokens of a text, at most. Each step attends over this many, filled or not.
    run : callable
        (ids, mask, position, keys, values) to scores (rows, words).
    """

    model: Transformer
    capacity: int
    run: Callable[[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]


def compile_step(
    model: Transformer, *, capacity: int | None = None, backend: str | Callable[..., Any] = "inductor"
) -> CompiledStep:
    """Compile the step of one token over a cache of fixed shapes, to be given to `generate`.

    Nothing is compiled yet: the first text of each number of rows does that, for some seconds.

    Parameters
    ----------
    model : Transformer
        A decoder in evaluation mode.
    capacity : int, optional
        Tokens of a text, prompt and new ones, at most. Default: the model's `max_length`. The step's time
        and the cache's memory follow the capacity, not the text: take the smallest that does.
    backend : str or callable
        Of `torch.compile`. ``inductor`` writes C++ on a CPU, and needs a compiler there; ``eager`` compiles
        nothing and shows what the fixed shapes alone cost.

    Returns
    -------
    CompiledStep

    Raises
    ------
    ValueError
        For a capacity beyond the model's, and where ``inductor`` finds no C++ compiler.
    """
    longest = model.config.max_length
    capacity = longest if capacity is None else capacity
    if not 1 <= capacity <= longest:
        raise ValueError(f"the capacity is {capacity} tokens, expected 1 to the model's {longest}")
    if backend == "inductor" and model.head.weight.device.type == "cpu":
        _require_compiler()

    def step(
        input_ids: Tensor, mask: Tensor, position: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        return _last_scores(model, input_ids, mask, FixedShapeCache(keys, values, position))

    # Steps of other models have the same source: isolated, they do not count as recompilations of this one.
    options: dict[str, Any] = {"dynamic": False, "fullgraph": True, "isolate_recompiles": True}
    return CompiledStep(model, capacity, torch.compile(step, backend=backend, **options))


class WithCompiledStep:
    """Reads the prompt as `WithCache` does, and each further token by the compiled step.

    The number of rows stays that of the first step: when rows are dropped, copies of others ride along, or
    the step would be compiled again.

    Parameters
    ----------
    compiled : CompiledStep
    attention_mask : Tensor
        int64 (rows, seq), of the prompt.
    """

    def __init__(self, compiled: CompiledStep, attention_mask: Tensor) -> None:
        self.compiled = compiled
        self.reader = WithCache(compiled.model, attention_mask, compiled.capacity)
        self.cache = self.reader.cache
        self.rooms: Tensor | None = None  # the mask of all of the cache, once steps begin

    @property
    def work(self) -> Work:
        """What was computed so far."""
        return self.reader.work

    def read(self, input_ids: Tensor) -> Tensor:
        """Score the words after the last token."""
        if not self.cache.length:
            return self.reader.read(input_ids)
        if self.rooms is None:
            mask = self.reader.mask
            self.rooms = mask.new_zeros(len(mask), self.compiled.capacity)
            self.rooms[:, : mask.size(1)] = mask
        rows, batch = len(input_ids), len(self.rooms)
        input_ids = torch.cat((input_ids, input_ids[:1].expand(batch - rows, -1)))
        position = torch.tensor([self.cache.length], device=input_ids.device)
        self.rooms.index_fill_(1, position, 1)
        scores = self.compiled.run(input_ids, self.rooms, position, self.cache.keys, self.cache.values)
        self.cache.length += 1
        self.reader.work = self.work.after(batch, 1, self.compiled.capacity, self.cache.nbytes)
        return scores[:rows]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        if self.rooms is None:
            self.reader.select(rows)
            return
        rows = torch.cat((rows, rows[:1].expand(len(self.rooms) - len(rows))))
        self.cache.select(rows)
        self.rooms = self.rooms[rows]


def _last_scores(model: Transformer, ids: Tensor, mask: Tensor, cache: KeyValueCache | None = None) -> Tensor:
    """Score the words after the last column alone: of a prompt, no other scores are needed."""
    hidden = model.encode(ids, mask, cache=cache)
    scores: Tensor = model.head(hidden[:, -1])
    return scores


def _covering(mask: Tensor, length: int) -> Tensor:
    """Return the mask of a text that has grown to `length` tokens by real ones."""
    return torch.cat((mask, mask.new_ones(len(mask), length - mask.size(1))), dim=1)


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "torch.compile writes C++, and no C++ compiler was found: install g++, or generate without a "
            'compiled step (backend="eager" tries the fixed shapes without compiling)'
        ) from error
