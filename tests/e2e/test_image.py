"""The image's environment: nothing but its requirements can be imported, and the server runs in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "deploy" / "image" / "requirements.txt"
MEGABYTE = 1_000_000


def pinned() -> dict[str, str]:
    lines = REQUIREMENTS.read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that holds the image's requirements, and companion.

    Tests have no index to install from: the files of each distribution are linked from the environment of the
    tests, one by one, at exactly the versions that the image installs.
    """
    folder = tmp_path_factory.mktemp("image") / "env"
    venv.create(folder, symlinks=True, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    for name, version in pinned().items():
        found = distribution(name)
        assert found.version.partition("+")[0] == version, f"{name}: the image has {version}, make env"
        assert found.files, name
        for file in found.files:
            source = Path(str(file.locate()))
            if ".." in file.parts or "__pycache__" in file.parts or not source.exists():
                continue  # scripts, and files that an uninstalled version left in the list
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    (packages / "companion").symlink_to(ROOT / "companion", target_is_directory=True)
    return folder / "bin" / "python"


def run(python: Path, code: str) -> str:
    # -I: neither PYTHONPATH nor the user's own packages.
    return subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout


def test_nothing_else_can_be_imported(python):
    code = (
        "import importlib.metadata as m, json; print(json.dumps(sorted({d.name for d in m.distributions()})))"
    )
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in json.loads(run(python, code))}
    assert names == set(pinned())
    absent = ("torch", "transformers", "datasets", "onnx", "scipy", "sklearn", "pandas", "pytest", "ray")
    code = f"from importlib.util import find_spec; print([name for name in {absent} if find_spec(name)])"
    assert run(python, code).strip() == "[]"
    assert (
        run(python, "import companion; print(companion.__file__)").strip().endswith("companion/__init__.py")
    )


@pytest.fixture
def serving(python: Path) -> Iterator[Callable[..., tuple[psutil.Process, str, float]]]:
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, *options: str) -> tuple[psutil.Process, str, float]:
        command = [
            python,
            "-I",
            "-m",
            "companion.cli",
            "serve",
            folder,
            "--port",
            "0",
            "--threads",
            "1",
            *options,
        ]
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp")}
        began = time.monotonic()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.match(r"serving on (http://127\.0\.0\.1:\d+) ", line)
        assert found, line + process.stderr.read()
        return psutil.Process(process.pid), found[1], time.monotonic() - began

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_server_starts_there_answers_and_ends(serving, onnx_folder, tmp_path):
    options = (
        "--rate",
        "1000/minute",
        "--redis",
        "redis://127.0.0.1:1/0",
        "--log-requests",
        "--log-format",
        "json",
    )
    process, url, _ = serving(onnx_folder, *options, "--prediction-log", str(tmp_path / "log"))
    assert httpx.post(f"{url}/predict", json={"text": "fine"}).status_code == 200
    batch = httpx.post(f"{url}/predict/batch", json={"items": [{"text": "one"}, {"text": "two"}]})
    assert batch.status_code == 200 and batch.json()["failed"] == 0
    for path in ("/health/ready", "/metrics", "/openapi.json", "/v2/models/companion"):
        assert httpx.get(url + path).status_code == 200, path
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, None)
    assert list((tmp_path / "log").iterdir())


@pytest.fixture(scope="module")
def embedded_int8(home: Path) -> Path:
    """Return the embedded encoder, exported as INT8."""
    from companion.artifacts import make

    def build(folder: Path) -> None:
        from companion import models, training
        from companion.inference import export

        classifier = models.load("embedded", labels=("negative", "positive"))
        training.save(classifier.model, classifier.tokenizer, folder / "model", max_length=256)
        export(folder / "model", folder / "onnx", precision="int8")
        shutil.rmtree(folder / "model")

    return make("test-embedded-int8", build, version=1, inputs={}, home=home) / "onnx"


@pytest.mark.weights
@pytest.mark.timeout(600)
def test_it_is_ready_soon_and_small(serving, embedded_int8, record_property):
    process, url, seconds = serving(embedded_int8)
    spent = sum(process.cpu_times()[:2])
    record_property("ready_s", seconds)
    record_property("ready_cpu_s", spent)
    # Two seconds on a machine that has time for it. Processor time does not count what others take.
    assert spent < 10
    texts = [" ".join(["The film was not bad, my cousin said."] * (1 + number % 15)) for number in range(500)]
    with httpx.Client(base_url=url, timeout=120) as http, ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda text: http.post("/predict", json={"text": text}).status_code, texts))
    assert statuses == [200] * 500
    resident = process.memory_info().rss
    record_property("resident_mb", resident / MEGABYTE)
    print(f"ready in {seconds:.2f} s ({spent:.2f} s of processor), {resident / MEGABYTE:.0f} MB resident")
    assert resident < 250 * MEGABYTE
    mapped = {Path(mapping.path).name for mapping in process.memory_maps()}
    assert not any("torch" in name for name in mapped), sorted(mapped)


def test_the_environment_of_the_tests_does_have_what_the_image_has_not():
    """Else the tests above would show nothing."""
    code = "import torch, transformers"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
