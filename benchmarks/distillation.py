"""Distillation on real data: what a student keeps, what each term is worth, how fast it is.

    python benchmarks/distillation.py --data GLUE_FOLDER --out RESULTS.json [--parts retention speed ...]

Parts: `retention` (SST-2: plain logits, all terms, both stages), `speed`, `ablation` (over seeds), `table`
(every GLUE task in the folder). Each measurement is written as soon as it is there: the same command run
again goes on where it stopped. Teachers and the fitted head are artifacts and are made once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distillation_results import Results
from transformers import AutoModelForMaskedLM, PreTrainedModel

from companion import artifacts, data, inference, models, training
from companion.data.glue import HUB_NAMES
from companion.settings import get_settings
from companion.training.distillation import (
    PUBLISHED_CONFIG,
    Distilled,
    LanguageDistillation,
    Recipe,
    distil,
    distil_language,
    every_other_layer,
    fit_mlm_head,
    make_student,
    random_student,
    transplant,
)

PARTS = ("retention", "speed", "ablation", "table")
LANGUAGE = {"all terms": {}, "no KL": {"kl": 0.0}, "no MLM": {"mlm": 0.0}, "no cosine": {"cosine": 0.0}}
TASK = {
    "all terms": Recipe(),
    "no KL": Recipe(kl=0.0),
    "no hard label": Recipe(hard=0.0),
    "no cosine": Recipe(cosine=0.0),
}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    sizes = ("examples", "transfer_examples", "ablation_examples", "table_examples", "dev_examples")
    settings = {name: getattr(arguments, name) for name in ("encoder", *sizes, "passes")}
    results = Results(arguments.out, settings, threads=arguments.threads)
    parts = {"retention": retention, "speed": speed, "ablation": ablation, "table": table}
    for part in arguments.parts:
        parts[part](arguments, results)
    print(results.text())


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--data", type=Path, default=get_settings().data_dir, help="a GLUE folder")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, gone on with if it is there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--encoder", default=get_settings().names.encoder)
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    parser.add_argument("--examples", type=int, default=12_000, help="training examples, at most")
    parser.add_argument("--ablation-examples", type=int, default=1_000)
    parser.add_argument("--transfer-examples", type=int, default=24_000, help="without labels, at most")
    parser.add_argument("--table-examples", type=int, default=2_000)
    parser.add_argument("--passes", type=int, default=2, help="of the student, for one of its teacher's")
    parser.add_argument("--dev-examples", type=int, help="development examples, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of the speed measurement")
    parser.add_argument("--quick", action="store_true", help="a few examples of everything: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.examples, arguments.transfer_examples, arguments.dev_examples = 48, 64, 32
        arguments.ablation_examples = arguments.table_examples = 32
        arguments.seeds, arguments.repeats = 1, 3
    return arguments


# --- the parts


def retention(arguments: argparse.Namespace, results: Results) -> None:
    """SST-2: what each way of distilling keeps, and how long all of it takes."""
    task, teacher, _ = prepared(arguments, "sst2", arguments.examples)
    more = data.load("sst2", data_dir=arguments.data, max_examples=arguments.transfer_examples)
    unlabelled = replace(task, train=more.train)
    variants = {
        "plain logits": (task, Recipe(hard=0.0, cosine=0.0), arguments.passes),
        "all terms": (task, Recipe(), arguments.passes),
        # The teacher labels for nothing: the student learns from texts whose labels nobody needs to know.
        "more phrases, without labels": (unlabelled, Recipe(hard=0.0), 1),
    }
    for name, (seen, recipe, passes) in variants.items():
        config = replace(configuration(task), epochs=passes * configuration(task).epochs)
        run = partial(distilled, arguments, seen, teacher, recipe=recipe, config=config)
        results.measured(f"retention/{name}", lambda run=run, seen=seen: row(run(), seen, teacher))

    def both_stages() -> dict[str, Any]:
        start = time.perf_counter()
        head = fit_mlm_head(arguments.encoder, teacher.tokenizer, texts(task))
        fitted = time.perf_counter()
        student = stage_one(head.model, teacher, task, weights={}, seed=0)
        trained = time.perf_counter()
        found = row(distilled(arguments, task, teacher, student=student), task, teacher)
        found |= {f"head_{name}": getattr(head, name) for name in ("before", "after", "unigram", "uniform")}
        found |= {"seconds_head": fitted - start, "seconds_language_stage": trained - fitted}
        return found | {"seconds": time.perf_counter() - start}

    results.measured("retention/both stages", both_stages)


def speed(arguments: argparse.Namespace, results: Results) -> None:
    """How many times faster the student is: its body, a whole classifier, a whole masked language model."""
    task, teacher, _ = prepared(arguments, "sst2", arguments.examples)
    small = make_student(teacher.model, every_other_layer(teacher.model))
    sample = [example._replace(label=None) for example in task.dev[:256]]
    inputs = [
        {name: batch[name] for name in ("input_ids", "attention_mask")}
        for batch in data.batches(sample, teacher.tokenizer, batch_size=32)
    ]

    def forward(model: PreTrainedModel) -> None:
        with torch.inference_mode():
            for batch in inputs:
                model(**batch)

    both = (teacher.model, small)
    masked = [AutoModelForMaskedLM.from_config(model.config).eval() for model in both]
    classify = partial(training.predict_logits, tokenizer=teacher.tokenizer, examples=sample)
    pairs = {
        "body": [partial(forward, model.base_model) for model in both],
        "whole classifier, tokenizer included": [partial(classify, model) for model in both],
        "whole masked language model": [partial(forward, model) for model in masked],
    }

    def measure() -> dict[str, Any]:
        found = {}
        for name, (large, little) in pairs.items():
            timings = inference.side_by_side({"teacher": large, "student": little}, repeats=arguments.repeats)
            median, spread = inference.ratio(timings["teacher"], timings["student"])
            found[name] = {"factor": median, "spread": spread}
        return found

    results.measured("speed", measure)


def ablation(arguments: argparse.Namespace, results: Results) -> None:
    """Each term left out in turn, in either stage, and a student that starts from random weights."""
    task, teacher, _ = prepared(arguments, "sst2", arguments.ablation_examples)
    head = fitted_head(arguments, task, teacher)
    first = partial(stage_one, head, teacher, task)

    def second(recipe: Recipe, start: Callable[..., models.Classifier | None], seed: int) -> dict[str, Any]:
        config, student = configuration(task, seed=seed), start(seed=seed)
        done = distilled(arguments, task, teacher, student=student, recipe=recipe, config=config)
        return row(done, task, teacher)

    # After the first stage plain fine-tuning, as in the paper: it shows what the first one was worth.
    plain, same_layers = Recipe(kl=0.0, cosine=0.0), lambda seed: None
    variants = {f"task stage/{name}": partial(second, recipe, same_layers) for name, recipe in TASK.items()}
    for name, weights in LANGUAGE.items():
        variants[f"language stage/{name}"] = partial(second, plain, partial(first, weights=weights))
    random = "random initialisation"
    variants[f"task stage/{random}"] = partial(second, Recipe(), partial(ignorant, teacher))
    variants[f"language stage/{random}"] = partial(second, plain, partial(first, weights={}, random=True))
    variants["no distillation/the same layers"] = partial(second, plain, same_layers)
    for seed in range(arguments.seeds):
        for name, measure in variants.items():
            results.measured(f"ablation/{name}/{seed}", partial(measure, seed))


def table(arguments: argparse.Namespace, results: Results) -> None:
    """Every GLUE task in the folder."""
    for name in HUB_NAMES:
        if f"table/{name}" in results.rows or name == "imdb":
            continue
        try:
            task, teacher, seconds = prepared(arguments, name, arguments.table_examples)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue

        def measure(task: Any = task, teacher: Any = teacher, seconds: float = seconds) -> dict[str, Any]:
            found = row(distilled(arguments, task, teacher), task, teacher)
            return found | {"teacher_training_seconds": seconds}

        results.measured(f"table/{name}", measure)


# --- what they share


def configuration(task: data.TaskData, *, seed: int = 0) -> training.TrainingConfig:
    """Two passes over a large training set, up to five over a small one."""
    return training.TrainingConfig(epochs=min(5, max(2, 16_000 // len(task.train))), seed=seed)


def prepared(
    arguments: argparse.Namespace, name: str, examples: int
) -> tuple[data.TaskData, models.Classifier, float]:
    """Return a task's data and a teacher fine-tuned on them, with the seconds that this took."""
    task = data.load(name, data_dir=arguments.data, max_examples=examples)
    task = replace(task, dev=task.dev[: arguments.dev_examples])

    def build(folder: Path) -> None:
        kind: dict[str, Any] = (
            {"regression": True} if task.task.is_regression else {"labels": task.task.labels}
        )
        classifier = models.load(arguments.encoder, **kind)
        run = training.fit(classifier.model, classifier.tokenizer, task.train, config=configuration(task))
        training.save(classifier.model, classifier.tokenizer, folder / "model", max_length=128)
        (folder / "seconds.json").write_text(json.dumps(run.seconds))

    inputs = {
        "task": name,
        "encoder": str(arguments.encoder),
        "config": asdict(configuration(task)),
        "train": artifacts.digest([list(example) for example in task.train]),
    }
    folder = artifacts.make("distillation-teacher", build, version=1, inputs=inputs)
    return task, models.load(folder / "model"), json.loads((folder / "seconds.json").read_text())


