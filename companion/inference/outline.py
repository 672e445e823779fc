"""What a graph's file says about itself, read without the onnx package, which a server may not have.

An ONNX file is a protocol buffer: fields, each with a number and, where it holds text or a message, a length.
A handful of them is enough to name the inputs and to count the operators; the weights are jumped over.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outline", "outline"]

# Field numbers from onnx.proto: ModelProto.graph, GraphProto.node, GraphProto.input, NodeProto.op_type,
# ValueInfoProto.name.
_GRAPH, _NODE, _INPUT, _OPERATOR, _NAME = 7, 1, 11, 4, 1

_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}
"""Bytes of the kinds of fields that have no length of their own."""


@dataclass(frozen=True)
class Outline:
    """The outside of a graph.

    Attributes
    ----------
    inputs : tuple of str
    operators : dict of str to int
        How often each occurs in the main graph.
    """

    inputs: tuple[str, ...]
    operators: dict[str, int]


def outline(file: Path) -> Outline:
    """Read the names of a graph's inputs, and count its operators.

    Parameters
    ----------
    file : Path
        ``model.onnx``.

    Returns
    -------
    Outline

    Raises
    ------
    ValueError
        When the file is cut off, or is no ONNX graph.
    """
    inputs: list[str] = []
    operators: Counter[str] = Counter()
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for graph in _fields(data, 0, len(data), {_GRAPH}):
                for number, start, end in _fields(data, *graph[1:], {_NODE, _INPUT}):
                    wanted = _OPERATOR if number == _NODE else _NAME
                    names = [data[a:b].decode() for _, a, b in _fields(data, start, end, {wanted})]
                    if number == _NODE:
                        operators.update(names)
                    else:
                        inputs += names
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file} is no whole ONNX graph: {error}") from None
    return Outline(tuple(inputs), dict(operators))


def _fields(data: mmap.mmap, start: int, end: int, numbers: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the fields of a message that have a length and one of these numbers."""
    at = start
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
            continue
        if kind != _LENGTH and kind not in _FIXED:
            raise ValueError(f"a field of the unknown kind {kind} at byte {at}")
        size, at = _varint(data, at) if kind == _LENGTH else (_FIXED[kind], at)
        if at + size > end:
            raise ValueError(f"{at + size - end} bytes are missing at its end")
        if kind == _LENGTH and number in numbers:
            yield number, at, at + size
        at += size


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Read a number of any length, seven bits a byte, the lowest first; return it and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
