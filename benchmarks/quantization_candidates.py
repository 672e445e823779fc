"""What `benchmarks/quantization.py` compares: the model, its exports, and what other tools make of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from companion import artifacts, data, inference, models, training
from companion.inference.baselines import folder_with
from companion.inference.exporting import Precision

TORCH, FP32, OURS = "torch FP32", "fp32", "int8"
STANDARD, PLAIN, BF16 = "standard dynamic INT8", "plain quantize_dynamic", "torch bf16"
PRESETS = {"optimum avx2": "avx2", "optimum avx512_vnni": "avx512_vnni"}
TORCHAO = ("torchao INT8", "torchao INT8 compiled")


def trained(task: data.TaskData, encoder: str) -> Path:
    """Fine-tune an encoder with the defaults of `companion train`, once."""

    def build(folder: Path) -> None:
        classifier = models.load(encoder, labels=task.task.labels)
        training.fit(classifier.model, classifier.tokenizer, task.train)
        training.save(classifier.model, classifier.tokenizer, folder / "model", max_length=128)

    train = artifacts.digest([list(example) for example in task.train])
    inputs = {"task": task.task.name, "encoder": encoder, "train": train}
    return artifacts.make("quantization-model", build, version=1, inputs=inputs) / "model"


def exported(model: Path, calibration: Sequence[data.Example]) -> Path:
    """Export a model in every precision, and the way other people would; return the folder of folders."""

    def build(folder: Path) -> None:
        for precision in get_args(Precision):
            texts = calibration if precision == "int8-fixed" else ()
            inference.export(model, folder / precision, precision=precision, calibration=texts)
        inference.standard_int8(folder / FP32, folder / STANDARD)
        inference.standard_int8(folder / FP32, folder / PLAIN, per_channel=False)

    inputs = {
        "model": artifacts.digest(model / "model.safetensors"),
        "calibration": artifacts.digest([list(example) for example in calibration]),
    }
    return artifacts.make("quantization-exports", build, version=1, inputs=inputs)


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


class Autocast:
    """Runs a predictor with torch's products in bfloat16."""

    def __init__(self, predictor: inference.TorchPredictor) -> None:
        self.predictor, self.labels, self.is_regression = predictor, predictor.labels, predictor.is_regression

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.predictor.logits(texts, pairs, batch_size=batch_size)


class Elsewhere:
    """Runs a model in the peers' Python, as `quantization_peers.py serve` answers: a line in, a line out."""

    def __init__(self, python: Path, model: Path, kind: str, threads: int, labels: tuple[str, ...]) -> None:
        self.labels, self.is_regression = labels, False
        self.process = subprocess.Popen(
            [str(python), str(_peers_script()), "serve", str(model), kind, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        assert pairs is None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"texts": list(texts), "batch_size": batch_size}) + "\n")
        self.process.stdin.flush()
        return np.array(self._line()["logits"], dtype=np.float32)

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' Python ended with {self.process.wait()}: its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)


def peers_exported(python: Path, exports: Path) -> tuple[Path, dict[str, str]]:
    """Let the peers' Python quantize our FP32 folder with optimum's presets; return folders and versions."""
    versions = peers_versions(python)

    def build(folder: Path) -> None:
        for name, preset in PRESETS.items():
            made = folder / f"{name}.onnx"
            command = [str(python), str(_peers_script()), "optimum", str(exports / FP32), preset, str(made)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            folder_with(onnx.load(str(made)), exports / FP32, folder / name)
            made.unlink()

    inputs = {"fp32": artifacts.digest(exports / FP32 / "model.onnx"), "versions": versions}
    return artifacts.make("quantization-peers", build, version=1, inputs=inputs), versions


def peers_versions(python: Path) -> dict[str, str]:
    """Name the versions in the peers' environment."""
    command = [str(python), str(_peers_script()), "versions"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    versions: dict[str, str] = json.loads(answer.splitlines()[-1])
    return versions


def _peers_script() -> Path:
    return Path(__file__).with_name("quantization_peers.py")
