"""Counts bytes while torch computes: what autograd saves, and what is allocated at one moment."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Live", "LiveTensors", "SavedForBackward", "storages"]


class Live:
    """Bytes of the storages that are held, each counted once, and the most there were at one moment.

    Attributes
    ----------
    now, peak : int
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}

    def hold(self, storage: torch.UntypedStorage, holder: object) -> None:
        """Count the storage for as long as `holder` lives."""
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self._holders:
            self.now += nbytes
            self.peak = max(self.peak, self.now)
        self._holders[key] = self._holders.get(key, 0) + 1
        weakref.finalize(holder, self._release, key, nbytes).atexit = False

    def holds(self, storage: torch.UntypedStorage) -> bool:
        """Tell whether the storage is counted at this moment."""
        return storage._cdata in self._holders

    def _release(self, key: int, nbytes: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.now -= nbytes


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of all tensors that are made while it is entered.

    It sees every tensor that passes torch's dispatcher, which leaves out only what a kernel allocates and
    frees inside itself.

    Parameters
    ----------
    known : set of int
        Storages that were there before, by the address of their implementation; they are not counted.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self._known = Live(), known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for storage in storages(tree_leaves(result)):
            if storage._cdata not in self._known and not self.live.holds(storage):
                self.live.hold(storage, storage)
        return result


class _Packed:
    """What autograd holds in place of a saved tensor; it dies when autograd lets go of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class SavedForBackward(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is saved for the backward pass, parameters and buffers excluded.

    To be entered together with its `hooks`: autograd hands over every tensor that it saves, and the mode
    learns which of them are autocast's copies of parameters.

    Parameters
    ----------
    model : torch.nn.Module
    batch : mapping of str to Tensor
        `input_ids`, of shape (batch, seq), tells how long the sequences are.

    Attributes
    ----------
    activations, attention, copies : Live
        What is held of the computed tensors, of those the attention scores, and copies of parameters.
    scores : object or None
        None when attention scores cannot be told apart by shape.
    """

    def __init__(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activations, self.attention, self.copies = Live(), Live(), Live()
        self.scores = _Scores.of(model, batch)
        own = storages([*model.parameters(), *model.buffers()])
        self._known = {storage._cdata for storage in own}

    def hooks(self) -> saved_tensors_hooks:
        """Return the context that sees every tensor that autograd saves."""
        return saved_tensors_hooks(self._pack, lambda packed: packed.tensor)

    def _pack(self, tensor: torch.Tensor) -> _Packed:
        packed = _Packed(tensor)
        for storage in storages([tensor]):
            if storage._cdata in self._known or self.copies.holds(storage):
                continue
            self.activations.hold(storage, packed)
            if self.scores is not None and self.scores.match(tensor):
                self.attention.hold(storage, packed)
        return packed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; remember its result if that is a parameter in another number format."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and any(
            storage._cdata in self._known for storage in storages(args[:1])
        ):
            for storage in storages([result]):
                self.copies.hold(storage, storage)
        return result


@dataclass(frozen=True)
class _Scores:
    """Tells attention scores from other tensors by their shape."""

    heads: int
    seq: int

    @classmethod
    def of(cls, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> _Scores | None:
        """Return None where the shapes of other tensors could be taken for scores, or nothing is known."""
        config = getattr(model, "config", None)
        heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
        if not heads or not width or "input_ids" not in batch:
            return None
        seq = batch["input_ids"].shape[1]
        widths = (width // heads, width, getattr(config, "intermediate_size", None))
        return None if seq in widths else cls(heads, seq)

    def match(self, tensor: torch.Tensor) -> bool:
        """Recognise (batch, heads, seq, seq), and (batch x heads, seq, seq) as a batched product has it."""
        folded = tensor.ndim == 3 and tensor.shape[0] % self.heads == 0
        unfolded = tensor.ndim == 4 and tensor.shape[1] == self.heads
        return (folded or unfolded) and tensor.shape[-2:] == (self.seq, self.seq)


def storages(values: Iterable[Any]) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of the tensors among `values`."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            yield value.untyped_storage()
