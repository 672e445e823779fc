"""What each repair of the broken transformer is worth: every mixture of its bugs, trained over seeds.

    python benchmarks/broken_transformer.py --out RESULTS.json [--seeds 8] [--quick]

A run trains the exercise's own `train.py` on its own reviews. Beside the three bugs as they are dealt, the
learning rate of the source (1e-3 without warm-up) is tried by itself. Each run is written as soon as it is
there: the same command run again goes on where it stopped, and a larger `--seeds` adds to what is stored.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from store import Store

from companion import artifacts
from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.editing import source_of
from companion.exercises.broken_transformer.dealing import MAIN
from companion.exercises.broken_transformer.planted import DEFAULT
from companion.exercises.broken_transformer.repairing import module_of
from companion.exercises.broken_transformer.reviewing import reviews

DROPOUT, RATE, PADDING = DEFAULT
NAMES = {"dropout": DROPOUT, "rate": RATE, "padding": PADDING}


def variants() -> dict[str, tuple[Bug, ...]]:
    """Return every mixture of the three bugs by its name, and the source's rate."""
    found: dict[str, tuple[Bug, ...]] = {}
    for count in range(len(NAMES), -1, -1):
        for names in combinations(NAMES, count):
            found["+".join(names) or "none"] = tuple(NAMES[name] for name in names)
    sources_rate = [edit for edit in RATE.edits if not edit.before.startswith("learning_rate")]
    found["the source's rate"] = (replace(RATE, name="sources-rate", edits=tuple(sources_rate)),)
    return found


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    wanted = variants()
    edits = {name: [astuple(edit) for bug in mix for edit in bug.edits] for name, mix in wanted.items()}
    data = read()
    if arguments.quick:
        data = [row for part in ("train", "dev") for row in [r for r in data if r[0] == part][:64]]
    right = [source_of((), "transformer"), source_of((), "recipe"), MAIN]
    settings = {
        "bugs": artifacts.digest(edits),
        "reviews": artifacts.digest([list(row) for row in data]),
        "right code": artifacts.digest(right),
    }
    store = Store(arguments.out, settings)
    for seed in range(1 if arguments.quick else arguments.seeds):
        for name, mixture in wanted.items():
            store.measured(f"{name}/{seed}", partial(run, mixture, seed, data))
    print(text(store, list(wanted)))


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, gone on with if it is there")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a few texts, one seed: does it run?")
    return parser.parse_args()


def text(store: Store, names: Sequence[str]) -> str:
    lines = [f"{'bugs':24} held-out accuracy         training  answers that company changes"]
    for name in names:
        rows = [row for key, row in store.rows.items() if key.rpartition("/")[0] == name]
        scores = [row["accuracy"] for row in rows]
        middle = f"{statistics.median(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
        training = statistics.median(row["training_accuracy"] for row in rows)
        changed = statistics.median(row["changed"] for row in rows)
        lines.append(f"{name:24} {middle:25} {training:.3f}     {changed:.1%}")
    return "\n".join(lines)


def run(bugs: Sequence[Bug], seed: int, data: list[tuple[str, str, int]]) -> dict[str, float]:
    """Train once.

    ``changed`` is the share of held-out texts that get another label alone than in a batch with others.
    """
    model_file = module_of(source_of(bugs, "transformer"), "model", "model.py")
    train_file = module_of(source_of(bugs, "recipe") + MAIN, "train", "train.py")
    settings = train_file.Settings(epochs=train_file.EPOCHS, seed=seed)
    start = time.process_time()
    model, rows, losses = train_file.experiment(model_file, data, settings)
    seconds = time.process_time() - start
    parts = {part: list(train_file.batches(rows[part], settings)) for part in rows}
    alone = list(train_file.batches(rows["dev"], replace(settings, batch_size=1)))
    return {
        "accuracy": train_file.evaluate(model, parts["dev"]),
        "training_accuracy": train_file.evaluate(model, parts["train"]),
        "loss": statistics.mean(losses[-20:]),
        "changed": (labels_of(model, parts["dev"]) != labels_of(model, alone)).float().mean().item(),
        "seconds": seconds,
    }


@torch.no_grad()
def labels_of(model: torch.nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return the label that a model gives to each text."""
    model.eval()
    return torch.cat([model(batch["input_ids"], batch["attention_mask"]).argmax(-1) for batch in batches])


def read() -> list[tuple[str, str, int]]:
    """Return the exercise's reviews."""
    return [(row["split"], row["text"], int(row["label"])) for row in csv.DictReader(io.StringIO(reviews()))]


if __name__ == "__main__":
    main()
