"""Fine-tuning on short texts: transformers' Trainer and `companion.training.fit`, side by side.

    python benchmarks/training.py --data GLUE_FOLDER [--only defaults best] [--json OUT]

All candidates start from the same weights per seed and see the same examples, the same number of steps, batch
size, learning rate, schedule, weight decay, clipping and threads; within a seed they take turns. The clock
runs from texts to trained weights: tokenizing counts, loading the model and scoring the development examples
do not. Trainer's defaults are those of `TrainingArguments` (float32, random order, each batch padded to its
longest text); its best adds length grouping, fused AdamW and the precision that ours chooses, bf16 where the
machine computes it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from scipy.stats import ttest_ind
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from companion import artifacts, data, models, training
from companion.settings import get_settings
from companion.training.callbacks import Callback
from companion.training.device import choose_device, choose_dtype

OURS = "companion"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


Train = Callable[[models.Classifier, Sequence[data.Example], training.TrainingConfig], dict[str, Any]]
"""Trains a model in place and returns details of the run."""


@dataclass(frozen=True)
class Candidate:
    """One way to train."""

    title: str
    precision: str
    train: Train


@dataclass(frozen=True)
class Run:
    """One measured run; `positions` are token positions computed per example, padding included."""

    seed: int
    seconds: float
    cpu_seconds: float
    examples: int
    positions: float
    score: float
    details: dict[str, Any]

    @property
    def speed(self) -> float:
        return self.examples / self.seconds


def main() -> None:
    arguments = parse()
    os.environ["COMPANION_PROGRESS"] = "0"
    torch.set_num_threads(arguments.threads)
    task = data.load(arguments.task, data_dir=arguments.data, max_examples=arguments.examples)
    config = training.TrainingConfig(
        epochs=arguments.epochs,
        max_steps=arguments.steps,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
    )
    found = candidates(config, arguments.only)
    runs = rounds(task, config, found, arguments.seeds)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": artifacts.machine(),
        "threads": arguments.threads,
        "versions": {name: version(name) for name in ("transformers", "accelerate")},
        "task": task.task.name,
        "metric": task.task.metric,
        "dev_examples": len(task.dev),
        "config": asdict(config),
        "rows": {name: summary(found[name], runs[name], runs[OURS]) for name in found},
    }
    if arguments.json:
        with artifacts.staged_file(arguments.json) as file:
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", type=Path, default=get_settings().data_dir, help="a GLUE folder")
    parser.add_argument("--examples", type=int, default=3200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=training.TrainingConfig.learning_rate)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="end each run early: then the order weighs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    keys = ("defaults", "bf16", "best", "monitor", "whole-table", "checkpointing")
    parser.add_argument("--only", nargs="+", choices=keys, help="what ours is compared with; default: all")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every run to this file")
    return parser.parse_args()


def candidates(config: training.TrainingConfig, only: Sequence[str] | None) -> dict[str, Candidate]:
    """Return ours, then what it is compared with, by key."""
    chosen = NAMES[choose_dtype(config.precision, choose_device())]
    grouped = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
    number = {} if chosen == "fp32" else {chosen: True}
    found = {
        OURS: Candidate("companion fit", chosen, ours),
        "defaults": Candidate("Trainer, defaults", "fp32", trainer()),
        "bf16": Candidate("Trainer, bf16", "bf16", trainer(bf16=True)),
        "best": Candidate("Trainer, best", chosen, trainer(**grouped, **number)),
        "monitor": Candidate("companion fit + Monitor", chosen, monitored),
        "whole-table": Candidate("companion fit, all rows", chosen, whole_table),
        "checkpointing": Candidate(
            "companion fit, recomputing", chosen, partial(ours, activation_checkpointing=True)
        ),
    }
    if chosen != "bf16":
        del found["bf16"]
    return {name: found[name] for name in found if name == OURS or only is None or name in only}


def ours(
    classifier: models.Classifier,
    examples: Sequence[data.Example],
    config: training.TrainingConfig,
    *,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> dict[str, Any]:
    config = replace(config, **changes)
    run = training.fit(classifier.model, classifier.tokenizer, examples, config=config, callbacks=callbacks)
    return {"steps": len(run.steps), "optimizer": config.optimizer}


def whole_table(
    classifier: models.Classifier, examples: Sequence[data.Example], config: training.TrainingConfig
) -> dict[str, Any]:
    """Train every row of the embedding table, as other loops do."""
    with patch("companion.training.preparation.use_rows", return_value=None):
        return ours(classifier, examples, config)


def monitored(
    classifier: models.Classifier, examples: Sequence[data.Example], config: training.TrainingConfig
) -> dict[str, Any]:
    """Train under the Monitor at its defaults.

    Its own clock is read too: a few per cent drown in the noise between two whole runs.
    """
    from companion.training.monitoring.monitor import Monitor

    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor(Path(folder))
        details = ours(classifier, examples, config, callbacks=[monitor])
    return {**details, "monitor_seconds": monitor.seconds}


def trainer(**choices: Any) -> Train:
    """Return Trainer with its defaults, these choices, and what makes it the same run as ours."""

    def train(
        classifier: models.Classifier, examples: Sequence[data.Example], config: training.TrainingConfig
    ) -> dict[str, Any]:
        rows = tokenized(classifier, examples, config.max_length)
        steps = -(-len(rows) // config.batch_size) * config.epochs
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=config.epochs,
                max_steps=config.max_steps or -1,
                per_device_train_batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                lr_scheduler_type=config.schedule,
                warmup_steps=config.warmup_steps(min(steps, config.max_steps or steps)),
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                seed=config.seed,
                use_cpu=choose_device().type == "cpu",
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **choices,
            )
            loop = Trainer(
                model=classifier.model,
                args=arguments,
                train_dataset=rows,
                data_collator=DataCollatorWithPadding(classifier.tokenizer),
                processing_class=classifier.tokenizer,
            )
            loop.remove_callback(PrinterCallback)
            loop.train()
        return {"steps": loop.state.global_step, "optimizer": OptimizerNames(arguments.optim).value}

    return train


def tokenized(
    classifier: models.Classifier, examples: Sequence[data.Example], max_length: int
) -> list[dict[str, Any]]:
    """Tokenize for Trainer, into a plain list: it reads that faster than a `datasets.Dataset`."""
    texts = [example.text for example in examples]
    pairs = [example.pair or "" for example in examples] if examples[0].pair is not None else None
    columns = classifier.tokenizer(texts, pairs, truncation=True, max_length=max_length)
    columns["labels"] = [example.label for example in examples]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def rounds(
    task: data.TaskData, config: training.TrainingConfig, found: dict[str, Candidate], seeds: int
) -> dict[str, list[Run]]:
    """Train every candidate once per seed; who goes first rotates."""
    for candidate in found.values():  # imports and first calls are not what is measured
        candidate.train(load(task, 0), task.train[: 2 * config.batch_size], replace(config, epochs=1))
    runs: dict[str, list[Run]] = {name: [] for name in found}
    for seed in range(seeds):
        names = list(found)
        for name in names[seed % len(names) :] + names[: seed % len(names)]:
            run = measure(task, replace(config, seed=seed), found[name])
            runs[name].append(run)
            print(f"seed {seed}, {found[name].title}: {run.speed:.0f} examples/s", flush=True)
    return runs


def load(task: data.TaskData, seed: int) -> models.Classifier:
    """Load the profile's encoder; the seed draws its head."""
    encoder, kind = get_settings().names.encoder, task.task
    return models.load(encoder, labels=kind.labels, regression=kind.is_regression, seed=seed)


