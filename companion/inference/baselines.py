"""The INT8 that people would otherwise use, made from the same export, to measure ours against."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from companion.artifacts import digest, staged_folder
from companion.inference.comparison import write_checked
from companion.inference.graph import Graph
from companion.inference.manifest import MANIFEST, MODEL, Manifest, read_manifest
from companion.inference.predictor import OnnxPredictor
from companion.inference.quantization.saturation import needed_features
from companion.inference.quantization.schemes import OPSET

__all__ = ["folder_with", "quantize_standard", "standard_int8"]


def standard_int8(fp32: Path, out: Path, *, per_channel: bool = True) -> Manifest:
    """Quantize an FP32 ONNX folder the standard way: see `quantize_standard`.

    Sums of two products overflow where a processor adds them in 16 bits: the manifest says so, and
    `OnnxPredictor` refuses the folder there, unless told to open it `anyway`.

    Parameters
    ----------
    fp32 : Path
        Made by `companion.inference.export` with ``precision="fp32"``.
    out : Path
        The ONNX folder to write.
    per_channel : bool
        Whether each column of weights has a scale of its own. The library's default is one for all.

    Returns
    -------
    Manifest
        Its check compares with the FP32 folder.

    Raises
    ------
    FileNotFoundError, ValueError
        When `fp32` is not a complete ONNX folder, or `out` is or holds it.
    """
    read_manifest(fp32)
    return folder_with(quantize_standard(onnx.load(str(fp32 / MODEL)), per_channel=per_channel), fp32, out)


def folder_with(model: onnx.ModelProto, fp32: Path, out: Path) -> Manifest:
    """Put a graph that another tool made of an FP32 ONNX folder into a folder of its own.

    Parameters
    ----------
    model : onnx.ModelProto
        In 8 bits.
    fp32 : Path
        The folder that it was made from: gives all other files.
    out : Path
        The ONNX folder to write.

    Returns
    -------
    Manifest
        With what the graph needs of the processor. Its check compares with `fp32`.

    Raises
    ------
    FileNotFoundError, ValueError
        When `fp32` is not a complete ONNX folder.
    """
    manifest = read_manifest(fp32)
    with staged_folder(out, marker=MANIFEST, inputs=[fp32]) as staging:
        shutil.copytree(fp32, staging, dirs_exist_ok=True)
        onnx.save(model, str(staging / MODEL))
        graph = Graph(model)
        manifest = replace(
            manifest,
            precision="int8",
            operators=graph.operators(),
            cpu_features=needed_features(graph),
            files=manifest.files | {MODEL: digest(staging / MODEL)},
            quality=None,  # of the FP32 folder
        )
        return write_checked(manifest, staging, OnnxPredictor(fp32))


def quantize_standard(model: onnx.ModelProto, *, per_channel: bool = True) -> onnx.ModelProto:
    """Quantize a graph with onnxruntime's ``quantize_dynamic``.

    Parameters
    ----------
    model : onnx.ModelProto
        In float32. Is not changed.
    per_channel : bool
        Whether each column of weights has a scale of its own.

    Returns
    -------
    onnx.ModelProto
        Signed weights; activations with one scale for the whole batch, found at run time.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a step that this graph does not need
    try:
        with tempfile.TemporaryDirectory() as work:
            plain, narrow = Path(work) / "plain.onnx", Path(work) / "narrow.onnx"
            onnx.save(Graph(model).to_model(opset=OPSET), str(plain))
            quantize_dynamic(
                plain,
                narrow,
                weight_type=QuantType.QInt8,
                per_channel=per_channel,
                # Nothing tells it the types of what onnxruntime's own operators compute.
                extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
            )
            return onnx.load(str(narrow))
    finally:
        root.setLevel(level)
