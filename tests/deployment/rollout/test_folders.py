"""A rollout over real exported folders: what is refused, and what a folder that goes bad does to a server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import anyio.to_thread
import pytest

from companion.artifacts import digest
from companion.deployment.answering import Answer, Question
from companion.deployment.rollout import RefusedVersionError, Rollout, inspect_folder
from companion.inference.manifest import read_manifest, write_manifest
from companion.inference.predictor import OnnxPredictor

TEXTS = ["The film was superb.", "The novel was dull, it was raining that day.", "The play was lovely."]


class PredictorVersion:
    """An exported model, run in a thread."""

    def __init__(self, predictor: OnnxPredictor) -> None:
        self.predictor = predictor

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        row = (await anyio.to_thread.run_sync(self.predictor.probabilities, [question.text]))[0]
        return Answer(tuple(map(float, row)), self.predictor.labels, self.predictor.manifest.model_version)

    async def aclose(self) -> None:
        del self.predictor


async def open_folder(folder: Path) -> PredictorVersion:
    return PredictorVersion(await anyio.to_thread.run_sync(lambda: OnnxPredictor(folder, threads=1)))


def changed(folder: Path, name: str, change, **facts) -> None:
    """Change one JSON file of a folder, and let the manifest tell of it: damage that no hash shows."""
    manifest = read_manifest(folder)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    write_manifest(replace(manifest, files={**manifest.files, name: digest(folder / name)}, **facts), folder)


@pytest.fixture
def candidate(fp32_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fp32_folder, tmp_path / "candidate"))


def rolled(start: Path, body, **keywords) -> None:
    async def main():
        rollout = Rollout(start, open_folder, **keywords)
        await rollout.start()
        try:
            await body(rollout)
        finally:
            await rollout.aclose()

    asyncio.run(main())


async def ask(rollout: Rollout, text: str) -> Answer:
    return await rollout.answer(Question(text), deadline=time.monotonic() + 60)


def test_two_exports_of_one_model_can_take_each_others_place(onnx_folder, fp32_folder):
    int8, fp32 = inspect_folder(onnx_folder), inspect_folder(fp32_folder)
    assert int8.version != fp32.version
    assert replace(int8, version=fp32.version) == fp32


def add_tokens(content: dict) -> None:
    content["model"]["vocab"].update({f"token{n}": 10_000 + n for n in range(2000)})


def swap_tokens(content: dict) -> None:
    vocabulary = content["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    for one, other in zip(words[::2], words[1::2], strict=False):
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def rename_labels(content: dict) -> None:
    content["id2label"] = {"0": "no", "1": "yes"}
    content["label2id"] = {"no": 0, "yes": 1}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
        (lambda folder: (folder / "manifest.json").unlink(), r"holds no manifest\.json"),
        (lambda folder: (folder / "manifest.json").write_text("rubbish"), "is not a manifest"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"rubbish"), "is not the file that"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "is missing"),
        (lambda folder: changed(folder, "tokenizer.json", swap_tokens), "its tokenizer is not the one"),
        (lambda folder: changed(folder, "tokenizer.json", add_tokens), "its tokenizer is not the one"),
        (
            lambda folder: changed(folder, "config.json", rename_labels, labels=("no", "yes")),
            "it has the labels no, yes",
        ),
    ],
)
def test_folders_that_cannot_take_the_place(onnx_folder, candidate, spoil, words):
    async def body(rollout):
        before = await ask(rollout, TEXTS[0])
        spoil(candidate)
        with pytest.raises(RefusedVersionError, match=words):
            await rollout.load(candidate)
        assert rollout.status().stage == "live"
        assert await ask(rollout, TEXTS[0]) == before

    rolled(onnx_folder, body)


def test_a_tokenizer_with_more_tokens_than_the_model_knows_cannot_even_be_meant(onnx_folder, candidate):
    async def body(rollout):
        changed(candidate, "tokenizer.json", add_tokens)
        with pytest.raises(RefusedVersionError, match="it belongs to another model"):
            await rollout.load(candidate, other_tokenizer=True)

    rolled(onnx_folder, body)


def test_answers_are_those_of_the_predictors_and_rubbish_on_disk_changes_none(
    onnx_folder, candidate, tmp_path
):
    """The candidate's model file is overwritten while it answers; the next process does without it."""
    expected = {
        folder: OnnxPredictor(folder, threads=1).probabilities(TEXTS, batch_size=1).tolist()
        for folder in (onnx_folder, candidate)
    }

    async def answers(rollout):
        return [list((await ask(rollout, text)).values) for text in TEXTS]

    async def body(rollout):
        assert await answers(rollout) == expected[onnx_folder]
        await rollout.load(candidate)
        await rollout.shadow(1)
        await answers(rollout)
        while rollout.status().trial.agreement.compared < 3:
            await asyncio.sleep(0.005)
        assert rollout.status().trial.agreement.share == 1
        assert 0 < rollout.status().trial.agreement.largest_difference < 0.2
        await rollout.promote()
        (candidate / "model.onnx").write_bytes(b"rubbish")
        assert await answers(rollout) == expected[candidate]
        await rollout.rollback()
        assert await answers(rollout) == expected[onnx_folder]
        with pytest.raises(RefusedVersionError, match="is not the file that"):
            await rollout.load(candidate)

    rolled(onnx_folder, body, state_file=tmp_path / "state.json")


def test_a_promoted_folder_that_is_rubbish_after_a_restart(onnx_folder, candidate, tmp_path):
    async def promote(rollout):
        await rollout.load(candidate)
        await rollout.promote()

    async def body(rollout):
        await rollout.settled()
        assert (rollout.status().stage, rollout.status().live.folder) == ("live", str(onnx_folder.resolve()))
        assert "is not the file that" in rollout.status().warnings[0]
        await ask(rollout, TEXTS[0])

    rolled(onnx_folder, promote, state_file=tmp_path / "state.json")
    (candidate / "model.onnx").write_bytes(b"rubbish")
    rolled(onnx_folder, body, state_file=tmp_path / "state.json")


def test_a_rollout_brings_neither_scipy_nor_torch_into_the_server():
    code = (
        "import sys; import companion.deployment.rollout.admin, companion.deployment.rollout.headers; "
        "from companion.deployment.rollout.timing import LatencyWindow; w = LatencyWindow(); "
        "[w.add(n) for n in range(500)]; assert w.percentiles()[2].estimate; "
        "print(sorted({'scipy', 'torch', 'transformers', 'onnx'} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr
