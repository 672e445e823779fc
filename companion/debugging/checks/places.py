"""Positions: every place is unlike the others, and the order of words reaches the blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.debugging.anatomy import attention_parts, config_value
from companion.debugging.checks.blocks import blocks_of, first_block_moved, watch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.lookups import Lookup, lookups
from companion.debugging.subject import Subject, seeded

__all__ = ["claims_positions", "places_are_unlike", "position_information", "position_rows"]


@check(family="model", component="positions", needs=("make_model",), likelihood=0.9)
def position_rows(subject: Subject) -> Finding:
    """Does each place have a row of its own in the position table, that is used and differs?"""
    seq = min(subject.max_length, 64)
    ids = subject.ids(2, seq)
    model = subject.model(jitter=True)
    with seeded(0), lookups(model) as seen:
        subject.scores(model, ids, None)
    tables = [it for it in seen if len(it.first) == seq and (_of_places(it.name) or _counts_up(it))]
    buffers = [
        (
            name,
            tensor.detach().squeeze().flatten(1) if tensor.squeeze().dim() > 2 else tensor.detach().squeeze(),
        )
        for name, tensor in model.named_buffers()
        if ("pos" in name.lower() or name.rpartition(".")[2] in ("pe", "sinusoids"))
        and tensor.is_floating_point()
        and tensor.squeeze().dim() == 2
        and tensor.squeeze().size(0) >= seq
    ]
    flat = [
        name for name, rows in buffers if float((rows[1:seq] - rows[: seq - 1]).abs().amax(-1).min()) < 1e-6
    ]
    if flat:
        return _lost_rows(flat[0], "rows next to each other are equal", {"rows": seq})
    for table in tables:
        used = len(set(table.first))
        if used < seq:
            return _lost_rows(table.name, f"{seq} places use {used} rows", {"places": seq, "rows": used})
    trained = [(f"{it.name}.weight", it.weight, torch.tensor(it.first)) for it in tables]
    trained += [
        (name, parameter, torch.arange(seq))
        for name, parameter in model.named_parameters()
        if _of_places(name) and not name.endswith((".weight", ".bias")) and parameter.squeeze().dim() == 2
        and parameter.squeeze().size(0) >= seq
    ]  # fmt: skip
    trained = [(name, weight, rows) for name, weight, rows in trained if weight.requires_grad]
    for name, weight, rows in trained:
        silent = _silent_rows(subject, model, ids, weight, rows)
        if silent:
            return _lost_rows(
                name, f"{silent} of {seq} rows move no score", {"places": seq, "silent": silent}
            )
    if not (tables or trained or buffers):
        raise NotApplicable("no position table was found")
    return position_rows.ok(f"each of {seq} places has a row of its own", {"places": seq})


def _of_places(name: str) -> bool:
    """Whether a name is that of a table of places, not of distances."""
    words = name.lower().split(".")
    absolute = any(word.startswith("pos") or "position" in word or word == "wpe" for word in words)
    return absolute and not any("rel" in word or "bias" in word for word in words)


def _counts_up(table: Lookup) -> bool:
    return bool((table.rows.diff(dim=-1) == 1).all()) and table.rows.size(-1) > 2


def _silent_rows(subject: Subject, model: nn.Module, ids: Tensor, weight: Tensor, rows: Tensor) -> int:
    scores = subject.scores(model, ids, None)
    scale = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((scores * scale).sum(), weight, allow_unused=True)
    if grad is None:
        return len(rows)
    return int((grad.squeeze()[rows].abs().amax(-1) == 0).sum())


def _lost_rows(name: str, said: str, evidence: dict[str, float]) -> Finding:
    return position_rows.problem(
        f"{name}: {said}",
        evidence,
        where=name,
        why="The model cannot tell places apart: a text is a bag of words to it.",
        fix="Look up torch.arange(seq), or the running count of real tokens, one row for each place.",
    )


@check(family="model", component="positions", needs=("make_model",), likelihood=0.8)
def position_information(subject: Subject) -> Finding:
    """Does the order of the words reach the first blocks?"""
    model = subject.model(jitter=True)
    seq = min(8, subject.max_length)
    ids = subject.ids(16, seq)
    if len(set(ids.flatten().tolist())) < seq - 2:
        raise NotApplicable("too few different words to change their order")
    order = torch.cat([torch.arange(seq - 1).flip(0), torch.tensor([seq - 1])])
    with torch.no_grad():  # attention that sees one token alone would see it at any place
        for part in attention_parts(model, watch(subject, model, ids, None)):
            for module in part.modules[:2] if not part.fused else ():
                for parameter in module.parameters():
                    parameter.mul_(0.2)
    calls, turned = watch(subject, model, ids, None), watch(subject, model, ids[:, order], None)
    pair = first_block_moved(model, calls, turned, ids)
    if pair is None:
        raise NotApplicable("no list of blocks was found that is given the words")
    one, two = pair
    # In the first block a decoder's last token takes a mean over all that came before, in any order.
    moved = float((one.output[:, -1] - two.output[:, -1]).detach().abs().max())
    spread = float(one.output.detach().std())
    if moved > 1e-3 * spread:
        return position_information.ok(
            f"turning the words around moves the last token by {moved:.2g} in the first block",
            {"moved": moved},
        )
    if subject.causal and not claims_positions(model):
        raise NotApplicable("no positions, and a decoder can do without")
    if moved > 1e-5 * spread:
        raise NotApplicable(
            f"turning the words around moves the last token by {moved:.2g}: too little to tell"
        )
    return position_information.problem(
        f"turning the words around moves the last token by {moved:.2g} in {one.name}; expected more than 0",
        {"moved": moved, "spread": spread},
        where=one.name,
        why="The model cannot tell the order of words.",
        fix="Add position vectors to the words, or turn queries and keys: with places that count up.",
    )


def claims_positions(model: nn.Module) -> bool:
    """Whether something in a model says that it has positions."""
    said = config_value(model, ("positions", "position_embedding_type", "rope_theta", "rope_parameters"))
    names = [name.lower() for name, _ in (*model.named_parameters(), *model.named_buffers())]
    marks = ("pos", "wpe", "rope", "rotary", "inv_freq")
    return (said is not None and said not in ("none", "nope", False)) or any(
        mark in name for name in names for mark in marks
    )


@check(family="model", component="positions", needs=("make_model",), likelihood=0.8)
def places_are_unlike(subject: Subject) -> Finding:
    """Is every place as unlike the others as its neighbours are?"""
    seq = min(subject.max_length, 128)
    model = subject.model()
    ids = subject.ids(1, 1).expand(1, seq).contiguous()
    calls = watch(subject, model, ids, None)
    blocks = {id(block) for _, block in blocks_of(model, calls)}
    given = [call.input for call in calls if id(call.module) in blocks and call.input.shape[:2] == ids.shape]
    if not given or seq < 16:
        raise NotApplicable("no list of blocks was found, or texts are too short")
    vectors = given[0][0].detach().double()
    apart = torch.cdist(vectors, vectors)
    step = float(apart.diagonal(1).median())
    if step <= 1e-4 * float(vectors.norm(dim=-1).median()):
        raise NotApplicable("places are not told apart before the first block")
    far = torch.ones_like(apart).triu(2).bool()
    nearest = float(apart[far].min())
    one, two = (apart == nearest).logical_and(far).nonzero()[0].tolist()
    evidence = {"between neighbours": step, "nearest of the others": nearest, "places": float(seq)}
    if nearest > 0.1 * step:
        return places_are_unlike.ok(
            f"the {seq} places are at least {nearest / step:.2g} steps apart", evidence
        )
    return places_are_unlike.problem(
        f"places {one} and {two} are {nearest / step:.2g} of a step between neighbours apart: "
        "the model takes one for the other",
        evidence,
        where="the position vectors",
        why="A text's far parts lie on top of each other.",
        fix="Let sinusoids turn at many speeds, from one turn in a few places to less than one in the whole "
        "text; give every place a row.",
    )
