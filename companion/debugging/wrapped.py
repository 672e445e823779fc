"""Finds projections with an adapter of low rank beside them: by structure, not by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from companion.debugging.observing import Call, inside, is_linear, is_norm, same_tensor

__all__ = ["is_projection", "matrix_of", "projections", "wrapped_in"]


def wrapped_in(module: nn.Module) -> nn.Module | None:
    """Return the matrix that a module adds a product of two narrow ones to; None if it is no such module.

    A matrix (in, out) beside two of (in, r) and (r, out), in any orientation, with r less than both; no
    other matrix as large, and no norm.
    """
    if is_linear(module) or any(is_norm(part) for part in module.modules()):
        return None
    held = [part for part in module.modules() if part is not module and is_linear(part)]
    if not held:
        return None
    base = max(held, key=lambda part: _weight(part).numel())
    own = _weight(base)
    others = [p for p in module.parameters() if p is not own and p.dim() > 1]
    least = min(own.shape)
    if any(p.dim() > 2 or min(p.shape) >= least for p in others):
        return None
    sizes = [sorted(p.shape) for p in others]
    one, two = own.shape
    for index, narrow in enumerate(others):
        for rank in narrow.shape:
            rest = sizes[:index] + sizes[index + 1 :]
            if rank < least and sizes[index] == sorted((one, rank)) and sorted((rank, two)) in rest:
                return base
    return None


def is_projection(module: nn.Module) -> bool:
    """Whether a module is one matrix, or one with an adapter of low rank beside it."""
    return is_linear(module) or wrapped_in(module) is not None


def matrix_of(module: nn.Module) -> Tensor | None:
    """Return the matrix of a projection, also of a wrapped one; None of other modules."""
    if is_linear(module):
        return _weight(module)
    base = wrapped_in(module)
    return None if base is None else _weight(base)


def projections(model: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """Return the calls of matrices with tokens, in order: in place of a wrapped matrix's that of its wrapper.

    A wrapper gives the matrix what it was given itself, and takes nothing else.
    """
    by_module = {id(call.module): call for call in calls}
    wrappers: dict[int, str] = {}
    for name, module in model.named_modules():
        if id(module) not in by_module or any(inside(name, outer) for outer in wrappers.values()):
            continue
        call, base = by_module[id(module)], wrapped_in(module)
        if base is None or id(base) not in by_module or len(call.args) + len(call.kwargs) != 1:
            continue
        if same_tensor(call.input, by_module[id(base)].input):
            wrappers[id(module)] = name
    return [
        call
        for call in calls
        if call.input.dim() == 3
        and (
            id(call.module) in wrappers
            or (is_linear(call.module) and not any(inside(call.name, name) for name in wrappers.values()))
        )
    ]


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight")
