"""From a model folder to an ONNX folder, compared with its source before it is handed over."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import companion
from companion.artifacts import digest, staged_folder
from companion.data import Example
from companion.inference.comparison import compare
from companion.inference.fusion import fuse_attention, keep_first_token
from companion.inference.graph import Graph
from companion.inference.manifest import MANIFEST, MODEL, Check, Manifest, write_manifest
from companion.inference.predictor import OnnxPredictor
from companion.inference.quantization.calibration import calibrate
from companion.inference.quantization.schemes import OPSET, Fixed, Rows, Scheme, WeightsOnly, quantize
from companion.inference.torch_predictor import TorchPredictor
from companion.models import Classifier

__all__ = ["Precision", "export", "feeds_of", "to_onnx"]

Precision = Literal["int8", "int8-fixed", "int8-weights", "int4-weights", "fp32"]

_ON_LINE: dict[Precision, Scheme] = {
    "int8": Rows(),
    "int8-weights": WeightsOnly(bits=8),
    "int4-weights": WeightsOnly(bits=4),
}
"""The schemes that need to see no text."""


def export(
    source: Path | str,
    out: Path,
    *,
    precision: Precision = "int8",
    calibration: Sequence[Example] = (),
    keep: Collection[str] = (),
) -> Manifest:
    """Turn a fine-tuned model folder into an ONNX folder.

    ``fp32`` is the model as it is, in standard operators only. All others are made for onnxruntime on a CPU:
    one node per attention, the last layer for the first token only, and narrow products and tables (see
    `companion.inference.quantize`): ``int8`` with a scale for each token, ``int8-fixed`` with scales found
    beforehand, ``int8-weights`` and ``int4-weights`` with narrow weights alone. All take any batch and any
    length up to the model's.

    Parameters
    ----------
    source : Path or str
        A model folder with a classification head.
    out : Path
        Where to. An ONNX folder that is there is replaced, in one step, once the new one is complete.
    precision : {"int8", "int8-fixed", "int8-weights", "int4-weights", "fp32"}
    calibration : sequence of Example
        For ``int8-fixed``: a hundred or more, like those that will be served; labels are not looked at.
    keep : collection of str
        Products that stay in float32: names from `companion.inference.weights_of`.

    Returns
    -------
    Manifest
        Also written into the folder: it names every file's hash, and the distance from the source.

    Raises
    ------
    FileNotFoundError
        When there is no such source.
    ValueError
        When the source is not a fine-tuned text classifier, `out` is or holds it or something else, or
        ``int8-fixed`` has nothing to calibrate with.
    """
    _check_arguments(precision, calibration, keep)
    reference = TorchPredictor(source)
    classifier = reference.classifier
    with staged_folder(out, marker=MANIFEST, inputs=[source]) as staging:
        model = to_onnx(classifier, precision=precision, calibration=calibration, keep=keep)
        onnx.save(model, str(staging / MODEL))
        classifier.model.config.save_pretrained(staging)
        classifier.tokenizer.save_pretrained(staging)
        files = {path.name: digest(path) for path in sorted(staging.iterdir())}
        manifest = Manifest(
            precision=precision,
            labels=classifier.labels,
            is_regression=classifier.is_regression,
            max_length=int(classifier.tokenizer.model_max_length),
            positions=_positions(classifier),
            inputs=tuple(item.name for item in model.graph.input),
            source=Path(classifier.source).name,
            source_sha256=classifier.sha256,
            operators=Graph(model).operators(),
            cpu_features=(),
            check=Check(0, 0.0, 0.0, 0, 0),
            files=files,
            companion=companion.__version__,
        )
        write_manifest(manifest, staging)
        manifest = replace(manifest, check=compare(reference, OnnxPredictor(staging)))
        write_manifest(manifest, staging)
    return manifest


def to_onnx(
    classifier: Classifier,
    *,
    precision: Precision,
    calibration: Sequence[Example] = (),
    keep: Collection[str] = (),
) -> onnx.ModelProto:
    """Write a classifier as an ONNX model.

    Parameters
    ----------
    classifier : Classifier
    precision, calibration, keep
        As for `export`.

    Returns
    -------
    onnx.ModelProto
        Inputs ``input_ids``, ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``,
        each int64 (batch, seq); output ``logits``, float32 (batch, num_labels).
    """
    graph = Graph(_trace(classifier))
    _name_matrices(graph, classifier.model)
    if precision == "fp32":
        return graph.to_model(opset=OPSET)
    if fuse_attention(graph, heads=int(classifier.model.config.num_attention_heads)):
        keep_first_token(graph)
    model = graph.to_model(opset=OPSET)
    if precision == "int8-fixed":
        return quantize(model, Fixed(calibrate(model, feeds_of(classifier, calibration))), keep=keep)
    return quantize(model, _ON_LINE[precision], keep=keep)


def feeds_of(classifier: Classifier, examples: Sequence[Example]) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Tokenize examples one by one, without padding: the inputs of a graph, each of shape (1, seq)."""
    tokenizer = classifier.tokenizer
    for example in examples:
        parts = (example.text,) if example.pair is None else (example.text, example.pair)
        encoded = tokenizer(*parts, truncation=True, max_length=int(tokenizer.model_max_length))
        yield {name: np.array([encoded[name]], dtype=np.int64) for name in tokenizer.model_input_names}


def _check_arguments(precision: str, calibration: Sequence[Example], keep: Collection[str]) -> None:
    known = get_args(Precision)
    if precision not in known:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(known)}")
    if precision == "int8-fixed" and not calibration:
        raise ValueError(
            "int8-fixed has no text to find its scales with, expected a hundred or more like those that will "
            "be served: give calibration"
        )
    if precision == "fp32" and keep:
        raise ValueError("keep names products that stay in float32, and in fp32 all do: leave it out")


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


def _trace(classifier: Classifier) -> onnx.ModelProto:
    """Trace the model with a batch and a length that stay symbolic."""
    model = classifier.model.cpu()
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # explicit products, which the fusion recognises
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq", max=_positions(classifier))
    names = [
        n
        for n in ("input_ids", "attention_mask", "token_type_ids")
        if n in classifier.tokenizer.model_input_names
    ]
    example: dict[str, Any] = {name: torch.ones(2, 16, dtype=torch.int64) for name in names}
    try:
        with _quiet():
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
    finally:
        model.set_attn_implementation(attention)
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


def _positions(classifier: Classifier) -> int:
    """Return the most tokens that the model can take."""
    return int(
        getattr(classifier.model.config, "max_position_embeddings", 0)
        or classifier.tokenizer.model_max_length
    )


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
