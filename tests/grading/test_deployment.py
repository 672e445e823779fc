"""Grading exercise 3: right servers of any build pass, deceiving ones do not, the naive one learns why."""

from __future__ import annotations

import csv
import hashlib
import http.server
import importlib.util
import json
import random
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from companion.data import Example
from companion.exercises.deployment import CHECKS, Requirements, deal, draw
from companion.grading import deployment
from companion.grading.deployment import ServerGrade, collecting, grade, nothing

_SPEC = importlib.util.spec_from_file_location("servers", Path(__file__).with_name("servers.py"))
assert _SPEC and _SPEC.loader
servers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(servers)
CALM, STEEP = 0.4, 50.0
COMPANION = 'command = ["python", "-m", "companion.cli", "serve", "{model}", "--port", "{port}"]\n'
PYTHON = 'command = ["python", "server.py"]\n'
QUICK = Requirements(judged=48, each_round=32, rounds=1, ready_seconds=120.0, speed=1.3)
"""A toy loads in milliseconds: loading it each time costs little."""
NO_RACE = {"rounds": 0}


def fresh(count: int, seed: int) -> list[Example]:
    """Write texts of the toy's kind that it was not trained on."""
    adjectives = (("terrible", "awful", "dull", "horrible"), ("wonderful", "superb", "lovely", "splendid"))
    asides = ("we went there in spring", "it was raining that day", "my cousin came along", "it was cheap")
    rng, found = random.Random(seed), dict[str, int]()
    while len(found) < count:
        label = len(found) % 2
        noun = rng.choice(("film", "novel", "hotel", "concert", "restaurant", "play", "museum", "trip"))
        more = "".join(f", {rng.choice(asides)}" for _ in range(rng.choice((1, 2, 3, 5))))
        found.setdefault(f"The {noun} was {rng.choice(adjectives[label])}{more}, {rng.random():.3f}.", label)
    return [Example(text, label) for text, label in found.items()]


Hand = Callable[..., Path]


@pytest.fixture(scope="session")
def calm_folders(home: Path, model_folder: Path) -> dict[str, Path]:
    """Return exports of the toy with its last layer made smaller: undecided, as real models are."""
    from safetensors.torch import load_file, save_file

    from companion.artifacts import make
    from companion.inference import export

    def build(folder: Path) -> None:
        shutil.copytree(model_folder, folder / "model")
        file = folder / "model" / "model.safetensors"
        calm = {
            name: value * CALM if name.startswith("classifier") else value
            for name, value in load_file(file).items()
        }
        save_file(calm, file, metadata={"format": "pt"})
        for precision in ("int8", "fp32"):
            export(folder / "model", folder / precision, precision=precision)

    made = make("test-calm", build, version=1, inputs={"model": model_folder.parent.name}, home=home)
    return {name: made / name for name in ("int8", "fp32")}


@pytest.fixture
def hand_in(tmp_path: Path, calm_folders: dict[str, Path]) -> Hand:
    """Write a submission: the source of a server, and how it starts."""

    def write(source: str, start: str = PYTHON, name: str = "work", **models: Path) -> Path:
        folder = tmp_path / name
        for place, model in {"model": calm_folders["int8"], **models}.items():
            shutil.copytree(model, folder / place)
        (folder / "server.py").write_text(source, encoding="utf-8")
        (folder / "serve.toml").write_text(start, encoding="utf-8")
        return folder

    return write


def judged(folder: Path, seed: int = 11, **changes: object) -> ServerGrade:
    wanted = Requirements(**{**vars(QUICK), **changes})  # type: ignore[arg-type]
    return grade(folder, seed=seed, requirements=wanted, examples=fresh(112, seed))


@pytest.mark.parametrize(
    ("source", "start"),
    [
        pytest.param("", COMPANION, id="companion-serve"),
        pytest.param(servers.THREADS, PYTHON, id="standard-library"),
        pytest.param(servers.PROCESSES, PYTHON, id="several-processes"),
        pytest.param(servers.STARLETTE, PYTHON, id="starlette"),
    ],
)
def test_a_right_server_passes_however_it_is_built(hand_in: Hand, source: str, start: str) -> None:
    found = judged(hand_in(source, start))
    assert found.passed and found.total == 100, found
    assert set(found.marks()) == set(CHECKS) and sum(found.marks().values()) == 100
    assert found.inspection.ratios[0] > 1
    if sys.platform == "linux":
        assert {"limits", "no privileges", "seccomp"} <= set(found.isolation), found.isolation


