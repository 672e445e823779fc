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
from companion.inference.comparison import compare
from companion.inference.graph import Graph
from companion.inference.manifest import MANIFEST, MODEL, Manifest, read_manifest, write_manifest
from companion.inference.predictor import OnnxPredictor
from companion.inference.quantization.schemes import OPSET

__all__ = ["standard_int8"]


def standard_int8(fp32: Path, out: Path) -> Manifest:
    """Quantize an FP32 ONNX folder the standard way: onnxruntime's ``quantize_dynamic``.

    Signed weights, one scale per column; activations with one scale for the whole batch, found at run time.

    Parameters
    ----------
    fp32 : Path
        Made by `companion.inference.export` with ``precision="fp32"``.
    out : Path
        The ONNX folder to write.

    Returns
    -------
    Manifest
        Its check compares with the FP32 folder.

    Raises
    ------
    FileNotFoundError, ValueError
        When `fp32` is not a complete ONNX folder, or `out` is or holds it.
    """
    manifest = read_manifest(fp32)
    with staged_folder(out, marker=MANIFEST, inputs=[fp32]) as staging:
        shutil.copytree(fp32, staging, dirs_exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            plain = Path(work) / MODEL
            onnx.save(Graph(onnx.load(str(fp32 / MODEL))).to_model(opset=OPSET), str(plain))
            root = logging.getLogger()
            level = root.level
            root.setLevel(logging.ERROR)  # it advises a step that this graph does not need
            try:
                quantize_dynamic(
                    plain,
                    staging / MODEL,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    extra_options={"MatMulConstBOnly": True},
                )
            finally:
                root.setLevel(level)
        manifest = replace(
            manifest,
            precision="int8",
            operators=Graph(onnx.load(str(staging / MODEL))).operators(),
            files=manifest.files | {MODEL: digest(staging / MODEL)},
        )
        write_manifest(manifest, staging)
        manifest = replace(manifest, check=compare(OnnxPredictor(fp32), OnnxPredictor(staging)))
        write_manifest(manifest, staging)
    return manifest
