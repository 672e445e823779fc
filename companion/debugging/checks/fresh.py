"""What holds of a model before its training."""

from __future__ import annotations

import math

from companion.debugging.checks.probing import Probe
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = ["fresh_weights_differ", "initial_loss"]


@check(family="model", component="layers", needs=("make_model",), likelihood=0.6)
def initial_loss(subject: Subject) -> Finding:
    """Does a fresh model know nothing, and say so?"""
    if not subject.fresh:
        raise NotApplicable("the model is trained")
    if subject.kind in ("encoder", "regression"):
        raise NotApplicable("there are no classes to be undecided about")
    config = getattr(subject.model(), "config", None)
    if hasattr(config, "initializer_factor"):
        raise NotApplicable(
            "T5's convention draws heads with a standard deviation of 1, as large as this looks for"
        )
    losses, spreads, count = [], [], 0
    for seed in range(3):
        scores = Probe(subject, subject.model(seed=seed))(subject.ids(4, 16, seed=seed)).flatten(0, -2)
        count = scores.size(-1)
        # The mean over all answers that there could be: what random answers cost, without their noise.
        losses.append(float(-scores.log_softmax(dim=-1).mean()))
        spreads.append(float(scores.std(dim=-1).mean()))
    if count < 2:
        raise NotApplicable("one score stands for two classes")
    loss, chance = sum(losses) / 3, math.log(count)
    evidence = {"loss": loss, "chance": chance, "spread": sum(spreads) / 3}
    limit = chance + max(1.0, 0.35 * chance)
    if not math.isfinite(loss):
        raise NotApplicable("the scores are not finite: see the check of shapes")
    if loss < limit:
        return initial_loss.ok(f"the first loss is {loss:.2f}, ln({count}) is {chance:.2f}", evidence)
    return initial_loss.problem(
        f"a fresh model's loss is {loss:.2f} on random answers, expected about ln({count}) = "
        f"{chance:.2f}: its scores "
        f"spread by {evidence['spread']:.2g} before it knows anything",
        evidence,
        why="Training spends its first steps on unlearning, with gradients so large that clipping or "
        "Adam's averages "
        "remember them.",
        fix="Draw the head small: a standard deviation near 0.02, or 1 / sqrt(width). A table of words "
        "drawn with "
        "nn.Embedding's default of 1 and tied to the head makes scores sqrt(width) large.",
        where="how the weights are drawn" if _drawn_large(subject) else "the head",
        component=None if _drawn_large(subject) else "embeddings and head",
    )


def _drawn_large(subject: Subject) -> bool:
    """Whether a matrix is drawn so large that its products grow: then it is not the head's formula."""
    return any(
        float(weight.detach().std()) > max(0.3, 1.5 * weight[0].numel() ** -0.5)
        for weight in subject.model().parameters()
        if weight.dim() > 1 and weight.numel() > 1
    )


@check(family="model", component="layers", needs=("make_model", "fresh"), likelihood=0.9)
def fresh_weights_differ(subject: Subject) -> Finding:
    """Are a fresh model's weights drawn at random?"""
    matrices = {name: weight for name, weight in subject.model().named_parameters() if weight.dim() > 1}
    if not matrices:
        raise NotApplicable("the model has no matrices")
    # A few may begin at zero for good reasons: a new head, the last map of a residual branch, an adapter.
    alike = [name for name, weight in matrices.items() if bool((weight == weight.flatten()[0]).all())]
    evidence = {"matrices": float(len(matrices)), "of one number": float(len(alike))}
    if 2 * len(alike) <= len(matrices):
        return fresh_weights_differ.ok(f"{len(matrices) - len(alike)} of {len(matrices)} are drawn", evidence)
    return fresh_weights_differ.problem(
        f"{len(alike)} of {len(matrices)} matrices hold one number in all places; expected random ones",
        evidence,
        where=", ".join(alike[:3]),
        why="Units with equal weights get equal gradients and stay equal: the layer is one unit wide.",
        fix="Draw matrices at random, with a standard deviation near 0.02 or 1 / sqrt(inputs).",
    )
