"""From a model folder to a small fast one: export, quantization, predictors, text, and what they are worth.

`benchmark` measures how fast folders answer, `assess` how well one answers for another; `Quality.passes` is
the release gate between the two. `generate` writes text with the reference decoder. Importing this package
imports neither torch nor onnxruntime. `OnnxPredictor` never needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.inference.arrivals import Arrivals, Load, closed_loop, drive, open_loop
    from companion.inference.baselines import standard_int8
    from companion.inference.benchmark_plan import BenchmarkPlan
    from companion.inference.benchmark_report import Benchmark
    from companion.inference.benchmarking import benchmark, benchmark_predictors
    from companion.inference.calibration import calibrate
    from companion.inference.comparison import compare
    from companion.inference.exporting import export
    from companion.inference.gate import Gate
    from companion.inference.generation import Generated, generate
    from companion.inference.generation_cost import Work, cache_bytes, token_flops
    from companion.inference.generation_steps import CompiledStep, compile_step
    from companion.inference.generation_strategies import Beam, Greedy, Sampling
    from companion.inference.grids import quantize_blocks, quantize_columns, quantize_rows
    from companion.inference.intervals import (
        Estimate,
        Percentile,
        paired_difference,
        percentile,
        proportion,
        runs_needed,
    )
    from companion.inference.loading import load_predictor
    from companion.inference.manifest import Check, Manifest, read_manifest, state_quality
    from companion.inference.predictor import OnnxPredictor, Predictor
    from companion.inference.processor import features
    from companion.inference.quality import assess
    from companion.inference.quality_record import Quality
    from companion.inference.quantization import Fixed, Rows, WeightsOnly, quantize, weights_of
    from companion.inference.sensitivity import Sensitivity, fewest_kept, sensitivities
    from companion.inference.timing import Timing, ratio, side_by_side
    from companion.inference.torch_predictor import TorchPredictor
    from companion.inference.warmup import Warmup, warm_up

__all__ = [
    "Arrivals",
    "Beam",
    "Benchmark",
    "BenchmarkPlan",
    "Check",
    "CompiledStep",
    "Estimate",
    "Fixed",
    "Gate",
    "Generated",
    "Greedy",
    "Load",
    "Manifest",
    "OnnxPredictor",
    "Percentile",
    "Predictor",
    "Quality",
    "Rows",
    "Sampling",
    "Sensitivity",
    "Timing",
    "TorchPredictor",
    "Warmup",
    "WeightsOnly",
    "Work",
    "assess",
    "benchmark",
    "benchmark_predictors",
    "cache_bytes",
    "calibrate",
    "closed_loop",
    "compare",
    "compile_step",
    "drive",
    "export",
    "features",
    "fewest_kept",
    "generate",
    "load_predictor",
    "open_loop",
    "paired_difference",
    "percentile",
    "proportion",
    "quantize",
    "quantize_blocks",
    "quantize_columns",
    "quantize_rows",
    "ratio",
    "read_manifest",
    "runs_needed",
    "sensitivities",
    "side_by_side",
    "standard_int8",
    "state_quality",
    "token_flops",
    "warm_up",
    "weights_of",
]

_HOMES = {
    "Arrivals": "arrivals",
    "Load": "arrivals",
    "closed_loop": "arrivals",
    "drive": "arrivals",
    "open_loop": "arrivals",
    "standard_int8": "baselines",
    "BenchmarkPlan": "benchmark_plan",
    "Benchmark": "benchmark_report",
    "benchmark": "benchmarking",
    "benchmark_predictors": "benchmarking",
    "calibrate": "calibration",
    "compare": "comparison",
    "export": "exporting",
    "Gate": "gate",
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
    "quantize_blocks": "grids",
    "quantize_columns": "grids",
    "quantize_rows": "grids",
    "Estimate": "intervals",
    "Percentile": "intervals",
    "paired_difference": "intervals",
    "percentile": "intervals",
    "proportion": "intervals",
    "runs_needed": "intervals",
    "load_predictor": "loading",
    "Check": "manifest",
    "Manifest": "manifest",
    "read_manifest": "manifest",
    "state_quality": "manifest",
    "OnnxPredictor": "predictor",
    "Predictor": "predictor",
    "features": "processor",
    "assess": "quality",
    "Quality": "quality_record",
    "Fixed": "quantization",
    "Rows": "quantization",
    "WeightsOnly": "quantization",
    "quantize": "quantization",
    "weights_of": "quantization",
    "Sensitivity": "sensitivity",
    "fewest_kept": "sensitivity",
    "sensitivities": "sensitivity",
    "Timing": "timing",
    "ratio": "timing",
    "side_by_side": "timing",
    "TorchPredictor": "torch_predictor",
    "Warmup": "warmup",
    "warm_up": "warmup",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"companion.inference.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
