"""What a semantic cache is worth: false hits, opposites let through, time saved against time spent.

    python benchmarks/semantic_cache.py [--data GLUE_FOLDER] [--tasks sentiment sst2 mrpc] [--quick]

For `sentiment` and `sst2` an encoder is fine-tuned on half of the training texts and served in INT8; its own
answers to the other texts say which hits are false. The questions are held-out texts, and stored ones in
other words (`--repeats` is their share); the opposites are stored texts with one word turned. For `mrpc`
people have said which pairs mean the same. One half of the questions finds the threshold, the other half
says what it is worth. Each embedding function is a row, written as soon as it is there: the same command run
again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store import Store
from throughput import exported

from companion import artifacts, data, inference, models, training
from companion.deployment.answering import Answer
from companion.deployment.caching import (
    Certificate,
    HashedWords,
    HitBudget,
    NeighbourIndex,
    SemanticReport,
    StateEncoder,
    Trial,
    certify,
    opposites,
    pair_trials,
    replay,
    variants,
)
from companion.deployment.caching.certificate import TRAFFIC
from companion.deployment.caching.neighbours import Embed, unit
from companion.settings import get_settings

RESULTS = Path(__file__).parent / "results" / "semantic-cache.json"
TASKS = ("sentiment", "sst2", "mrpc")
BUDGETS = (0.01, 0.05)
TIMED = 64
"""Texts that are timed, one by one."""


def main() -> None:
    arguments = parse()
    settings = {
        "encoder": arguments.encoder,
        "examples": arguments.examples,
        "stored": arguments.stored,
        "repeats": arguments.repeats,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "seed": arguments.seed,
    }
    store = Store(arguments.out, settings, threads=arguments.threads)
    for task in arguments.tasks:
        setting = Setting.prepared(task, arguments)
        for name, embed in setting.embedders(arguments.threads).items():
            row = store.measured(f"{task}, {name}", lambda s=setting, e=embed: measured(s, e, arguments))
            print("", f"{task}, {name}", *row["table"], "", sep="\n")


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, default=RESULTS, help="a JSON file, gone on with if it is there")
    parser.add_argument("--data", type=Path, default=get_settings().data_dir, help="a GLUE folder")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all that there is data for")
    parser.add_argument("--encoder", default=get_settings().names.encoder)
    parser.add_argument("--examples", type=int, default=4_000, help="training examples, at most")
    parser.add_argument("--stored", type=int, default=1_500, help="texts in the cache, at most")
    parser.add_argument("--repeats", type=float, default=0.5, help="share of questions asked before")
    parser.add_argument("--rounds", type=int, default=7, help="of each timing")
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few texts of everything: does it run?")
    arguments = parser.parse_args()
    arguments.tasks = arguments.tasks or (TASKS if arguments.data else TASKS[:1])
    if arguments.quick:
        arguments.examples, arguments.stored, arguments.rounds = 64, 60, 3
    return arguments


# --- what is asked


@dataclass(frozen=True)
class Setting:
    """A task's served model, its texts, and the questions in two halves.

    Where people have labelled pairs there are `pairs`, elsewhere all the others.
    """

    served: Path
    plain: Path
    stored: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    turned: tuple[tuple[str, str], ...] = ()
    pairs: tuple[tuple[str, str, bool, str], ...] = ()

    @classmethod
    def prepared(cls, task: str, arguments: argparse.Namespace) -> Setting:
        loaded = data.load(task, data_dir=arguments.data)
        plain = exported(encoder_folder(arguments.encoder), "fp32")
        rng = random.Random(arguments.seed)
        if task == "mrpc":
            pairs = labelled_pairs(loaded, rng, 4 * arguments.stored)
            return cls(exported(encoder_folder(arguments.encoder), "int8"), plain, pairs=pairs)
        half = min(arguments.examples, len(loaded.train) // 2)
        model = fine_tuned(loaded, half, arguments.encoder)
        texts = sorted({example.text for example in (*loaded.train[half:], *loaded.dev, *loaded.test)})
        rng.shuffle(texts)
        stored, fresh = texts[: arguments.stored], texts[arguments.stored :]
        again = [rng.choice(found).text for text in stored if (found := variants(text, seed=arguments.seed))]
        share = arguments.repeats
        count = round(min(len(again) / share if share else len(fresh), len(fresh) / (1 - share)))
        asked = again[: round(count * share)] + fresh[: round(count * (1 - share))]
        rng.shuffle(asked)
        turned = [
            (found.text, found.kind) for text in stored for found in opposites(text, seed=arguments.seed)
        ]
        rng.shuffle(turned)
        return cls(exported(model, "int8"), plain, tuple(stored), tuple(asked), tuple(turned))

    def embedders(self, threads: int) -> dict[str, Embed]:
        return {
            "hashed words": HashedWords(),
            "its own first layer": StateEncoder(self.served, norm=2, threads=threads),
            "its own last state": StateEncoder(self.served, state="pooled", threads=threads),
            "sentence encoder": StateEncoder(self.plain, threads=threads),
        }

    def texts(self) -> list[str]:
        """Return some questions to time."""
        return list(self.asked[:TIMED]) or [other for _, other, _, _ in self.pairs[:TIMED]]

    def trials(self, embed: Embed, predictor: inference.OnnxPredictor) -> list[Trial]:
        if self.pairs:
            return [
                trial
                for text, other, right, kind in self.pairs
                for trial in pair_trials([(text, other, right)], embed, kind=kind)
            ]
        stored = answered(predictor, self.stored)
        found = replay(stored, answered(predictor, self.asked), embed)
        for kind in sorted({kind for _, kind in self.turned}):
            texts = [text for text, other in self.turned if other == kind]
            found += replay(stored, answered(predictor, texts), embed, kind=kind)
        return found


def labelled_pairs(
    task: data.TaskData, rng: random.Random, count: int
) -> tuple[tuple[str, str, bool, str], ...]:
    """Return people's pairs, and their first texts with one word turned, which are taken to mean another."""
    examples = [example for example in (*task.train, *task.dev) if example.pair is not None]
    rng.shuffle(examples)
    pairs = [(example.text, str(example.pair), example.label == 1, TRAFFIC) for example in examples[:count]]
    turned = [
        (example.text, found.text, False, found.kind)
        for example in examples[:count]
        for found in opposites(example.text)
    ]
    rng.shuffle(turned)
    return (*pairs, *turned)