def fitted_head(
    arguments: argparse.Namespace, task: data.TaskData, teacher: models.Classifier
) -> PreTrainedModel:
    """Return the encoder, before any fine-tuning, with a fitted masked-language-model head."""

    def build(folder: Path) -> None:
        head = fit_mlm_head(arguments.encoder, teacher.tokenizer, texts(task))
        training.save(head.model, teacher.tokenizer, folder / "model")

    inputs = {"encoder": str(arguments.encoder), "texts": artifacts.digest(texts(task))}
    folder = artifacts.make("distillation-head", build, version=1, inputs=inputs)
    return AutoModelForMaskedLM.from_pretrained(folder / "model", dtype=torch.float32).eval()


def distilled(
    arguments: argparse.Namespace, task: data.TaskData, teacher: models.Classifier, **options: Any
) -> Distilled:
    """Distil with `--passes` passes for each of the teacher's: one of the student costs half as much."""
    config = configuration(task)
    options = {"config": replace(config, epochs=arguments.passes * config.epochs)} | options
    return distil(teacher, task.train, dev=task.dev, task=task.task, **options)


def texts(task: data.TaskData) -> list[str]:
    return [text for example in task.train for text in (example.text, example.pair) if text]


def stage_one(
    mlm: PreTrainedModel,
    teacher: models.Classifier,
    task: data.TaskData,
    *,
    weights: dict[str, float],
    seed: int,
    random: bool = False,
) -> models.Classifier:
    """Run the first stage, and put its student under the classifier's head."""
    layers = every_other_layer(mlm)
    objective = LanguageDistillation(teacher=mlm, tokenizer=teacher.tokenizer, positions="masked", **weights)
    student, _ = distil_language(
        mlm,
        teacher.tokenizer,
        texts(task),
        student=random_student(mlm, len(layers), seed=seed) if random else None,
        objective=objective,
        config=replace(PUBLISHED_CONFIG, epochs=2, seed=seed),
    )
    into = ignorant(teacher, seed) if random else replace(teacher, model=make_student(teacher.model, layers))
    transplant(student, into.model)
    return into