@pytest.mark.parametrize("source", [servers.HARD_CODED, servers.WORD_LIST], ids=["hard-coded", "word-list"])
def test_what_does_not_ask_the_model_is_worth_nothing(hand_in: Hand, source: str) -> None:
    found = judged(hand_in(source))
    assert found.total == 0 and not found.inspection.of("answers").passed, found
    assert "not looked at" in found.inspection.of("throughput").found


def test_texts_of_another_grading_cannot_be_known(hand_in: Hand, calm_folders: dict[str, Path]) -> None:
    from companion.inference import OnnxPredictor

    drawn = draw(11, examples=fresh(112, 11), requirements=Requirements(**{**vars(QUICK), **NO_RACE}))
    texts = [*drawn.texts, *drawn.candidates]
    rows = OnnxPredictor(calm_folders["int8"], threads=1).probabilities(texts, batch_size=1)
    folder = hand_in(servers.CACHED)
    known = {text: list(map(float, row)) for text, row in zip(texts, rows, strict=True)}
    (folder / "known.json").write_text(json.dumps(known))
    knowing = judged(folder, seed=11, **NO_RACE)
    assert knowing.inspection.of("answers").passed, f"it knows these: the check is not vacuous: {knowing}"
    found = judged(folder, seed=12)
    assert found.total == 0 and not found.inspection.of("answers").passed, found


def test_another_models_digits_give_it_away(hand_in: Hand, touchy_folders: dict[str, Path]) -> None:
    folder = hand_in(servers.FLOATING, model=touchy_folders["int8"], big=touchy_folders["fp32"])
    found = judged(folder, **NO_RACE)
    assert found.total == 0 and not found.inspection.of("answers").passed, found
    whole = found.inspection.of("int8")
    assert not whole.passed and "answers of another model" in whole.found


def test_a_model_that_is_sure_of_everything_hides_nothing(
    hand_in: Hand, onnx_folder: Path, fp32_folder: Path
) -> None:
    """Its 32 bits differ from its eight in the fifth decimal: less than the answers may be off."""
    found = {}
    for name, source in (("cheat", servers.FLOATING), ("right", servers.THREADS)):
        found[name] = judged(hand_in(source, name=name, model=onnx_folder, big=fp32_folder), **NO_RACE)
    cheat, right = (found[name].inspection.of("int8") for name in ("cheat", "right"))
    assert right.passed and not cheat.passed, found
    assert "answers of another model" in cheat.found and "of what 32 bits are off by" in cheat.found


def test_a_model_in_32_bits_is_no_small_one(hand_in: Hand, calm_folders: dict[str, Path]) -> None:
    found = judged(hand_in(servers.THREADS, model=calm_folders["fp32"]), speed=0.01)
    assert not found.inspection.of("int8").passed and found.inspection.of("answers").passed, found
    assert "0 integer" in found.inspection.of("int8").found and found.total == 100 - CHECKS["int8"][1]


@pytest.fixture
def upstream() -> Iterator[tuple[int, list[str]]]:
    """Run a server outside the wall, which notes who asks."""
    asked: list[str] = []

    class Noting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


def test_a_proxy_reaches_nobody(hand_in: Hand, upstream: tuple[int, list[str]]) -> None:
    port, asked = upstream
    found = judged(hand_in(servers.PROXY.replace("UPSTREAM", str(port))))
    assert found.total == 0 and not found.inspection.of("answers").passed, found
    if "no network" in found.isolation:
        assert asked == []


def test_the_naive_server_fails_and_learns_why(tmp_path: Path, calm_folders: dict[str, Path]) -> None:
    folder = tmp_path / "dealt"
    deal(folder)
    shutil.copytree(calm_folders["int8"], folder / "model")
    found = judged(folder)
    assert found.total == 0 and not found.passed
    failed = {one.check: one for one in found.inspection.findings if not one.passed}
    assert {"answers", "probabilities", "errors", "loading"} <= set(failed), found
    assert "label, confidence" in failed["answers"].found and "softmax" in failed["answers"].advice
    assert "500" in failed["errors"].found and "Load tokenizer and model once" in failed["loading"].advice
    assert all(one.advice for one in failed.values())


