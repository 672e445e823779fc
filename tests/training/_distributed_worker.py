"""What one process of `test_distributed` does: jobs, one after another, alone or under ``torchrun``.

Started as ``python _distributed_worker.py JOBS.json``. Each process leaves what it saw of each job in the
job's folder, so that the tests can look at every one of them.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertLMHeadModel
from transformers import BertTokenizerFast as Tokenizer

from companion.data import Example, Task
from companion.training import TrainingConfig, fit, predict_logits
from companion.training.callbacks import Callback, RunState
from companion.training.distributed import joined

TASK = Task("toy", "accuracy", ("negative", "positive"), False, "one adjective decides")
KINDS = {
    "classifier": (BertForSequenceClassification, {}),
    "masked": (BertForMaskedLM, {}),
    "causal": (BertLMHeadModel, {"is_decoder": True}),
}


class Interrupted(RuntimeError):
    """Ends a run in the middle, as a kill would."""


class Witness(Callback):
    """Looks at what this process holds and draws; can end the run."""

    def __init__(self, job: dict[str, Any], rank: int, train: list[Example]) -> None:
        self.job, self.rank, self.train = job, rank, train
        self.dropout: list[str] = []
        self.other_random: list[float] = []
        self.bytes = {"parameters": 0, "moments": 0}

    def on_start(self, state: RunState) -> None:
        if self.job.get("evaluate_first"):
            predict_logits(state.model, state.tokenizer, self.train[:3], max_length=48)

    def on_gradients(self, state: RunState) -> None:
        # As the next dropout layer would draw it, without drawing it.
        with torch.random.fork_rng(devices=[]):
            mask = torch.nn.functional.dropout(torch.ones(512), 0.5)
        self.dropout.append(sha256(mask.numpy().tobytes()).hexdigest()[:16])
        self.other_random.append(random.random() + float(np.random.rand()))

    def on_step(self, state: RunState, record: Any) -> None:
        moments = [t for of in state.optimizer.state.values() for t in of.values() if t.ndim]
        self.bytes["parameters"] = sum(local(p).nbytes for p in state.model.parameters())
        self.bytes["moments"] = sum(local(moment).nbytes for moment in moments)
        if state.step == self.job.get("interrupt"):
            raise Interrupted
        if state.step == self.job.get("fail") and self.rank == 1:
            raise MemoryError("rank 1 has no memory left")


def local(tensor: Any) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor)


def build(job: dict[str, Any]) -> tuple[Any, Any]:
    """Return the job's model, with the same weights each time, and its tokenizer."""
    dropout = job.get("dropout", 0.0)
    kind, choices = KINDS[job.get("kind", "classifier")]
    config = BertConfig.from_pretrained(
        job["encoder"], hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **choices
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config), Tokenizer.from_pretrained(job["encoder"])


def train(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Run `fit`; return every number of it, and keep the final weights."""
    model, tokenizer = build(job)
    examples = [Example(*row) for row in job["train"]]
    witness = Witness(job, rank, examples)
    dev = [Example(*row) for row in job["dev"]] or None
    run = None
    try:
        run = fit(
            model,
            tokenizer,
            examples,
            config=TrainingConfig(**job["config"]),
            dev=dev,
            task=TASK if job.get("scored") else None,
            callbacks=[witness],
            checkpoints=Path(job["checkpoints"]) if "checkpoints" in job else None,
            resume=job.get("resume", False),
        )
    except Interrupted:
        end_group()
    seen = {name: getattr(witness, name) for name in ("dropout", "other_random", "bytes")}
    if run is None:
        return seen | {"interrupted": True}
    torch.save(model.state_dict(), Path(job["folder"]) / f"weights-{rank}.pt")
    return seen | {
        "steps": [asdict(record) for record in run.steps],
        "evaluations": [asdict(evaluation) for evaluation in run.evaluations],
        "processes": run.processes,
        "resumed_from": run.resumed_from,
        "order": run.order,
        "group_left": not dist.is_initialized(),
    }


def fail_in_one(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Raise in the last process only, in a block that is left together."""
    with joined() as processes:
        with processes.together():
            pass
        try:
            with processes.together():
                if rank == processes.count - 1:
                    raise OSError(28, "the disk of the last one is full")
        except OSError as error:
            return {"error": str(error), "errno": error.errno, "alive": processes.total({"n": 1}, CPU)["n"]}
    return {}


def join_twice(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Join and leave, and join again in the same process while another one is late."""
    totals = []
    for _ in range(2):
        with joined() as processes:
            totals.append(processes.total({"rank": rank + 1}, CPU)["rank"])
            if rank:
                time.sleep(0.2)
    return {"totals": totals, "group_left": not dist.is_initialized()}


def end_group() -> None:
    """End what an error leaves standing, as the end of the process would."""
    if dist.is_initialized():
        dist.destroy_process_group()


CPU = torch.device("cpu")
CALLS = {"train": train, "fail_in_one": fail_in_one, "join_twice": join_twice}


def do(job: dict[str, Any]) -> None:
    """Do a job, and write down what came of it in this process."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        seen = CALLS[job.get("call", "train")](job, rank)
    except ValueError as error:
        if not job.get("refused"):
            raise
        end_group()
        seen = {"error": str(error)}
    (Path(job["folder"]) / f"seen-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        do(one)
