"""Gradients: they reach every weight, they are finite, and units are alive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.data import Batch
from companion.debugging.anatomy import (
    Call,
    attention_parts,
    block_lists,
    inside,
    is_linear,
    observe,
    padded_ids,
)
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Component, Finding
from companion.debugging.subject import Subject

__all__ = ["dead_units", "frozen_parameters", "gradient_flow"]

DEAD_SHARE = 0.3
"""By which share of a layer's units more may be always off than always on."""
ENOUGH = 64
"""Vectors: one unit in twenty that is on for a twentieth of them is off for all of these."""


def _loss(subject: Subject, model: nn.Module, index: int) -> Tensor:
    """Return the loss of a batch of the subject's own, or of random targets."""
    if subject.loss is not None and index < len(subject.batches):
        return subject.loss(model, subject.batches[index])
    ids, mask = padded_ids(subject, 4, 12)
    ids = subject.ids(4, 12, seed=index + 1) if mask is None else ids.roll(index, 0)
    scores = subject.scores(model, ids, mask)
    generator = torch.Generator().manual_seed(index)
    if subject.outputs is None or subject.outputs == 1:
        target = torch.randn(scores.shape, generator=generator)
        return functional.mse_loss(scores, target)
    flat = scores.flatten(0, -2)
    return functional.cross_entropy(flat, torch.randint(flat.size(-1), (len(flat),), generator=generator))


def _watch(subject: Subject, model: nn.Module, batch: Batch | None = None, rows: int = 8) -> list[Call]:
    if batch is not None:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        mask = mask if subject.takes_mask() else None
    else:
        ids, mask = padded_ids(subject, rows, 16)
    return observe(model, lambda it: subject.scores(it, ids, mask))


@check(family="model", component="layers", needs=("make_model",), likelihood=0.85)
def gradient_flow(subject: Subject) -> Finding:
    """Does every weight that is used get a gradient, finite and not zero, from two batches?"""
    model = subject.model(jitter=True)
    norms: dict[str, list[float]] = {name: [] for name, p in model.named_parameters() if p.requires_grad}
    if not norms:
        raise NotApplicable("no parameter requires a gradient")
    for index in (0, 1):
        model.zero_grad(set_to_none=True)
        loss = _loss(subject, model, index)
        if loss.grad_fn is None:
            return _broken("the loss has no gradient at all: something cuts it off", [], {}, "loss", model)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if name in norms:
                norms[name].append(0.0 if parameter.grad is None else float(parameter.grad.norm()))
    calls = _watch(subject, model)
    wild = [name for name, both in norms.items() if not all(map(_finite, both))]
    evidence: dict[str, float] = {"parameters": len(norms), "without": 0.0, "not finite": len(wild)}
    if wild:
        said = f"the gradients of {len(wild)} of {len(norms)} parameters are not finite"
        return _broken(said, wild, evidence, _component(wild[0], model, calls), model)
    silent = [name for name, both in norms.items() if not any(both)]
    silent = [name for name in silent if not _excused(name, subject, model, calls, norms)]
    evidence["without"] = len(silent)
    if silent:
        said = f"{len(silent)} of {len(norms)} parameters get no gradient from two batches"
        return _broken(said, silent, evidence, _component(silent[0], model, calls), model)
    used = sorted(value for both in norms.values() for value in both if value)
    evidence |= {"smallest": used[0], "largest": used[-1]} if used else {}
    return gradient_flow.ok(f"{len(norms)} parameters get gradients from two batches", evidence)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _broken(
    said: str, names: list[str], evidence: dict[str, float], component: Component, model: nn.Module
) -> Finding:
    return gradient_flow.problem(
        said,
        evidence,
        where=", ".join(names[:4]) + (" and others" if len(names) > 4 else ""),
        component=component,
        why="A weight without a gradient stays what it was drawn as, whatever the data say.",
        fix="Follow it through forward: is it called, is the result used, does detach or no_grad cut it off?",
    )


def _excused(
    name: str, subject: Subject, model: nn.Module, calls: list[Call], norms: dict[str, list[float]]
) -> bool:
    """Whether a weight may have no gradient here."""
    owner_name, _, leaf = name.rpartition(".")
    owner = dict(model.named_modules())[owner_name]
    blocks = [block for parts in block_lists(model, calls).values() for block, _ in parts]
    in_block = any(inside(name, block) for block in blocks)
    called = {id(call.module) for call in calls}
    if "expert" in name or "lora" in name or "pooler" in name:
        return True  # chosen by tokens; zero beside a zero; read by nobody who wants tokens
    if not in_block and subject.kind == "encoder":
        return True  # heads on top, of which hidden states know nothing
    if not in_block and id(owner) not in called and (is_linear(owner) or isinstance(owner, nn.Embedding)):
        return True  # a head for another task, or kinds of tokens that were not given
    # Softmax does not mind what is added to all scores of a row: key biases have no gradient, whatever
    # their names. One alone of the three, then, whose matrix has one.
    if leaf == "bias" and any(norms.get(f"{owner_name}.weight", ())):
        for part in attention_parts(model, calls):
            if any(module is owner for module in part.modules):
                names = {id(module): inner for inner, module in model.named_modules()}
                silent = [it for it in part.modules if not any(norms.get(f"{names[id(it)]}.bias", (1.0,)))]
                return len(silent) == 1
        return "key" in owner_name.lower() or owner_name.rpartition(".")[2] in ("k", "k_proj", "k_lin")
    return False


