"""From a model folder to a small fast one: export, quantization, predictors, text, and what they are worth.

`benchmark` measures how fast folders answer, `assess` how well one answers for another; `Quality.passes` is
the release gate between the two. `optimize` tries all precisions on a folder by them, and takes the best.
`generate` writes text with the reference decoder. Importing this package imports neither torch nor
onnxruntime. `OnnxPredictor` never needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.inference.baselines import standard_int8
    from companion.inference.benchmarking.arrivals import Arrivals, Load, closed_loop, drive, open_loop
    from companion.inference.benchmarking.plan import BenchmarkPlan
    from companion.inference.benchmarking.report import Benchmark
    from companion.inference.benchmarking.turns import benchmark, benchmark_predictors
    from companion.inference.benchmarking.warmup import Warmup, warm_up
    from companion.inference.comparison import compare
    from companion.inference.exporting import export
    from companion.inference.generation.cost import Work, cache_bytes, token_flops
    from companion.inference.generation.steps import CompiledStep, compile_step
    from companion.inference.generation.strategies import Beam, Greedy, Sampling
    from companion.inference.generation.writing import Generated, generate
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
    from companion.inference.optimizing.optimization import optimize
    from companion.inference.optimizing.record import Optimization, Tried
    from companion.inference.predictor import OnnxPredictor, Predictor
    from companion.inference.processor import features
    from companion.inference.quality.assessment import assess
    from companion.inference.quality.gate import Gate
    from companion.inference.quality.record import Quality
    from companion.inference.quantization.calibration import calibrate
    from companion.inference.quantization.grids import quantize_blocks, quantize_columns, quantize_rows
    from companion.inference.quantization.schemes import Fixed, Rows, WeightsOnly, quantize, weights_of
    from companion.inference.quantization.sensitivity import Sensitivity, fewest_kept, sensitivities
    from companion.inference.timing import Timing, ratio, side_by_side
    from companion.inference.torch_predictor import TorchPredictor

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
    "Optimization",
    "Percentile",
    "Predictor",
    "Quality",
    "Rows",
    "Sampling",
    "Sensitivity",
    "Timing",
    "TorchPredictor",
    "Tried",
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
    "optimize",
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
    "Arrivals": "benchmarking.arrivals",
    "Load": "benchmarking.arrivals",
    "closed_loop": "benchmarking.arrivals",
    "drive": "benchmarking.arrivals",
    "open_loop": "benchmarking.arrivals",
    "standard_int8": "baselines",
    "BenchmarkPlan": "benchmarking.plan",
    "Benchmark": "benchmarking.report",
    "benchmark": "benchmarking.turns",
    "benchmark_predictors": "benchmarking.turns",
    "calibrate": "quantization.calibration",
    "compare": "comparison",
    "export": "exporting",
    "Gate": "quality.gate",
    "Generated": "generation.writing",
    "generate": "generation.writing",
    "Work": "generation.cost",
    "cache_bytes": "generation.cost",
    "token_flops": "generation.cost",
    "CompiledStep": "generation.steps",
    "compile_step": "generation.steps",
    "Beam": "generation.strategies",
    "Greedy": "generation.strategies",
    "Sampling": "generation.strategies",
    "quantize_blocks": "quantization.grids",
    "quantize_columns": "quantization.grids",
    "quantize_rows": "quantization.grids",
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
    "optimize": "optimizing.optimization",
    "Optimization": "optimizing.record",
    "Tried": "optimizing.record",
    "OnnxPredictor": "predictor",
    "Predictor": "predictor",
    "features": "processor",
    "assess": "quality.assessment",
    "Quality": "quality.record",
    "Fixed": "quantization.schemes",
    "Rows": "quantization.schemes",
    "WeightsOnly": "quantization.schemes",
    "quantize": "quantization.schemes",
    "weights_of": "quantization.schemes",
    "Sensitivity": "quantization.sensitivity",
    "fewest_kept": "quantization.sensitivity",
    "sensitivities": "quantization.sensitivity",
    "Timing": "timing",
    "ratio": "timing",
    "side_by_side": "timing",
    "TorchPredictor": "torch_predictor",
    "Warmup": "benchmarking.warmup",
    "warm_up": "benchmarking.warmup",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"companion.inference.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
