"""The arithmetic of narrow numbers: matrices and tables in 8 or 4 bits, and their scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TINY", "affine_scale", "pair_sums", "quantize_blocks", "quantize_columns", "quantize_rows"]

TINY = float(np.finfo(np.float32).tiny)
"""The least scale: of a row or column of zeros."""


def quantize_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a matrix column by column, safe for 16-bit sums of neighbouring products.

    Activations are unsigned, at most 255. ``vpmaddubsw`` computes ``a0 * w0 + a1 * w1`` for neighbouring rows
    of the matrix, rows 0 and 1, 2 and 3, and so on. The sum fits 16 bits if neighbouring weights of one sign
    add up to at most 128. Scaling a column's largest such sum to 127 leaves room for rounding both up.

    Parameters
    ----------
    weight : ndarray of float32, shape (inputs, outputs)

    Returns
    -------
    quantized : ndarray of int8, shape (inputs, outputs)
    scale : ndarray of float32, shape (outputs,)
        ``quantized * scale`` is close to `weight`.
    """
    # Divided before they are added: a sum of two large weights could be infinite.
    scale = np.maximum(pair_sums(weight / 127), TINY).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def pair_sums(weight: NDArray[Any]) -> NDArray[Any]:
    """Add neighbouring weights of one sign; return the largest magnitude in each column.

    Times 255, the largest activation, it is the largest sum that ``vpmaddubsw`` can meet.

    Parameters
    ----------
    weight : ndarray, shape (inputs, outputs)
        Floats, or integers of at least 16 bits: what is added must fit.

    Returns
    -------
    ndarray, shape (outputs,)
    """
    # Rows 0 and 1, 2 and 3, and so on: the larger of the sum of what is positive and of what is negative.
    even = np.pad(weight, ((0, weight.shape[0] % 2), (0, 0)))
    positive, negative = np.maximum(even, 0), np.maximum(-even, 0)
    sums = np.maximum(positive[0::2] + positive[1::2], negative[0::2] + negative[1::2])
    largest: NDArray[Any] = sums.max(axis=0)
    return largest


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a table of embeddings row by row.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, width)

    Returns
    -------
    quantized : ndarray of int8, shape (rows, width)
    scale : ndarray of float32, shape (rows, 1)
    """
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, TINY).astype(np.float32)
    return np.rint(table / scale).astype(np.int8), scale


def quantize_blocks(
    weight: NDArray[np.float32], *, bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize each column of a matrix in blocks of rows, each with a scale of its own.

    The number of largest magnitude in a block lands on the end of the grid that has one step more, the
    negative one; its scale is negative where that number is positive.

    Parameters
    ----------
    weight : ndarray of float32, shape (inputs, outputs)
    bits : {2, 4, 8}
    block : int
        Rows that share a scale; a power of two. The last block may be shorter.

    Returns
    -------
    quantized : ndarray of uint8, shape (outputs, blocks, block * bits / 8)
        Around ``2 ** (bits - 1)``; as many to a byte as fit, the first in the lowest bits: the layout of
        onnxruntime's ``MatMulNBits``.
    scale : ndarray of float32, shape (outputs, blocks)

    Raises
    ------
    ValueError
        For other bits.
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"bits is {bits}, expected 2, 4 or 8")
    half = 2 ** (bits - 1)
    inputs, outputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.pad(weight, ((0, blocks * block - inputs), (0, 0))).T.reshape(outputs, blocks, block)
    largest = np.take_along_axis(padded, np.abs(padded).argmax(axis=2, keepdims=True), axis=2)
    scale = -largest / np.float32(half)
    scale = np.where(np.abs(scale) < TINY, np.float32(TINY), scale).astype(np.float32)
    quantized = np.clip(np.rint(padded / scale) + half, 0, 2 * half - 1).astype(np.uint8)
    apart = quantized.reshape(outputs, blocks, -1, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(apart, axis=-1), scale[..., 0]


def affine_scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Choose scale and zero point of an unsigned 8-bit grid that covers a range and holds zero exactly.

    Parameters
    ----------
    low, high : float

    Returns
    -------
    scale : float32
    zero_point : uint8
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / 255, TINY))
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))