@pytest.fixture
def slow_to_load(tmp_path: Path, calm_folders: dict[str, Path]) -> Path:
    """Return the small model with arithmetic that onnxruntime does once, while it loads the graph."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    folder = tmp_path / "slow"
    shutil.copytree(calm_folders["int8"], folder)
    file = str(folder / "model.onnx")
    model = onnx.load(file)
    graph = model.graph
    [logits] = [one.name for one in graph.output]
    for node in graph.node:
        node.output[:] = [f"{one}_before" if one == logits else one for one in node.output]
        node.input[:] = [f"{one}_before" if one == logits else one for one in node.input]
    many = np.zeros((900, 900), np.float32)
    graph.initializer.append(numpy_helper.from_array(many, "many"))
    graph.node.append(helper.make_node("MatMul", ["many", "many"], ["much"]))
    graph.node.append(helper.make_node("ReduceSum", ["much"], ["nothing"], keepdims=0))
    graph.node.append(helper.make_node("Add", [f"{logits}_before", "nothing"], [logits]))
    onnx.save(model, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    manifest["operators"] = dict(Counter(node.op_type for node in graph.node))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_loading_each_time_is_found_by_the_file_and_by_the_clock(hand_in: Hand, slow_to_load: Path) -> None:
    each_time = servers.THREADS.replace("answer(PARTS[0], run(PARTS, text))", "answer(*now(text))").replace(
        "PARTS = load()",
        "PARTS = load()\ndef now(text):\n    parts = load()\n    return parts[0], run(parts, text)",
    )
    found = judged(hand_in(each_time, model=slow_to_load), speed=3.0, judged=16, candidates=0)
    assert found.inspection.of("answers").passed, found
    assert not found.inspection.of("loading").passed and not found.inspection.of("throughput").passed, found


@pytest.fixture(scope="session")
def touchy_folders(home: Path, model_folder: Path, onnx_folder: Path) -> dict[str, Path]:
    """Return the toy with its last layer moved to where it is undecided, and made steep: little moves it."""
    from safetensors.torch import load_file, save_file

    from companion.artifacts import make
    from companion.inference import OnnxPredictor, export

    def build(folder: Path) -> None:
        predictor = OnnxPredictor(onnx_folder, threads=1)
        middle = predictor.run(predictor.encode([one.text for one in fresh(64, 1)][1::2])).mean(axis=0)
        shutil.copytree(model_folder, folder / "model")
        file = folder / "model" / "model.safetensors"
        held = load_file(file)
        held["classifier.bias"] = (
            held["classifier.bias"] - held["classifier.bias"].new_tensor(middle)
        ) * STEEP
        held["classifier.weight"] = held["classifier.weight"] * STEEP
        save_file(held, file, metadata={"format": "pt"})
        for precision in ("int8", "fp32"):
            export(folder / "model", folder / precision, precision=precision)

    made = make("test-touchy", build, version=1, inputs={"model": model_folder.parent.name}, home=home)
    return {name: made / name for name in ("int8", "fp32")}


def test_padding_that_is_not_masked_is_found(hand_in: Hand, touchy_folders: dict[str, Path]) -> None:
    unmasked = servers.THREADS.replace(
        'tokenizer.enable_truncation(about["max_length"])',
        'tokenizer.enable_truncation(about["max_length"])\n'
        '    tokenizer.enable_padding(length=about["max_length"])',
    )
    found = judged(hand_in(unmasked, model=touchy_folders["int8"]), **NO_RACE)
    assert not found.inspection.of("answers").passed, found
    assert "mask" in found.inspection.of("answers").advice
    right = judged(hand_in(servers.THREADS, name="right", model=touchy_folders["int8"]), **NO_RACE)
    assert right.inspection.of("answers").passed, f"the model alone is not the reason: {right}"


def test_a_server_that_mixes_up_its_askers_is_found(hand_in: Hand) -> None:
    mixed = servers.THREADS.replace(
        "    return answer(PARTS[0], run(PARTS, text))",
        "    global LAST\n    LAST = text\n    import time\n    time.sleep(0.02)\n"
        "    return answer(PARTS[0], run(PARTS, LAST))",
    )
    found = judged(hand_in(mixed), **NO_RACE)
    assert not found.inspection.of("concurrency").passed, found
    assert "got the answer to another text" in found.inspection.of("concurrency").found


def test_a_server_that_drops_what_it_accepted_is_found(hand_in: Hand) -> None:
    start = servers.THREADS.index("signal.signal(signal.SIGTERM")
    line = servers.THREADS[start : servers.THREADS.index("\n", start)]
    slow = servers.THREADS.replace(
        "    return answer(PARTS[0]", "    __import__('time').sleep(0.4)\n    return answer(PARTS[0]"
    )
    found = judged(hand_in(slow.replace(line, "")), **NO_RACE)
    assert not found.inspection.of("drain").passed, found
    assert "under way lost" in found.inspection.of("drain").found
    found = judged(hand_in(slow, name="drains"), **NO_RACE)
    assert found.inspection.of("drain").passed, found
    assert "under way answered" in found.inspection.of("drain").found
    hasty = slow.replace(line, "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))")
    found = judged(hand_in(hasty, name="hasty"), **NO_RACE)
    assert "under way lost" in found.inspection.of("drain").found, "the code 0 alone convinces nobody"
    deaf = slow.replace(line, "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    found = judged(hand_in(deaf, name="deaf"), drain_seconds=2.0, **NO_RACE)
    assert "still runs" in found.inspection.of("drain").found, found


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (servers.CRASHES, "ended with code 1; the last that it printed: no model, no fun"),
        (servers.NEVER_READY, "is not ready; the last that it printed: loading, please wait"),
        (servers.FORK_BOMB, "is not ready|ended with code -9"),  # by the clock, or for its memory
    ],
    ids=["crashes", "never-ready", "fork-bomb"],
)
def test_what_never_serves_is_ended_and_said(hand_in: Hand, source: str, says: str) -> None:
    found = judged(hand_in(source), ready_seconds=30.0 if source == servers.CRASHES else 6.0, candidates=0)
    assert found.total == 0
    assert re.search(says, found.inspection.of("ready").found), found


def test_a_server_that_hangs_takes_no_time_from_the_others(
    hand_in: Hand,
) -> None:
    found = judged(hand_in(servers.HANGS), reply_seconds=4.0)
    assert found.total == 0 and "no reply" in found.inspection.of("answers").found, found
    assert found.inspection.of("errors").found == "not looked at"


def test_what_cannot_be_started_says_so(hand_in: Hand, tmp_path: Path) -> None:
    assert "there is no serve.toml" in str(grade(tmp_path))
    cases = (
        ("command = 5", "expected a list of words"),
        ("command = [", "is not TOML"),
        ('command = ["x"]\nmodel = "../.."', "expected a folder below"),
        ('command = ["x"]\nmodel = "none"', "there is no none/model.onnx"),
    )
    for number, (start, says) in enumerate(cases):
        found = grade(hand_in("", start, name=f"case-{number}"))
        assert found.total == 0 and says in found.errors[0], found
    found = judged(hand_in("", 'command = ["no-such-program"]', name="none"), ready_seconds=60.0)
    assert "'no-such-program' cannot be run" in found.inspection.of("ready").found, found


def test_a_link_and_a_broken_model_are_refused(hand_in: Hand) -> None:
    folder = hand_in(servers.THREADS)
    (folder / "secrets").symlink_to("/etc")
    assert "is a link" in judged(folder).errors[0]
    (folder / "secrets").unlink()
    (folder / "model" / "model.onnx").write_bytes(b"no graph")
    found = judged(folder)
    assert found.total == 0 and "companion export" in found.inspection.of("ready").advice, found


def test_a_folder_of_servers_becomes_a_table(run, hand_in, tmp_path, monkeypatch):
    def one(folder: Path, **options: object) -> ServerGrade:
        if folder.name == "b":
            raise RuntimeError("no world")
        return nothing("it is empty")

    monkeypatch.setattr(collecting, "grade", one)
    handed = hand_in(servers.THREADS, name="in/a")
    (handed.parent / "b").mkdir()
    out = tmp_path / "grades.csv"
    code, told, _ = run("grade", handed.parent, "--out", out, "--json")
    assert code == 0
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [(row["name"], row["total"]) for row in rows] == [("a", "0.0"), ("b", "0.0")]
    assert "look at this one by hand: RuntimeError: no world" in rows[1]["says"]
    assert [row["name"] for row in json.loads(told)["submissions"]] == ["a", "b"]
    code, _, err = run("grade", handed.parent, "--seed", "default")
    assert code == 2 and "--draw draws the texts" in err
    code, _, err = run("grade", handed)
    assert code == 2 and "is a submission itself" in err


def test_texts_are_new_for_each_seed() -> None:
    few = Requirements(judged=20, each_round=2)
    one, other = (draw(seed, requirements=few) for seed in (1, 2))
    assert one == draw(1, requirements=few)
    assert len(one.texts) == len(one.labels) == 20 and not set(one.texts) & set(other.texts)
    assert len(one.rounds) == 6 and len({text for part in one.rounds for text in part}) == 12
    assert abs(sum(one.labels) - 10) <= 1
    with pytest.raises(ValueError, match="expected at least"):
        draw(1, examples=[Example("a", 1)])
    assert deployment.grade is grade
