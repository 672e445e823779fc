"""Between the batches of other people's loaders and the ones that checks look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.data import Batch
from companion.debugging.adapters.calls import kind_of

__all__ = ["BatchForm", "form_of", "joined", "read_batches"]

_NAMES: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("input_ids", "ids", "tokens", "token_ids", "x", "inputs", "idx", "src", "text"),
    "attention_mask": ("attention_mask", "mask", "padding_mask", "pad_mask"),
    "labels": ("labels", "label", "targets", "target", "y"),
}
_INVERTED = ("key_padding_mask", "src_key_padding_mask")
_IGNORED = -100


@dataclass(frozen=True)
class BatchForm:
    """How a loader's batches look.

    Attributes
    ----------
    names : mapping of str to str
        Where ``input_ids``, ``attention_mask`` and ``labels`` are: under which key, or at which place.
    as_tuple : bool
        Whether batches are tuples; their first item may be a dict of the inputs.
    inner : mapping of str to str
        The keys of that dict.
    inverted : bool
        Whether the mask is true where there is padding.
    rebuild : callable
        Makes the loader's kind of mapping or sequence again.
    """

    names: Mapping[str, Any]
    as_tuple: bool
    inner: Mapping[str, str]
    inverted: bool
    rebuild: Callable[[Any], Any]

    def read(self, raw: Any) -> Batch:
        """Return a batch as checks look at it: at least ``input_ids`` and ``attention_mask``, on the CPU."""
        if self.as_tuple and self.inner:
            items = {**self._read_mapping(raw[0], self.inner), "labels": raw[1]}
        elif self.as_tuple:
            items = {name: raw[place] for name, place in self.names.items()}
        else:
            items = self._read_mapping(raw, self.names)
        batch = {name: _tensor(value) for name, value in items.items() if _is_numbers(value)}
        if self.inverted and "attention_mask" in batch:
            batch["attention_mask"] = ~batch["attention_mask"].bool()
        mask = batch.get("attention_mask")
        batch["attention_mask"] = torch.ones_like(batch["input_ids"]) if mask is None else mask.long()
        return batch

    def write(self, batch: Batch) -> Any:
        """Return a batch as the loader would have made it."""
        batch = dict(batch)
        if self.inverted and "attention_mask" in batch:
            batch["attention_mask"] = batch["attention_mask"] == 0
        if self.as_tuple and self.inner:
            return self.rebuild([_renamed(batch, self.inner, without="labels"), batch["labels"]])
        if self.as_tuple:
            return self.rebuild([batch[name] for name in self.names])
        return self.rebuild(_renamed(batch, self.names))

    def _read_mapping(self, raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        standard = {key: name for name, key in names.items()}
        return {standard.get(key, key): value for key, value in raw.items()}


def form_of(raw: Any) -> BatchForm:
    """Find out how a loader's batches look from one of them.

    Parameters
    ----------
    raw : mapping or sequence
        A mapping with token ids under ``input_ids`` or another usual name; or (inputs, labels) or (inputs,
        mask, labels), where inputs are token ids or such a mapping.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if isinstance(raw, Mapping):
        names, inverted = _keys(raw)
        return BatchForm(names, False, {}, inverted, _maker(raw))
    if isinstance(raw, Sequence) and not isinstance(raw, str) and len(raw) in (1, 2, 3):
        rebuild: Callable[[Any], Any] = list if isinstance(raw, list) else tuple
        if isinstance(raw[0], Mapping) and len(raw) == 2:
            inner, inverted = _keys(raw[0])
            return BatchForm({"labels": 1}, True, inner, inverted, rebuild)
        if all(isinstance(part, Tensor) for part in raw):
            order = {1: ("input_ids",), 2: ("input_ids", "labels")}
            places = order.get(len(raw), ("input_ids", "attention_mask", "labels"))
            return BatchForm({name: place for place, name in enumerate(places)}, True, {}, False, rebuild)
    if isinstance(raw, Tensor):
        return BatchForm({"input_ids": 0}, True, {}, False, lambda parts: parts[0])
    found = kind_of(raw) + (f" of {len(raw)}" if isinstance(raw, Sequence) else "")
    raise ValueError(
        f"a batch of the loader is {found}, expected a dict with input_ids, or (inputs, labels), "
        "or (inputs, mask, labels)"
    )


def read_batches(loader: Iterable[Any], limit: int) -> tuple[list[Batch], BatchForm | None]:
    """Read the first batches of a loader, and how they look; None for an empty one."""
    raws = list(islice(iter(loader), limit))
    if not raws:
        return [], None
    form = form_of(raws[0])
    return [form.read([raw] if isinstance(raw, Tensor) else raw) for raw in raws], form


def joined(parts: Sequence[Batch], pad_token_id: int) -> Batch:
    """Put micro-batches back together, padded on the right to the width of the widest."""
    if len(parts) == 1:
        return dict(parts[0])
    fillers = {"input_ids": pad_token_id, "labels": _IGNORED}
    whole: dict[str, Tensor] = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0].dim() > 1:
            width = max(tensor.size(1) for tensor in tensors)
            filler = fillers.get(name, 0)
            tensors = [functional.pad(item, (0, width - item.size(1)), value=filler) for item in tensors]
        whole[name] = torch.cat(tensors)
    return whole


def _keys(raw: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """Return under which keys of a mapping things are, and whether its mask is true at padding."""
    names = {
        name: next(key for key in keys if key in raw)
        for name, keys in _NAMES.items()
        if any(key in raw for key in keys)
    }
    inverted = next((key for key in _INVERTED if key in raw), None)
    if inverted is not None:
        names["attention_mask"] = inverted
    if "input_ids" not in names:
        raise ValueError(f"a batch of the loader has the keys {', '.join(map(str, raw))}, expected input_ids")
    return names, inverted is not None


def _maker(raw: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return what makes such a mapping again: loops call methods of it, such as ``batch.to(device)``."""
    kind = type(raw)
    if kind is dict or not hasattr(raw, "to"):
        return dict
    return lambda items: kind(items)  # type: ignore[call-arg]


def _renamed(batch: Batch, names: Mapping[str, str], without: str = "") -> dict[str, Tensor]:
    # A mask that the loader did not make is not given back: the loop would not know it.
    kept = {name: value for name, value in batch.items() if name != without}
    if "attention_mask" not in names:
        kept.pop("attention_mask", None)
    return {names.get(name, name): value for name, value in kept.items()}


def _is_numbers(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    try:
        return torch.as_tensor(value).dim() > 0
    except (TypeError, ValueError, RuntimeError):
        return False  # texts and names that a loader carries along


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().cpu()
