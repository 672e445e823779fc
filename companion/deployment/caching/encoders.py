"""Embedding functions that a server has at hand: a served model's own state, and hashed words.

Any callable from text to vector will do, a sentence encoder above all. These two need neither torch nor
transformers.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from companion.inference.manifest import MODEL, read_manifest
from companion.inference.sessions import open_session

if TYPE_CHECKING:
    import onnx

__all__ = ["HashedWords", "StateEncoder"]

_HEADS = ("Tanh", "Relu", "Gelu")


class StateEncoder:
    """Gives a state inside of an exported model as the vector of a text.

    The graph is cut behind that state, so that what follows is not computed: an early layer is cheaper, and
    knows less. The last one costs as much as the answer itself, and then a cache cannot pay.

    Parameters
    ----------
    folder : Path
        Made by `companion.inference.export`.
    state : {"pooled", "mean"}
        What the classification head reads, or the mean of one layer's states over the tokens.
    norm : int
        Which layer, for ``"mean"``: the place among the graph's ``LayerNormalization`` results. 0 is the
        embeddings', 2 the first layer's in a BERT, -1 the last.
    threads : int, optional
        Threads per run. Default: the settings' threads.

    Raises
    ------
    FileNotFoundError, ValueError
        When the folder is not what its manifest says, or its graph has no such state for every token. (INT8
        graphs compute the last layer for the first token only.)

    Attributes
    ----------
    name : str
        Model, state and layer: for `certify` and `SemanticCache`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        state: Literal["pooled", "mean"] = "mean",
        norm: int = -1,
        threads: int | None = None,
    ) -> None:
        import onnx

        folder = Path(folder)
        self._manifest = read_manifest(folder)
        self.name = f"{self._manifest.model_version}/{state}" + (f"/{norm}" if state == "mean" else "")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._manifest.max_length)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._pad = int(config.get("pad_token_id") or 0)
        model = onnx.load(str(folder / MODEL))
        result = _pooled(model.graph, folder) if state == "pooled" else _normed(model.graph, norm, folder)
        self._mean = state == "mean"
        self._session = open_session(_cut(model, result), threads=threads)
        self._check(folder)

    def __call__(self, text: str) -> NDArray[np.float32]:
        """Compute the vector of one text, shape (hidden,). Several threads may call this at once."""
        encoding = self._tokenizer.encode(text)
        ids, types = encoding.ids or [self._pad], encoding.type_ids or [0]
        found: NDArray[np.float32] = self._run(ids, types)
        vector: NDArray[np.float32] = found[0].mean(axis=0) if self._mean else found[0].reshape(-1)
        return vector

    def _run(self, ids: list[int], types: list[int]) -> NDArray[np.float32]:
        columns = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}
        wanted = [item.name for item in self._session.get_inputs()]
        feed = {name: np.array([columns[name]], dtype=np.int64) for name in wanted}
        found: NDArray[np.float32] = self._session.run(None, feed)[0]
        return found

    def _check(self, folder: Path) -> None:
        """Refuse a state that is not one vector per token, where their mean is asked for."""
        found = self._run([self._pad] * 3, [0] * 3)
        if self._mean and found.shape[:2] != (1, 3):
            raise ValueError(
                f"{folder} has a state of shape {found.shape} for a text of 3 tokens, expected one vector a "
                "token. Take an earlier layer, or export the model in fp32"
            )


def _pooled(graph: onnx.GraphProto, folder: Path) -> str:
    """Name what the classification head reads: the last activation behind the last layer."""
    norms = [place for place, node in enumerate(graph.node) if node.op_type == "LayerNormalization"]
    for node in reversed(list(graph.node)[norms[-1] + 1 :] if norms else []):
        if node.op_type in _HEADS:
            return str(node.output[0])
    raise ValueError(
        f"{folder} has no activation between its last layer and its logits: take the mean of a layer"
    )


def _normed(graph: onnx.GraphProto, norm: int, folder: Path) -> str:
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    if not -len(norms) <= norm < len(norms):
        raise ValueError(f"{folder} has {len(norms)} LayerNormalization results, there is no number {norm}")
    return str(norms[norm].output[0])


def _cut(model: onnx.ModelProto, result: str) -> bytes:
    """Keep what computes one result, and make it the only output."""
    from onnx import TensorProto, helper

    graph = model.graph
    needed, kept = {result}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    cut = helper.make_graph(
        kept[::-1],
        "state",
        [item for item in graph.input if item.name in needed],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        [item for item in graph.initializer if item.name in needed],
    )
    found = helper.make_model(cut, opset_imports=model.opset_import, ir_version=model.ir_version)
    serialized: bytes = found.SerializeToString()
    return serialized


_WORD = re.compile(r"\w+(?:['’]\w+)?")


class HashedWords:
    """Counts words, pairs of words and pieces of words, without a table: a text's vector in microseconds.

    It knows no meaning at all, so it sees a negation no worse than a network does: as one more word. Each
    feature's hash chooses a place and a sign (Weinberger et al., "Feature Hashing for Large Scale Multitask
    Learning", 2009).

    Parameters
    ----------
    dimension : int
        Length of the vector.

    Raises
    ------
    ValueError
        Below 2.

    Attributes
    ----------
    name : str
        For `certify` and `SemanticCache`.
    """

    def __init__(self, dimension: int = 1024) -> None:
        if dimension < 2:
            raise ValueError(f"HashedWords: dimension is {dimension}, expected at least 2")
        self._dimension = dimension
        self.name = f"hashed-words/{dimension}"

    def __call__(self, text: str) -> NDArray[np.float32]:
        """Compute the vector of one text, shape (dimension,); zero for a text without a word."""
        words = _WORD.findall(text.lower())
        features = [*words, *map(" ".join, pairwise(words))]
        for word in words:
            marked = f"<{word}>"
            features += [marked[at : at + 4] for at in range(max(1, len(marked) - 3))]
        vector = np.zeros(self._dimension, dtype=np.float32)
        for feature in features:
            value = crc32(feature.encode("utf-8", "surrogatepass"))
            vector[(value >> 1) % self._dimension] += 1.0 if value & 1 else -1.0
        return vector
