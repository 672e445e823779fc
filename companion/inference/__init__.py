"""From a model folder to a small fast one: export, INT8, and predictors that read either.

Importing this package imports neither torch nor onnxruntime. `OnnxPredictor` never needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.inference.baselines import standard_int8
    from companion.inference.calibration import calibrate
    from companion.inference.comparison import compare
    from companion.inference.exporting import export
    from companion.inference.grids import quantize_blocks, quantize_columns, quantize_rows
    from companion.inference.loading import load_predictor
    from companion.inference.manifest import Check, Manifest, read_manifest
    from companion.inference.predictor import OnnxPredictor, Predictor
    from companion.inference.quantization import Fixed, Rows, WeightsOnly, quantize, weights_of
    from companion.inference.sensitivity import Sensitivity, fewest_kept, sensitivity
    from companion.inference.timing import Timing, ratio, side_by_side
    from companion.inference.torch_predictor import TorchPredictor

__all__ = [
    "Check",
    "Fixed",
    "Manifest",
    "OnnxPredictor",
    "Predictor",
    "Rows",
    "Sensitivity",
    "Timing",
    "TorchPredictor",
    "WeightsOnly",
    "calibrate",
    "compare",
    "export",
    "fewest_kept",
    "load_predictor",
    "quantize",
    "quantize_blocks",
    "quantize_columns",
    "quantize_rows",
    "ratio",
    "read_manifest",
    "sensitivity",
    "side_by_side",
    "standard_int8",
    "weights_of",
]

_HOMES = {
    "calibrate": "calibration",
    "compare": "comparison",
    "standard_int8": "baselines",
    "Timing": "timing",
    "ratio": "timing",
    "side_by_side": "timing",
    "export": "exporting",
    "load_predictor": "loading",
    "Check": "manifest",
    "Manifest": "manifest",
    "read_manifest": "manifest",
    "OnnxPredictor": "predictor",
    "Predictor": "predictor",
    "Fixed": "quantization",
    "Rows": "quantization",
    "WeightsOnly": "quantization",
    "weights_of": "quantization",
    "Sensitivity": "sensitivity",
    "fewest_kept": "sensitivity",
    "sensitivity": "sensitivity",
    "quantize": "quantization",
    "quantize_blocks": "grids",
    "quantize_columns": "grids",
    "quantize_rows": "grids",
    "TorchPredictor": "torch_predictor",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"companion.inference.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
