"""The command that looks for what is wrong: `diagnose`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from companion.cli.options import Data, Json, LabelColumn, PairColumn, TextColumn, Threads
from companion.cli.source import Source

if TYPE_CHECKING:
    from companion.data import Example

__all__ = ["diagnose"]

_FUNCTION = "MODULE:NAME or FILE.py:NAME."
_EXAMPLES = 64
_BATCH = 8


def diagnose(
    model: Annotated[
        str,
        typer.Option("--model", help=f"A model folder, or a function that makes a model: {_FUNCTION}"),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="classification, regression, causal-lm, masked-lm, encoder or seq2seq; or a task with data "
            "of its own: sentiment, sst2, ... Default with --data FILE: classification.",
        ),
    ] = None,
    train_step: Annotated[
        str | None,
        typer.Option("--train-step", help=f"Of (model, optimizer, batch), by these names: {_FUNCTION}"),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help=f"Makes one for a model: {_FUNCTION}")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help=f"Of (optimizer, steps): {_FUNCTION}")
    ] = None,
    loss: Annotated[
        str | None, typer.Option("--loss", help=f"Of (model, batch) or (logits, labels): {_FUNCTION}")
    ] = None,
    batches: Annotated[
        str | None, typer.Option("--batches", help=f"Makes a loader without arguments: {_FUNCTION}")
    ] = None,
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    records: Annotated[
        Path | None,
        typer.Option("--records", help="A run's records: a monitor's folder, trainer_state.json or .jsonl."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A check by name. May be given several times.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Of a classifier that does not show them.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=1, help="Of a model that does not show it.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the checks that train.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Look for what is wrong with a model, its data, its training step or its run.

    Ends with 0 when nothing is wrong, with 1 when something is, and with 2 after a mistake in the call. The
    functions that are named are imported and run.
    """
    from companion.settings import get_settings

    settings = get_settings()
    kind, splits, labels = _data(model, task, data, (text_column, label_column, pair_column), settings.seed)
    import torch

    from companion.debugging import diagnose as examine
    from companion.debugging import read_records
    from companion.debugging.adapters import subjects_from
    from companion.debugging.adapters.faults import users_errors
    from companion.debugging.adapters.locating import located

    torch.set_num_threads(threads or settings.threads)
    named = {"train_step": train_step, "optimizer": optimizer, "schedule": schedule, "loss": loss}
    extras: dict[str, Any] = {name: located(text) for name, text in named.items() if text}
    extras |= {"classes": classes, "vocab_size": vocab_size}
    if records is not None:
        extras["steps"], extras["evaluations"] = read_records(records)
    if splits:
        extras |= {"splits": splits, "label_names": labels}
    with users_errors():
        if batches is not None:
            extras["batches"] = _loader(batches)
        elif splits and Path(model).is_dir() and kind != "seq2seq":
            extras["batches"] = _encoded(Path(model), splits["train"], regression=kind == "regression")
        found = examine(subjects_from(model, task=kind, **extras), slow=not fast, only=only or None)
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False) if as_json else found.text())
    if not found.ok:
        raise typer.Exit(1)


def _data(
    model: str,
    task: str | None,
    data: Path | None,
    columns: tuple[str | None, str | None, str | None],
    seed: int,
) -> tuple[str, Mapping[str, Sequence[Example]], tuple[str, ...]]:
    """Return what the model is for, and the labelled texts that there are; refuse those of another model."""
    from companion.data import TASKS, check_labels
    from companion.data.tasks import made_up

    if task is None and data is None:
        raise ValueError("no --task: give what the model is for, or --data FILE with its columns")
    if task is not None and task not in TASKS and data is None and not any(columns):
        return task, {}, ()
    source = Source(task if task in TASKS else None, data, *columns)
    kind = task or "classification"
    labels: tuple[str, ...] = ()
    is_regression: bool | None = None
    if (kind in TASKS or kind == "classification") and Path(model).is_dir():
        from companion.models.loading import declared

        labels, is_regression = declared(model)
    named = labels if labels != made_up(len(labels)) and not is_regression else None
    loaded = source.training_data(seed, None, named)
    if is_regression is not None:
        check_labels(loaded.task, labels, model, is_regression=is_regression)
    if kind in TASKS:
        kind = "regression" if loaded.task.is_regression else "classification"
    splits = {"train": loaded.train, "dev": loaded.dev, "test": loaded.test}
    return kind, {name: part for name, part in splits.items() if part}, loaded.task.labels


def _loader(text: str) -> Any:
    """Call what makes a loader."""
    from companion.debugging.adapters.calls import kind_of, refuse_parameters
    from companion.debugging.adapters.locating import located

    function = located(text)
    refuse_parameters(function, text, "a loader")
    made = function()
    if not hasattr(made, "__iter__"):
        raise ValueError(f"{text}() returned {kind_of(made)}, expected a loader of batches")
    return made


def _encoded(folder: Path, examples: Sequence[Example], *, regression: bool) -> Any:
    """Return the batches that `companion train` would make of some examples."""
    from transformers import AutoTokenizer

    from companion.data import batches
    from companion.models import resolve

    resolve(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        return ()  # a folder without a tokenizer still has a model to look at
    length = min(tokenizer.model_max_length, 128)
    return batches(
        examples[:_EXAMPLES], tokenizer, batch_size=_BATCH, max_length=length, regression=regression
    )
