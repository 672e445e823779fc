"""From a model folder to a small fast one: export, quantization, predictors, text, and what they are worth.

`benchmark` measures how fast folders answer, `assess` how well one answers for another; `Quality.passes` is
the release gate between the two. `optimize` tries all precisions on a folder by them, and takes the best.
`predict_file` answers a whole file, through interruptions.
`batch_curve`, `compare_groupings`, `compare_placements` and `soak` measure throughput, `compare_fusions` and
`time_by_operator` where a graph's time goes. `generate` writes text with the reference decoder. Importing
this package imports neither torch nor onnxruntime. `OnnxPredictor` never needs torch.
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
    from companion.inference.fusion_comparison import compare_fusions, fused_model
    from companion.inference.fusion_report import FusionReport
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
    from companion.inference.offline.job import OfflineJob
    from companion.inference.offline.run import OfflineReport, predict_file
    from companion.inference.optimizing.optimization import optimize
    from companion.inference.optimizing.record import Optimization, Tried
    from companion.inference.predictor import OnnxPredictor, Predictor
    from companion.inference.processor import features
    from companion.inference.profiling import OperatorProfile, time_by_operator
    from companion.inference.quality.assessment import assess
    from companion.inference.quality.gate import Gate
    from companion.inference.quality.record import Quality
    from companion.inference.quantization.calibration import calibrate
    from companion.inference.quantization.grids import quantize_blocks, quantize_columns, quantize_rows
    from companion.inference.quantization.schemes import Fixed, Rows, WeightsOnly, quantize, weights_of
    from companion.inference.quantization.sensitivity import Sensitivity, fewest_kept, sensitivities
    from companion.inference.sessions import Memory
    from companion.inference.throughput.comparing import GroupingReport, compare_groupings
    from companion.inference.throughput.cost import BatchCost, CostFit, OnlineCost, TimedBatch, fit_cost
    from companion.inference.throughput.curves import BatchCurve, batch_curve
    from companion.inference.throughput.grouping import (
        Padding,
        by_arrival,
        by_budget,
        by_cost,
        by_length,
        in_windows,
        padding_of,
    )
    from companion.inference.throughput.growth import Growth, MemorySample, growth_of
    from companion.inference.throughput.placement import (
        Arrangement,
        PlacementReport,
        arrangements,
        compare_placements,
    )
    from companion.inference.throughput.soaking import SoakReport, soak
    from companion.inference.throughput.traffic import mixed_texts
    from companion.inference.timing import Timing, ratio, side_by_side
    from companion.inference.torch_predictor import TorchPredictor

__all__ = [
    "Arrangement",
    "Arrivals",
    "BatchCost",
    "BatchCurve",
    "Beam",
    "Benchmark",
    "BenchmarkPlan",
    "Check",
    "CompiledStep",
    "CostFit",
    "Estimate",
    "Fixed",
    "FusionReport",
    "Gate",
    "Generated",
    "Greedy",
    "GroupingReport",
    "Growth",
    "Load",
    "Manifest",
    "Memory",
    "MemorySample",
    "OfflineJob",
    "OfflineReport",
    "OnlineCost",
    "OnnxPredictor",
    "OperatorProfile",
    "Optimization",
    "Padding",
    "Percentile",
    "PlacementReport",
    "Predictor",
    "Quality",
    "Rows",
    "Sampling",
    "Sensitivity",
    "SoakReport",
    "TimedBatch",
    "Timing",
    "TorchPredictor",
    "Tried",
    "Warmup",
    "WeightsOnly",
    "Work",
    "arrangements",
    "assess",
    "batch_curve",
    "benchmark",
    "benchmark_predictors",
    "by_arrival",
    "by_budget",
    "by_cost",
    "by_length",
    "cache_bytes",
    "calibrate",
    "closed_loop",
    "compare",
    "compare_fusions",
    "compare_groupings",
    "compare_placements",
    "compile_step",
    "drive",
    "export",
    "features",
    "fewest_kept",
    "fit_cost",
    "fused_model",
    "generate",
    "growth_of",
    "in_windows",
    "load_predictor",
    "mixed_texts",
    "open_loop",
    "optimize",
    "padding_of",
    "paired_difference",
    "percentile",
    "predict_file",
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
    "soak",
    "standard_int8",
    "state_quality",
    "time_by_operator",
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
    "OfflineJob": "offline.job",
    "OfflineReport": "offline.run",
    "predict_file": "offline.run",
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
    "compare_fusions": "fusion_comparison",
    "fused_model": "fusion_comparison",
    "FusionReport": "fusion_report",
    "OperatorProfile": "profiling",
    "time_by_operator": "profiling",
    "Memory": "sessions",
    "BatchCost": "throughput.cost",
    "CostFit": "throughput.cost",
    "OnlineCost": "throughput.cost",
    "TimedBatch": "throughput.cost",
    "fit_cost": "throughput.cost",
    "GroupingReport": "throughput.comparing",
    "compare_groupings": "throughput.comparing",
    "BatchCurve": "throughput.curves",
    "batch_curve": "throughput.curves",
    "Padding": "throughput.grouping",
    "by_arrival": "throughput.grouping",
    "by_budget": "throughput.grouping",
    "by_cost": "throughput.grouping",
    "by_length": "throughput.grouping",
    "in_windows": "throughput.grouping",
    "padding_of": "throughput.grouping",
    "Growth": "throughput.growth",
    "MemorySample": "throughput.growth",
    "growth_of": "throughput.growth",
    "Arrangement": "throughput.placement",
    "PlacementReport": "throughput.placement",
    "arrangements": "throughput.placement",
    "compare_placements": "throughput.placement",
    "SoakReport": "throughput.soaking",
    "soak": "throughput.soaking",
    "mixed_texts": "throughput.traffic",
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
