"""The chapter's experiments on real servers of a small model: short runs, and what must come out of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from companion.deployment.batching import waiting
from companion.deployment.experiments import drifting, grouping, hanging, remembering, replicas, trying
from companion.deployment.experiments.processes import ask, serving

TEXTS = [f"A film number {number} that is {'very ' * (number % 9)}long." for number in range(60)]


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with 2: .*nothing"),
        serving(tmp_path / "nothing"),
    ):
        pass


def test_batchers_answer_everything_whoever_chooses(onnx_folder: Path) -> None:
    before = waiting.choose
    alone, fifo, ours = grouping.batched(onnx_folder, TEXTS[:24], clients=8, repeats=3)["runs"]
    assert waiting.choose is before
    assert (alone["rows"], alone["faster"]) == (1, 1)
    assert fifo["rows"] > 1 and alone["efficiency"] > fifo["efficiency"]
    assert 0 < ours["efficiency"] <= 1


def test_a_cost_that_begins_wrong_is_corrected(onnx_folder: Path) -> None:
    learned = grouping.learning(onnx_folder, TEXTS, wrong_by=50)
    ratios = [one / other for one, other in zip(learned["expected"], learned["real"], strict=True)]
    assert sorted(ratios[-9:])[4] < 0.2 * ratios[0]


def test_a_hang_is_seen_by_readiness_alone_and_ends(onnx_folder: Path) -> None:
    found = hanging.hung(onnx_folder, hangs_s=1.5, stuck_after_s=0.5, watched_s=3.0)
    assert {look["live"] for look in found["looks"]} == {200}
    assert "stuck" in {look["code"] for look in found["looks"]}
    assert found["during"]["status"] == 503 and found["after"] == 200


def test_a_cache_spares_what_repeats(onnx_folder: Path) -> None:
    found = remembering.saved(onnx_folder, remembering.repeating(TEXTS, 0.5, 40))
    assert found["runs"] == 20 and found["same"]


def test_equal_questions_at_once_run_once_or_twice(onnx_folder: Path) -> None:
    found = remembering.herd(onnx_folder, "one question", clients=8)
    assert found["answered"] == 8 and found["events"]["exact-stored"] <= 2


def test_answers_go_on_without_redis(onnx_folder: Path, program: Callable[[str], str]) -> None:
    program("redis-server")
    found = remembering.without_redis(onnx_folder, TEXTS[:10], rate=30, gone_s=(1.0, 2.0))
    assert found["answers"] and {status for _, _, status in found["answers"]} == {200}
    assert 1.0 <= found["gone"] < found["back"]


def test_a_candidate_answers_its_share_and_every_answer_is_kept(onnx_folder: Path, fp32_folder: Path) -> None:
    steps = [(0.5, "canary", {"share": 0.5}), (2.0, "rollback", None)]
    found = trying.tried(onnx_folder, fp32_folder, TEXTS, steps, rate=30, seconds=3)
    by_candidate = [due for due, _, status, new in found["answers"] if new and status == 200]
    assert by_candidate and min(by_candidate) > 0.3 and len(found["steps"]) == 2
    assert len(found["labels"]) == len(found["answers"])
    assert [event["what"] for event in found["events"]][-1] == "rolled back"


def test_a_log_holds_both_kinds_of_texts_and_refusals_are_told(onnx_folder: Path, tmp_path: Path) -> None:
    drifting.drifted_log(onnx_folder, tmp_path / "log", TEXTS[:20], TEXTS[20:25])
    lines = "".join(file.read_text() for file in (tmp_path / "log").glob("*.jsonl")).splitlines()
    assert len(lines) == 25
    with pytest.raises(RuntimeError, match="of 1 texts 0 were answered"):
        drifting.drifted_log(onnx_folder, tmp_path / "other", TEXTS[:2], [""])


def test_nobody_notices_a_server_that_is_killed(onnx_folder: Path, program: Callable[[str], str]) -> None:
    program("nginx")
    found = replicas.killed(onnx_folder, TEXTS, servers=2, rate=20, killed_s=1.0, back_s=1.5, seconds=2.5)
    assert {status for _, _, status in found["answers"]} == {200}
    assert found["killed"] < found["asked"] < found["back"]


def test_a_planted_server_is_the_servers_own(onnx_folder: Path) -> None:
    with serving(onnx_folder, plant="bounded") as server:
        assert ask(f"{server.url}/predict", {"text": "fine"}).status == 200
        assert ask(f"{server.url}/health/ready").status == 200
