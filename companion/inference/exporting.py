"""From a model folder to an ONNX folder, compared with its source before it is handed over."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from transformers import PreTrainedModel

import companion
from companion.artifacts import digest, staged_folder
from companion.inference.comparison import compare
from companion.inference.fusion import fuse_attention, keep_first_token
from companion.inference.graph import Graph
from companion.inference.manifest import MANIFEST, MODEL, Check, Manifest, write_manifest
from companion.inference.predictor import OnnxPredictor
from companion.inference.quantization import OPSET, quantize
from companion.inference.torch_predictor import TorchPredictor
from companion.models import Classifier

__all__ = ["Precision", "export", "to_onnx"]

Precision = Literal["int8", "fp32"]


def export(source: Path | str, out: Path, *, precision: Precision = "int8") -> Manifest:
    """Turn a fine-tuned model folder into an ONNX folder.

    ``fp32`` is the model as it is, in standard operators only. ``int8`` is made for onnxruntime on a CPU: one
    node per attention, the last layer for the first token only, and 8-bit products and tables (see
    `companion.inference.quantize`). Both take any batch and any length up to the model's.

    Parameters
    ----------
    source : Path or str
        A model folder with a classification head.
    out : Path
        Where to. An ONNX folder that is there is replaced, in one step, once the new one is complete.
    precision : {"int8", "fp32"}

    Returns
    -------
    Manifest
        Also written into the folder: it names every file's hash, and the distance from the source.

    Raises
    ------
    FileNotFoundError
        When there is no such source.
    ValueError
        When the source is not a fine-tuned text classifier, or `out` holds something else.
    """
    if precision not in ("int8", "fp32"):
        raise ValueError(f"precision is {precision!r}, expected 'int8' or 'fp32'")
    reference = TorchPredictor(source)
    classifier = reference.classifier
    with staged_folder(out, marker=MANIFEST) as staging:
        model = to_onnx(classifier, precision=precision)
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


def to_onnx(classifier: Classifier, *, precision: Precision) -> onnx.ModelProto:
    """Write a classifier as an ONNX model.

    Parameters
    ----------
    classifier : Classifier
    precision : {"int8", "fp32"}

    Returns
    -------
    onnx.ModelProto
        Inputs ``input_ids``, ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``,
        each int64 (batch, seq); output ``logits``, float32 (batch, num_labels).
    """
    graph = Graph(_trace(classifier))
    if precision == "fp32":
        return graph.to_model(opset=OPSET)
    if fuse_attention(graph, heads=int(classifier.model.config.num_attention_heads)):
        keep_first_token(graph)
    return quantize(graph.to_model(opset=OPSET))


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
