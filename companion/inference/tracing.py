"""A classifier as a graph: in float32 and standard operators, for all precisions to start from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from companion.inference.graph import Graph
from companion.inference.quantization.schemes import OPSET
from companion.models import Classifier

__all__ = ["check_kind", "positions_of", "trace"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def trace(classifier: Classifier) -> onnx.ModelProto:
    """Trace a classifier with a batch and a length that stay symbolic.

    Parameters
    ----------
    classifier : Classifier
        Comes back on the CPU.

    Returns
    -------
    onnx.ModelProto
        Standard operators; constants are called by the parameters that they are. Inputs ``input_ids``,
        ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``, each int64 (batch, seq);
        output ``logits``, float32 (batch, num_labels).

    Raises
    ------
    ValueError
        When the model is of a kind that does not become one graph, with the reason.
    """
    check_kind(classifier)
    model = classifier.model.cpu()
    attention = model.config._attn_implementation
    names = [name for name in _INPUTS if name in classifier.tokenizer.model_input_names]
    try:
        model.set_attn_implementation("eager")  # explicit products, which the fusion recognises
        with _quiet():
            graph = Graph(_exported(model, names, positions_of(classifier)))
    except Exception as error:  # each layer of the exporter has classes of its own
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{classifier.source} cannot be written as a graph: torch.onnx.export does not follow "
            f"{type(model).__name__} ({first})"
        ) from error
    finally:
        model.set_attn_implementation(attention)
    _name_matrices(graph, model)
    return graph.to_model(opset=OPSET)


def positions_of(classifier: Classifier) -> int:
    """Return the most tokens that a model can take."""
    return int(
        getattr(classifier.model.config, "max_position_embeddings", 0)
        or classifier.tokenizer.model_max_length
    )


class _Logits(torch.nn.Module):
    """The model with plain tensors in and out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


def check_kind(classifier: Classifier) -> None:
    """Refuse kinds of models that would trace to something wrong.

    Parameters
    ----------
    classifier : Classifier

    Raises
    ------
    ValueError
        With the reason.
    """
    kind = type(classifier.model).__name__
    if classifier.model.config.is_encoder_decoder:
        raise ValueError(
            f"{classifier.source} is a {kind}: an encoder with a decoder, which finds the end of each text "
            "by looking for a token. Expected one stack of layers, as in BERT, DistilBERT or GPT-2"
        )
    if classifier.tokenizer.padding_side == "left":
        raise ValueError(
            f"{classifier.source} is a {kind}, whose answers change when padding follows the text, as it "
            "does in an ONNX folder. Expected a model that a mask can hide the padding from"
        )


def _exported(model: PreTrainedModel, names: list[str], positions: int) -> onnx.ModelProto:
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq", max=positions)
    example: dict[str, Any] = {name: torch.ones(2, 16, dtype=torch.int64) for name in names}
    program = torch.onnx.export(
        _Logits(model),
        kwargs=example,
        dynamic_shapes={name: {0: batch, 1: seq} for name in names},
        input_names=names,
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _name_matrices(graph: Graph, model: PreTrainedModel) -> None:
    """Call constants by the parameter that they are: the exporter gives transposed ones a number."""
    names: dict[tuple[tuple[int, ...], bytes], str] = {}
    for name, parameter in _Logits(model).named_parameters():
        if parameter.ndim == 2:
            array = parameter.detach().cpu().numpy()
            names.setdefault(_content(array.T), f"{name}.T")
            names[_content(array)] = name
    for old in [name for name, value in graph.constants.items() if value.ndim == 2]:
        new = names.get(_content(graph.constants[old]))
        if new is not None and new not in graph.constants:
            graph.rename(old, new)


def _content(array: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own progress report off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