def _component(name: str, model: nn.Module, calls: list[Call]) -> Component:
    """Return where a parameter belongs."""
    owner_name = name.rpartition(".")[0]
    owner = dict(model.named_modules()).get(owner_name)
    attention = [part for part in attention_parts(model, calls) if inside(name, part.name)]
    if attention or isinstance(owner, nn.MultiheadAttention):
        return "attention"
    if "norm" in type(owner).__name__.lower():
        return "normalisation"
    if "pos" in name.lower() or "wpe" in name:
        return "positions"
    blocks = [block for parts in block_lists(model, calls).values() for block, _ in parts]
    if any(inside(name, block) for block in blocks):
        return "feed-forward" if owner is not None and is_linear(owner) else "layers"
    return (
        "embeddings and head" if isinstance(owner, nn.Embedding) or (owner and is_linear(owner)) else "layers"
    )


@check(family="model", component="feed-forward", needs=("make_model",), likelihood=0.5)
def dead_units(subject: Subject) -> Finding:
    """Do the units that an activation can switch off, switch on for some token?"""
    seen = _switches(subject)
    if not seen:
        raise NotApplicable("no activation switches units off")
    judged = {name: states for name, states in seen.items() if states.vectors >= ENOUGH}
    if not judged:
        most = max(states.vectors for states in seen.values())
        raise NotApplicable(f"{most} vectors reach a unit, and by {ENOUGH} one may have been off by chance")
    where = max(judged, key=lambda name: judged[name].excess)
    worst = judged[where]
    evidence: dict[str, float] = {
        "dead": float(worst.off.float().mean()),
        "always on": float(worst.on.float().mean()),
        "vectors": worst.vectors,
        "layers": len(judged),
    }
    dead = f"{evidence['dead']:.0%} of the units of {where} are 0 for each of {worst.vectors} vectors"
    if not worst.sick:
        return dead_units.ok(f"at most {dead}, {evidence['always on']:.0%} for none", evidence)
    return dead_units.problem(
        f"{dead}, and {evidence['always on']:.0%} for none; chance gives as many of both",
        evidence,
        where=where,
        why="A unit that is never on gets no gradient, and never comes back.",
        fix="Look at the bias and the scale of the weights at the start, and at the learning rate.",
    )


@dataclass
class _Units:
    """Which units of a layer were off for all vectors, and which were on for all."""

    off: Tensor
    on: Tensor
    vectors: int = 0

    @property
    def excess(self) -> float:
        """The share of units that are always off, less the share that is always on.

        Where vectors are alike, as those of all first tokens are before training, most units are in one
        state for all of them. Which one is chance: as many are on as off.
        """
        return float(self.off.float().mean() - self.on.float().mean())

    @property
    def sick(self) -> bool:
        """Whether there are more that are off than a limit, and than luck."""
        off, on = int(self.off.sum()), int(self.on.sum())
        return self.excess > DEAD_SHARE and off - on > 4 * math.sqrt(off + on)


def _switches(subject: Subject) -> dict[str, _Units]:
    """Return the layers whose units something like ReLU switches, with the states of these units."""
    model, found, others = subject.model(), dict[str, _Units](), set[str]()
    usable = [part for part in subject.batches if isinstance(part, dict) and "input_ids" in part]
    batches: Sequence[Batch | None] = usable[:ENOUGH] or [None]
    for batch in batches:
        linear = [call for call in _watch(subject, model, batch, rows=ENOUGH) if is_linear(call.module)]
        for first, second in pairwise(linear):
            inner, taken = first.output.detach(), second.input.detach()
            if inner.shape != taken.shape or not bool(((taken == 0) == (inner <= 0)).all()):
                others.add(first.name)
                continue
            on = (taken != 0).flatten(0, -2)
            units = found.setdefault(first.name, _Units(~on.any(dim=0), on.all(dim=0)))
            units.off, units.on = units.off & ~on.any(dim=0), units.on & on.all(dim=0)
            units.vectors += len(on)
        if all(units.vectors >= ENOUGH for units in found.values()):
            break
    return {name: units for name, units in found.items() if name not in others}


@check(family="model", component="layers", needs=("make_model",), likelihood=0.6)
def frozen_parameters(subject: Subject) -> Finding:
    """Are the weights of a block trained all together, or not at all?"""
    model = subject.model()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if not frozen:
        return frozen_parameters.ok("no parameter is frozen", {"frozen": 0})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    evidence: dict[str, float] = {"frozen": len(frozen), "trained": len(trained)}
    if not trained:
        raise NotApplicable("every parameter is frozen: the model is not to be trained")
    blocks = [block for parts in block_lists(model, _watch(subject, model)).values() for block, _ in parts]
    shapes = dict(model.named_parameters())
    for block in blocks:
        off = [name for name in frozen if inside(name, block) and shapes[name].dim() > 1]
        on = [name for name in trained if inside(name, block) and shapes[name].dim() > 1]
        # A narrow matrix beside a wide one is an adapter: what is between them stays frozen on purpose.
        if (
            on
            and off
            and 2 * max(min(shapes[name].shape) for name in on)
            <= min(min(shapes[name].shape) for name in off)
        ):
            raise NotApplicable(f"narrow matrices are trained in {block}: adapters, beside what is frozen")
        if off and on:
            return frozen_parameters.problem(
                f"{len(off)} of the {len(off) + len(on)} matrices of {block} are frozen, others not",
                evidence,
                where=", ".join(off[:4]),
                why="A frozen matrix in a block that learns keeps its random draw.",
                fix="Set requires_grad for the whole block, one way or the other.",
            )
    return frozen_parameters.ok(
        f"{len(frozen)} parameters are frozen, none in a block that is trained", evidence
    )
