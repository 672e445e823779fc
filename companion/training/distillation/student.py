"""Makes a student out of some of a teacher's layers, and counts what that saves."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = [
    "Compression",
    "compression",
    "every_other_layer",
    "layers_of",
    "make_student",
    "random_student",
    "transplant",
]


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the stack of layers of a transformer, whatever its architecture calls it.

    Parameters
    ----------
    model : PreTrainedModel
        With or without a head.

    Returns
    -------
    tuple of str and torch.nn.ModuleList
        The stack's name in the model (``"bert.encoder.layer"``) and the stack.

    Raises
    ------
    ValueError
        When there is no single list of as many layers as the configuration says.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    # A one-layer model may hold other lists of length one inside its layer: the outermost is the stack.
    stacks = [found for found in stacks if not any(found[0].startswith(f"{other}.") for other, _ in stacks)]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(stacks)} lists of {depth} layers, expected one: choosing "
            "layers works for encoders whose layers have weights of their own, such as BERT, RoBERTa and "
            "DistilBERT"
        )
    return stacks[0]


def every_other_layer(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the layers 0, 2, 4 and so on of a model: half of them, rounded up."""
    return tuple(range(0, len(layers_of(model)[1]), 2))


def make_student(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Copy a model, with some of its layers only [1]_.

    Parameters
    ----------
    teacher : PreTrainedModel
        With or without a head. Left as it is.
    layers : sequence of int
        The teacher's layers, counted from 0, in the order that they have in the student. DistilBERT took
        0, 2, 4, 7, 9, 11 of BERT's twelve.

    Returns
    -------
    PreTrainedModel
        The same class and configuration with ``len(layers)`` layers, in evaluation mode, on the CPU. Its
        embeddings, chosen layers and heads equal the teacher's bit for bit and share no memory with them.

    Raises
    ------
    ValueError
        When no layer is chosen, one is chosen twice or does not exist, or the layers cannot be told apart.

    References
    ----------
    .. [1] Sanh et al., "DistilBERT, a distilled version of BERT", 2019, section 3.
    """
    stack, modules = layers_of(teacher)
    chosen = list(layers)
    if not chosen:
        raise ValueError("no layers are chosen: expected at least one of the teacher's")
    for layer in chosen:
        if not 0 <= layer < len(modules):
            raise ValueError(
                f"layer {layer} is chosen, but the teacher has {len(modules)}: expected 0 to "
                f"{len(modules) - 1}"
            )
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"layers {chosen} name one twice: expected different layers")
    student = _empty(teacher, chosen, seed=0)
    weights = teacher.state_dict()
    student.load_state_dict(
        {name: weights[_source(name, stack, chosen)] for name in student.state_dict()}, strict=True
    )
    return student


def random_student(
    teacher: PreTrainedModel, layers: int, *, seed: int, embeddings: bool = False
) -> PreTrainedModel:
    """Make a student of the same shape that knows nothing: what initialisation from the teacher is worth.

    Parameters
    ----------
    teacher : PreTrainedModel
        Gives class and configuration. Left as it is.
    layers : int
        How many layers the student has.
    seed : int
        Draws the weights as the architecture initialises them; the global random state is left alone.
    embeddings : bool
        Whether the teacher's input embeddings (and with them a tied output layer) are copied after all.

    Returns
    -------
    PreTrainedModel
        In evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        When `layers` is below 1 or above the teacher's number.
    """
    _, modules = layers_of(teacher)
    if not 1 <= layers <= len(modules):
        raise ValueError(f"layers is {layers}, expected 1 to the teacher's {len(modules)}")
    student = _empty(teacher, range(layers), seed=seed)
    if embeddings:
        own, given = student.get_input_embeddings(), teacher.get_input_embeddings()
        own.load_state_dict(given.state_dict())
    return student


def transplant(body: PreTrainedModel, into: PreTrainedModel) -> None:
    """Put the encoder of one model into another with another head, in place.

    This is how a student of the masked-language-model stage starts the fine-tuning stage. What `body` does
    not have, such as the pooler of a classifier, stays as it is.

    Parameters
    ----------
    body : PreTrainedModel
        Where the encoder comes from.
    into : PreTrainedModel
        Of the same architecture and size.

    Raises
    ------
    ValueError
        When the two encoders have different weights.
    """
    given, own = body.base_model.state_dict(), into.base_model.state_dict()
    shared = {name: tensor for name, tensor in given.items() if name in own}
    alike = all(tensor.shape == own[name].shape for name, tensor in shared.items())
    depths = body.config.num_hidden_layers, into.config.num_hidden_layers
    if not shared or not alike or depths[0] != depths[1]:
        raise ValueError(
            f"{type(body).__name__} ({depths[0]} layers, {body.config.hidden_size} wide) and "
            f"{type(into).__name__} ({depths[1]} layers, {into.config.hidden_size} wide) have different "
            "encoders: expected the same architecture and size"
        )
    into.base_model.load_state_dict(shared, strict=False)


@dataclass(frozen=True)
class Compression:
    """Parameters of a teacher and its student, each shared tensor counted once.

    Attributes
    ----------
    teacher, student : int
        All parameters.
    teacher_embeddings, student_embeddings : int
        Those in embedding tables (tokens, positions, segments). A masked-language-model head that shares the
        token table adds nothing to either.
    """

    teacher: int
    student: int
    teacher_embeddings: int
    student_embeddings: int

    @property
    def factor(self) -> float:
        """How many times smaller the student is."""
        return self.teacher / self.student

    @property
    def factor_without_embeddings(self) -> float:
        """The same, embedding tables left out on both sides: they are as large as before."""
        return (self.teacher - self.teacher_embeddings) / (self.student - self.student_embeddings)


def compression(teacher: PreTrainedModel, student: PreTrainedModel) -> Compression:
    """Count the parameters of both, with and without embedding tables.

    Parameters
    ----------
    teacher, student : PreTrainedModel

    Returns
    -------
    Compression
    """
    return Compression(
        _count(teacher.parameters()),
        _count(student.parameters()),
        _count(_tables(teacher)),
        _count(_tables(student)),
    )


def _empty(teacher: PreTrainedModel, chosen: Sequence[int], *, seed: int) -> PreTrainedModel:
    """Build the student's architecture with weights drawn from a seed."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(chosen)
    if kinds := getattr(config, "layer_types", None):  # architectures whose layers differ say how, one by one
        config.layer_types = [kinds[layer] for layer in chosen]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = type(teacher)(config)
    torch.nn.Module.to(student, teacher.dtype)
    student.eval()
    return student


def _source(name: str, stack: str, chosen: Sequence[int]) -> str:
    """Translate the name of a student's tensor to that of the teacher's tensor it copies."""
    if not name.startswith(f"{stack}."):
        return name
    number, _, rest = name[len(stack) + 1 :].partition(".")
    return f"{stack}.{chosen[int(number)]}.{rest}"


def _tables(model: nn.Module) -> list[nn.Parameter]:
    modules = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return [parameter for module in modules for parameter in module.parameters()]


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in parameters}.values())
