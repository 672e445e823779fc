"""From a model folder to the best ONNX folder for it: try, judge, measure, choose, write."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from companion.artifacts import check_folder, staged_folder
from companion.data import Example, Task
from companion.inference.benchmarking.plan import BenchmarkPlan
from companion.inference.benchmarking.report import Benchmark
from companion.inference.benchmarking.turns import benchmark
from companion.inference.exporting import Precision, Traced
from companion.inference.loading import load_predictor
from companion.inference.manifest import MANIFEST, MODEL
from companion.inference.optimizing.choosing import choose
from companion.inference.optimizing.evidence import Yardstick, gather
from companion.inference.optimizing.record import Aim, Optimization, Tried
from companion.inference.optimizing.trying import Workshop
from companion.inference.quality.gate import FAILS, UNDECIDED
from companion.inference.torch_predictor import TorchPredictor
from companion.inference.tracing import check_kind
from companion.settings import get_settings

__all__ = ["SHORT_PLAN", "optimize"]

SHORT_PLAN = BenchmarkPlan(runs=60, batch_sizes=(32,), rounds=9, percents=(50, 95))
"""Enough for the median of single texts and of a batch, with intervals."""

_MEASURED = 240  # texts: the groups of lengths, and each of its runs another text
_NARROW: tuple[Precision, ...] = ("int8", "int8-weights", "int8-fixed", "int4-weights")
"""Not two bits: they are for models that were trained with them."""


def optimize(
    folder: Path,
    out: Path,
    *,
    held_out: Sequence[Example],
    task: Task | None = None,
    calibration: Sequence[Example] = (),
    max_drop: float = 0.5,
    objective: Aim = "latency",
    accept_undecided: bool = False,
    plan: BenchmarkPlan = SHORT_PLAN,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Optimization:
    """Try every precision down to 4 bits on a folder, and write the best within a budget of accuracy.

    The rules. A candidate may be taken when the release gate passes it: when the bad end of the interval of
    its drop is within the budget. Of those the best by the objective is taken; of several that this run
    cannot tell apart, the one that changes the fewest answers. Where ``int8`` is refused and ``fp32`` is not,
    the weights that cost the most stay in float32, as few as the gate demands. When no narrow candidate is
    left, ``fp32`` is written, if its gate passes or it changes no answer at all.

    Parameters
    ----------
    folder : Path
        A model folder with a classification head.
    out : Path
        The ONNX folder to write, complete or not at all.
    held_out : sequence of Example
        Not trained on. With labels, or without: then no candidate may change more of the source's answers
        than the budget allows, which is an upper bound of the drop in accuracy.
    task : Task, optional
        Says the metric. Default: accuracy on the source's labels, or Pearson's correlation for a number.
    calibration : sequence of Example
        Texts for the scales of ``int8-fixed``; a hundred or more. Those that are held out are left out.
    max_drop : float
        The budget in points: hundredths of the metric.
    objective : {"latency", "throughput", "size"}
        The time of a single text, the texts per second in the largest batch of the plan, or the bytes.
    accept_undecided : bool
        Whether a candidate may be taken whose drop seems to be within the budget, where the held-out examples
        are too few to show it.
    plan : BenchmarkPlan
        What to measure.
    threads : int, optional
        Of each candidate. Default: the settings' threads.
    progress : callable
        Gets a line at the beginning of each step.

    Returns
    -------
    Optimization

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When it holds no fine-tuned text classifier or no graph can be made of it, `out` holds something else,
        or the held-out examples do not fit the model or are missing.
    """
    _check_arguments(Path(folder), max_drop, objective)
    check_folder(Path(out), marker=MANIFEST, inputs=[folder])
    threads = threads or get_settings().threads
    source = load_predictor(Path(folder), threads=threads)
    assert isinstance(source, TorchPredictor)  # an ONNX folder was refused
    check_kind(source.classifier)
    evidence = gather(source, held_out, task)
    calibration, notes = _apart(calibration, evidence)
    traced = Traced(source.classifier)
    with tempfile.TemporaryDirectory(prefix="companion-optimize-") as work:
        workshop = Workshop(
            traced, evidence, calibration, max_drop, accept_undecided, threads, Path(work), progress
        )
        tried = list(_attempts(workshop))
        taken, fallback = _candidates(tried)
        found = None
        if taken:
            progress(f"{len(taken)} candidates and the source are measured in turns")
            tried, found = _measure(Path(folder), Path(work), tried, taken, evidence, plan, threads)
        winner, tied = choose([one for one in tried if one.name in taken], objective) if taken else (None, ())
        if winner is not None:
            with staged_folder(Path(out), marker=MANIFEST, inputs=[folder]) as staging:
                shutil.copytree(Path(work) / winner.name, staging, dirs_exist_ok=True)
    return Optimization(
        folder=str(folder),
        out=str(out),
        objective=objective,
        max_drop=max_drop,
        metric=evidence.metric,
        task=evidence.task.name,
        examples=len(evidence.examples),
        labelled=evidence.labelled,
        tried=tuple(tried),
        benchmark=found,
        chosen=None if winner is None else winner.name,
        tied=tuple(one.name for one in tied),
        fallback=fallback,
        notes=(*notes, *_notes(tried, evidence, found, accept_undecided)),
    )


def _check_arguments(folder: Path, max_drop: float, objective: str) -> None:
    if objective not in get_args(Aim):
        raise ValueError(f"objective is {objective!r}, expected one of {', '.join(get_args(Aim))}")
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise ValueError(f"max_drop is {max_drop}, expected points of at least 0, such as 0.5")
    if (folder / MANIFEST).is_file() or (folder / MODEL).is_file():
        raise ValueError(f"{folder} is an ONNX folder already, expected the model folder that it was made of")


def _apart(calibration: Sequence[Example], evidence: Yardstick) -> tuple[tuple[Example, ...], list[str]]:
    """Leave out of the calibration what is held out: it would look better than it is."""
    if not calibration:
        return (), ["int8-fixed was not tried: there are no texts to find its scales with (calibration)."]
    held_out = {(example.text, example.pair) for example in evidence.examples}
    kept = tuple(example for example in calibration if (example.text, example.pair) not in held_out)
    if not kept:
        raise ValueError(
            f"all {len(calibration)} texts of the calibration are held out too, expected others: the scales "
            "would fit the very texts that they are judged on"
        )
    left = len(calibration) - len(kept)
    return kept, [f"{left} texts of the calibration are held out too, and were not used."] * bool(left)


def _attempts(workshop: Workshop) -> Iterator[Tried]:
    """Make and judge every candidate; the mixed one only where it can be taken and ``int8`` cannot."""
    plain = workshop.attempt("fp32")
    yield plain
    refused = False
    for precision in _NARROW:
        if precision != "int8-fixed" or workshop.calibration:
            one = workshop.attempt(precision)
            yield one
            refused = refused or (precision == "int8" and one.gate is not None and one.refused is not None)
    if refused and plain.refused is None:
        yield workshop.mixed()


def _candidates(tried: Sequence[Tried]) -> tuple[tuple[str, ...], bool]:
    """Return the names of those that may be taken, and whether that is only the model as it is."""
    names = tuple(one.name for one in tried if one.refused is None)
    if set(names) - {"fp32"}:
        return names, False
    plain = tried[0]
    safe = plain.unchanged and plain.gate is not None and plain.gate.outcome != FAILS
    return (("fp32",) if names or safe else ()), True


def _measure(
    folder: Path,
    work: Path,
    tried: Sequence[Tried],
    taken: Sequence[str],
    evidence: Yardstick,
    plan: BenchmarkPlan,
    threads: int,
) -> tuple[list[Tried], Benchmark]:
    """Measure the source and the candidates on a sample of the held-out texts."""
    places = list(range(len(evidence.examples)))
    random.Random(plan.seed).shuffle(places)
    sample = replace(evidence, examples=tuple(evidence.examples[place] for place in places[:_MEASURED]))
    texts = [example.text for example in sample.examples]
    found = benchmark(
        [folder, *(work / name for name in taken)], texts, sample.pairs, plan=plan, threads=threads
    )
    named = [found.candidates[0], *(replace(one, name=Path(one.name).name) for one in found.candidates[1:])]
    by_name = {one.name: one for one in named[1:]}
    return [replace(one, measured=by_name.get(one.name)) for one in tried], replace(
        found, candidates=tuple(named)
    )


def _notes(
    tried: Sequence[Tried], evidence: Yardstick, found: Benchmark | None, accept_undecided: bool
) -> Iterator[str]:
    if not evidence.labelled:
        yield (
            "The held-out texts have no labels. The share of changed answers stands for the drop in "
            "accuracy, as its upper bound: what was refused may be good enough, and labels would show it."
        )
    undecided = [one for one in tried if one.gate is not None and one.gate.outcome == UNDECIDED]
    if undecided and accept_undecided:
        yield "The held-out examples are too few to be sure: what seems to be within the budget was accepted."
    elif undecided:
        yield (
            "The held-out examples are too few for some candidates: more examples would decide, or "
            "accept_undecided (--accept-undecided) goes by what the drop seems to be."
        )
    if any(one.name == "int8-mixed" for one in tried):
        yield (
            "The mixed candidate was found by judging several on the same held-out examples: it passes by "
            "luck more often than one that is judged once."
        )
    unstable = [] if found is None else [one.name for one in found.candidates if not one.warmup.stable]
    if unstable:
        yield f"The times of {', '.join(unstable)} had not settled: the machine is busy, ratios are rough."
