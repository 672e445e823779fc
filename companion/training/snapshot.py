"""The state of a run as files, and back: tensors as safetensors, all else as JSON. Nothing is pickled."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from companion.training.callbacks import RunState
from companion.training.distributed import Processes
from companion.training.records import Evaluation, StepRecord
from companion.training.vocabulary import whole_table

__all__ = ["progress", "read_tensors", "read_weights", "resume_progress", "write_tensors"]


def _model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name every parameter and buffer once, tied ones under their first name."""
    parameters = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    return parameters | {f"model.{name}": buffer for name, buffer in model.named_buffers()}


def _optimizer_tensors(state: RunState) -> dict[str, torch.Tensor]:
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def write_tensors(folder: Path, state: RunState, processes: Processes) -> None:
    """Write weights, moments and random states; each process its shards and its own random states."""
    tensors = _model_tensors(state.model) | _optimizer_tensors(state)
    with _plainly():
        save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=processes.count == 1,
        )
    with processes.together():
        file = folder / _random_file(processes.rank)
        save_file(_random_tensors(state.device), file, metadata=_other_random())


def read_tensors(folder: Path, state: RunState, processes: Processes) -> None:
    """Read them back, onto as many processes as there are now."""
    parameters = dict(state.model.named_parameters())
    wanted = _model_tensors(state.model)
    for name, stored in _stored(folder).items():
        if name.startswith("optimizer."):
            owner, _, key = name.removeprefix("optimizer.").rpartition(".")
            parameter = parameters[owner]
            # A sharded parameter's moments are sharded as it is; the step counter is a plain scalar.
            like = stored.size == parameter.shape
            wanted[name] = (
                torch.zeros_like(parameter, dtype=stored.properties.dtype)
                if like
                else torch.zeros(stored.size, dtype=stored.properties.dtype)
            )
            state.optimizer.state[parameter][key] = wanted[name]
    _load(folder, wanted, processes)
    # A process that the writing run did not have draws from the seed.
    file = folder / _random_file(processes.rank)
    if file.is_file():
        _set_random(file, state.device)


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: meta for name, meta in found.items() if isinstance(meta, TensorStorageMetadata)}


def read_weights(folder: Path, model: torch.nn.Module) -> None:
    """Read the weights alone, into a model that is not sharded."""
    stored, wanted = _stored(folder), _model_tensors(model)

    def room(name: str) -> torch.Tensor:
        return torch.zeros(stored[name].size, dtype=stored[name].properties.dtype)

    modules = [name.removesuffix(".place") for name in stored if name.endswith(".place")]
    parts_of_table = ("weight", "table", "place", "decay")
    cut_down = {module: {part: room(f"{module}.{part}") for part in parts_of_table} for module in modules}
    for module, parts in cut_down.items():  # the run trained only the rows that it used
        del wanted[f"{module}.weight"]
        wanted |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    _load(folder, wanted, Processes())
    for module, parts in cut_down.items():
        model.get_parameter(f"{module.removeprefix('model.')}.weight").data.copy_(whole_table(**parts))


def _load(folder: Path, wanted: dict[str, torch.Tensor], processes: Processes) -> None:
    with _plainly():
        reader = HuggingFaceStorageReader(str(folder))
        load(dict(wanted), storage_reader=reader, no_dist=processes.count == 1)


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise what went wrong itself, and not remark that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:  # a BaseException around one exception of each failed process
            raise next(iter(error.failures.values()))[0] from None


# --- everything else


def _random_file(rank: int) -> str:
    return f"random-{rank:05d}.st"  # not .safetensors: those belong to the sharded tensors


def _random_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _other_random() -> dict[str, str]:
    """Return Python's and NumPy's random states as JSON: each process has its own."""
    kind, words, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy = [kind, np.asarray(words).tolist(), position, has_gauss, cached]
    return {"python": json.dumps(random.getstate()), "numpy": json.dumps(numpy)}


def _set_random(file: Path, device: torch.device) -> None:
    with safe_open(file, framework="pt") as opened:
        names, others = list(opened.keys()), opened.metadata()
        states = {name: opened.get_tensor(name) for name in names}
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    version, words, gauss = json.loads(others["python"])
    random.setstate((version, tuple(words), gauss))
    kind, words, position, has_gauss, cached = json.loads(others["numpy"])
    np.random.set_state((kind, np.array(words, dtype=np.uint32), position, has_gauss, cached))


def progress(state: RunState) -> dict[str, Any]:
    """Return everything of a run that is not a tensor, as JSON."""
    return {
        "step": state.step,
        "epoch": state.epoch,
        "batch": state.batch,
        "order": state.order,
        "stop": state.stop,
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "groups": [
            {key: value for key, value in group.items() if isinstance(value, int | float)}
            for group in state.optimizer.param_groups
        ],
        "steps": [asdict(record) for record in state.steps],
        "evaluations": [asdict(evaluation) for evaluation in state.evaluations],
    }


def resume_progress(state: RunState, saved: dict[str, Any]) -> None:
    """Bring a run to where `progress` was taken."""
    for name in ("step", "epoch", "batch", "order", "stop"):
        setattr(state, name, saved[name])
    state.schedule.load_state_dict(saved["schedule"])
    state.scaler.load_state_dict(saved["scaler"])
    for group, values in zip(state.optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)
    state.steps[:] = [StepRecord(**record) for record in saved["steps"]]
    state.evaluations[:] = [Evaluation(**evaluation) for evaluation in saved["evaluations"]]
