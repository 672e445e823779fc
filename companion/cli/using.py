"""The commands that use a trained model: `evaluate`, `predict`, `serve`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from companion.cli.options import (
    BatchSize,
    Data,
    Folder,
    Json,
    LabelColumn,
    PairColumn,
    TaskName,
    TextColumn,
    Threads,
    show,
)
from companion.cli.source import Source

if TYPE_CHECKING:
    from companion.data import Example
    from companion.inference import Predictor

__all__ = ["evaluate", "predict", "serve"]


def evaluate(
    folder: Folder,
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Annotated[
        str, typer.Option("--split", help="dev or test. Default: test where it has labels.")
    ] = "",
    batch_size: BatchSize = 32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model folder or an ONNX folder on labelled data."""
    from companion.data import labels_of, score
    from companion.inference import load_predictor
    from companion.inference.quality.assessment import check_task

    predictor = load_predictor(folder, threads=threads)
    source = Source(task, data, text_column, label_column, pair_column)
    labels = () if predictor.is_regression else predictor.labels
    loaded, name, examples = source.labelled(split, labels)
    check_task(predictor, loaded, str(folder))
    pairs = [example.pair or "" for example in examples] if loaded.paired else None
    start = time.perf_counter()
    logits = predictor.logits([example.text for example in examples], pairs, batch_size=batch_size)
    seconds = time.perf_counter() - start
    metrics = score(loaded, labels_of(examples), logits)
    report = {
        "folder": str(folder),
        "task": loaded.name,
        "split": name,
        "metric": loaded.metric,
        "value": metrics[loaded.metric],
        "examples": len(examples),
        "examples_per_second": len(examples) / seconds,
        "metrics": metrics,
    }
    show(report, as_json)


def predict(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="A csv, tsv, jsonl or parquet file.")],
    text_column: Annotated[str, typer.Option("--text-column", help="The column with the texts.")],
    out: Annotated[Path, typer.Option("--out", help="The jsonl file to write: one line per row, in order.")],
    pair_column: PairColumn = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Label the texts of a file, in constant memory."""
    from companion.artifacts import staged_file
    from companion.data import stream_file
    from companion.inference import load_predictor

    if str(file) in ("-", "/dev/stdin"):
        raise ValueError(
            f"FILE is {file}, but predict reads a file, whose end says which kind it is: save what comes by "
            "the pipe, for example as texts.jsonl"
        )
    rows, start = 0, time.perf_counter()
    # The folder's files are read as well; answers that were kept there may be written again.
    inputs = [file, *(path for path in folder.glob("*") if path.suffix != ".jsonl")]
    with staged_file(out, inputs=inputs) as staging, staging.open("w", encoding="utf-8") as lines:
        examples = stream_file(file, text_column=text_column, pair_column=pair_column)
        predictor = load_predictor(folder, threads=threads)
        for chunk in _chunks(examples, 32 * batch_size):
            lines.writelines(_answers(predictor, chunk, batch_size, pair_column is not None))
            rows += len(chunk)
    seconds = time.perf_counter() - start
    show({"out": str(out), "rows": rows, "seconds": seconds, "rows_per_second": rows / seconds}, as_json)


def serve(
    folder: Annotated[Path, typer.Argument(help="An ONNX folder, made by companion export.")],
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Batches that run at once. Default: one for each thread."),
    ] = None,
    model_name: Annotated[
        str, typer.Option("--model-name", help="What KServe's clients call the model.")
    ] = "companion",
    api_keys: Annotated[
        Path | None,
        typer.Option("--api-keys", help="A file made by companion keys new. Default: open to all."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--rate", help="Texts for each key, or each address: 100/minute. Default: no limit."),
    ] = None,
    redis: Annotated[
        str | None, typer.Option("--redis", help="Counts the rates of several servers: redis://HOST:PORT/0.")
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option("--trust-proxy", help="A load balancer whose X-Forwarded-For is believed; repeatable."),
    ] = None,
    characters: Annotated[int, typer.Option("--characters", min=1, help="Longest text.")] = 20_000,
    body_bytes: Annotated[int, typer.Option("--body-bytes", min=1, help="Largest body.")] = 1 << 20,
    batch_texts: Annotated[int, typer.Option("--batch-texts", min=1, help="Most texts in one batch.")] = 64,
    batch_characters: Annotated[
        int, typer.Option("--batch-characters", min=1, help="Most characters in one batch.")
    ] = 80_000,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write a line for each request, never its text.")
    ] = False,
    log_format: Annotated[str, typer.Option("--log-format", help="text or json.")] = "text",
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="Where log lines go. Default: stderr.")
    ] = None,
    prediction_log: Annotated[
        Path | None,
        typer.Option("--prediction-log", help="A folder: a line for each answer, for companion drift."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option("--cache", help="Keeps answers: memory, or redis://HOST:PORT/0. Default: no cache."),
    ] = None,
    cache_entries: Annotated[
        int | None, typer.Option("--cache-entries", help="Most answers kept in memory. Default: 10000.")
    ] = None,
    cache_ttl: Annotated[
        float | None, typer.Option("--cache-ttl", help="Seconds until an answer is forgotten. Default: 3600.")
    ] = None,
    semantic_cache: Annotated[
        Path | None,
        typer.Option("--semantic-cache", help="A certificate as JSON: similar texts hit too."),
    ] = None,
    rollout: Annotated[
        Path | None,
        typer.Option("--rollout", help="A file that keeps the state of companion rollout over restarts."),
    ] = None,
    rollout_root: Annotated[
        Path | None,
        typer.Option("--rollout-root", help="The only folder from below which versions are loaded."),
    ] = None,
    admin_key: Annotated[
        Path | None,
        typer.Option("--admin-key", help="A file with the admin key. Default: COMPANION_ADMIN_KEY."),
    ] = None,
) -> None:
    """Answer POST /predict over HTTP until stopped."""
    from companion import deployment

    limits = deployment.Limits(characters, body_bytes, batch_texts, batch_characters)
    settings = deployment.ServerSettings(
        host=host,
        port=port,
        threads=threads,
        workers=workers,
        model_name=model_name,
        limits=limits,
        api_keys=api_keys,
        rate=rate,
        redis=redis,
        trusted_proxies=tuple(trust_proxy or ()),
        log_requests=log_requests,
        log_format=cast("deployment.configuration.LogFormat", log_format),  # refused if it is another
        log_file=log_file,
        prediction_log=prediction_log,
        cache=cache,
        cache_entries=cache_entries,
        cache_ttl_s=cache_ttl,
        semantic_cache=semantic_cache,
        rollout=rollout,
        rollout_root=rollout_root,
        admin_key=admin_key,
    )
    deployment.serve(folder, settings)


def _chunks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Cut a stream into lists."""
    iterator = iter(examples)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _answers(predictor: Predictor, chunk: list[Example], batch_size: int, paired: bool) -> Iterator[str]:
    """Predict a list of texts; yield one line of JSON each, numbers at full precision."""
    texts = [example.text for example in chunk]
    pairs = [example.pair or "" for example in chunk] if paired else None
    if predictor.is_regression:
        for row in predictor.logits(texts, pairs, batch_size=batch_size):
            yield json.dumps({"score": float(row[0])}) + "\n"
        return
    for row in predictor.probabilities(texts, pairs, batch_size=batch_size):
        probabilities = {label: float(value) for label, value in zip(predictor.labels, row, strict=True)}
        answer = {"label": predictor.labels[int(row.argmax())], "probabilities": probabilities}
        yield json.dumps(answer, ensure_ascii=False) + "\n"
