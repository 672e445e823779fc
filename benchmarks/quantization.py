"""Quantized text classification on a CPU: accuracy, speed, peers, sensitive layers, training with rounding.

    python benchmarks/quantization.py --data GLUE_FOLDER --out RESULTS.json [--parts accuracy speed ...]

Parts: `accuracy` and `speed` (every precision of `companion export`, torch in FP32 and bf16, the standard
INT8), `peers` (optimum's presets and torchao besides, for which `--peers-python` names a Python that has
them: see quantization_peers.py), `sensitivity` (which layer pays, and the fewest that stay wide), `qat`.
Without `--model` the encoder is fine-tuned first and kept as an artifact, as are all exports. All candidates
get the same texts and threads and take turns. Each measurement is written as soon as it is there: the same
command run again goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quantization_candidates import (
    BF16,
    FP32,
    OURS,
    PLAIN,
    PRESETS,
    STANDARD,
    TORCH,
    TORCHAO,
    Autocast,
    Elsewhere,
    exported,
    peers_exported,
    size_of,
    trained,
)
from quantization_layers import layers, mixed
from quantization_recovery import CONFIGURATIONS, recovery
from quantization_results import text
from store import Store

from companion import artifacts, data, inference, models
from companion.inference.exporting import feeds_of, to_onnx
from companion.inference.optimizing.evidence import Remembered
from companion.inference.quantization.schemes import Fixed, Rows, Scheme, WeightsOnly
from companion.settings import get_settings

PARTS = ("accuracy", "speed", "peers", "sensitivity", "qat")
BATCHES = (1, 8, 32)
FEW = 32
"""Texts for what is many times slower where the processor lacks its instructions."""


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    work = Work.prepared(arguments)
    settings = {
        "task": work.task.task.name,
        "model": artifacts.digest(work.model / "model.safetensors"),
        "dev": artifacts.digest([list(example) for example in work.task.dev]),
        "calibration": len(work.calibration),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
    }
    store = Store(arguments.out, settings, threads=arguments.threads)
    parts = {"accuracy": accuracy, "speed": speed, "peers": peers, "sensitivity": sensitivity, "qat": qat}
    for part in arguments.parts:
        parts[part](arguments, work, store)
    print(text(store.rows))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", type=Path, default=get_settings().data_dir, help="a GLUE folder")
    parser.add_argument("--model", type=Path, help="a fine-tuned model folder for the task")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, gone on with if it is there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--encoder", default=get_settings().names.encoder)
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    parser.add_argument("--examples", type=int, default=12_000, help="training examples, at most")
    parser.add_argument("--dev-examples", type=int, help="held-out examples, at most")
    parser.add_argument("--calibration", type=int, default=256, help="training texts for fixed scales")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each timing")
    parser.add_argument("--peers-python", type=Path, help="a Python with optimum and torchao")
    parser.add_argument("--max-flips", type=float, default=0.005, help="budget of mixed precision, a share")
    parser.add_argument("--selection", type=int, default=512, help="training texts that layers are judged on")
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--qat-examples", type=int, default=12_000, help="training examples of `qat`")
    parser.add_argument("--seeds", type=int, default=5, help="of `qat`")
    parser.add_argument("--quick", action="store_true", help="a few examples of everything: does it run?")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.examples, arguments.dev_examples, arguments.repeats = 64, 48, 3
        arguments.calibration, arguments.selection = 16, 16
        arguments.qat_examples, arguments.seeds = 64, 1
    return arguments


@dataclass(frozen=True)
class Work:
    """What all parts share: the data, the model, and texts to calibrate with, which it was trained on."""

    task: data.TaskData
    model: Path
    calibration: tuple[data.Example, ...]

    @classmethod
    def prepared(cls, arguments: argparse.Namespace) -> Work:
        task = data.load(arguments.task, data_dir=arguments.data, max_examples=arguments.examples)
        task = replace(task, dev=task.dev[: arguments.dev_examples])
        model = arguments.model or trained(task, str(arguments.encoder))
        return cls(task, model, tuple(task.train[: arguments.calibration]))

    @property
    def texts(self) -> list[str]:
        return [example.text for example in self.task.dev]

    def exports(self) -> Path:
        return exported(self.model, self.calibration)


# --- accuracy and speed


def own(work: Work, threads: int) -> dict[str, inference.Predictor]:
    """Open torch's model, all exports, and the INT8 that onnxruntime makes."""
    exports = work.exports()
    found: dict[str, inference.Predictor] = {
        TORCH: inference.TorchPredictor(work.model),
        BF16: Autocast(inference.TorchPredictor(work.model)),
    }
    for folder in sorted(exports.iterdir()):
        if folder.is_dir():
            found[folder.name] = inference.OnnxPredictor(folder, threads=threads, anyway=True)
    return found


def accuracy(arguments: argparse.Namespace, work: Work, store: Store) -> None:
    reference = Remembered(inference.TorchPredictor(work.model))
    for name, predictor in own(work, arguments.threads).items():
        if name != TORCH:
            folder = work.exports() / name
            store.measured(
                f"accuracy/{name}",
                partial(answers, reference, predictor, work, folder if folder.is_dir() else None),
            )