def answered(predictor: inference.OnnxPredictor, texts: Sequence[str]) -> list[tuple[str, Answer]]:
    rows = predictor.probabilities(list(texts)).tolist() if texts else []
    version = predictor.manifest.model_version
    return [
        (text, Answer(tuple(row), predictor.labels, version)) for text, row in zip(texts, rows, strict=True)
    ]


def encoder_folder(encoder: str) -> Path:
    """Give the encoder a head that nobody asks, so that it can be exported."""

    def build(folder: Path) -> None:
        classifier = models.load(encoder, labels=("negative", "positive"))
        training.save(classifier.model, classifier.tokenizer, folder / "model", max_length=128)

    return artifacts.make("semantic-encoder", build, version=1, inputs={"encoder": encoder}) / "model"


def fine_tuned(task: data.TaskData, count: int, encoder: str) -> Path:
    def build(folder: Path) -> None:
        classifier = models.load(encoder, labels=task.task.labels)
        training.fit(classifier.model, classifier.tokenizer, task.train[:count])
        training.save(classifier.model, classifier.tokenizer, folder / "model", max_length=128)

    train = artifacts.digest([list(example) for example in task.train[:count]])
    inputs = {"task": task.task.name, "encoder": encoder, "train": train}
    return artifacts.make("semantic-model", build, version=1, inputs=inputs) / "model"


# --- what comes of it


def measured(
    setting: Setting, embed: HashedWords | StateEncoder, arguments: argparse.Namespace
) -> dict[str, Any]:
    predictor = inference.OnnxPredictor(setting.served, threads=arguments.threads)
    trials = setting.trials(embed, predictor)
    random.Random(arguments.seed).shuffle(trials)
    first, second = trials[::2], trials[1::2]
    lookup_s, model_s = times(setting, embed, predictor, arguments)
    row: dict[str, Any] = {"lookup_s": lookup_s, "model_s": model_s, "budgets": {}, "table": []}
    names = {"embedder": embed.name, "model_version": predictor.manifest.model_version}
    for budget in BUDGETS:
        certificate = certify(first, HitBudget(budget, budget), **names)
        report, through = worth(certificate, second, lookup_s, model_s)
        row["budgets"][str(budget)] = {
            "certificate": certificate.to_dict(),
            "report": report.to_dict(),
            "opposites": through,
        }
        row["table"] += [f"budget {budget:.0%}: {certificate.text()}", *report.text().splitlines()]
        if through["total"]:
            row["table"].append(f"  opposites   {through['let_through']} of {through['total']} let through")
    row["needed"] = needed(lookup_s, model_s)
    row["table"].append(row["needed"])
    row["trials"] = [[round(trial.similarity, 5), trial.right, trial.kind] for trial in trials]
    return row


def worth(
    certificate: Certificate, trials: Sequence[Trial], lookup_s: float, model_s: float
) -> tuple[SemanticReport, dict[str, int]]:
    """Put the other half of the questions to the threshold."""
    threshold = 2.0 if certificate.threshold is None else certificate.threshold
    ordinary = [trial for trial in trials if trial.kind == TRAFFIC]
    turned = [trial for trial in trials if trial.kind != TRAFFIC and not trial.right]
    hits = [trial for trial in ordinary if trial.similarity >= threshold]
    through = sum(trial.similarity >= threshold for trial in turned)
    report = SemanticReport(
        questions=len(ordinary),
        hits=len(hits),
        audited=len(hits),
        false_hits=sum(not trial.right for trial in hits),
        lookup_s=lookup_s,
        model_s=model_s,
        budget=certificate.budget.false_hits,
        off=certificate.reason,
    )
    return report, {"let_through": through, "total": len(turned)}


def times(
    setting: Setting, embed: Embed, predictor: inference.OnnxPredictor, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Time looking up and answering, one text at a time, side by side; median seconds per text."""
    texts = setting.texts()
    index = NeighbourIndex(max(1, arguments.stored))
    nothing = Answer((0.0,), (), "")
    vectors = [vector for text in texts if (vector := unit(embed(text))) is not None]
    for place in range(arguments.stored):
        index.add(vectors[place % len(vectors)], nothing)

    def look_up() -> None:
        for text in texts:
            if (vector := unit(embed(text))) is not None:
                index.nearest(vector)

    def answer() -> None:
        for text in texts:
            predictor.probabilities([text])

    found = inference.side_by_side(
        {"look up": look_up, "answer": answer}, repeats=arguments.rounds, rotate=True
    )
    return found["look up"].median / len(texts), found["answer"].median / len(texts)


def needed(lookup_s: float, model_s: float) -> str:
    """Say for which models this way of looking up could pay."""
    at = ", ".join(f"{share:.0%} of hits: {lookup_s / share / model_s:.2f}x" for share in (0.1, 0.3, 0.5))
    return f"pays in front of a model that takes, in times of this one, more than ({at})"


if __name__ == "__main__":
    main()
