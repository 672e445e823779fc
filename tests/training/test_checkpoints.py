"""A checkpoint is complete or absent, belongs to its run, and gives the run back to the bit."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from companion.data import Task
from companion.models import load
from companion.training import TrainingConfig, fit
from companion.training.callbacks import Callback
from companion.training.checkpoints import best_checkpoint, damage, list_checkpoints, load_weights

LABELS = ("negative", "positive")
TASK = Task("toy", "accuracy", LABELS, False, "one adjective decides")


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state, record):
        if record.step == self.step:
            raise Interrupted


class Last(Callback):
    """Keeps the optimizer's tensors of the end of a run."""

    def on_end(self, state):
        self.optimizer = {
            f"{name}.{key}": value.clone()
            for name, parameter in state.model.named_parameters()
            for key, value in state.optimizer.state[parameter].items()
        }


@pytest.fixture(scope="module")
def examples(toy):
    return toy[:96]


def config(**changes) -> TrainingConfig:
    basis = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "max_length": 48, "precision": "fp32"}
    return TrainingConfig(**{**basis, "checkpoint_every": 4, **changes})


def run(encoder: Path, examples, folder: Path | None, *, interrupt=0, resume=False, dev=(), **changes):
    """Train afresh, or go on; return the run, the weights and the optimizer's tensors."""
    classifier = load(encoder, labels=LABELS)
    last = Last()
    arguments = {"dev": dev, "task": TASK} if dev else {}
    done = fit(
        classifier.model,
        classifier.tokenizer,
        examples,
        config=config(**changes),
        callbacks=[*([Interrupt(interrupt)] if interrupt else []), last],
        checkpoints=folder,
        resume=resume,
        **arguments,
    )
    return done, {name: t.clone() for name, t in classifier.model.state_dict().items()}, last.optimizer


def interrupted(encoder: Path, examples, folder: Path, step: int, **arguments) -> None:
    with pytest.raises(Interrupted):
        run(encoder, examples, folder, interrupt=step, **arguments)


def same(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def told(done) -> list[tuple]:
    """Return a run's records without what depends on the clock."""
    return [(s.step, s.loss, s.learning_rate, s.grad_norm, s.terms) for s in done.steps]


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


@pytest.fixture(scope="module")
def whole(encoder_folder, examples):
    return run(encoder_folder, examples, None)


@pytest.mark.parametrize("step", [4, 5, 6, 7, 11, 12, 13, 17])
def test_a_resumed_run_is_the_uninterrupted_one(encoder_folder, examples, whole, tmp_path, step):
    """6 steps an epoch, a checkpoint each 4 and at each epoch's end: on, after and between all of those."""
    interrupted(encoder_folder, examples, tmp_path, step)
    done, weights, optimizer = run(encoder_folder, examples, tmp_path, resume=True)
    assert same(weights, whole[1])
    assert same(optimizer, whole[2])
    assert (done.order, told(done)) == (whole[0].order, told(whole[0]))
    assert done.resumed_from == max(n for n in (0, 4, 6, 8, 12, 16) if n < step)
    assert whole[0].resumed_from == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 2},
        {"micro_batch_size": 5},
        {"schedule": "cosine", "warmup": 3},
        {"optimizer": "lamb"},
        {"precision": "bf16"},
        {"activation_checkpointing": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_it_is_so_with_every_choice(encoder_folder, examples, tmp_path, changes):
    once = run(encoder_folder, examples, None, **changes)
    interrupted(encoder_folder, examples, tmp_path, 7, **changes)
    again = run(encoder_folder, examples, tmp_path, resume=True, **changes)
    assert same(once[1], again[1])
    assert same(once[2], again[2])
    assert told(once[0]) == told(again[0])


def test_a_run_may_be_interrupted_more_than_once(encoder_folder, examples, whole, tmp_path):
    interrupted(encoder_folder, examples, tmp_path, 5)
    interrupted(encoder_folder, examples, tmp_path, 10, resume=True)
    interrupted(encoder_folder, examples, tmp_path, 15, resume=True)
    done, weights, _ = run(encoder_folder, examples, tmp_path, resume=True)
    assert same(weights, whole[1])
    assert done.order == whole[0].order


def test_work_may_be_moved_around_between_the_parts(encoder_folder, examples, whole, tmp_path):
    interrupted(encoder_folder, examples, tmp_path, 7, workers=2, keep=1)
    _, weights, _ = run(encoder_folder, examples, tmp_path, resume=True, checkpoint_every=None)
    assert same(weights, whole[1])


def test_resuming_from_nothing_starts_and_a_finished_run_is_not_run_again(
    encoder_folder, examples, whole, tmp_path
):
    first, weights, _ = run(encoder_folder, examples, tmp_path / "new", resume=True)
    assert first.resumed_from == 0
    assert same(weights, whole[1])
    again, weights, _ = run(encoder_folder, examples, tmp_path / "new", resume=True)
    assert again.resumed_from == 18
    assert same(weights, whole[1])
    assert told(again) == told(first)


def test_the_newest_and_the_best_are_kept(encoder_folder, examples, toy, tmp_path):
    scores = {}

    class Scored(Callback):
        def on_evaluation(self, state, evaluation):
            # The first evaluation is made the best one: after it, what counts is worse.
            scores[state.step] = evaluation.metrics["accuracy"]
            state.evaluations[-1].metrics["accuracy"] = 1.0 - state.step / 1000

    classifier = load(encoder_folder, labels=LABELS)
    fit(
        classifier.model,
        classifier.tokenizer,
        examples,
        config=config(keep=2, checkpoint_every=2),
        dev=toy[96:128],
        task=TASK,
        callbacks=[Scored()],
        checkpoints=tmp_path,
    )
    assert set(scores) == {6, 12, 18}
    assert names(tmp_path) == ["step-00000006", "step-00000016", "step-00000018"]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000006"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".step")] == []


def test_the_best_weights_can_be_loaded(encoder_folder, examples, toy, tmp_path, whole):
    run(encoder_folder, examples, tmp_path, dev=toy[96:128])
    model = load(encoder_folder, labels=LABELS).model
    load_weights(model, tmp_path / "step-00000018")
    assert same(dict(model.state_dict()), whole[1])


# --- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tensors(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


DAMAGES = {
    "truncated tensors": lambda folder: cut(tensors(folder)),
    "one bit flipped": lambda folder: flip(tensors(folder)),
    "no tensors": lambda folder: tensors(folder).unlink(),
    "truncated state": lambda folder: cut(folder / "state.json"),
    "no random state": lambda folder: next(folder.glob("random-*")).unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a file too many": lambda folder: (folder / "model.bin").write_text("x"),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture(scope="module")
def half_done(encoder_folder, examples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    interrupted(encoder_folder, examples, folder, 9)
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_one_falls_back_and_says_so(
    encoder_folder, examples, whole, half_done, tmp_path, caplog, kind
):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    assert names(folder) == ["step-00000004", "step-00000006", "step-00000008"]
    assert damage(folder / "step-00000008") is None
    DAMAGES[kind](folder / "step-00000008")
    with caplog.at_level(logging.WARNING, "companion.training"):
        done, weights, _ = run(encoder_folder, examples, folder, resume=True)
    assert "step-00000008 is damaged" in caplog.text
    assert done.resumed_from == 6
    assert same(weights, whole[1])


def test_when_all_are_damaged_nothing_is_overwritten(encoder_folder, examples, half_done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    for checkpoint in list_checkpoints(folder):
        cut(tensors(checkpoint))
    with pytest.raises(ValueError, match=r"every checkpoint .* is damaged.*Delete the folder"):
        run(encoder_folder, examples, folder, resume=True)
    assert len(names(folder)) == 3


def test_nothing_in_a_checkpoint_is_pickled(half_done):
    from safetensors import safe_open

    for checkpoint in list_checkpoints(half_done):
        for path in checkpoint.iterdir():
            if path.suffix == ".json":
                json.loads(path.read_text())
            else:
                with safe_open(path, "pt") as file:
                    assert list(file.keys())


# --- a run and its folder belong together


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1e-3}, r"config.learning_rate is 0.003, this run's is 0.001"),
        ({"epochs": 4}, "config.epochs is 3, this run's is 4"),
        ({"seed": 1}, "config.seed"),
        ({"batch_size": 8}, "config.batch_size"),
    ],
)
def test_other_choices_are_another_run(encoder_folder, examples, half_done, tmp_path, changes, words):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    with pytest.raises(ValueError, match=words):
        run(encoder_folder, examples, folder, resume=True, **changes)
    assert [damage(path) for path in list_checkpoints(folder)] == [None] * 3