def answers(
    reference: inference.Predictor, predictor: inference.Predictor, work: Work, folder: Path | None
) -> dict[str, Any]:
    """Compare a candidate with FP32 torch, and its own answers alone and in batches; weigh its folder."""
    once = Remembered(predictor)
    quality = inference.assess(reference, once, work.task.dev, work.task.task)
    logits = {size: once.logits(work.texts, batch_size=size) for size in BATCHES}
    labels = np.stack([values.argmax(axis=1) for values in logits.values()])
    row: dict[str, Any] = {
        "accuracy": quality.candidate,
        "reference": quality.reference,
        "drop_points": {name: 100 * value for name, value in quality.drop.to_dict().items()},
        "flips": round(quality.flips.value * quality.examples) if quality.flips else None,
        "flip_rate": quality.flips.to_dict() if quality.flips else None,
        "examples": quality.examples,
        "moved_by_batch": int((labels != labels[0]).any(axis=0).sum()),
        "same_bits": all(np.array_equal(values, logits[1]) for values in logits.values()),
    }
    if folder is not None:
        manifest = inference.read_manifest(folder)
        row |= {
            "bytes": size_of(folder),
            "share_of_fp32": size_of(folder) / size_of(work.exports() / FP32),
            "operators": manifest.operators,
            "cpu_features": manifest.cpu_features,
        }
    return row


def speed(arguments: argparse.Namespace, work: Work, store: Store) -> None:
    predictors = own(work, arguments.threads)
    for size in BATCHES:
        store.measured(f"speed/{size}", partial(raced, predictors, work.texts, size, arguments.repeats))


def raced(
    predictors: Mapping[str, inference.Predictor], texts: Sequence[str], size: int, repeats: int
) -> dict[str, Any]:
    """Let all candidates answer the same texts in batches of one size, in turns."""
    runs = {name: partial(one.logits, texts, batch_size=size) for name, one in predictors.items()}
    timings = inference.side_by_side(runs, repeats=repeats, rotate=True)
    against = {}
    for slow in timings:
        median, spread = inference.ratio(timings[slow], timings[OURS])
        against[slow] = {"median": median, "low": spread[0], "high": spread[1]}
    return {
        "texts": len(texts),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "texts_per_second": {name: timing.rate(len(texts))[0] for name, timing in timings.items()},
        "int8_is_faster": against,
    }


# --- what other tools make of it


def peers(arguments: argparse.Namespace, work: Work, store: Store) -> None:
    """The presets of others beside ours, in one run: what people would use instead."""
    kept = (TORCH, BF16, FP32, STANDARD, PLAIN, OURS)
    with ExitStack() as stack:
        predictors = {name: one for name, one in own(work, arguments.threads).items() if name in kept}
        folders: dict[str, Path] = {}
        if arguments.peers_python is None:
            print("no --peers-python: optimum and torchao are left out", flush=True)
        else:
            made, versions = peers_exported(arguments.peers_python, work.exports())
            store.measured("peers/versions", lambda: versions)
            folders = {name: made / name for name in PRESETS}
            for name, folder in folders.items():
                predictors[name] = inference.OnnxPredictor(folder, threads=arguments.threads, anyway=True)
            labels = predictors[TORCH].labels
            for name in TORCHAO:
                opened = Elsewhere(arguments.peers_python, work.model, name, arguments.threads, labels)
                predictors[name] = stack.enter_context(opened)
        reference = Remembered(inference.TorchPredictor(work.model))
        for name in (*PRESETS, *TORCHAO):
            if name in predictors:
                held = (
                    work
                    if name in folders
                    else replace(work, task=replace(work.task, dev=work.task.dev[:FEW]))
                )
                measure = partial(answers, reference, predictors[name], held, folders.get(name))
                store.measured(f"accuracy/{name}", measure)
        slow = {BF16, *TORCHAO}
        races = {
            "peers": ({name: one for name, one in predictors.items() if name not in slow}, work.texts),
            "torch": (
                {name: one for name, one in predictors.items() if name in slow | {TORCH, OURS}},
                work.texts[:FEW],
            ),
        }
        for part, (runners, texts) in races.items():
            for size in BATCHES:
                measure = partial(raced, runners, texts, size, arguments.repeats)
                store.measured(f"{part}/{size}", measure)


# --- layers


def sensitivity(arguments: argparse.Namespace, work: Work, store: Store) -> None:
    """Which layers pay for each scheme, and how few must stay wide for so many flips."""
    classifier = models.load(work.model)
    graph = to_onnx(classifier, precision="fp32")
    ranges = inference.calibrate(graph, feeds_of(classifier, work.calibration))
    schemes: dict[str, Scheme] = {
        "int8": Rows(),
        "int8-fixed": Fixed(ranges),
        "int8-weights": WeightsOnly(8),
        "int4-weights": WeightsOnly(4),
    }
    seen = list(feeds_of(classifier, work.task.train[-arguments.selection :]))
    unseen, truth = list(feeds_of(classifier, work.task.dev)), data.labels_of(work.task.dev)
    for name, scheme in schemes.items():
        row = store.measured(f"sensitivity/{name}", partial(layers, graph, seen, scheme))
        order = [layer["weight"] for layer in row["layers"]]
        budget = arguments.max_flips
        store.measured(
            f"mixed/{name}/{budget:g}", partial(mixed, graph, seen, unseen, truth, scheme, order, budget)
        )


def qat(arguments: argparse.Namespace, work: Work, store: Store) -> None:
    """What training with rounding wins back of what rounding costs."""
    task = data.load(arguments.task, data_dir=arguments.data, max_examples=arguments.qat_examples)
    task = replace(task, dev=work.task.dev)
    for name in arguments.configurations:
        for seed in range(arguments.seeds):
            measure = partial(recovery, task, str(arguments.encoder), CONFIGURATIONS[name], seed)
            store.measured(f"qat/{name}/{seed}", measure)


if __name__ == "__main__":
    main()
