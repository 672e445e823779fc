"""The learning rate, the warm-up and the batch size of a fine-tuning, each over a wide range.

    python benchmarks/fine_tuning.py --out RESULTS.json [--seeds 2] [--examples 2000] [--epochs 1]

Rates from those claimed for BERT to far above, shares of warm-up at one of them, batches of 4 to 256 with
some rates each. One run for each choice and seed, on reviews of at most `--words` words, judged on reviews
that were held out. Each run is written as soon as it is there: the same command run again goes on where it
stopped, and more seeds add to what is stored. A result has the same settings for all of its runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from store import Store

from companion import data, models, training
from companion.settings import get_settings

MAX_LENGTH = 64


@dataclass(frozen=True, order=True)
class Choice:
    """What a run is trained with; `warmup` is a share of its steps."""

    rate: float = 2e-4
    warmup: float = 0.06
    batch_size: int = 16


RATES = [Choice(rate=rate) for rate in (1e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4)]
WARMUPS = [Choice(warmup=share) for share in (0.0, 0.06, 0.3, 0.6)]
BATCHES = [
    Choice(rate=rate, batch_size=size) for size in (4, 16, 64, 256) for rate in (1e-4, 2e-4, 4e-4, 8e-4)
]


def main() -> None:
    arguments = parse()
    settings = get_settings()
    torch.set_num_threads(arguments.threads)
    names = ("task", "words", "examples", "epochs")
    shared = {name: getattr(arguments, name) for name in names}
    results = Store(arguments.out, shared | {"model": settings.names.encoder}, threads=arguments.threads)
    train, held_out, labels = texts(arguments)
    for choices, seed in product((RATES, WARMUPS, BATCHES), range(arguments.seeds)):
        for choice in choices:
            name = f"rate {choice.rate:g}, warm-up {choice.warmup:g}, batch {choice.batch_size}, seed {seed}"
            results.measured(name, partial(run, arguments, train, held_out, labels, choice, seed))
    print(report(results.rows))


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, gone on with if it is there")
    parser.add_argument("--task", default="sentiment", help="what data.load knows, with labels")
    parser.add_argument("--words", type=int, default=14, help="of the longest text")
    parser.add_argument("--examples", type=int, default=2000, help="that a run trains on")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    return parser.parse_args()


def texts(arguments: argparse.Namespace) -> tuple[list[data.Example], list[data.Example], tuple[str, ...]]:
    """Return what is trained on, what is held out, and the names of the labels."""
    loaded = data.load(arguments.task)
    train, dev = (
        [example for example in part if len(example.text.split()) <= arguments.words]
        for part in (loaded.train, loaded.dev)
    )
    if len(train) < arguments.examples:
        found = f"{len(train)} texts of at most {arguments.words} words"
        raise SystemExit(f"{found}, expected {arguments.examples}: give more --words or fewer --examples")
    held_out = (train[arguments.examples :] + dev)[:1000]
    return train[: arguments.examples], held_out, loaded.task.labels


def run(
    arguments: argparse.Namespace,
    train: Sequence[data.Example],
    held_out: Sequence[data.Example],
    labels: tuple[str, ...],
    choice: Choice,
    seed: int,
) -> dict[str, Any]:
    """Train once, and score what was held out."""
    fresh = models.load(get_settings().names.encoder, labels=labels, seed=seed)
    config = training.TrainingConfig(
        epochs=arguments.epochs,
        batch_size=choice.batch_size,
        learning_rate=choice.rate,
        warmup=choice.warmup,
        max_length=MAX_LENGTH,
        seed=seed,
    )
    started = time.perf_counter()
    fitted = training.fit(fresh.model, fresh.tokenizer, train, config=config)
    seconds = time.perf_counter() - started
    logits = training.predict_logits(fresh.model, fresh.tokenizer, held_out, max_length=MAX_LENGTH)
    truth = data.labels_of(held_out)
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(truth))
    return {
        **asdict(choice),
        "seed": seed,
        "steps": len(fitted.steps),
        "loss": float(loss),
        "accuracy": float((logits.argmax(1) == truth).mean()),
        "held_out": len(truth),
        "seconds": seconds,
    }


def report(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write a line for each choice: accuracy and loss, mean and range over the seeds."""
    by_choice: dict[Choice, list[Mapping[str, Any]]] = {}
    for row in rows.values():
        by_choice.setdefault(Choice(row["rate"], row["warmup"], row["batch_size"]), []).append(row)
    lines = [f"{'rate':>8}  {'warm-up':>7}  {'batch':>5}  {'accuracy':24}  {'loss':24}  seeds"]
    for choice, runs in sorted(by_choice.items()):
        cells = [spread([row[name] for row in runs]) for name in ("accuracy", "loss")]
        tried = f"{choice.rate:8g}  {choice.warmup:7g}  {choice.batch_size:5}"
        lines.append(f"{tried}  {cells[0]:24}  {cells[1]:24}  {len(runs)}")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Write a mean, and the range where there is more than one value."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main()