def ignorant(teacher: models.Classifier, seed: int) -> models.Classifier:
    layers = len(every_other_layer(teacher.model))
    return replace(teacher, model=random_student(teacher.model, layers, seed=seed))


def row(done: Distilled, task: data.TaskData, teacher: models.Classifier) -> dict[str, Any]:
    """What is stored of a distillation; `baseline`: always the most frequent label, or the mean."""
    truth = np.array(data.labels_of(task.dev))
    common = np.full(len(truth), truth.mean() if task.task.is_regression else np.bincount(truth).argmax())
    metric = task.task.metric
    small, large = (
        training.predict_logits(model, teacher.tokenizer, task.dev, max_length=128)
        for model in (done.student.model, teacher.model)
    )
    return {
        "metric": metric,
        "teacher": done.teacher_metrics[metric],
        "student": done.student_metrics[metric],
        "baseline": data.score(task.task, truth.tolist(), common)[metric],
        "retention": done.retention if done.teacher_metrics[metric] > 0 else None,
        "agreement": None if task.task.is_regression else float((small.argmax(1) == large.argmax(1)).mean()),
        "train": len(task.train),
        "dev": len(task.dev),
        "epochs": done.run.config.epochs,
        "seconds": done.seconds,
        "teacher_seconds": done.teacher_seconds,
        "smaller": done.compression.factor,
        "smaller_without_embeddings": done.compression.factor_without_embeddings,
    }


if __name__ == "__main__":
    main()
