"""What the hub, and whoever downloads from it, would stumble over: looked for on this machine, offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from companion.artifacts import digest
from companion.training.sharing.cards import DATASET_TYPE, hub_metric, label_rows
from companion.training.sharing.files import (
    CARD,
    CONFIG,
    REQUIRED,
    Problem,
    places_and_keys,
    unexpected,
    unfit,
)
from companion.training.sharing.reports import REPORT, WEIGHTS, read_report

__all__ = ["validate"]


def validate(folder: Path) -> tuple[Problem, ...]:
    """Look for everything in a hub folder that would fail, mislead or give away something.

    Nothing leaves this machine, and no code from the folder is run.

    Parameters
    ----------
    folder : Path
        Made by `companion.training.sharing.prepare`.

    Returns
    -------
    tuple of Problem
        Empty for a folder that can be shared.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder, expected a hub folder. Make one: companion share")
    usable = {name for name in REQUIRED if (folder / name).is_file()}
    problems = [
        Problem("missing", name, "is missing; save the model with its tokenizer, then prepare the folder")
        for name in REQUIRED
        if name not in usable
    ]
    problems += [*unfit(folder), *unexpected(folder), *places_and_keys(folder)]
    checks = (
        ("report", (REPORT,), _report),
        ("config", (CONFIG,), _config),
        ("weights", (WEIGHTS, CONFIG), _weights),
        ("tokenizer", ("tokenizer.json", "tokenizer_config.json", CONFIG), _tokenizer),
        ("labels", (CONFIG, REPORT), _labels),
        ("report", (REPORT, WEIGHTS), _about_these_weights),
        ("report", (REPORT, "tokenizer.json", "tokenizer_config.json"), _length),
        ("card", (CARD, REPORT), _card),
    )
    for kind, needs, check in checks:
        if usable.issuperset(needs):
            try:
                problems += check(folder)
            except Exception as error:  # each library has classes of its own
                what = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
                problems.append(Problem(kind, needs[0], f"cannot be read: {what}"))
                usable.discard(needs[0])
    return tuple(problems)


def _report(folder: Path) -> Iterator[Problem]:
    read_report(folder)
    yield from ()


def _config(folder: Path) -> Iterator[Problem]:
    config = _read_config(folder)
    classes = config.architectures or []
    if not any("ForSequenceClassification" in name for name in classes):
        found = ", ".join(classes) or "no class"
        yield Problem("config", CONFIG, f"names {found}, expected one for sequence classification")
    if getattr(config, "auto_map", None):
        yield Problem("config", CONFIG, "asks for code of its own (auto_map); save the model without it")


def _weights(folder: Path) -> Iterator[Problem]:
    """Compare the header of the weights with the model that the configuration describes."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(_read_config(folder))
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())  # stored once, under another name
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted(expected.keys() - found.keys() - tied):
        yield Problem("weights", WEIGHTS, f"has no {name}, which {CONFIG} describes; save the model again")
    for name in sorted(found.keys() - expected.keys()):
        yield Problem(
            "weights", WEIGHTS, f"has {name}, which {CONFIG} does not describe; save the model again"
        )
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            message = (
                f"{name} has the shape {found[name]}, {CONFIG} describes {expected[name]}; save it again"
            )
            yield Problem("weights", WEIGHTS, message)


def _tokenizer(folder: Path) -> Iterator[Problem]:
    tokenizer, config = _read_tokenizer(folder), _read_config(folder)
    if len(tokenizer) > config.vocab_size:
        message = (
            f"knows {len(tokenizer)} pieces, the model {config.vocab_size}; save the model's own tokenizer"
        )
        yield Problem("tokenizer", "tokenizer.json", message)
    if not tokenizer("text")["input_ids"]:
        yield Problem(
            "tokenizer", "tokenizer.json", "turns a text into nothing; save the model's own tokenizer"
        )


def _labels(folder: Path) -> Iterator[Problem]:
    config, report = _read_config(folder), read_report(folder)
    named = {int(index): str(label) for index, label in (config.id2label or {}).items()}
    found = tuple(named[index] for index in sorted(named))
    if not report.labels:
        if len(found) != 1:
            yield Problem("labels", CONFIG, f"has {len(found)} outputs, {REPORT} is about a number")
    elif found != report.labels:
        yield Problem(
            "labels", CONFIG, f"has the labels {found}, {REPORT} {report.labels}; save the model again"
        )
    if {label: index for index, label in named.items()} != config.label2id:
        yield Problem("labels", CONFIG, "id2label and label2id contradict each other; save the model again")


def _about_these_weights(folder: Path) -> Iterator[Problem]:
    if read_report(folder).weights_sha256 != digest(folder / WEIGHTS):
        yield Problem("report", REPORT, f"is not about this {WEIGHTS}; write the report after the weights")


def _length(folder: Path) -> Iterator[Problem]:
    cut, said = _read_tokenizer(folder).model_max_length, read_report(folder).max_length
    if said is not None and cut != said:
        message = f"says that texts are cut at {said} tokens, the tokenizer cuts at {cut}; save both again"
        yield Problem("report", REPORT, message)


def _card(folder: Path) -> Iterator[Problem]:
    """Read the card as the hub does, and compare it with the records."""
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    report = read_report(folder)
    card = ModelCard.load(folder / CARD)
    data = card.data
    if not data.to_dict():
        yield Problem("card", CARD, "has no front matter; prepare the folder again")
        return
    measured = report.measured.metrics if report.measured else {}
    expected = {hub_metric(name): value for name, value in measured.items()}
    found = {result.metric_type: result.metric_value for result in data.eval_results or ()}
    if found != expected:
        yield Problem("card", CARD, f"states {found}, {REPORT} {expected}; prepare the folder again")
    for result in data.eval_results or ():
        if not DATASET_TYPE.fullmatch(str(result.dataset_type)):
            yield Problem(
                "card", CARD, f"has the dataset type {result.dataset_type!r}, which the hub refuses"
            )
    if isinstance(data.base_model, str):
        validate_repo_id(data.base_model)
    stated = {
        "base_model": (data.base_model, report.base_model if report.base_on_hub else None),
        "license": (data.license, report.license),
        "language": (data.language, list(report.language) or None),
        "pipeline_tag": (data.pipeline_tag, "text-classification"),
    }
    for name, (says, known) in stated.items():
        if says != known:
            yield Problem("card", CARD, f"states the {name} {says!r}, {REPORT} {known!r}; prepare it again")
    lines = set(card.text.splitlines())
    if missing := [row for row in label_rows(report) if row not in lines]:
        yield Problem("labels", CARD, f"has no row {missing[0]!r} for a label; prepare the folder again")


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
