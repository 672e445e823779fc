"""The command that puts a server under load: `loadtest`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from companion.cli.options import Data, PairColumn, TaskName, TextColumn

if TYPE_CHECKING:
    from companion.deployment.loadtest import (
        ArrivalKind,
        Endpoint,
        LoadPlan,
        LoadProgress,
        LoadReport,
        WrkReport,
    )

__all__ = ["loadtest"]

_INTERRUPTED = 130
_RAMP_SECONDS = 5.0
_SECONDS = 10.0


def loadtest(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://127.0.0.1:8000.")],
    users: Annotated[
        int | None,
        typer.Option("--users", min=1, help="Closed loop: so many clients, each waits for its answer."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Open loop: so many requests per second, come what may.")
    ] = None,
    ramp: Annotated[
        bool,
        typer.Option("--ramp", help="Raise the rate, from --rate or 10, until the server no longer follows."),
    ] = False,
    step: Annotated[
        float | None, typer.Option("--step", help="With --ramp: add this to the rate. Default: double it.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="To measure; of each step of a ramp. Default: 10; 5.")
    ] = None,
    warmup: Annotated[
        float, typer.Option("--warmup", help="Seconds under load that are not measured.")
    ] = 2.0,
    arrivals: Annotated[
        str, typer.Option("--arrivals", help="Of an open loop: poisson or even.")
    ] = "poisson",
    connections: Annotated[
        int | None, typer.Option("--connections", min=1, help="Of an open loop: the most requests in flight.")
    ] = None,
    endpoint: Annotated[str, typer.Option("--endpoint", help="predict, batch or kserve.")] = "predict",
    per_request: Annotated[
        int | None, typer.Option("--texts-per-request", min=1, help="Default: 8 for batch, else 1.")
    ] = None,
    model_name: Annotated[str, typer.Option("--model-name", help="For --endpoint kserve.")] = "companion",
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="A file with the API key; sent as X-API-Key.")
    ] = None,
    deadline_ms: Annotated[
        int | None, typer.Option("--deadline-ms", min=1, help="Sent as X-Request-Timeout-Ms.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer.")] = 10.0,
    honour_retry_after: Annotated[
        bool,
        typer.Option("--honour-retry-after", help="Clients that are refused wait as told, then try again."),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the arrivals and of generated texts.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this file; - for stdout alone.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Also write a page with plots, report.html, into this folder."),
    ] = None,
    with_witness: Annotated[
        bool, typer.Option("--witness", help="With --users: then let wrk do the same, and compare.")
    ] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="The server is another machine, and it is yours.")
    ] = False,
) -> None:
    """Put a server under load: closed loop, constant rate, or a ramp to saturation.

    In an open loop latency counts from when a request was due, not from when it could be sent. 429 and 503
    are refusals; all else that is no answer is a failure. Ends with 0, with 1 when a request failed or none
    was answered, with 2 after a mistake, and with 130 after Ctrl-C, which gives the report so far.
    """
    from companion.deployment.loadtest import LoadPlan, Ramp
    from companion.deployment.loadtest import loadtest as put_under_load

    if step is not None and not ramp:
        raise ValueError("--step belongs to a ramp: give --ramp")
    if users is None and rate is None and not ramp:
        raise ValueError("no load: give --users N (closed loop), --rate R (open loop) or --ramp")
    if with_witness and (users is None or ramp):
        raise ValueError("wrk sends in a closed loop: --witness needs --users N")
    plan = LoadPlan(
        users=users,
        rate=None if ramp else rate,
        ramp=Ramp(start=rate or 10.0, step=step) if ramp else None,
        seconds=seconds or (_RAMP_SECONDS if ramp else _SECONDS),
        warmup=warmup,
        arrivals=cast("ArrivalKind", arrivals),
        seed=seed,
        connections=connections,
        endpoint=cast("Endpoint", endpoint),
        per_request=per_request or (8 if endpoint == "batch" else 1),
        model_name=model_name,
        api_key=None if key_file is None else _key(key_file),
        deadline_ms=deadline_ms,
        honour_retry_after=honour_retry_after,
        timeout=timeout,
    )
    _check_outputs(out, json_file, data)
    texts, pairs = _texts(task, data, text_column, pair_column, seed)
    if with_witness:
        _check_wrk()
    report = put_under_load(
        url, plan, texts, pairs, allow_remote=allow_remote, progress=_shown if _watched() else None
    )
    other = None
    if with_witness and not report.interrupted:
        other = _witness(url, plan, texts, pairs, allow_remote)
    _tell(report, other, json_file, out)
    if report.interrupted:
        raise typer.Exit(_INTERRUPTED)
    if report.counts.failed or not report.counts.ok:
        raise typer.Exit(1)


def _tell(report: LoadReport, other: WrkReport | None, json_file: Path | None, out: Path | None) -> None:
    from companion.artifacts import staged_file
    from companion.deployment.loadtest import write_report
    from companion.deployment.loadtest.text import side_by_side

    numbers = report.to_dict() | {"witness": None if other is None else other.to_dict()}
    dumped = json.dumps(numbers, ensure_ascii=False, allow_nan=False)
    if json_file == Path("-"):
        typer.echo(dumped)
    else:
        typer.echo(report.text())
        if other is not None:
            typer.echo(side_by_side(report, other))
    if out is not None:
        typer.echo(f"companion loadtest: wrote {write_report(report, out, other=other)}", err=True)
    if json_file is not None and json_file != Path("-"):
        with staged_file(json_file) as staging:
            staging.write_text(dumped + "\n", encoding="utf-8")


def _check_outputs(out: Path | None, json_file: Path | None, data: Path | None) -> None:
    """Find out before the load what could not be written after it."""
    from companion.artifacts import check_folder, staged_file
    from companion.deployment.loadtest.page import PAGE

    inputs = [data] if data is not None else []
    if out is not None:
        check_folder(out, marker=PAGE, inputs=inputs)
    if json_file is not None and json_file != Path("-"):
        try:
            with staged_file(json_file, inputs=inputs):
                raise _Checked
        except _Checked:
            pass


class _Checked(Exception):
    """Ends a staged file before anything takes its place."""


def _key(file: Path) -> str:
    """Read an API key: not an option of its own, for others see the command line."""
    lines = file.read_text(encoding="utf-8").split()
    if len(lines) != 1:
        raise ValueError(f"{file} holds {len(lines)} words, expected one: the API key")
    return lines[0]


def _texts(
    task: str | None, data: Path | None, text_column: str | None, pair_column: str | None, seed: int
) -> tuple[list[str], list[str] | None]:
    """Read the texts, and the second texts of pairs; without a source, generate them."""
    if task is not None and (text_column or pair_column):
        raise ValueError("--task brings its own columns: leave out --text-column and --pair-column")
    if task is None and data is None:
        if text_column or pair_column:
            raise ValueError("--text-column and --pair-column belong to a file: give --data FILE")
        from companion.deployment.loadtest import load_texts

        return load_texts(seed), None
    from companion.data import load, load_file

    if task is not None:
        loaded = load(task, data_dir=data)
        examples, paired = loaded.test or loaded.dev, loaded.task.paired
    elif data is not None and text_column:
        examples = load_file(data, text_column=text_column, pair_column=pair_column).examples
        paired = pair_column is not None
    else:
        raise ValueError("--data FILE needs --text-column; for a GLUE folder give --task NAME")
    texts = [example.text for example in examples]
    return texts, [example.pair or "" for example in examples] if paired else None


def _check_wrk() -> None:
    from companion.deployment.loadtest.wrk import wrk_binary

    wrk_binary()


def _witness(
    url: str, plan: LoadPlan, texts: list[str], pairs: list[str] | None, allow_remote: bool
) -> WrkReport:
    from companion.deployment.loadtest import witness

    assert plan.users is not None
    return witness(
        url,
        plan.users,
        plan.seconds,
        texts=texts,
        pairs=pairs,
        endpoint=plan.endpoint,
        per_request=plan.per_request,
        model_name=plan.model_name,
        headers=plan.headers(),
        timeout=plan.timeout,
        allow_remote=allow_remote,
    )


def _watched() -> bool:
    from companion.settings import get_settings

    return sys.stderr.isatty() and get_settings().progress


def _shown(state: LoadProgress) -> None:
    """Say on one line of the terminal how far it is."""
    rate = "" if state.rate is None else f"{state.rate:,.1f} requests/s, "
    typer.echo(
        f"\r{rate}{state.elapsed:.0f} of {state.seconds:.0f} s, {state.requests:,} requests\x1b[K",
        nl=False,
        err=True,
    )
    if state.elapsed >= state.seconds:
        typer.echo("\r\x1b[K", nl=False, err=True)
