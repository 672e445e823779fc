"""From a model folder to an ONNX folder, compared with its source before it is handed over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

import companion
from companion.artifacts import digest, staged_folder
from companion.data import Example
from companion.inference.comparison import write_checked
from companion.inference.fusion import fuse_attention, keep_first_token
from companion.inference.graph import Graph
from companion.inference.manifest import MANIFEST, MODEL, Check, Manifest
from companion.inference.predictor import Predictor
from companion.inference.quantization.calibration import calibrate
from companion.inference.quantization.saturation import needed_features
from companion.inference.quantization.schemes import OPSET, Fixed, Rows, Scheme, WeightsOnly, quantize
from companion.inference.torch_predictor import TorchPredictor
from companion.inference.tracing import positions_of, trace
from companion.models import Classifier

__all__ = ["Precision", "Traced", "export", "feeds_of", "to_onnx", "write_folder"]

Precision = Literal["int8", "int8-fixed", "int8-weights", "int4-weights", "int2-weights", "fp32"]

_ON_LINE: dict[Precision, Scheme] = {
    "int8": Rows(),
    "int8-weights": WeightsOnly(bits=8),
    "int4-weights": WeightsOnly(bits=4),
    "int2-weights": WeightsOnly(bits=2),
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
    beforehand, ``int8-weights``, ``int4-weights`` and ``int2-weights`` with narrow weights alone, the last
    for models that were trained with its rounding (`companion.inference.quantization.rounding`). All take
    any batch and any length up to the model's.

    Parameters
    ----------
    source : Path or str
        A model folder with a classification head.
    out : Path
        Where to. An ONNX folder that is there is replaced, in one step, once the new one is complete.
    precision : {"int8", "int8-fixed", "int8-weights", "int4-weights", "int2-weights", "fp32"}
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
        When the source is not a fine-tuned text classifier or no graph can be made of it, `out` is or
        holds it or something else, or ``int8-fixed`` has nothing to calibrate with.
    """
    _check_arguments(precision, calibration, keep)
    reference = TorchPredictor(source)
    with staged_folder(out, marker=MANIFEST, inputs=[source]) as staging:
        model = to_onnx(reference.classifier, precision=precision, calibration=calibration, keep=keep)
        return write_folder(staging, model, reference.classifier, precision=precision, reference=reference)


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
        Inputs and output as for `companion.inference.tracing.trace`.
    """
    return Traced(classifier).to_onnx(precision, calibration=calibration, keep=keep)


@dataclass(frozen=True)
class Traced:
    """A classifier that is traced at most once, whatever the number of precisions made of it.

    Attributes
    ----------
    classifier : Classifier
        Must not change any more.
    """

    classifier: Classifier

    @cached_property
    def plain(self) -> onnx.ModelProto:
        """The model as it is: float32, standard operators."""
        return trace(self.classifier)

    @cached_property
    def fused(self) -> onnx.ModelProto:
        """In float32 still, with one node per attention, and the last layer for the first token only."""
        graph = Graph(self.plain)
        if fuse_attention(graph, heads=int(self.classifier.model.config.num_attention_heads)):
            keep_first_token(graph)
        return graph.to_model(opset=OPSET)

    def to_onnx(
        self,
        precision: Precision,
        *,
        calibration: Sequence[Example] = (),
        keep: Collection[str] = (),
    ) -> onnx.ModelProto:
        """Write it in a precision; arguments as for `export`."""
        if precision == "fp32":
            return self.plain
        if precision == "int8-fixed":
            ranges = calibrate(self.fused, feeds_of(self.classifier, calibration))
            return quantize(self.fused, Fixed(ranges), keep=keep)
        return quantize(self.fused, _ON_LINE[precision], keep=keep)


def write_folder(
    folder: Path,
    model: onnx.ModelProto,
    classifier: Classifier,
    *,
    precision: Precision,
    reference: Predictor,
) -> Manifest:
    """Fill an empty folder with a graph, its tokenizer, its configuration and its manifest.

    Parameters
    ----------
    folder : Path
    model : onnx.ModelProto
        Made of `classifier`.
    classifier : Classifier
    precision : {"int8", "int8-fixed", "int8-weights", "int4-weights", "int2-weights", "fp32"}
        What the manifest says.
    reference : Predictor
        The source, which the folder is compared with.

    Returns
    -------
    Manifest
    """
    onnx.save(model, str(folder / MODEL))
    classifier.model.config.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    graph = Graph(model)
    manifest = Manifest(
        precision=precision,
        labels=classifier.labels,
        is_regression=classifier.is_regression,
        max_length=int(classifier.tokenizer.model_max_length),
        positions=positions_of(classifier),
        inputs=tuple(item.name for item in model.graph.input),
        source=Path(classifier.source).name,
        source_sha256=classifier.sha256,
        operators=graph.operators(),
        cpu_features=needed_features(graph),
        check=Check(0, 0.0, 0.0, 0, 0),
        files={path.name: digest(path) for path in sorted(folder.iterdir())},
        companion=companion.__version__,
    )
    return write_checked(manifest, folder, reference)


def feeds_of(classifier: Classifier, examples: Sequence[Example]) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Tokenize examples one by one, without padding: the inputs of a graph, each of shape (1, seq).

    An example without a single token is left out.
    """
    tokenizer = classifier.tokenizer
    for example in examples:
        parts = (example.text,) if example.pair is None else (example.text, example.pair)
        encoded = tokenizer(*parts, truncation=True, max_length=int(tokenizer.model_max_length))
        if encoded["input_ids"]:
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
