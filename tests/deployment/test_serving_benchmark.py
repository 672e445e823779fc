"""The pure parts of the serving benchmark: what wrk said, ratios, verdicts. No timing decides."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from shutil import which
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Any:
    """Let the tests import the scripts as they import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


def said(**changes: Any) -> str:
    counted = {"requests": 200, "us": 4_000_000, "p50_us": 20_000, "p99_us": 90_000, "refused": 40}
    rest = {"broken": 0, "unexplained": 0, "answers": {"200": 160, "503": 40}}
    return "Running 4s test\n  1 threads\n" + json.dumps({**counted, **rest, **changes}) + "\n"


def test_what_wrk_says_is_read():
    from serving_traffic import read

    load = read(said())
    assert (load.rate, load.p50_ms, load.p99_ms, load.answers["503"]) == (40, 20, 90, 40)
    with pytest.raises(ValueError, match="unable to connect"):
        read("unable to connect to 127.0.0.1:1")


def test_a_body_for_each_text_in_the_form_that_a_server_wants(tmp_path):
    from serving_traffic import Traffic

    traffic = Traffic(["a", 'b "c"'], tmp_path, clients=2)
    for form, expected in (("text", ["a", 'b "c"']), ("texts", [["a"], ['b "c"']])):
        lines = traffic.bodies(form).read_text().splitlines()
        assert [json.loads(line)[form] for line in lines] == expected


@pytest.mark.skipif(which("wrk") is None, reason="wrk is not installed")
def test_the_script_is_one_that_wrk_understands(tmp_path, monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from serving_traffic import Traffic

    seen: list[tuple[str, Any, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers["X-Request-Timeout-Ms"]))
            refused = len(seen) % 2
            self.send_response(503 if refused else 200)
            if refused and len(seen) % 3:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        traffic = Traffic(["one", "two"], tmp_path, clients=2)
        free = traffic.drive(server.server_port, 1)
        paced = traffic.drive(server.server_port, 1, pause_ms=10, timeout_ms=700)
        server.shutdown()
    assert {(path, body["text"]) for path, body, _ in seen} == {("/predict", "one"), ("/predict", "two")}
    assert {timeout for _, _, timeout in seen} == {None, "700"}
    assert free.requests > 0 and free.refused > 0 and free.answers == {}
    assert sum(paced.answers.values()) == paced.requests
    assert paced.answers["503"] == paced.refused
    assert 0 < paced.unexplained < paced.refused


def race(*rates: dict[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        f"race/{number}": {
            "candidates": {
                name: {"rate": rate, "p99_ms": p99, "p50_ms": p99 / 2, "cpu_ms": 1.0, "memory_mb": 9.0}
                for name, (rate, p99) in found.items()
            }
        }
        for number, found in enumerate(rates, start=1)
    }


def test_ratios_go_round_by_round_against_the_strongest_peer():
    from serving_results import CEILING, OURS, judged, text

    rows = race(
        {OURS: (115, 50), "mosec": (100, 55), "ray": (50, 20), CEILING: (125, 0)},
        {OURS: (60, 100), "mosec": (50, 110), "ray": (25, 40), CEILING: (70, 0)},
        {OURS: (115, 50), "mosec": (100, 55), "ray": (50, 20), CEILING: (125, 0)},
    )
    found = judged(rows)
    assert found["best_peer"] == "mosec"
    assert found["rate"] == pytest.approx(1.15)
    assert found["rate_spread"] == pytest.approx((1.15, 1.2))
    assert found["p99"] == pytest.approx(50 / 55)
    assert found["ceiling"] == pytest.approx(0.92)
    assert found["holds"] and found["ceiling_holds"]
    assert "1.15 (1.15 to 1.20), asked at least 1.1" in text(rows)


@pytest.mark.parametrize(("rate", "p99"), [(1.05, 50), (1.2, 56)])
def test_too_slow_or_a_worse_p99_does_not_hold(rate, p99):
    from serving_results import OURS, judged, text

    rows = race({OURS: (100 * rate, p99), "mosec": (100, 55)})
    assert not judged(rows)["holds"]
    assert "does not hold" in text(rows)


def test_a_peer_that_missed_a_round_is_not_compared():
    from serving_results import OURS, rounds_of

    rows = race({OURS: (1, 1), "mosec": (2, 1)}, {OURS: (1, 1)})
    assert set(rounds_of(rows)) == {OURS}


def test_the_best_settings_are_those_with_the_highest_median():
    from serving_results import best

    rows = {"pick/a": {"rates": [9, 1, 2]}, "pick/b": {"rates": [3, 3, 3]}, "pick/c": {"rates": [50]}}
    assert best(rows, ["a", "b", "never tried"]) == "b"


def test_the_verdict_of_an_overload():
    from serving_overload import Probe, verdict
    from serving_traffic import read

    peaks = (read(said(refused=0, requests=380)), read(said(refused=0, requests=420)))
    answers = {"200": 390, "504": 10, "503": 800, "429": 4, "500": 2}
    load = read(said(requests=1206, answers=answers, unexplained=3))
    probe = Probe(None, b"", 1000, accepted=[0.5, 1.2], other={"503": 7})  # type: ignore[arg-type]
    found = verdict(peaks, load, probe)
    assert found["offered_times"] == pytest.approx(1206 / 400)
    assert found["of_peak"] == pytest.approx(390 / 400)
    assert found["in_time"] == pytest.approx(390 / 400)
    assert (found["refused"], found["unexplained"], found["other_answers"]) == (804, 3, {"500": 2})
    assert found["probe"]["late"] == 1


def test_threads_and_processes_are_the_cores_and_nobody_has_more():
    from serving_candidates import PACKAGES, ours, variants
    from serving_ceiling import arrangements

    for peer in PACKAGES:
        settings = variants(peer, 2)
        assert all(one.processes * one.threads <= 2 for one in settings)
        assert any(one.processes * one.threads == 2 for one in settings)
        assert len({one.name for one in settings}) == len(settings)
    command = ours(2).command(Path("python"), Path("folder"), 80)
    assert command[command.index("--threads") + 1] == "2"
    assert all(how.sessions * how.threads == 2 for how in arrangements(2))


def test_peers_import_nothing_of_the_package():
    for file in (BENCHMARKS / "serving_apps").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        assert not any(str(name).startswith("companion") for name in names), file


def test_the_peers_own_model_says_what_the_predictor_says(onnx_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS / "serving_apps"))
        from model import Model

    from companion.inference import OnnxPredictor

    texts = ["good", "a much longer text, of which nobody knows what to make", "bad film"]
    expected = OnnxPredictor(onnx_folder, threads=1)
    said = Model(onnx_folder, 1)(texts)
    for row, one in zip(expected.probabilities(texts).tolist(), said, strict=True):
        assert one["probabilities"] == dict(zip(expected.labels, row, strict=True))
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].__getitem__)


def test_a_peer_is_named_with_its_folder():
    from serving import parse

    words = ["--model", "m", "--peers-env", "mosec=/a/b", "ray=/c"]
    assert parse(words).peers_env == [("mosec", Path("/a/b")), ("ray", Path("/c"))]
    with pytest.raises(SystemExit):
        parse(["--model", "m", "--peers-env", "django=/a"])
