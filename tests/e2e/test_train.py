"""`companion train` as it is used at work: killed, resumed, watched, shared, on two processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from companion.artifacts import digest
from companion.training.monitoring import read_observations

pytestmark = pytest.mark.timeout(400)

COMMAND = [sys.executable, "-m", "companion.cli"]
DATA = ("--text-column", "review", "--label-column", "verdict")


@pytest.fixture
def command(encoder_folder, toy, tmp_path) -> list[str]:
    """Return a training command without its --out: 60 steps, one thread."""
    file = tmp_path / "reviews.csv"
    with file.open("w", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow(["review", "verdict"])
        rows.writerows([example.text, ("bad", "good")[example.label]] for example in toy[:160])
    options = {"epochs": 6, "batch-size": 16, "learning-rate": 3e-3, "max-length": 48, "threads": 1}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*COMMAND, "train", "--data", str(file), *DATA, "--model", str(encoder_folder), *given]


def told(command: list[str]) -> dict:
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_killed_and_run_again(command, tmp_path):
    """The same command goes on where it stopped, and a checkpoint folder is not taken for another run's."""
    safe = ["--checkpoint-every", "3", "--resume"]
    whole = told([*command, "--out", str(tmp_path / "whole"), *safe])
    assert whole["resumed_from"] == 0
    out = tmp_path / "out"
    checkpoints = tmp_path / "out.checkpoints"
    child = subprocess.Popen([*command, "--out", str(out), *safe], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*"))) < 3 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not out.exists()
    other = refused([*command, "--out", str(out), *safe, "--learning-rate", "0.001"])
    assert "belongs to another run: its config.learning_rate is 0.003" in other
    started = refused([*command, "--out", str(out), "--checkpoint-every", "3"])
    assert "holds checkpoints of an earlier run: resume it" in started
    assert "--resume" in started
    again = told([*command, "--out", str(out), *safe])
    assert again["resumed_from"] >= 3
    assert again["steps"] == whole["steps"]
    assert digest(out / "model.safetensors") == digest(tmp_path / "whole" / "model.safetensors")
    assert len(list(checkpoints.glob("step-*"))) <= 4


def test_watched_and_shared(command, tmp_path):
    out, hub = tmp_path / "out", tmp_path / "hub"
    made = told(
        [*command, "--out", str(out), "--monitor", str(tmp_path / "log"), "--best", "--patience", "2"]
    )
    assert [seen.step for seen in read_observations(tmp_path / "log")][:1] == [1]
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert made["value"] == max(item["metrics"]["accuracy"] for item in record["evaluations"])
    shared = subprocess.run(
        [*COMMAND, "share", str(out), str(hub), "--license", "apache-2.0", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shared.returncode == 0, shared.stderr
    card = (hub / "README.md").read_text(encoding="utf-8")
    assert f"{made['value']:.3f}"[:4] in card
    assert "license: apache-2.0" in card
    assert "training.json" in refused([*COMMAND, "share", str(tmp_path / "log"), str(tmp_path / "x")])


def test_two_processes_train_what_one_does(command, tmp_path):
    """Under torchrun the command trains on all processes; one of them writes and speaks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    out = tmp_path / "two"
    both = [*launch, *command[1:], "--epochs", "1", "--out", str(out), "--json"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(both, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["processes"] == 2
    assert load_file(out / "model.safetensors")


def test_a_mistake_is_told_before_the_training(command, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in refused([*command, "--out", str(file)])
    assert "is a file" in refused(
        [*command, "--out", str(tmp_path / "out"), "--resume", "--checkpoints", str(file)]
    )
    assert Path(file).read_text() == "mine"
