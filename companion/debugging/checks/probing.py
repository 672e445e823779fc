"""Runs a model twice, and sees what moved, and where first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion.debugging.calling import default_scores, mask_name
from companion.debugging.checks.registry import NotApplicable
from companion.debugging.finding import Component
from companion.debugging.subject import Subject, once, seeded

__all__ = ["MOVED", "STILL", "Culprit", "Probe", "difference", "first_to_move", "other_token", "probe"]

MOVED = 1e-3
"""What counts as a change, in spreads of the scores: a hundred times what float32 makes of another batch."""
STILL = 2e-5
"""What counts as none."""
LENGTH = 11
"""Tokens of a probe: widths and heads are rarely as many, so that the axis of tokens is known by it."""

_PARTS: tuple[tuple[Component, tuple[str, ...]], ...] = (
    ("dropout", ("drop",)),
    ("normalisation", ("norm", "ln_", "ln1", "ln2", ".ln")),
    ("positions", ("posit", "rotary", "wpe", "rope", "pos_emb", "sinus")),
    ("attention", ("attention", "attn", "mha", "q_proj", "k_proj", "v_proj", "query", "key", "value")),
    ("feed-forward", ("mlp", "ffn", "feed_forward", "feedforward", "intermediate", "expand", "fc1", "fc2")),
    ("embeddings and head", ("embed", "wte", "tokens", "head", "classifier")),
)


@dataclass(frozen=True)
class Culprit:
    """The first module whose output moved.

    Attributes
    ----------
    where : str
        Its name inside the model, with its type; empty if none was found.
    component : str or None
        What its name and type say that it is; None if they say nothing.
    """

    where: str = ""
    component: Component | None = None


@dataclass(frozen=True)
class Probe:
    """A model to call, and the yardstick for changes of its scores.

    Attributes
    ----------
    subject : Subject
    model : Module
        In evaluation mode, of this probe alone.
    spread : float
        How much the scores differ from token to token and text to text: the standard deviation of each
        score, averaged over scores.
    """

    subject: Subject
    model: nn.Module
    spread: float = 1.0

    @torch.no_grad()
    def __call__(
        self, ids: Tensor, mask: Tensor | None = None, *, places: Tensor | None = None, seed: int = 0
    ) -> Tensor:
        """Return scores, float32 on the CPU, of token ids (batch, seq).

        `places`, int64 (batch, seq), goes to a model whose `forward` has ``position_ids``.
        """
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        to = None if mask is None else mask.to(device)
        with seeded(seed), _with_places(self.model, None if places is None else places.to(device)):
            return self.subject.scores(self.model, ids.to(device), to).detach().float().cpu()

    def moved(self, one: Tensor, other: Tensor) -> float:
        """Return the largest difference of two tensors of scores, in spreads; infinite for NaN."""
        return difference(one, other) / self.spread

    def takes_mask(self) -> bool:
        """Whether the model can be told what is padding."""
        return self.subject.scores is not default_scores or mask_name(self.model) is not None

    def takes_places(self) -> bool:
        """Whether the model can be told the position of each token."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def ids(self, rows: int = 1, *, seed: int = 0) -> Tensor:
        """Return token ids, int64 (rows, `LENGTH`), without padding."""
        return self.subject.ids(rows, LENGTH, seed=seed)


@contextmanager
def _with_places(model: nn.Module, places: Tensor | None) -> Iterator[None]:
    if places is None:
        yield
        return
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "position_ids": places}), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


def probe(subject: Subject, *, jitter: bool = True) -> Probe:
    """Return a probe of a subject.

    Raises
    ------
    NotApplicable
        When nothing can be compared: texts are too short, scores are not finite, do not depend on the
        tokens, or change from call to call.
    """
    spread = _spread(subject, jitter)
    return Probe(subject, _model(subject, jitter), spread)


def _model(subject: Subject, jitter: bool) -> nn.Module:
    model = subject.model(jitter=jitter)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
        return model.float()  # half precision is noisier than the changes that are looked for
    return model


@once
def _spread(subject: Subject, jitter: bool) -> float:
    """Return how far the scores of texts lie apart, if they can be compared at all."""
    if subject.max_length < LENGTH:
        raise NotApplicable(
            f"texts of {subject.max_length} tokens are too short to change one and look at others"
        )
    bare = Probe(subject, _model(subject, jitter))
    ids = bare.ids(3)
    # One text at a time: a model that mixes the texts of a batch must not spoil the yardstick.
    scores = torch.cat([bare(row[None]) for row in ids])
    again = bare(ids[:1], seed=1)
    if not scores.isfinite().all():
        raise NotApplicable("the scores are not finite")
    flat = scores.flatten(0, -2)
    spread = float(flat.std(dim=0).square().mean().sqrt())
    if spread <= 1e-5 * float(flat.abs().max()):
        raise NotApplicable("the scores are the same for all tokens and texts")
    if difference(scores[: len(again)], again) > MOVED * spread:
        raise NotApplicable("the scores change from call to call: see the check of that")
    return spread


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors; infinite if one of them is not finite."""
    if one.numel() == 0:
        return 0.0
    if not (one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    return float((one - other).abs().max())


def other_token(subject: Subject, ids: Tensor, place: int | slice, *, seed: int = 99) -> Tensor:
    """Return a copy of ids (batch, seq) with other tokens, neither those before nor padding, at a place."""
    changed = ids.clone()
    for number in range(20):
        drawn = subject.ids(*ids.shape, seed=seed + number)[:, place]
        same = changed[:, place] == ids[:, place]
        changed[:, place] = torch.where(same, drawn, changed[:, place])
    return changed


Outputs = list[tuple[str, nn.Module, Tensor]]


def trace(model: nn.Module, call: Callable[[], object]) -> Outputs:
    """Call, and return what each module gave, in order: the tensors of 3 dimensions."""
    found: Outputs = []

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, _: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.dim() == 3 and first.is_floating_point():
                found.append((name, module, first.detach().float().cpu()))

        return keep

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def first_to_move(
    model: nn.Module,
    one: Callable[[], object],
    other: Callable[[], object],
    part: Callable[[Tensor], Tensor],
    part_of_other: Callable[[Tensor], Tensor] | None = None,
) -> Culprit:
    """Return the first module whose output is not the same in two calls, in the part that is looked at.

    Parameters
    ----------
    model : Module
    one, other : callable
        Run the model.
    part, part_of_other : callable
        Take an output (batch, seq, width) and return what should be the same; the second one if it lies
        elsewhere in the other call.
    """
    traces = zip(trace(model, one), trace(model, other), strict=False)
    for (name, module, before), (_, _, after) in traces:
        try:
            left, right = part(before), (part_of_other or part)(after)
        except (IndexError, RuntimeError):
            continue  # not an output with tokens on its second axis
        if left.shape != right.shape or left.numel() == 0:
            continue
        if difference(left, right) > MOVED * max(float(before.std()), 1e-12):
            return Culprit(f"{name} ({type(module).__name__})", component_of(name, module))
    return Culprit()


def component_of(name: str, module: nn.Module) -> Component | None:
    """Return what a module is, by its own name and type, or else by the nearest parent that says it."""
    own, *parents = reversed(name.lower().split("."))
    for part in (own, type(module).__name__.lower(), *parents):
        for component, signs in _PARTS:
            if any(sign.strip(".") in part for sign in signs):
                return component
    return None
