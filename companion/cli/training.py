"""The commands that make a model and give it away: `train` and `share`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from companion.cli.options import (
    BatchSize,
    Data,
    Json,
    LabelColumn,
    PairColumn,
    TaskName,
    TextColumn,
    Threads,
    show,
)
from companion.cli.source import Source

__all__ = ["share", "train"]


def train(
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Encoder: a name or a folder. Default: the profile's.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 2,
    batch_size: BatchSize = 32,
    micro_batch_size: Annotated[
        int | None,
        typer.Option("--micro-batch-size", min=1, help="Texts at a time, to save memory. Same result."),
    ] = None,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The peak.")] = 2e-4,
    schedule: Annotated[str, typer.Option("--schedule", help="linear, cosine or constant.")] = "linear",
    warmup: Annotated[
        str, typer.Option("--warmup", help="A share of all steps, such as 0.06, or a number of steps.")
    ] = "0.06",
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw or lamb.")] = "adamw",
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 0.01,
    max_length: Annotated[
        int, typer.Option("--max-length", min=8, help="Cut texts to this many tokens.")
    ] = 128,
    max_examples: Annotated[
        int | None, typer.Option("--max-examples", min=1, help="Train on a random part.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")] = "auto",
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory, more time.")
    ] = False,
    evaluate_every: Annotated[
        int | None, typer.Option("--evaluate-every", min=1, help="Steps. Default: each epoch.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, help="Stop after so many evaluations without progress.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option("--checkpoint-every", min=1, help="Steps. Default: no checkpoints.")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="Their folder. Default: OUT.checkpoints beside OUT.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Write the weights of the best evaluation, not the last.")
    ] = False,
    monitor: Annotated[
        Path | None, typer.Option("--monitor", help="Log gradients, updates and attention to this folder.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that make batches.")] = 0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: COMPANION_SEED.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an encoder and write a model folder in Hugging Face layout.

    With --checkpoint-every and --resume, the same command run again after a crash goes on where it stopped.
    """
    from companion.artifacts import check_folder
    from companion.settings import get_settings
    from companion.training.config import TrainingConfig

    settings = get_settings()
    read = (data, model and Path(model))
    kept = [path for path in (checkpoints, monitor) if path] + [
        path for path in read if path and path.exists()
    ]
    check_folder(out, marker="config.json", inputs=kept)
    config = TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=learning_rate,
        schedule=schedule,  # type: ignore[arg-type]  # checked there
        warmup=_warmup(warmup),
        optimizer=optimizer,  # type: ignore[arg-type]
        weight_decay=weight_decay,
        max_length=max_length,
        precision=precision,  # type: ignore[arg-type]
        activation_checkpointing=activation_checkpointing,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        workers=workers,
        seed=settings.seed if seed is None else seed,
    )
    if checkpoints is None and (checkpoint_every or resume or best):
        checkpoints = out.absolute().with_name(f"{out.absolute().name}.checkpoints")
    source = Source(task, data, text_column, label_column, pair_column)
    examples = source.training_data(config.seed, max_examples)
    import torch

    from companion import models, training
    from companion.cli.telling import Classes, tell_if_nothing_is_learned
    from companion.training.checkpoints import best_checkpoint, load_weights
    from companion.training.sharing import report as report_of

    torch.set_num_threads(threads or settings.threads)
    classifier = models.load(
        model or settings.names.encoder,
        labels=examples.task.labels,
        regression=examples.task.is_regression,
        seed=config.seed,
    )
    labelled = not examples.task.is_regression
    callbacks: list[training.Callback] = [Classes(examples)] if labelled else []
    if patience:
        callbacks.append(training.EarlyStopping(examples.task.metric, patience=patience))
    if monitor:
        callbacks.append(training.Monitor(monitor))
    run = training.fit(
        classifier.model,
        classifier.tokenizer,
        examples.train,
        config=config,
        dev=examples.dev,
        task=examples.task,
        callbacks=callbacks,
        checkpoints=checkpoints,
        resume=resume,
    )
    if int(os.environ.get("RANK", "0")):
        return  # under torchrun, one process writes and speaks
    evaluation = run.evaluations[-1]
    if best and checkpoints is not None and (chosen := best_checkpoint(checkpoints)):
        load_weights(classifier.model, chosen)
        evaluation = next(e for e in run.evaluations if chosen.name == f"step-{e.step:08d}")
    record = report_of(
        run,
        classifier,
        examples.task,
        train_examples=len(examples.train),
        dev_examples=len(examples.dev),
        weights_step=evaluation.step,
    )
    training.save(classifier.model, classifier.tokenizer, out, max_length=max_length, report=record)
    if labelled:
        tell_if_nothing_is_learned(examples.task, examples.dev, evaluation.metrics[examples.task.metric])
    report: dict[str, Any] = {
        "folder": str(out),
        "task": examples.task.name,
        "metric": examples.task.metric,
        "value": evaluation.metrics[examples.task.metric],
        "examples": len(examples.train),
        "examples_per_second": run.examples_per_second,
        "steps": len(run.steps),
        "seconds": round(run.seconds, 3),  # of a run that was resumed at its end next to none
        "precision": run.precision,
        "device": run.device,
        "processes": run.processes,
    }
    if checkpoints is not None:
        report |= {"checkpoints": str(checkpoints), "resumed_from": run.resumed_from}
    show(report, as_json)


def share(
    folder: Annotated[Path, typer.Argument(help="A model folder, made by companion train.")],
    out: Annotated[Path, typer.Argument(help="The folder to write, ready for the hub.")],
    repo: Annotated[str | None, typer.Option("--repo", help="Its name on the hub: OWNER/NAME.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="The licence you give it, such as apache-2.0.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option("--language", help="The language of its texts, such as en.")
    ] = None,
    upload: Annotated[
        bool, typer.Option("--upload", help="Upload it, as a private repository. Needs a token.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a hub folder with a model card from the run's own records, and check it."""
    if upload and repo is None:
        raise ValueError("--upload needs a name for the hub: give --repo OWNER/NAME")
    from companion.training import sharing

    made = sharing.prepare(folder, out, repo_id=repo, license=license_id, language=tuple(language or ()))
    report = {"folder": str(made), "files": sorted(path.name for path in made.iterdir())}
    if upload and repo is not None:
        report["url"] = sharing.upload(made, repo, confirm=True)
    show(report, as_json)


def _warmup(text: str) -> int | float:
    """Read steps or a share."""
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError:
        raise ValueError(
            f"--warmup is {text!r}, expected a share of the steps such as 0.06, or a number of steps"
        ) from None
