"""What is served is what `companion predict` writes, bit for bit, whatever else goes on at that moment."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion.deployment import create_app
from companion.deployment.batching import BatchingLimits

WORDS = ("the", "film", "was", "terrible", "wonderful", "we", "went", "there", "spring", "zebra", "!", "日本")
LENGTHS = (1, 2, 3, 5, 9, 20, 45, 200)
PATIENT = BatchingLimits(wait_s=1e5, stuck_after_s=2e5, timeout_s=300, longest_timeout_s=300)
"""Nobody is refused, however slow the machine is."""


def some_texts() -> list[str]:
    rng = random.Random(0)
    return sorted({" ".join(rng.choices(WORDS, k=length)) for length in LENGTHS for _ in range(5)})


TEXTS = some_texts()


@pytest.fixture
def offline(run: Any, onnx_folder: Path, tmp_path: Path) -> dict[str, dict[str, float]]:
    """Return what the command says to each text."""
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ["predict", onnx_folder, tmp_path / "texts.jsonl", "--text-column", "text"]
    code, _, err = run(*words, "--out", tmp_path / "answers.jsonl")
    assert code == 0, err
    answers = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return {text: json.loads(line)["probabilities"] for text, line in zip(TEXTS, answers, strict=True)}


one = st.tuples(st.just("predict"), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=1))
batches = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8)
several = st.tuples(st.sampled_from(["batch", "infer"]), batches)
pauses = st.integers(0, 3)
leaves = st.sampled_from([False, False, True])
requests = st.lists(st.tuples(one | several, pauses, leaves), min_size=1, max_size=12)


def sent(kind: str, texts: list[str]) -> tuple[str, Any]:
    if kind == "predict":
        return "/predict", {"text": texts[0]}
    if kind == "batch":
        return "/predict/batch", {"items": [{"text": text} for text in texts]}
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    return "/v2/models/companion/infer", {"inputs": [tensor]}


def received(kind: str, body: Any, labels: list[str]) -> list[dict[str, float]]:
    """Return the probabilities of an answer, whatever its shape."""
    if kind == "predict":
        return [body["probabilities"]]
    if kind == "batch":
        return [item["answer"]["probabilities"] for item in body["items"]]
    (tensor,) = [output for output in body["outputs"] if output["name"] == "probabilities"]
    rows, width = tensor["shape"]
    return [
        dict(zip(labels, tensor["data"][row * width : (row + 1) * width], strict=True)) for row in range(rows)
    ]


@pytest.fixture(params=["no cache", "memory", "rollout"])
def client(request: Any, running_client: Any, onnx_folder: Path, tmp_path: Path) -> Iterator[Any]:
    changes: dict[str, Any] = {}
    if request.param != "no cache":
        # So few that what is kept is forgotten all the time.
        changes = {"cache": "memory", "cache_entries": 8}
    if request.param == "rollout":
        (tmp_path / "admin.key").write_text("an-admin-key-of-enough-characters")
        changes |= {"rollout": tmp_path / "state.json", "admin_key": tmp_path / "admin.key"}
    yield running_client(create_app(onnx_folder, workers=2, threads=2, batching=PATIENT, **changes))


def test_served_answers_are_those_of_the_command(client, offline):
    kinds: Counter[str] = Counter()
    labels = list(offline[TEXTS[0]])

    async def ask(kind: str, texts: list[str], pause: int, leaves: bool) -> None:
        for _ in range(pause):
            await asyncio.sleep(0)
        path, body = sent(kind, texts)
        if leaves:
            asking = asyncio.create_task(client.http.post(path, json=body))
            for _ in range(pause * 5):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            if asking.cancelled():
                kinds["left"] += 1
                return
            answer: httpx.Response = asking.result()
        else:
            answer = await client.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found = received(kind, answer.json(), labels)
        assert found == [offline[text] for text in texts]
        assert [list(row) for row in found] == [labels] * len(texts)
        kinds[kind] += len(texts)

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(asked=requests)
    def check(asked: list[tuple[tuple[str, list[str]], int, bool]]) -> None:
        async def main() -> None:
            await asyncio.gather(*(ask(*request, pause, leaves) for request, pause, leaves in asked))

        client.portal.call(main)

    check()
    assert min(kinds[kind] for kind in ("predict", "batch", "infer", "left")) > 10, kinds
    service = client.app.state.service
    assert service.batcher.backlog.accepted == 0, "who left is not waited for"
