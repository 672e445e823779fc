"""Logs: one line per request without its text, and a log that fails without the server."""

from __future__ import annotations

import errno
import json
import logging
import os
from datetime import datetime
from pathlib import Path

import pytest

from companion.deployment import ServerSettings
from companion.deployment.lines import LineFile
from companion.deployment.logs import messages_logged

FIELDS = {
    "time",
    "level",
    "event",
    "method",
    "route",
    "status",
    "code",
    "ms",
    "request_id",
    "key",
    "texts",
    "model_version",
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def test_a_line_for_each_request_without_its_text(serving, log):
    client = serving(log_requests=True, log_format="json", log_file=log)
    client.predict({"text": "my private words", "pair": "more of them"}, **{"X-Request-ID": "one"})
    client.predict({"text": "boom my private words"}, **{"X-Request-ID": "two"})
    client.request("POST", "/predict/batch", json={"items": [{"text": "my private words"}, {}]})
    client.request("GET", "/my/private/words?q=private")
    client.request("PRIVATE", "/predict")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "private" not in log.read_text().lower()
    assert [set(line) for line in lines] == [FIELDS] * 5
    short = [(line["method"], line["route"], line["status"], line["code"], line["texts"]) for line in lines]
    assert short == [
        ("POST", "/predict", 200, "ok", 1),
        ("POST", "/predict", 500, "internal-error", 1),
        ("POST", "/predict/batch", 200, "ok", 2),
        ("GET", "other", 404, "not-found", 0),
        ("other", "/predict", 405, "method-not-allowed", 0),
    ]
    assert [line["request_id"] for line in lines[:2]] == ["one", "two"]
    assert (lines[0]["model_version"], lines[3]["model_version"]) == ("v-test", None)
    assert all(line["ms"] >= 0 and line["event"] == "request" and line["level"] == "info" for line in lines)
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is not None


def test_probes_are_silent_while_all_is_well(serving, model, log):
    model.gate.clear()
    client = serving(wait=False, log_requests=True, log_format="json", log_file=log)
    for path in ("/health/live", "/metrics", "/health/ready"):
        client.request("GET", path)
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["route"], line["status"], line["code"]) == ("/health/ready", 503, "not-ready")


def test_text_is_logfmt(serving, log):
    client = serving(log_requests=True, log_format="text", log_file=log)
    client.predict({"text": "x"}, **{"X-Request-ID": "one"})
    (line,) = log.read_text().splitlines()
    assert " event=request " in line
    assert " route=/predict " in line and " status=200 " in line and " request_id=one " in line


def test_nothing_is_written_unless_it_is_asked_for(serving, log, capfd):
    client = serving(log_file=log)
    client.predict({"text": "x"})
    assert not log.exists()
    assert capfd.readouterr() == ("", "")


def test_stderr_is_the_default(serving, capfd):
    client = serving(log_requests=True, log_format="json")
    client.predict({"text": "x"})
    out, err = capfd.readouterr()
    assert (out, json.loads(err)["route"]) == ("", "/predict")


@pytest.mark.parametrize("form", ["json", "text"])
def test_messages_and_tracebacks(log, form):
    settings = ServerSettings(log_format=form, log_file=log)
    root = logging.getLogger()
    handlers = list(root.handlers)
    with messages_logged(settings):
        logging.getLogger("companion.deployment").info("not this")
        logging.getLogger("uvicorn.error").warning("slow: %d", 5)
        try:
            raise KeyError("why")
        except KeyError:
            logging.getLogger("companion.deployment").exception("it failed")
    assert root.handlers == handlers, "the handler goes with the block"
    if form == "text":
        assert "WARNING uvicorn.error: slow: 5\n" in log.read_text()
        assert "KeyError: 'why'" in log.read_text()
        return
    first, second = [json.loads(line) for line in log.read_text().splitlines()]
    assert (first["event"], first["level"], first["logger"]) == ("slow: 5", "warning", "uvicorn.error")
    assert (second["event"], second["level"]) == ("it failed", "error")
    assert "KeyError: 'why'" in second["exception"]


# --- a log that cannot be written


class Disk:
    """A file descriptor's `write` whose disk fills up."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        taken = data[: self.room]
        self.room -= len(taken)
        return os.write(descriptor, taken)


def test_a_full_disk_costs_lines_and_nothing_else(log):
    disk = Disk(room=8)
    lines = LineFile(log, write=disk)
    assert lines.write("first\n") == 6
    lines.write("second\n")  # two bytes of it fit
    lines.write("third\n")
    assert lines.lost == 2
    disk.room = 1000
    lines.write("fourth\n")
    assert log.read_text() == "first\nse\n2 log lines were lost\nfourth\n"
    lines.write("fifth\n")
    assert (lines.lost, log.read_text().splitlines()[-1]) == (0, "fifth")


@pytest.mark.mount
def test_a_server_whose_log_has_no_room_answers(serving, small_disk):
    log = small_disk / "requests.jsonl"
    client = serving(log_requests=True, log_format="json", log_file=log)
    filler = small_disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))
    assert [client.predict({"text": "x"}).status_code for _ in range(30)] == [200] * 30
    filler.unlink()
    assert client.predict({"text": "x"}, **{"X-Request-ID": "last"}).status_code == 200
    lines = [line for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    lost, last = (json.loads(line) for line in lines[-2:])
    assert lost["event"] == "log lines were lost" and lost["lines"] > 0
    assert last["request_id"] == "last"


def test_a_file_that_was_moved_is_opened_again(log):
    lines = LineFile(log)
    lines.write("one\n")
    log.rename(log.with_name("old"))
    lines.write("two\n")
    log.unlink()
    lines.write("three\n")
    assert log.with_name("old").read_text() == "one\n"
    assert log.read_text() == "three\n"
    # Not even the folder is there: lines are lost, and the log comes back with it.
    log.unlink()
    folder = log.parent
    folder.rename(folder.with_name("elsewhere"))
    lines.write("four\n")
    assert lines.lost == 1
    folder.mkdir()
    lines.write("five\n")
    assert log.read_text() == "1 log lines were lost\nfive\n"
    lines.close()


def test_a_pipe_that_nobody_reads_does_not_hold_the_server_up(monkeypatch):
    reading, writing = os.pipe()
    try:
        monkeypatch.setattr("sys.stderr", os.fdopen(os.dup(writing), "w"))
        lines = LineFile()
        for _ in range(200):
            lines.write("x" * 1000 + "\n")  # a pipe holds 65,536 bytes
        assert lines.lost > 100
        got = os.read(reading, 1 << 20)
        lines.write("again\n")
        assert lines.lost == 0
        rest = os.read(reading, 1 << 20).decode()
        assert rest.endswith("log lines were lost\nagain\n")
        assert all(line in ("x" * 1000, "") for line in got.decode().split("\n"))
        # A line longer than the pipe: a part of it goes out, and the next line begins on its own.
        lines.write("y" * 100_000 + "\n")
        assert lines.lost == 1
        os.read(reading, 1 << 20)
        lines.write("end\n")
        assert os.read(reading, 1 << 20) == b"\n1 log lines were lost\nend\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_log_that_cannot_be_opened_is_said_at_the_start(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LineFile(tmp_path / "nowhere" / "log")
