"""The stack without its processes: what is refused, what is rendered, and what nginx says to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvicorn

from companion.deployment import Limits
from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.problems import PROBLEMS
from companion.deployment.schemas import Problem
from companion.deployment.stack import Stack, StackSettings, take_down, topology
from companion.deployment.stack.processes import ProcessFile
from companion.deployment.stack.rendering import UNAVAILABLE, NginxPlace, nginx_conf, prometheus_conf

FOLDER = Path("model")


def place(folder: Path) -> NginxPlace:
    return NginxPlace(
        listen="127.0.0.1:18080",
        back="127.0.0.1:18081",
        servers=("127.0.0.1:18082", "127.0.0.1:18083"),
        pid_file=str(folder / "nginx.pid"),
        error_log=str(folder / "errors"),
        access_log=str(folder / "access"),
        temporary=str(folder),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"servers": 0}, "servers is 0"),
        ({"servers": 65}, "at most 64"),
        ({"port": 70000}, "--port"),
        ({"without": ("apache",)}, "nginx, redis, prometheus"),
        ({"threads": 0}, "threads is 0"),
        ({"rate": "often"}, "often"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        StackSettings(FOLDER, **changes)


@pytest.mark.parametrize(
    ("part", "package"), [("nginx", "nginx-light"), ("redis", "redis-server"), ("prometheus", "prometheus")]
)
def test_a_missing_program_is_named_with_its_package(monkeypatch, tmp_path, part, package):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(topology, "_ELSEWHERE", (str(tmp_path),))
    others = tuple({"nginx", "redis", "prometheus"} - {part})
    with pytest.raises(FileNotFoundError, match=rf"apt-get install {package}.*--without {part}"):
        topology.parts_of(StackSettings(FOLDER, 1, without=others), tmp_path, {part: 1, "server-1": 2})
    bare = StackSettings(FOLDER, 1, without=(*others, part))
    assert [found.name for found in topology.parts_of(bare, tmp_path, {"server-1": 2})] == ["server-1"]


@pytest.mark.parametrize("rate", [None, "5/second"])
def test_servers_share_answers_where_there_is_a_redis(program, tmp_path, rate):
    program("redis-server")
    ports = {"redis": 6, "server-1": 1, "server-2": 2}

    def given(**changes):
        settings = StackSettings(FOLDER, 2, without=("nginx", "prometheus"), rate=rate, **changes)
        parts = topology.parts_of(settings, tmp_path, ports)
        return [part.command for part in parts if part.name.startswith("server")]

    for command in given():
        assert command[command.index("--cache") + 1] == "redis://127.0.0.1:6/0"
        assert ("--redis" in command) == (rate is not None)
    own = given(arguments=("--cache", "memory"))[0]
    assert own[-2:] == ("--cache", "memory"), "the last one counts"
    assert not any("--cache" in command for command in given(cache=False))
    alone = StackSettings(FOLDER, 1, without=("redis", "nginx", "prometheus"), rate=rate)
    [part] = topology.parts_of(alone, tmp_path, ports={"server-1": 1})
    assert not {"--cache", "--redis"} & set(part.command)


def test_nginx_takes_the_configuration(program, tmp_path):
    file = tmp_path / "nginx.conf"
    for connections in ("512", "many"):
        text = nginx_conf(place(tmp_path))
        file.write_text(text.replace("limit_conn addresses 1024", f"limit_conn addresses {connections}"))
        done = subprocess.run([program("nginx"), "-t", "-c", str(file)], capture_output=True, text=True)
        assert (done.returncode == 0) == (connections == "512"), done.stderr


def test_nginx_takes_the_containers_configuration(program, tmp_path):
    text = (Path(__file__).parents[2] / "deploy" / "compose" / "nginx.conf").read_text()
    # Names of containers mean nothing here, and the paths of the image are not ours to write to.
    text = re.sub(r"server-(\d):8000", r"127.0.0.1:1800\1", text)
    text = text.replace(" /tmp", f" {tmp_path}").replace("/dev/std", f"{tmp_path}/std")
    (tmp_path / "nginx.conf").write_text(text)
    command = [program("nginx"), "-t", "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_prometheus_takes_the_configuration(program, tmp_path):
    from companion.deployment.stack.rendering import alert_rules

    (tmp_path / "alerts.yml").write_text(alert_rules())
    file = tmp_path / "prometheus.yml"
    file.write_text(
        prometheus_conf(targets=["127.0.0.1:1", "127.0.0.1:2"], rules=str(tmp_path / "alerts.yml"))
    )
    done = subprocess.run([program("promtool"), "check", "config", str(file)], capture_output=True, text=True)
    assert done.returncode == 0 and "13 rules found" in done.stdout, done.stdout + done.stderr


def test_nginx_and_servers_have_the_same_limits(tmp_path):
    text = nginx_conf(
        place(tmp_path), limits=Limits(body_bytes=4321), batching=BatchingLimits(longest_timeout_s=90)
    )
    assert "client_max_body_size 4321;" in text and "client_body_buffer_size 4321;" in text
    front, back = (int(found) for found in re.findall(r"proxy_read_timeout (\d+)s;", text))
    assert 90 < front < back, "the front gives up first: its document is the one that clients see"
    [kept] = set(re.findall(r"^\s+keepalive_timeout (\d+)s;\n\s*}", text, re.MULTILINE))
    assert int(kept) < uvicorn.Config("app").timeout_keep_alive


def test_what_nginx_says_itself_are_problem_documents(tmp_path):
    known = {problem.code: problem for problem in (*PROBLEMS, UNAVAILABLE)}
    said = re.findall(r"return (\d+) '(\{.*\})';", nginx_conf(place(tmp_path)))
    assert len(said) == 7
    for status, text in said:
        document = Problem.model_validate(json.loads(text) | {"request_id": "x"})
        problem = known[document.code]
        assert (document.status, document.type, document.title) == (int(status), problem.uri, problem.title)
        assert document.status == problem.status


# --- processes and files


def sleeper(folder: Path) -> list[str]:
    """Return a program that starts another one and then sleeps."""
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    return [sys.executable, "-c", code, str(folder)]


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_a_process_is_found_by_another_and_stopped_with_all_it_started(tmp_path):
    ours = ProcessFile(tmp_path / "a.pid", str(tmp_path))
    ours.start(sleeper(tmp_path), tmp_path / "log")
    until(lambda: len(ours.members()) == 2)
    other = ProcessFile(tmp_path / "a.pid", str(tmp_path))
    assert other.pid == ours.pid is not None
    # Its leader is killed and what it started lives on: still found, still stopped.
    os.kill(ours.pid, signal.SIGKILL)
    until(lambda: ours.pid is None)
    assert other.pid is None and len(other.members()) == 1
    other.stop(signal.SIGTERM, 5)
    assert other.members() == [] and not (tmp_path / "a.pid").exists()


def test_an_id_that_belongs_to_somebody_else_is_left_alone(tmp_path):
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        (tmp_path / "a.pid").write_text(f"{stranger.pid}\n")
        file = ProcessFile(tmp_path / "a.pid", str(tmp_path))
        assert file.pid is None and file.members() == []
        file.stop(signal.SIGTERM, 1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_that_does_not_listen_is_ended(tmp_path):
    file = ProcessFile(tmp_path / "a.pid", str(tmp_path))
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    code += "print('deaf', flush=True); time.sleep(600)"
    file.start([sys.executable, "-c", code, str(tmp_path)], tmp_path / "log")
    until(lambda: "deaf" in (tmp_path / "log").read_text())
    file.stop(signal.SIGTERM, 0.2)
    assert file.pid is None and file.members() == []


def test_a_folder_that_holds_no_stack(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="companion stack up"):
        Stack(state=tmp_path)
    assert take_down(tmp_path / "nowhere") == []
    assert run("stack", "down", "--state", tmp_path / "nowhere") == (0, "nothing ran\n", "")
    code, _, err = run("stack", "status", "--state", tmp_path)
    assert code == 1 and "no stack was ever started" in err


def test_notes_that_cannot_be_read(tmp_path, run):
    (tmp_path / "stack.json").write_text("{")
    code, _, err = run("stack", "status", "--state", tmp_path)
    assert code == 2 and "stack.json cannot be read" in err and err.count("\n") == 1
    assert run("stack", "down", "--state", tmp_path)[0] == 0


def test_a_model_that_is_none_starts_nothing(tmp_path, run):
    code, _, err = run("stack", "up", tmp_path / "nowhere", "--state", tmp_path / "state")
    assert code == 2 and "does not exist" in err and err.count("\n") == 1
    assert not (tmp_path / "state").exists()


def test_two_commands_at_once(tmp_path, run):
    from filelock import FileLock

    with FileLock(tmp_path / "lock"):
        code, _, err = run("stack", "down", "--state", tmp_path)
    assert code == 2 and "another command" in err
