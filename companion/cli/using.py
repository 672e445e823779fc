"""The commands that use a trained model: `evaluate`, `predict`, `serve`."""

from __future__ import annotations

import time
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
    from companion.inference.offline.job import OnError

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
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that share the threads. With --ray: actors.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Answer on the Ray cluster at this address, such as auto.")
    ] = None,
    on_error: Annotated[
        str, typer.Option("--on-error", help="A bad row: stop, or record it as a line of its own.")
    ] = "stop",
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an interrupted run has answered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Label the texts of a file; interrupted, the same command goes on where it stopped."""
    from companion.inference import OfflineJob, predict_file
    from companion.inference.offline.unfinished import rows_kept

    if str(file) in ("-", "/dev/stdin"):
        raise ValueError(
            f"FILE is {file}, but predict reads a file, whose end says which kind it is: save what comes by "
            "the pipe, for example as texts.jsonl"
        )
    job = OfflineJob(
        folder=folder,
        file=file,
        text_column=text_column,
        pair_column=pair_column,
        batch_size=batch_size,
        threads=threads,
        on_error=cast("OnError", on_error),  # refused if it is another
    )
    before = rows_kept(out)
    if before and not restart:
        typer.echo(f"companion: {before:,} rows are answered: going on behind them", err=True)
    try:
        report = predict_file(job, out, processes=processes, ray=ray, restart=restart)
    except BaseException:
        if (kept := rows_kept(out)) > before:
            typer.echo(f"companion: {kept:,} rows are answered: the same command goes on there", err=True)
        raise
    show(report.to_dict(), as_json)


def serve(
    folder: Annotated[Path, typer.Argument(help="An ONNX folder, made by companion export.")],
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Batches that run at once. Default: one for each thread."),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes behind the port; they share the threads.")
    ] = 1,
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
    queue: Annotated[int, typer.Option("--queue", min=1, help="Most requests that wait.")] = 512,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Most texts that the model runs together.")
    ] = 16,
    padded_tokens: Annotated[
        int, typer.Option("--padded-tokens", min=1, help="Most tokens of a batch, padding included.")
    ] = 1024,
    timeout_ms: Annotated[
        int, typer.Option("--timeout-ms", min=1, max=60_000, help="Deadline of a request that sends none.")
    ] = 10_000,
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
    from companion.deployment.batching import BatchingLimits

    limits = deployment.Limits(characters, body_bytes, batch_texts, batch_characters)
    batching = BatchingLimits(
        requests=queue, batch_size=batch_size, padded_tokens=padded_tokens, timeout_s=timeout_ms / 1000
    )
    settings = deployment.ServerSettings(
        host=host,
        port=port,
        threads=threads,
        workers=workers,
        processes=processes,
        model_name=model_name,
        limits=limits,
        batching=batching,
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
