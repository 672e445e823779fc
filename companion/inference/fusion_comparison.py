"""What fusing attention is worth, in FP32 and in INT8: counted in operators, then measured, then explained.

A fused operator saves the way through memory between twenty small ones. It also decides how its products are
computed, and that can cost more than it saves: so each fusion is counted, to see that it happened, timed
beside the graph without it, and profiled, to see what changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from companion.inference.baselines import quantize_standard
from companion.inference.fusion import fuse_attention, fuse_projections, keep_first_token
from companion.inference.fusion_report import (
    FUSIONS,
    NUMBERS,
    FusedGraph,
    Fusion,
    FusionReport,
    Numbers,
    Shape,
)
from companion.inference.graph import Graph
from companion.inference.manifest import MODEL, read_manifest
from companion.inference.predictor import OnnxPredictor
from companion.inference.profiling import profile_feeds
from companion.inference.quantization.schemes import OPSET, quantize
from companion.inference.sessions import open_session
from companion.inference.throughput.traffic import mixed_texts
from companion.inference.timing import Timing, ratio, side_by_side

__all__ = ["compare_fusions", "fused_model"]

_IMPOSSIBLE = ("attention and projections", "int8")
"""Row-wise INT8 has no operator that takes projections in: they would stay in FP32."""


def fused_model(fp32: Path, fusion: Fusion, numbers: Numbers = "fp32") -> onnx.ModelProto:
    """Fuse an FP32 ONNX folder's graph, then quantize it.

    Parameters
    ----------
    fp32 : Path
        Made by `companion.inference.export` with ``precision="fp32"``.
    fusion : {"none", "attention", "attention and projections", "attention, first token"}
        One node for each attention; with its projections; without, and the last layer for the first token
        only.
    numbers : {"fp32", "int8", "standard int8"}
        INT8: by `companion.inference.quantize`, or by onnxruntime's ``quantize_dynamic``.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    FileNotFoundError
        When the folder or a file of it is missing.
    ValueError
        When the folder is damaged or not in FP32, a name is unknown, or the fusion did not happen: its
        operators are counted.
    """
    if fusion not in FUSIONS or numbers not in NUMBERS or (fusion, numbers) == _IMPOSSIBLE:
        raise ValueError(
            f"fusion is {fusion!r} and numbers {numbers!r}, expected one of {', '.join(FUSIONS)} and one of "
            f"{', '.join(NUMBERS)}, but not {' with '.join(_IMPOSSIBLE)}"
        )
    return _fused(_read(Path(fp32)), fusion, numbers)


def compare_fusions(
    fp32: Path,
    *,
    fusions: Sequence[Fusion] = FUSIONS,
    numbers: Sequence[Numbers] = NUMBERS,
    shapes: Sequence[Shape] = ((1, 128), (32, 32)),
    repeats: int = 7,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> FusionReport:
    """Fuse an FP32 graph in several ways, quantize each in several ways, and run all of them in turns.

    Parameters
    ----------
    fp32 : Path
        Made by `companion.inference.export` with ``precision="fp32"``.
    fusions : sequence of str
        The first is what the others are compared with, for each kind of numbers.
    numbers : sequence of str
    shapes : sequence of (int, int)
        Rows and tokens of the batches.
    repeats : int
        Rounds, at least 3.
    threads : int, optional
        Default: the settings' threads.
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    FusionReport

    Raises
    ------
    FileNotFoundError, ValueError
        As `fused_model`, and when a shape is longer than the model takes.
    """
    source, feeds = _read(Path(fp32)), _feeds(Path(fp32), shapes)
    cases = [(f, n) for n in numbers for f in fusions if (f, n) != _IMPOSSIBLE]
    files, operators, sessions = {}, {}, {}
    for case in cases:
        model = _fused(source, *case)
        files[case], operators[case] = model.SerializeToString(), Graph(model).operators()
        sessions[case] = open_session(files[case], threads=threads)
    answers = {
        case: np.concatenate([session.run(None, feed)[0] for feed in feeds.values()])
        for case, session in sessions.items()
    }
    timings: dict[Shape, dict[str, Timing]] = {}
    for shape, feed in feeds.items():
        runs = {" / ".join(case): partial(session.run, None, feed) for case, session in sessions.items()}
        timings[shape] = side_by_side(runs, repeats=repeats, warmup=2, rotate=True, clock=clock)
    del sessions
    found = []
    for case in cases:
        first = next(other for other in cases if other[1] == case[1])
        own = {shape: timing[" / ".join(case)] for shape, timing in timings.items()}
        faster = {shape: ratio(timings[shape][" / ".join(first)], own[shape]) for shape in feeds}
        difference = float(np.abs(answers[case] - answers[cases[0]]).max())
        profiles = {
            shape: profile_feeds(files[case], [feed], repeats=repeats, threads=threads)
            for shape, feed in feeds.items()
        }
        found.append(FusedGraph(*case, operators[case], own, faster, difference, profiles))
    return FusionReport(tuple(found), tuple(feeds), source.layers)


@dataclass(frozen=True)
class _Source:
    """An unfused graph, the heads of its attentions, and how many there are."""

    model: onnx.ModelProto
    heads: int
    layers: int


def _read(fp32: Path) -> _Source:
    manifest = read_manifest(fp32)
    if manifest.precision != "fp32":
        raise ValueError(
            f"{fp32} is in {manifest.precision}, expected fp32: companion export --precision fp32"
        )
    config = json.loads((fp32 / "config.json").read_text(encoding="utf-8"))
    heads = int(config.get("num_attention_heads") or config["n_heads"])  # as DistilBERT calls them
    return _Source(onnx.load(str(fp32 / MODEL)), heads, manifest.operators.get("Softmax", 0))


def _fused(source: _Source, fusion: Fusion, numbers: Numbers) -> onnx.ModelProto:
    graph = Graph(source.model)
    if fusion != "none":
        _happened(fuse_attention(graph, heads=source.heads), source.layers, "attentions")
    if fusion == "attention and projections":
        _happened(fuse_projections(graph), source.layers, "projections")
    if fusion == "attention, first token":
        _happened(int(keep_first_token(graph)), 1, "last layer")
    model = graph.to_model(opset=OPSET)
    if numbers == "fp32":
        return model
    return quantize(model) if numbers == "int8" else quantize_standard(model)


def _happened(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise ValueError(
            f"{found} of {expected} {what} were fused: the graph has another pattern than the fusion knows"
        )


def _feeds(folder: Path, shapes: Sequence[Shape]) -> dict[Shape, dict[str, NDArray[np.int64]]]:
    """Make batches of texts that are all equally long."""
    predictor, feeds = OnnxPredictor(folder), {}
    for rows, tokens in shapes:
        if not (rows >= 1 and 1 <= tokens <= predictor.max_length):
            raise ValueError(
                f"a shape is {rows} x {tokens}, expected at least 1 row of 1 to {predictor.max_length} tokens"
            )
        encodings = predictor.encode(mixed_texts(rows, shortest=tokens, longest=tokens))
        for encoding in encodings:
            encoding.truncate(tokens)
        feeds[rows, tokens] = predictor.feed(encodings)
    return feeds