def test_other_data_and_another_model_are_another_run(encoder_folder, examples, toy, half_done):
    from transformers import BertConfig, BertForSequenceClassification

    with pytest.raises(ValueError, match="belongs to another run: its data is"):
        run(encoder_folder, toy[1:97], half_done, resume=True)
    classifier = load(encoder_folder, labels=LABELS)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    other = BertForSequenceClassification(BertConfig(vocab_size=800, max_position_embeddings=64, **small))
    with pytest.raises(ValueError, match="belongs to another run: its architecture is"):
        fit(other, classifier.tokenizer, examples, config=config(), checkpoints=half_done, resume=True)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_weights(other, half_done / "step-00000008")


def test_an_earlier_run_is_not_overwritten_by_mistake(encoder_folder, examples, half_done):
    before = names(half_done)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run: resume it, or give another"):
        run(encoder_folder, examples, half_done)
    assert names(half_done) == before


def test_two_runs_do_not_share_a_folder(encoder_folder, examples, tmp_path):
    class Second(Callback):
        def on_step(self, state, record):
            run(encoder_folder, examples, tmp_path, resume=True)

    classifier = load(encoder_folder, labels=LABELS)
    with pytest.raises(ValueError, match="in use by another run"):
        fit(
            classifier.model,
            classifier.tokenizer,
            examples,
            config=config(),
            callbacks=[Second()],
            checkpoints=tmp_path,
        )


def test_a_file_in_the_place_of_the_folder_is_refused(encoder_folder, examples, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="is a file: expected a folder for checkpoints"):
        run(encoder_folder, examples, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


# --- a full disk


@pytest.mark.mount
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoints(
    encoder_folder, examples, whole, small_disk, caplog
):
    """Room for some checkpoints and not for the next one: each takes its place only when it is complete."""
    folder = small_disk / "run"
    with pytest.raises(OSError, match=r"cannot be written .*free some space and resume") as caught:
        run(encoder_folder, examples, folder, keep=100)
    assert caught.value.errno == errno.ENOSPC
    left = list_checkpoints(folder)
    assert left
    assert [damage(path) for path in left] == [None] * len(left)
    assert list(folder.glob(".step-*")) == []
    for path in left[:-1]:
        shutil.rmtree(path)  # free some space, and resume
    done, weights, _ = run(encoder_folder, examples, folder, resume=True, keep=1)
    assert done.resumed_from > 0
    assert same(weights, whole[1])
