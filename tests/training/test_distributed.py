"""Real processes under ``torchrun``: what they compute together is what one computes alone."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import companion
from companion.training.distributed import Processes, micro_batches

WORKER = Path(__file__).with_name("_distributed_worker.py")
BASIS = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "max_length": 48, "precision": "fp32"}
SEVERAL = {"evaluate_every": 2, "checkpoint_every": 2}
CLOSE = 1e-5

# Batches of 8. 27 examples: the last one has 3, which two processes cannot share evenly. 25: it has 1, and
# one process has nothing to do.
SAME = {
    "strong weight decay": {"rows": 27, "config": {"weight_decay": 1.0}},
    "one example left": {"rows": 25},
    "micro-batches": {"rows": 27, "config": {"micro_batch_size": 3}},
    "recomputed activations": {"rows": 25, "config": {"activation_checkpointing": True}},
    "evaluated": {"rows": 25, "dev": 21, "config": SEVERAL},
    "scored": {"rows": 25, "dev": 21, "scored": True, "evaluate_first": True, "config": SEVERAL},
    "causal": {"rows": 25, "kind": "causal"},
    "causal, micro-batches": {"rows": 25, "kind": "causal", "config": {"micro_batch_size": 3}},
    "masked": {"rows": 25, "kind": "masked"},
}
WHOLE = {"rows": 25, "dev": 21, "config": SEVERAL}
HALF = {**WHOLE, "interrupt": 5}  # a checkpoint at step 4, and a step that is lost
NOISY = {"dropout": 0.3}

pytestmark = pytest.mark.timeout(400)  # waits for processes that share the machine with other tests


class Scene(NamedTuple):
    """The folder of all jobs, and what they train with."""

    base: Path
    encoder: Path
    toy: list[Any]

    def job(self, name: str, **choices: Any) -> dict[str, Any]:
        folder = self.base / name
        folder.mkdir(parents=True)
        rows, dev = choices.pop("rows", 25), choices.pop("dev", 0)
        data = {"train": self.toy[:rows], "dev": self.toy[40 : 40 + dev]}
        config = BASIS | choices.pop("config", {})
        if where := choices.pop("at", None):
            choices["checkpoints"] = str(self.base / where)
        return {"folder": str(folder), "encoder": str(self.encoder), **data, "config": config, **choices}

    def seen(self, name: str, rank: int = 0) -> dict[str, Any]:
        return json.loads((self.base / name / f"seen-{rank}.json").read_text(encoding="utf-8"))

    def weights(self, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
        return torch.load(self.base / name / f"weights-{rank}.pt")

    def copy(self, checkpoints: str, to: str) -> None:
        shutil.copytree(self.base / checkpoints, self.base / to)


class Torchrun:
    """Jobs on several processes that talk over the loopback interface alone."""

    def __init__(self, scene: Scene, processes: int, jobs: list[dict[str, Any]], **environment: str) -> None:
        self.logs = scene.base / f"logs-{processes}-{len(list(scene.base.glob('logs-*')))}"
        self.logs.mkdir()
        work = self.logs / "jobs.json"
        work.write_text(json.dumps(jobs), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=1",
            f"--nproc-per-node={processes}",
        ]
        command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
        command += [f"--log-dir={self.logs}", "--redirects=3", str(WORKER), str(work)]
        alone = {
            "COMPANION_DEVICE": "cpu",
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(companion.__file__).parents[1]),
        }
        self._agent = subprocess.Popen(
            command, env=os.environ | alone | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def end(self) -> int:
        """Wait for the end; what hangs is ended, and is a failure."""
        try:
            self.output = self._agent.communicate(timeout=180)[0].decode()
        except subprocess.TimeoutExpired:
            self._agent.terminate()  # it ends its processes
            self._agent.communicate(timeout=60)
            pytest.fail(f"the processes hang:\n{self.said(0)}\n{self.said(1)}")
        return self._agent.returncode

    def said(self, rank: int) -> str:
        return "".join(path.read_text() for path in sorted(self.logs.glob(f"*/attempt_0/{rank}/std*.log")))

    def well(self) -> None:
        """Wait for the end, which must be a good one."""
        assert self.end() == 0, self.output + self.said(0) + self.said(1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory, encoder_folder, toy) -> Scene:
    return Scene(tmp_path_factory.mktemp("distributed"), encoder_folder, toy)


@pytest.fixture(scope="module")
def done(scene: Scene) -> Scene:
    """Run all jobs, on one process, two and three: first those whose checkpoints others go on from."""
    do = runpy.run_path(str(WORKER))["do"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_DEVICE", "cpu")
        three = Torchrun(scene, 3, [scene.job("half by 3", **HALF, at="by 3")])
        for name, choices in SAME.items():
            do(scene.job(f"one/{name}", **choices))
        do(scene.job("whole", **WHOLE))
        do(scene.job("half by 1", **HALF, at="by 1"))
        three.well()
        scene.copy("by 1", "by 1, then 2")
        scene.copy("by 3", "by 3, then 2")
        jobs = [scene.job(f"two/{name}", **choices) for name, choices in SAME.items()]
        jobs += [
            scene.job("half by 2", **HALF, at="by 2"),
            scene.job("1 to 2", **WHOLE, at="by 1, then 2", resume=True),
            scene.job("3 to 2", **WHOLE, at="by 3, then 2", resume=True),
            scene.job("noise", **WHOLE, **NOISY),
            scene.job("noise again", **WHOLE, **NOISY),
            scene.job("half noise", **HALF, **NOISY, at="noise by 2"),
            scene.job("2 to 2", **WHOLE, **NOISY, at="noise by 2", resume=True),
            scene.job("bf16", **WHOLE | {"config": {"precision": "bf16"}}),
            scene.job("lamb", refused=True, config={"optimizer": "lamb"}),
            scene.job("fail in one", call="fail_in_one"),
            scene.job("join twice", call="join_twice"),
        ]
        jobs += [scene.job("fail", fail=2)]  # last: nothing can follow
        two = Torchrun(scene, 2, jobs, COMPANION_PROGRESS="1")
        code, said = two.end(), [two.said(0), two.said(1)]
        assert (scene.base / jobs[-2]["folder"] / "seen-1.json").exists(), two.output + "".join(said)
        (scene.base / "two.json").write_text(json.dumps({"code": code, "said": said}), encoding="utf-8")
        do(scene.job("2 to 1", **WHOLE, at="by 2", resume=True))
    return scene


def far(done: Scene, one: str, other: str, rank: int = 0, value: str = "loss") -> float:
    """Return the largest difference of a number of the steps."""
    steps, others = done.seen(one)["steps"], done.seen(other, rank)["steps"]
    assert len(steps) == len(others) == 8
    return max(abs(step[value] - other[value]) for step, other in zip(steps, others, strict=True))


def far_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def metrics(done: Scene, name: str, rank: int = 0) -> list[float]:
    return [
        value
        for evaluation in done.seen(name, rank)["evaluations"]
        for value in evaluation["metrics"].values()
    ]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(done, name, rank):
    one, two = f"one/{name}", f"two/{name}"
    assert (done.seen(one)["processes"], done.seen(two, rank)["processes"]) == (1, 2)
    assert done.seen(one)["order"] == done.seen(two, rank)["order"]
    assert far(done, one, two, rank) < CLOSE
    assert far(done, one, two, rank, "grad_norm") < CLOSE
    assert far_weights(done.weights(one), done.weights(two, rank)) < CLOSE
    assert metrics(done, two, rank) == pytest.approx(metrics(done, one), abs=CLOSE)
    assert bool(metrics(done, one)) == ("dev" in SAME[name])


def test_unused_rows_decay_on_two_processes_too(done, encoder_folder):
    name = "strong weight decay"
    build = runpy.run_path(str(WORKER))["build"]
    model, tokenizer = build({"encoder": encoder_folder})
    texts = [example.text for example in done.toy[: SAME[name]["rows"]]]
    used = {tokenizer.pad_token_id}.union(*tokenizer(texts)["input_ids"])
    idle = torch.tensor(sorted(set(range(len(tokenizer))) - used))
    left = 1.0
    for step in done.seen(f"two/{name}")["steps"]:
        left *= 1 - step["learning_rate"]
    table = "bert.embeddings.word_embeddings.weight"
    before, after = model.state_dict()[table][idle], done.weights(f"two/{name}")[table][idle]
    assert left < 0.99
    assert float((after - left * before).abs().max()) < 1e-6
    assert float((after - before).abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["2 to 1", "1 to 2", "3 to 2"])
def test_a_checkpoint_goes_on_on_another_number_of_processes(done, name):
    assert done.seen(name)["resumed_from"] == 4
    assert done.seen(name)["processes"] == int(name[-1])
    assert far(done, "whole", name) < CLOSE
    assert far(done, "whole", name, value="grad_norm") < CLOSE
    assert far_weights(done.weights("whole"), done.weights(name)) < CLOSE
    assert metrics(done, name) == pytest.approx(metrics(done, "whole"), abs=CLOSE)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_goes_on_to_the_bit_on_as_many_processes(done, rank):
    resumed, whole = done.seen("2 to 2", rank), done.seen("noise", rank)
    assert resumed["resumed_from"] == 4
    assert far_weights(done.weights("noise", rank), done.weights("2 to 2", rank)) == 0
    for value in ("loss", "grad_norm", "learning_rate"):
        assert far(done, "noise", "2 to 2", rank, value) == 0
    assert metrics(done, "2 to 2", rank) == metrics(done, "noise", rank)
    for draws in ("dropout", "other_random"):
        assert resumed[draws] == whole[draws][4:]
        assert len(resumed[draws]) == 4


def test_dropout_differs_between_processes_and_not_between_runs(done):
    first, second = done.seen("noise", 0)["dropout"], done.seen("noise", 1)["dropout"]
    assert len(set(first + second)) == 16
    assert [done.seen("noise again", rank)["dropout"] for rank in (0, 1)] == [first, second]
    assert far_weights(done.weights("noise"), done.weights("noise again")) == 0
    assert far_weights(done.weights("noise"), done.weights("whole")) > 1e-3


def test_each_process_holds_half_of_the_parameters_and_moments(done):
    name = "strong weight decay"
    one = done.seen(f"one/{name}")["bytes"]
    shares = [done.seen(f"two/{name}", rank)["bytes"] for rank in (0, 1)]
    for kind in ("parameters", "moments"):
        assert sum(share[kind] for share in shares) == one[kind] > 0
        assert max(share[kind] for share in shares) < 0.52 * one[kind]
    assert one["moments"] == 2 * one["parameters"]


def test_bf16_trains_on_two_processes(done):
    losses = [step["loss"] for step in done.seen("bf16")["steps"]]
    assert losses == pytest.approx([step["loss"] for step in done.seen("whole")["steps"]], abs=0.05)
    assert far(done, "whole", "bf16") > CLOSE


@pytest.mark.parametrize("rank", [0, 1])
def test_lamb_is_refused(done, rank):
    assert "optimizer is 'lamb', but 2 processes share the weights" in done.seen("lamb", rank)["error"]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_is_raised_in_all(done, rank):
    seen = done.seen("fail in one", rank)
    assert seen == {"error": "[Errno 28] the disk of the last one is full", "errno": 28, "alive": 2}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_is_left_and_can_be_joined_again(done, rank):
    assert done.seen("join twice", rank) == {"totals": [3, 3], "group_left": True}
    assert all(done.seen(f"two/{name}", rank)["group_left"] for name in SAME)


def ended(done: Scene) -> dict[str, Any]:
    return json.loads((done.base / "two.json").read_text(encoding="utf-8"))


def test_only_the_first_process_shows_a_progress_bar(done):
    first, second = ended(done)["said"]
    assert "training:" in first
    assert "training:" not in second


def test_one_that_fails_does_not_leave_the_other_hanging(done):
    """The run has ended, or `done` would not be here."""
    assert ended(done)["code"] != 0
    assert "MemoryError: rank 1 has no memory left" in ended(done)["said"][1]
    assert not list((done.base / "fail").iterdir()), "neither of them came to the end"


# --- who takes which rows: no processes needed


def batch_of(lengths: list[int], *, width: int, pad_left: bool = False) -> dict[str, torch.Tensor]:
    mask = torch.zeros((len(lengths), width), dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, slice(width - length, width) if pad_left else slice(0, length)] = 1
    return {"attention_mask": mask, "input_ids": mask * 7, "index": torch.arange(len(lengths))}


@pytest.mark.parametrize("size", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_each_row_is_counted_once_and_all_take_as_many_passes(rows, count, size):
    batch = batch_of([3 + row for row in range(rows)], width=16)
    of_each = [list(micro_batches(batch, size, Processes(rank, count))) for rank in range(count)]
    assert len({len(parts) for parts in of_each}) == 1
    counted = [int(row) for parts in of_each for part, counts in parts if counts for row in part["index"]]
    assert sorted(counted) == list(range(rows))
    assert all(1 <= len(part["index"]) <= (size or rows) for parts in of_each for part, _ in parts)


@pytest.mark.parametrize("pad_left", [False, True])
def test_micro_batches_lose_the_columns_that_are_padding_in_all_rows(pad_left):
    batch = batch_of([3, 16, 5, 9], width=16, pad_left=pad_left)
    widths = [part["input_ids"].shape[1] for part, _ in micro_batches(batch, 1, Processes())]
    assert widths == [3, 16, 5, 9]
    rounded = list(micro_batches(batch, 1, Processes(), multiple_of=8))
    assert [part["input_ids"].shape[1] for part, _ in rounded] == [8, 16, 8, 16]
    for part, _ in rounded:
        assert int(part["attention_mask"].sum()) == int(batch["attention_mask"][part["index"][0]].sum())


def test_a_whole_batch_keeps_its_width():
    """It was rounded up on purpose, so that few shapes are met."""
    batch = batch_of([3, 5], width=8)
    [(part, counts)] = micro_batches(batch, None, Processes())
    assert counts
    assert part["input_ids"].shape == (2, 8)
