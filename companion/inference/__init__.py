"""From a model folder to a small fast one: export, INT8, predictors that read either; text from a decoder.

Importing this package imports neither torch nor onnxruntime. `OnnxPredictor` never needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.inference.baselines import standard_int8
    from companion.inference.comparison import compare
    from companion.inference.exporting import export
    from companion.inference.generation import Generated, generate
    from companion.inference.generation_cost import Work, cache_bytes, token_flops
    from companion.inference.generation_steps import CompiledStep, compile_step
    from companion.inference.generation_strategies import Beam, Greedy, Sampling
    from companion.inference.loading import load_predictor
    from companion.inference.manifest import Check, Manifest, read_manifest
    from companion.inference.predictor import OnnxPredictor, Predictor
    from companion.inference.quantization import quantize, quantize_columns, quantize_rows
    from companion.inference.timing import Timing, ratio, side_by_side
    from companion.inference.torch_predictor import TorchPredictor

__all__ = [
    "Beam",
    "Check",
    "CompiledStep",
    "Generated",
    "Greedy",
    "Manifest",
    "OnnxPredictor",
    "Predictor",
    "Sampling",
    "Timing",
    "TorchPredictor",
    "Work",
    "cache_bytes",
    "compare",
    "compile_step",
    "export",
    "generate",
    "load_predictor",
    "quantize",
    "quantize_columns",
    "quantize_rows",
    "ratio",
    "read_manifest",
    "side_by_side",
    "standard_int8",
    "token_flops",
]

_HOMES = {
    "compare": "comparison",
    "standard_int8": "baselines",
    "Timing": "timing",
    "ratio": "timing",
    "side_by_side": "timing",
    "export": "exporting",
    "Generated": "generation",
    "generate": "generation",
    "Work": "generation_cost",
    "cache_bytes": "generation_cost",
    "token_flops": "generation_cost",
    "CompiledStep": "generation_steps",
    "compile_step": "generation_steps",
    "Beam": "generation_strategies",
    "Greedy": "generation_strategies",
    "Sampling": "generation_strategies",
    "load_predictor": "loading",
    "Check": "manifest",
    "Manifest": "manifest",
    "read_manifest": "manifest",
    "OnnxPredictor": "predictor",
    "Predictor": "predictor",
    "quantize": "quantization",
    "quantize_columns": "quantization",
    "quantize_rows": "quantization",
    "TorchPredictor": "torch_predictor",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"companion.inference.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
