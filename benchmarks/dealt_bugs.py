"""Which bugs of the zoo the exercise can deal: its classifier, trained once with each of them alone.

    python benchmarks/dealt_bugs.py [--most N]

Writes `companion/exercises/broken_transformer/trained.json`, one bug after the other: the same command run
again goes on where it stopped, and measures anew what was edited since.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from broken_transformer import read

from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.editing import source_of
from companion.exercises.broken_transformer.dealing import MAIN
from companion.exercises.broken_transformer.planted import candidates
from companion.exercises.broken_transformer.repairing import module_of
from companion.exercises.broken_transformer.trained import TABLE, Trained, written_as

Rows = list[tuple[str, str, int]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=1000, help="bugs to measure now, at most")
    left = parser.parse_args().most
    torch.set_num_threads(1)
    data = read()
    few = [row for part in ("train", "dev") for row in [r for r in data if r[0] == part][:320]]
    labels = [label for part, _, label in data if part == "dev"]
    table: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {"bugs": {}}
    short, right = run((), few, 1), run((), data)
    table["guess"] = max(labels.count(label) for label in set(labels)) / len(labels)
    table["right"] = right[1]
    for bug in (bug for family in candidates() for bug in family):
        if left and table["bugs"].get(bug.name, {}).get("edits") != written_as(bug):
            left -= 1
            # A short run that is the right one to the last digit says all: the bug does nothing here.
            differs = run((bug,), few, 1) != short
            losses, accuracy = run((bug,), data) if differs else right
            means = statistics.mean(losses[:20]), statistics.mean(losses[-20:])
            table["bugs"][bug.name] = asdict(Trained(written_as(bug), differs, *means, accuracy))
            print(bug.name, table["bugs"][bug.name])
            TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def run(bugs: Sequence[Bug], data: Rows, epochs: int | None = None) -> tuple[list[float], float]:
    """Train; return the loss of each step and the accuracy. What raises has no loss and knows nothing."""
    model_file = module_of(source_of(bugs, "transformer"), "model", "model.py")
    train_file = module_of(source_of(bugs, "recipe") + MAIN, "train", "train.py")
    settings = train_file.Settings(epochs=epochs or train_file.EPOCHS)
    try:
        model, rows, losses = train_file.experiment(model_file, data, settings)
        return losses, float(train_file.evaluate(model, list(train_file.batches(rows["dev"], settings))))
    except Exception as error:
        print(f"{bugs[0].name if bugs else 'right code'}: {type(error).__name__}: {error}")
        return [0.0], 0.0


if __name__ == "__main__":
    main()
