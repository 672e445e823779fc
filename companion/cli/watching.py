"""The command that looks whether answers drift: `drift`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from companion.cli.options import Json, PairColumn, TextColumn, Threads

if TYPE_CHECKING:
    from companion.deployment.watching import Columns, Judgement, LogContent, Period

__all__ = ["drift"]

_DRIFT = 3


def drift(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A prediction log: its folder, or one file.")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Another log, or FROM..TO within this one: 2026-11-01..2026-11-08T12:00, in UTC. Default: "
            "the first answers of each version.",
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out", help="A csv, tsv, jsonl or parquet file of texts as reference; see --model."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="With --held-out: the ONNX folder that answers them.")
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Judge this model version only. Default: each on its own.")
    ] = None,
    reference_version: Annotated[
        str | None,
        typer.Option("--reference-version", help="Compare with this version: what changed may be the model."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", min=1, help="Answers to judge, the newest. Default: 500, or a third of all."
        ),
    ] = None,
    false_alarms: Annotated[
        float, typer.Option("--false-alarms", help="Share of windows without drift that give an alarm.")
    ] = 0.01,
    shift: Annotated[
        float,
        typer.Option("--shift", help="Refuse windows too small to show a label's share moving so far."),
    ] = 0.2,
    history: Annotated[
        bool, typer.Option("--history", help="Also list all windows since the reference, in order.")
    ] = False,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="With --history: answers from window to window.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say whether a model's newest answers, and what it is asked, still look as they did.

    Ends with 0 when nothing moved, with 3 when a newest window is an alarm, and with 2 after a mistake or
    with too few answers to judge any version.
    """
    from companion.deployment.watching import DriftSettings, judge_versions, read_log

    settings = DriftSettings(false_alarms=false_alarms, shift=shift)
    if step is not None and not history:
        raise ValueError("--step is about --history: give both or none")
    content = read_log(log)
    against: Mapping[str, Columns] | Period | None = None
    if held_out is not None:
        if reference is not None:
            raise ValueError("--reference and --held-out both give a reference: give one of them")
        against = _from_texts(held_out, model, text_column, pair_column, threads)
    elif model is not None or text_column or pair_column:
        raise ValueError("--model, --text-column and --pair-column belong to --held-out FILE")
    elif reference is not None:
        against = _from_log(reference, log)
    found = judge_versions(
        content.versions,
        against,
        version=version,
        reference_version=reference_version,
        window=window,
        step=step,
        whole=history,
        settings=settings,
    )
    drifted = any(one.drifted for one in found)
    typer.echo(_json(found, content, drifted, history) if as_json else _text(found, content, history))
    if drifted:
        raise typer.Exit(_DRIFT)


def _from_log(text: str, log: Path) -> Mapping[str, Columns] | Period:
    """Read another log, or a stretch of time."""
    from companion.deployment.watching import Period, read_log

    path = Path(text)
    if path.exists():
        inner, outer = path.resolve(), log.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise ValueError(
                f"--reference {text} and {log} share answers: expected another log, or FROM..TO within this "
                "one"
            )
        return read_log(path).versions
    start, dots, end = text.partition("..")
    if not dots or "/" in text:
        raise FileNotFoundError(
            f"--reference is {text!r}: no such log, and not FROM..TO such as 2026-11-01..2026-11-08"
        )
    period = Period(_moment(start), _moment(end))
    if period.start is not None and period.end is not None and period.start >= period.end:
        raise ValueError(f"--reference is {text!r}: it ends before it begins")
    return period


def _moment(text: str) -> float | None:
    """Read a time, by default in UTC."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"--reference has the time {text!r}, expected one such as 2026-11-01 or 2026-11-01T12:30"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _from_texts(
    file: Path, model: Path | None, text_column: str | None, pair_column: str | None, threads: int | None
) -> dict[str, Columns]:
    """Let the model answer texts that were held out."""
    if model is None or not text_column:
        raise ValueError("--held-out FILE needs --model ONNX_FOLDER and --text-column")
    from companion.data import load_file
    from companion.deployment.watching import columns_of_texts, token_counter
    from companion.inference import OnnxPredictor
    from companion.settings import get_settings

    examples = load_file(file, text_column=text_column, pair_column=pair_column).examples
    predictor = OnnxPredictor(model, threads=threads or get_settings().threads)
    pairs = [example.pair or "" for example in examples] if pair_column else None
    texts = [example.text for example in examples]
    columns = columns_of_texts(predictor, texts, pairs, count_tokens=token_counter(predictor))
    return {columns.version: columns}


def _json(found: tuple[Judgement, ...], content: LogContent, drifted: bool, whole: bool) -> str:
    report = {
        "drift": drifted,
        "versions": [one.to_dict(whole=whole) for one in found],
        "skipped_lines": [str(line) for line in content.skipped],
        "not_logged": content.not_logged,
    }
    return json.dumps(report, ensure_ascii=False, allow_nan=False)


def _text(found: tuple[Judgement, ...], content: LogContent, whole: bool) -> str:
    parts = []
    for one in found:
        if one.history is None:
            parts.append(f"model version {one.version}\nnot judged: {one.reason}")
            continue
        newest = one.history.windows[-1].text()
        parts.append(f"{newest}\n\n{one.history.text()}" if whole else newest)
    if len(found) > 1:
        parts.append(f"{len(found)} model versions are in the log; each is compared with itself alone.")
    if content.skipped:
        names = ", ".join(map(str, content.skipped[:3])) + (", ..." if len(content.skipped) > 3 else "")
        parts.append(f"skipped: {len(content.skipped)} cut lines ({names})")
    if content.not_logged:
        parts.append(f"not logged: {content.not_logged:,} answers, as the log notes")
    return "\n\n".join(parts)
