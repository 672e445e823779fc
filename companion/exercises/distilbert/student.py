"""Step ``student``: a model that starts as some of its teacher's layers."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import PreTrainedModel

from companion.exercises.distilbert.texts import make_batch, make_teacher, make_tokenizer
from companion.exercises.exercise import Step
from companion.exercises.probing import Failed, Probe
from companion.exercises.values import plain, same, shown
from companion.training.distillation import layers_of, make_student

__all__ = ["STUDENT"]

_DEPTH = 6


def _examine(work: Any, probe: Probe) -> str:
    teacher = make_teacher(probe.seed, _DEPTH)
    # Not in order and not every other one: a choice that is built in shows.
    chance = random.Random(probe.seed)
    while (layers := chance.sample(range(_DEPTH), 3)) == sorted(layers):
        pass
    what = f"layers {layers} of {_DEPTH}"
    weights = {f"the teacher's {name}": tensor for name, tensor in teacher.state_dict().items()}
    student = probe.call(work, teacher, list(layers), what=what, watched=weights)
    if not isinstance(student, PreTrainedModel):
        raise Failed(f"it returned a {type(student).__name__}, expected a model of the teacher's class.")
    if len(layers_of(teacher)[1]) != _DEPTH:
        raise Failed("the teacher lost layers: copy before you choose.")
    expected = make_student(teacher, layers)
    _shape(probe, student, expected)
    _memory(probe, student, teacher)
    _weights(probe, student, expected, teacher, layers)
    _answers(probe, student, expected)
    return (
        "it equals the package's make_student: the chosen layers, embeddings and head, in memory of its own."
    )


def _shape(probe: Probe, student: PreTrainedModel, expected: PreTrainedModel) -> None:
    probe.require(
        type(student) is type(expected),
        "class",
        type(expected).__name__,
        type(student).__name__,
        f"the student is a {type(student).__name__}, expected the teacher's class, head included.",
    )
    told = student.config.num_hidden_layers
    wanted = expected.config.num_hidden_layers
    try:
        depth = len(layers_of(student)[1])
    except ValueError:
        depth = -1
    if depth == -1 or told != wanted:
        probe.fail(
            "layers that the configuration names",
            wanted,
            told,
            "the configuration does not say how many layers the student has: saved and loaded again, it "
            "would be another model. Build it from a copy of the configuration with num_hidden_layers "
            "changed.",
        )
    probe.require(
        depth == wanted, "layers", wanted, depth, f"the student has {depth} layers, {wanted} were chosen."
    )


def _memory(probe: Probe, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Training the student must not move the teacher."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in teacher.state_dict().values()}
    shared = [
        name
        for name, tensor in student.state_dict().items()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in owned
    ]
    probe.require(
        not shared,
        "tensors in the teacher's memory",
        0,
        len(shared),
        "the student shares memory with the teacher"
        + (f" ({shared[0]})" if shared else "")
        + ": each of its "
        "steps would move the teacher too. Copy the values, as load_state_dict and copy.deepcopy do.",
    )


def _weights(
    probe: Probe,
    student: PreTrainedModel,
    expected: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: list[int],
) -> None:
    (_, own), (stack, its) = layers_of(student), layers_of(teacher)
    taken = [_origin(layer, its) for layer in own]
    probe.require(
        taken == layers,
        "teacher's layers that the student's came from",
        layers,
        ["none of them" if layer is None else layer for layer in taken],
        _wrong_layers(taken, layers),
    )
    given, wanted = student.state_dict(), expected.state_dict()
    rest = [name for name in wanted if not name.startswith(f"{stack}.")]
    differ = [name for name in rest if name not in given or not same(given[name], wanted[name])]
    probe.require(
        not differ,
        "tensors outside the layers that differ from the teacher's",
        0,
        len(differ),
        "embeddings or head are not the teacher's"
        + (f": {differ[0]}" if differ else "")
        + ". The layers alone "
        "cannot read or answer.",
    )


def _origin(layer: torch.nn.Module, teachers: torch.nn.ModuleList) -> int | None:
    own = layer.state_dict()
    for number, candidate in enumerate(teachers):
        its = candidate.state_dict()
        if own.keys() == its.keys() and all(same(own[name], its[name]) for name in own):
            return number
    return None


def _wrong_layers(taken: list[int | None], layers: list[int]) -> str:
    if taken == list(range(len(layers))):
        return "it took the first layers, not the chosen ones."
    if taken == sorted(layers):
        return "it took the chosen layers, but not in the order that was given."
    if taken == [layer - 1 if layer else _DEPTH - 1 for layer in layers]:
        return "it counts layers from 1; they are counted from 0."
    if None in taken:
        return "a layer of the student is none of the teacher's: fresh weights, or only some of its tensors."
    return "it took other layers than the chosen ones."


def _answers(probe: Probe, student: PreTrainedModel, expected: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(probe.seed)
    batch = make_batch(make_tokenizer(probe.seed), 4, 12, generator)

    def read() -> torch.Tensor:
        student.eval()
        with torch.no_grad():
            found: torch.Tensor = student(**batch).logits
        return found

    with torch.no_grad():
        wanted = expected(**batch).logits
    logits = plain(probe.call(read, what="the student reads a batch"))
    if logits is None or logits.shape != wanted.shape:
        raise Failed("the student's logits do not have the teacher's shape.")
    away = (logits - wanted).abs().max().item()
    probe.require(
        away < 1e-4,
        "largest difference of logits from the package's student",
        "below 0.0001",
        shown(away),
        "the weights are right, but the student computes something else with them.",
    )


STUDENT = Step(
    name="student",
    title="A student made of its teacher's layers",
    task=(
        "student_from(teacher, layers): a BERT with a head, and the numbers of its layers, counted from 0, "
        "in the order they have in the student. Return a model of the same class whose embeddings, chosen "
        "layers and head equal the teacher's and share no memory with them. The teacher stays as it is."
    ),
    hints=(
        "What, besides the layers, does a model need to read a token and to answer? And what says how many "
        "layers a model has when it is loaded from a folder?",
        "Copy the configuration, change num_hidden_layers, build the class from it; then translate the names "
        "of the student's state_dict: layer i of the student is layer layers[i] of the teacher.",
        "student = copy.deepcopy(teacher); student.bert.encoder.layer = torch.nn.ModuleList(copy.deepcopy("
        "teacher.bert.encoder.layer[i]) for i in layers); student.config.num_hidden_layers = len(layers)",
    ),
    examine=_examine,
)
