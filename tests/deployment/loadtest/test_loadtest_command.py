"""`companion loadtest` and its page, and wrk beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.loadtest import (
    GeneratorUse,
    Knee,
    LoadPlan,
    LoadReport,
    Ramp,
    WrkReport,
    distribution_plot,
    ramp_plot,
    time_plot,
    witness,
    write_report,
)
from companion.deployment.loadtest.measuring import (
    latencies_of,
    patience_of,
    seconds_of,
    step_of,
    troubles_of,
)
from companion.deployment.loadtest.ramping import judged, knee_of
from companion.deployment.loadtest.samples import LoadSample, StageRecord
from companion.deployment.loadtest.text import side_by_side
from companion.deployment.loadtest.wrk import lua_script, wrk_binary, wrk_report

Run = Callable[..., tuple[int, str, str]]
Start = Callable[..., Any]


def stage(rate: float, answered: float, *, late_by: float = 0.0) -> StageRecord:
    """Four seconds at a rate; requests beyond what is answered are refused."""
    samples, number = [], int(4 * rate)
    for place in range(number):
        due = place / rate
        sent = due + late_by
        ok = place < answered * number
        title = "" if ok else "<b>Too [busy]</b>"
        samples.append(
            LoadSample(due, sent, sent + 0.02, "ok" if ok else "refused", 200 if ok else 503, title)
        )
    cpu = [(at / 4, 0.1 * at) for at in range(17)]
    return StageRecord(rate, 0, 4, users=32, samples=samples, cpu=cpu, done=True)


def made(records: list[StageRecord], **changes: Any) -> LoadReport:
    """A report of a ramp, without a server."""
    ramp = Ramp(start=50)
    steps = tuple(judged(step_of(record)) for record in records)
    report = LoadReport(
        url="http://127.0.0.1:1/<x>",
        plan=LoadPlan(ramp=ramp),
        total=steps[0],
        steps=steps,
        knee=knee_of(ramp, steps),
        troubles=troubles_of(records),
        patience=patience_of(records, honoured=False),
        seconds=seconds_of(records),
        warmup_requests=0,
        ready="ready",
        interrupted=False,
        latencies=latencies_of(records[0]),
    )
    return replace(report, **changes)


RAMP = made([stage(100, 1.0, late_by=0.03), stage(200, 0.6)])


def test_a_ramp_is_told_in_words() -> None:
    text = RAMP.text()
    assert "Knee: between 100.0 and 200.0 requests/s: there 320 of 800 requests were refused." in text
    assert "p50 by 30.0 ms, p90 by 30.0 ms, p95 by 30.0 ms, p99 by 30.0 ms" in text
    assert "<b>Too [busy]</b>" in text
    assert "0 of 320 refusals had a Retry-After" in text
    assert "The generator used 40% of one core" in text
    assert "THE GENERATOR" not in text


def test_a_generator_at_its_limit_is_told() -> None:
    full = GeneratorUse(0.97, 0.99, 0.001, 0.002, "it used 97% of the one core that it can use")
    report = replace(RAMP, total=replace(RAMP.total, generator=full))
    assert "THE GENERATOR WAS THE LIMIT: it used 97%" in report.text()


def test_the_plots_say_what_they_show() -> None:
    for plot in (time_plot(RAMP), distribution_plot(RAMP), ramp_plot(RAMP)):
        assert plot.svg.startswith("<svg ")
    assert "the knee lies between 100.0 and 200.0 requests per second" in ramp_plot(RAMP).alt
    assert "Distribution of 400 latencies, from 50.0 to 50.0 ms: p50 50.0 ms" in distribution_plot(RAMP).alt
    assert "320 refused" in time_plot(RAMP).alt
    with pytest.raises(ValueError, match="no ramp"):
        ramp_plot(replace(RAMP, knee=None))
    with pytest.raises(ValueError, match="nothing to draw"):
        distribution_plot(replace(RAMP, latencies=()))


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = write_report(RAMP, tmp_path / "out").read_text()
    assert "http://127.0.0.1:1/&lt;x&gt;" in page
    assert "&lt;b&gt;Too [busy]&lt;/b&gt;" in page
    assert "<b>" not in page
    assert not re.search(r"<(?:script|link|img|iframe)\b|@import|url\((?!#)", page)
    assert page.count('role="img"') == 3
    assert len(re.findall(r'aria-label="[^"]{40,}"', page)) == 3
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "report.html",
        "report.json",
        "ramp.svg",
        "latency-over-time.svg",
        "latency-distribution.svg",
    }
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["knee"]["low"] == 100
    assert numbers["steps"][1]["counts"]["refused"] == 320


def test_a_report_without_any_answer_can_be_written(tmp_path: Path) -> None:
    record = stage(50, 0.0)
    report = made([record])
    assert report.knee == Knee(None, 50, 0, "200 of 200 requests were refused", True)
    page = write_report(report, tmp_path / "out").read_text()
    assert page.count('role="img"') == 2
    with pytest.raises(ValueError, match="not empty"):
        write_report(report, tmp_path)


# --- the command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:9"], "give --users N"),
        (["http://127.0.0.1:9", "--users", 2, "--rate", 3], "exactly one"),
        (["http://127.0.0.1:9", "--users", 2, "--step", 3], "give --ramp"),
        (["http://127.0.0.1:9", "--rate", 2, "--witness"], "--witness needs --users"),
        (["http://127.0.0.1:9", "--users", 2, "--text-column", "text"], "give --data FILE"),
        (["http://127.0.0.1:9", "--users", 2, "--endpoint", "other"], "predict, batch, kserve"),
        (["http://127.0.0.1:9", "--users", 2, "--key-file", "/absent"], "No such file"),
        (["http://192.0.2.1", "--users", 2], "--allow-remote"),
    ],
)
def test_mistakes_end_with_one_line(run: Run, arguments: list[object], said: str) -> None:
    code, out, err = run("loadtest", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_server_that_is_not_there(run: Run, unused: int) -> None:
    code, out, err = run("loadtest", f"http://127.0.0.1:{unused}", "--users", 2)
    assert (code, out) == (2, "")
    assert err.startswith("companion: no HTTP server answers at http://127.0.0.1:")
    assert len(err.splitlines()) == 1


@pytest.fixture
def unused() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_server_that_is_not_ready(run: Run, planted: Start) -> None:
    server = planted(ready=503)
    code, _, err = run("loadtest", server.url, "--users", 2)
    assert code == 2
    assert "answers 503 (The model is still loading)" in err
    assert server.number == 0


def test_the_command_sends_a_file_and_writes_what_it_found(run: Run, planted: Start, tmp_path: Path) -> None:
    server = planted(broken_every=10)
    (tmp_path / "texts.csv").write_text("text,other\nfirst,1\nsecond,2\n")
    (tmp_path / "key").write_text("a-key\n")
    code, out, err = run(
        *("loadtest", server.url, "--rate", 60, "--seconds", 1, "--warmup", 0.5, "--arrivals", "even"),
        *("--data", tmp_path / "texts.csv", "--text-column", "text", "--key-file", tmp_path / "key"),
        *("--json", tmp_path / "found.json", "--out", tmp_path / "out"),
    )
    assert code == 1, err  # requests failed
    assert "60.0 requests/s" in out or "60 requests/s" in out
    assert "the body is not JSON" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["counts"]["due"] == 60
    assert found["counts"]["failed"] + found["counts"]["ok"] == 60
    assert found["warmup_requests"] == 30
    assert server.number == 90
    assert (tmp_path / "out" / "report.html").is_file()
    assert {json.loads(body)["text"] for body in server.bodies} == {"first", "second"}
    assert {headers["x-api-key"] for headers in server.headers} == {"a-key"}
    assert "a-key" not in (tmp_path / "found.json").read_text()


# --- the witness


@pytest.fixture
def real_wrk() -> str:
    try:
        return wrk_binary()
    except FileNotFoundError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{error} (CI=true: a missing part is a failure)", pytrace=False)
        pytest.skip(str(error))


def test_wrk_asks_with_the_same_texts(real_wrk: str, planted: Start) -> None:
    server = planted(refuse_every=10, delay_s=0.002)
    texts = ['quote " and \\ and ]]', "\n tab\t ü 😀"]
    found = witness(server.url, 4, 1, 2, texts=texts, headers={"X-API-Key": "k", "Content-Type": "a/b"})
    assert {json.loads(body)["text"] for body in server.bodies} == set(texts)
    assert {headers["x-api-key"] for headers in server.headers} == {"k"}
    # Those in flight when wrk stops are counted by the server alone.
    assert 0 <= server.number - found.requests <= 8
    assert 0 <= server.counts["refused"] - found.errors <= 8
    assert found.errors > 0
    assert found.percentiles[50] >= 0.002
    assert list(found.percentiles.values()) == sorted(found.percentiles.values())
    assert found.throughput == pytest.approx((found.requests - found.errors) / found.seconds)


def test_both_stand_side_by_side_with_their_ratio() -> None:
    other = WrkReport(4_000, 10.0, 0, {50: 0.1, 99: 0.2}, 32, 1)
    plan = LoadPlan(users=32)
    text = side_by_side(replace(RAMP, plan=plan, total=replace(RAMP.total, throughput=200.0)), other)
    lines = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.strip()}
    assert lines["answers/s"] == "2.00"
    assert lines["p50"] == "2.00"


def test_a_missing_wrk_says_how_to_install_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("companion.deployment.loadtest.wrk.shutil.which", lambda name: None)
    code, _, err = run("loadtest", "http://127.0.0.1:9", "--users", 2, "--witness")
    assert code == 2
    assert "apt-get install wrk" in err


def test_wrk_that_fails_is_told() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk_report("Running\n", "unable to connect to 127.0.0.1\n", 1, 1)
    found = wrk_report("noise\ncompanion-witness 100 2000000 7 3 1000 2000 3000 4000\n", "", 1, 1)
    assert (found.requests, found.errors, found.throughput) == (103, 10, 46.5)


@settings(deadline=None, max_examples=15)
@given(st.text(st.characters(max_codepoint=127)))
def test_every_character_survives_lua(text: str) -> None:
    script = lua_script("/predict", [text], {})
    assert script.isascii()
    quoted = script.splitlines()[1].strip()[1:-2]
    assert re.sub(r"\\(\d{3})", lambda found: chr(int(found[1])), quoted) == text


def test_help_is_fast_enough_to_name_it() -> None:
    """Loading the module must not load the parts that send."""
    import sys

    code = "import companion.cli, sys; print([name for name in sys.modules if 'loadtest' in name])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
