"""Exercise 3: the checks of a learner's parts, the folder that is dealt, and what an inspection says."""

from __future__ import annotations

import ast
import json
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from companion import exercises
from companion.exercises.deployment import (
    CHECKS,
    Requirements,
    ServerInspection,
    deal,
    draw,
    exercise,
    read_submission,
)
from companion.exercises.deployment.answers import judge_answers, judge_int8, likeness, read_answer
from companion.exercises.deployment.asking import Reply, ask_all
from companion.exercises.deployment.draining import clients_for, taken_by
from companion.exercises.deployment.findings import ServerFinding
from companion.exercises.deployment.offline import ModelFacts, facts_of, read_facts
from companion.exercises.deployment.submission import NAIVE, naive_server
from companion.exercises.deployment.twins import in_floats

LABELS = ("negative", "positive")
WANTED = Requirements(accuracy=0.75)


def pad(rows: Any, pad_id: Any) -> Any:
    longest = max(map(len, rows))
    ids = [list(row) + [pad_id] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return np.array(ids), np.array(mask)


def softmax(logits: Any) -> Any:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def unwritten(*_: Any) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize(("step", "work"), [("padding", pad), ("probabilities", softmax)])
def test_right_parts_pass_and_starters_are_not_done(step: str, work: Callable[..., Any]) -> None:
    one = exercises.load("deployment")
    for seed in range(5):
        assert one.check(step, work, seed=seed), one.check(step, work, seed=seed)
    assert one.check(step, unwritten).status == "not done yet"
    assert len({one.hint(step).text for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("step", "work", "says"),
    [
        (
            "padding",
            lambda rows, pad_id: (pad(rows, pad_id)[0], np.ones_like(pad(rows, pad_id)[0])),
            "padding is text",
        ),
        (
            "padding",
            lambda rows, pad_id: (pad(rows, pad_id)[0], pad(rows, pad_id)[0] != pad_id),
            "integers|whole",
        ),
        (
            "padding",
            lambda rows, pad_id: (pad(rows, pad_id)[0], (pad(rows, pad_id)[0] != pad_id).astype(int)),
            "count the tokens",
        ),
        ("padding", lambda rows, pad_id: pad(rows, 0), "other ids"),
        ("padding", lambda rows, pad_id: pad(rows, pad_id)[0], "expected two arrays|shape"),
        ("padding", lambda rows, pad_id: pad([row.append(9) or row for row in rows], pad_id), "changes"),
        ("probabilities", lambda logits: logits, "these are the logits"),
        ("probabilities", lambda logits: 1 / (1 + np.exp(-logits.astype(float))), "sigmoid"),
        ("probabilities", lambda logits: np.exp(logits) / np.exp(logits).sum(1, keepdims=True), "subtract"),
        ("probabilities", lambda logits: softmax(logits.T).T, "each column"),
        ("probabilities", lambda logits: softmax(logits)[0], "shape"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_each_known_mistake_is_named(step: str, work: Callable[..., Any], says: str) -> None:
    results = [exercises.load("deployment").check(step, work, seed=seed) for seed in range(6)]
    said = " ".join(result.says for result in results if result.status == "failed")
    assert any(one in said.lower() for one in says.split("|")), said


def test_the_model_step_tells_whole_numbers_from_others(
    onnx_folder: Path, fp32_folder: Path, tmp_path: Path
) -> None:
    one = exercise(Requirements(accuracy=0.0, judged=8))
    assert one.check("model", onnx_folder), one.check("model", onnx_folder)
    wide = one.check("model", fp32_folder)
    assert wide.status == "failed" and "precision" in wide.says
    strict = exercise(Requirements(accuracy=1.01, judged=8)).check("model", onnx_folder)
    assert "train longer" in strict.says
    assert "no folder" in one.check("model", tmp_path / "none").says
    assert one.check("model", None).status == "not done yet"
    broken = tmp_path / "broken"
    shutil.copytree(onnx_folder, broken)
    (broken / "tokenizer.json").unlink()
    assert "cannot be used" in one.check("model", broken).says


def test_facts_are_the_same_in_a_process_of_its_own(onnx_folder: Path, fp32_folder: Path) -> None:
    texts = ["The film was superb.", "The play was dull, we went there in spring."]
    assert read_facts(onnx_folder, texts) == facts_of(onnx_folder, texts)
    small, wide = facts_of(onnx_folder, texts), facts_of(fp32_folder, texts)
    assert small.integer_share > 0.9 > 0.1 > wide.integer_share == 0
    assert small.size < 0.6 < wide.size and small.float_products == 0 < wide.float_products
    assert small.telling == () and small.telling_own == (), "no candidates, no telling texts"


def test_texts_are_chosen_on_which_whole_numbers_show(onnx_folder: Path, fp32_folder: Path) -> None:
    texts = draw(3, requirements=Requirements(judged=2, each_round=2)).candidates
    chosen = read_facts(onnx_folder, texts[:2], candidates=texts)
    assert chosen == facts_of(onnx_folder, texts[:2], texts) and set(chosen.telling) < set(texts)
    gaps = [
        max(abs(a - b) for a, b in zip(one, two, strict=True))
        for one, two in zip(chosen.telling_own, chosen.telling_floats, strict=True)
    ]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 2e-6
    wide = facts_of(fp32_folder, texts[:2], texts)
    assert wide.telling == (), "a graph in 32 bits is its own twin"
    own = facts_of(fp32_folder, chosen.telling).probabilities
    alike = likeness([reply(row) for row in chosen.telling_own], chosen)
    assert alike is not None and alike < 0.05
    other = likeness([reply(row) for row in own], chosen)
    assert other is not None and other > 0.3
    assert likeness([Reply(500)] * len(chosen.telling), chosen) == float("inf")
    assert not judge_int8(chosen, True, WANTED, alike=other).passed
    assert judge_int8(chosen, True, WANTED, alike=alike).passed
    blind = replace(chosen, telling_floats=chosen.telling_own)
    assert likeness([reply(row) for row in own], blind) is None
    assert "prove nothing" in judge_int8(blind, True, WANTED).found


def test_a_twin_has_the_weights_and_rounds_nothing() -> None:
    """A graph of each kind of integer product: the twin's result is the plain product of its numbers."""
    rng = np.random.default_rng(0)
    matrix = rng.integers(-127, 128, (6, 3)).astype(np.int8)
    scale, bias = np.array([0.01, 0.02, 0.03], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    given = rng.normal(size=(4, 6)).astype(np.float32)
    expected = given @ (matrix * scale) + bias
    session = onnxruntime.InferenceSession
    for graph in (dynamic_graph(matrix, scale, bias), standard_graph(matrix, scale, bias)):
        twin = in_floats(graph)
        assert twin is not None and not [one for one in twin.graph.node if "Integer" in one.op_type]
        [found] = session(twin.SerializeToString()).run(None, {"x": given})
        [own] = session(graph.SerializeToString()).run(None, {"x": given})
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert 1e-4 < np.abs(own - expected).max() < 0.2
    assert in_floats(twin) is None


def built(nodes: list[Any], **numbers: Any) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "products", [x], [y], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def dynamic_graph(matrix: Any, scale: Any, bias: Any) -> Any:
    zero = np.zeros(3, np.int8)
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s", "z", "b"], ["y"], domain="com.microsoft")
    return built([node], w=matrix, s=scale, z=zero, b=bias)


def standard_graph(matrix: Any, scale: Any, bias: Any) -> Any:
    make = helper.make_node
    nodes = [
        make("DynamicQuantizeLinear", ["x"], ["q", "step", "centre"]),
        make("MatMulInteger", ["q", "w", "centre"], ["whole"]),
        make("Cast", ["whole"], ["floats"], to=TensorProto.FLOAT),
        make("Mul", ["step", "s"], ["factor"]),
        make("Mul", ["floats", "factor"], ["scaled"]),
        make("Add", ["scaled", "b"], ["y"]),
    ]
    return built(nodes, w=matrix, s=scale, b=bias)


def test_the_kernels_table_tells_whose_request_was_read() -> None:
    def line(local: int, other: int, state: str, unread: int, inode: int) -> str:
        ends = f"0100007F:{local:04X} 0100007F:{other:04X} {state} 00000000:{unread:08X}"
        return f"   0: {ends} 00:00000000 00000000     0        0 {inode} 1 0 20 4 30 10 -1"

    lines = [
        "  sl  local_address rem_address st",
        line(8000, 0, "0A", 0, 5),  # listens
        line(8000, 41, "01", 0, 6),  # accepted and read
        line(8000, 42, "01", 90, 7),  # accepted, not read
        line(8000, 43, "01", 0, 0),  # not accepted
        line(44, 8000, "01", 0, 8),  # the client's own end
        line(9000, 45, "01", 0, 9),  # of another server
        line(8000, 46, "08", 0, 10),  # closed by the client
        "cut off",
    ]
    assert taken_by(8000, "\n".join(lines)) == {41}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"hello")
            assert client.getsockname()[1] not in taken_by(port, table())
            with listener.accept()[0] as accepted:
                assert client.getsockname()[1] not in taken_by(port, table())
                assert accepted.recv(5) == b"hello"
                assert client.getsockname()[1] in taken_by(port, table())


def table() -> str:
    file = Path("/proc/net/tcp")
    if not file.exists():
        pytest.skip("this kernel has no /proc/net/tcp")
    return file.read_text()


def test_a_folder_is_dealt_whole_and_says_how_it_starts(tmp_path: Path, onnx_folder: Path) -> None:
    folder = deal(tmp_path / "work")
    assert {path.name for path in folder.iterdir()} == {"server.py", "serve.toml", "README.md"}
    assert (folder / "server.py").read_text() == NAIVE.read_text()
    assert all(name in (folder / "README.md").read_text() for name in CHECKS)
    with pytest.raises(ValueError, match="is there already"):
        deal(folder)
    with pytest.raises(FileNotFoundError, match=r"no model/model\.onnx"):
        read_submission(folder)
    shutil.copytree(onnx_folder, folder / "model")
    read = read_submission(folder)
    assert read.argv(7) == ["python", "server.py"] and read.environment(7)["PORT"] == "7"
    (folder / "serve.toml").write_text('command = ["x", "--at={port}", "{model}"]')
    assert read_submission(folder).argv(7) == ["x", "--at=7", str(folder / "model")]
    assert naive_server(read).model == read.model


def test_the_naive_server_has_each_of_its_faults() -> None:
    source = NAIVE.read_text()
    [predict] = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == "predict"]
    body = ast.unparse(predict)
    assert isinstance(predict, ast.AsyncFunctionDef) and "await asyncio" not in body
    assert "InferenceSession(" in body and "ones_like" in body and "'confidence': float(logits" in body


def facts(count: int) -> ModelFacts:
    rows = tuple((0.9 - place / 1000, 0.1 + place / 1000) for place in range(count))
    return ModelFacts(LABELS, rows, 3, 0, 1.0, 0.3)


def reply(shares: Any, **changes: Any) -> Reply:
    said = {
        "label": LABELS[int(shares[1] > shares[0])],
        "probabilities": dict(zip(LABELS, shares, strict=True)),
    }
    return Reply(200, json.dumps(said | changes).encode(), "application/json")


def findings(replies: list[Reply], truth: list[int]) -> dict[str, ServerFinding]:
    return {one.check: one for one in judge_answers(replies, facts(len(replies)), truth, WANTED)}


def test_answers_are_judged_by_the_models_own() -> None:
    own = facts(20)
    good = findings([reply(row) for row in own.probabilities], [0] * 20)
    assert all(one.passed for one in good.values()) and judge_int8(own, True, WANTED).passed
    assert not findings([reply(row) for row in own.probabilities], [1] * 20)["accuracy"].passed
    same = findings([reply((0.9, 0.1))] * 20, [0] * 20)
    assert "do not depend on the text" in same["answers"].advice
    turned = findings([reply(row[::-1]) for row in own.probabilities], [0] * 20)
    assert "attention mask" in turned["answers"].advice
    other = findings([reply((a - 0.02, b + 0.02)) for a, b in own.probabilities], [0] * 20)
    assert "FP32" in other["answers"].advice and not judge_int8(own, other["answers"].passed, WANTED).passed
    rounded = findings([reply((a + 0.0003, b - 0.0003)) for a, b in own.probabilities], [0] * 20)
    assert "rounded" in rounded["answers"].advice
    doubled = findings([reply((2 * a, 2 * b)) for a, b in own.probabilities], [0] * 20)
    assert "softmax" in doubled["probabilities"].advice


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Reply(500, b"oh no"), "500 oh no"),
        (Reply(trouble="no reply (timed out)"), "timed out"),
        (Reply(200, b"<html>"), "not JSON"),
        (Reply(200, b"[1]"), "a list"),
        (Reply(200, b"[" * 100_000), "not JSON"),
        (Reply(200, b'{"label": "positive", "confidence": 3.2}'), "label, confidence"),
        (reply((0.1, 0.9), probabilities={"positive": 1.0}), "positive instead of negative, positive"),
        (reply((0.1, 0.9), probabilities={"positive": "0.9", "negative": 0.1}), "no numbers"),
        (reply((0.1, 0.9), probabilities={"positive": float("nan"), "negative": 0.1}), "no numbers"),
        (reply((0.1, 0.9), label="negative"), "not the highest"),
        (reply((0.1, 0.9), label=["positive"]), "instead of one of"),
    ],
)
def test_what_is_no_answer_is_said_and_never_raised(answer: Reply, says: str) -> None:
    read = read_answer(answer, LABELS)
    assert isinstance(read, str) and says in read, read
    assert not any(one.passed for one in findings([answer], [1]).values())


@given(st.binary(max_size=200))
def test_no_body_breaks_the_reader(body: bytes) -> None:
    assert isinstance(read_answer(Reply(200, body), LABELS), str | tuple)


@given(st.floats(min_value=0.01, max_value=1e5))
def test_clients_are_enough_and_not_too_many(rate: float) -> None:
    assert 16 <= clients_for(rate) <= 64


@pytest.mark.parametrize(("keep", "connections"), [(True, 1), (False, 6)])
def test_each_text_is_asked_once_over_a_kept_connection_or_fresh_ones(keep: bool, connections: int) -> None:
    seen: list[tuple[int, bytes]] = []

    class Noting(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.client_address[1], body))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        texts = [f"text {number}" for number in range(6)]
        replies = ask_all(server.server_port, texts, clients=1, keep=keep)
        server.shutdown()
    assert [json.loads(reply.body)["text"] for reply in replies] == texts
    assert [json.loads(body)["text"] for _, body in seen] == texts
    assert len({port for port, _ in seen}) == connections


def test_wrong_answers_are_worth_nothing() -> None:
    def inspected(*failed: str) -> ServerInspection:
        return ServerInspection(tuple(ServerFinding(name, name not in failed, "a", "b") for name in CHECKS))

    assert (
        inspected().score == 100 and inspected().passed and sum(marks for _, marks in CHECKS.values()) == 100
    )
    assert inspected("int8").score == 100 - CHECKS["int8"][1] and not inspected("int8").passed
    assert inspected("answers").score == 0
    assert not ServerInspection(()).passed and ServerInspection(()).score == 0
    assert "✗ int8: found b; expected a" in str(inspected("int8"))