def measure(task: data.TaskData, config: training.TrainingConfig, candidate: Candidate) -> Run:
    classifier, seen = load(task, config.seed), [0, 0]

    def count(_: torch.nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        seen[0] += inputs["input_ids"].shape[0]
        seen[1] += inputs["input_ids"].numel()

    hook = classifier.model.register_forward_pre_hook(count, with_kwargs=True)
    wall, cpu = time.perf_counter(), time.process_time()
    details = candidate.train(classifier, task.train, config)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    hook.remove()
    # Trainer leaves the model wrapped in its precision: all are scored in float32, by a fresh one.
    judged = load(task, config.seed)
    judged.model.load_state_dict(classifier.model.state_dict())
    logits = training.predict_logits(judged.model, judged.tokenizer, task.dev, max_length=config.max_length)
    score = data.score(task.task, data.labels_of(task.dev), logits)[task.task.metric]
    return Run(config.seed, wall, cpu, seen[0], seen[1] / seen[0], score, details)


def summary(candidate: Candidate, runs: Sequence[Run], ours: Sequence[Run]) -> dict[str, Any]:
    """Return medians, ranges, and ratios that compare runs of the same seed."""
    scores, own = [run.score for run in runs], [run.score for run in ours]
    interval = None
    if len(runs) > 1 and len(set(scores) | set(own)) > 1:
        welch = ttest_ind(own, scores, equal_var=False).confidence_interval(0.95)
        interval = (float(welch.low), float(welch.high))
    row = {
        "title": candidate.title,
        "precision": candidate.precision,
        "examples_per_second": spread([run.speed for run in runs]),
        "examples_per_cpu_second": spread([run.examples / run.cpu_seconds for run in runs]),
        "positions_per_example": statistics.median(run.positions for run in runs),
        "score": spread(scores),
        "companion_is_faster": spread([b.seconds / a.seconds for a, b in zip(ours, runs, strict=True)]),
        "companion_scores_more": statistics.mean(own) - statistics.mean(scores),
        "companion_scores_more_95": interval,
        "runs": [asdict(run) for run in runs],
    }
    if "monitor_seconds" in runs[0].details:
        inside = [run.details["monitor_seconds"] for run in runs]
        shares = [100 * s / (run.seconds - s) for s, run in zip(inside, runs, strict=True)]
        row["monitor_adds_percent"] = spread(shares)
    return row


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(report: dict[str, Any]) -> str:
    def cell(values: dict[str, float], digits: int, unit: str = "") -> str:
        low, high = f"{values['low']:.{digits}f}", f"{values['high']:.{digits}f}"
        return f"{values['median']:.{digits}f}{unit} ({low}-{high})"

    rows, config = report["rows"], report["config"]
    first = next(iter(rows.values()))["runs"]
    lines = [
        f"{report['task']}: {first[0]['examples']} examples a run, batch {config['batch_size']}, "
        f"{first[0]['details']['steps']} steps, {report['threads']} threads, {len(first)} seeds: "
        "median (range); ratios per seed",
        f"{'':27} {'number':6} {'examples/s':>17} {'per CPU second':>17} {'positions':>9} "
        f"{report['metric']:>24} {'ours is faster':>19}  ours scores more (95%)",
    ]
    for row in rows.values():
        interval = row["companion_scores_more_95"]
        sure = f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
        lines.append(
            f"{row['title']:27} {row['precision']:6} {cell(row['examples_per_second'], 0):>17} "
            f"{cell(row['examples_per_cpu_second'], 0):>17} {row['positions_per_example']:9.1f} "
            f"{cell(row['score'], 4):>24} {cell(row['companion_is_faster'], 2, 'x'):>19}  "
            f"{row['companion_scores_more']:+.4f}{sure}"
        )
        if "monitor_adds_percent" in row:
            lines.append(
                f"{'':27} inside the Monitor: {cell(row['monitor_adds_percent'], 2, '%')} of the rest"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
