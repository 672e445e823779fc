"""Puts problems in order: causes before what follows from them, and what is said twice once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from companion.debugging.finding import Finding

__all__ = ["CAUSES", "CRASHED", "ordered"]

CRASHED = "it raised "
"""How the summary of a check begins that an error stopped."""
EVERYTHING = ("",)
_COMPARISONS = (
    "causality",
    "the past is seen",
    "prefixes",
    "batch independence",
    "batch order",
    "padding content",
    "padding amount",
    "left padding",
    "mask ",
    "modes agree",
    "evaluation agreement",
)
_CONTROLS = ("random token control", "label shuffle control", "initial loss", "loss is plausible")
CAUSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("finite activations", EVERYTHING),
    # Noise in evaluation moves every comparison of two answers.
    ("eval determinism", _COMPARISONS),
    # A text that depends on its neighbours in the batch also depends on their padding.
    ("batch independence", ("padding", "batch order", "causality", "prefixes", "mask ", "accumulation")),
    # A formula that differs shows in all that rests on it.
    ("attention comparison", ("attention weights", "causality", "prefixes", "mask ", "padding", "the past")),
    ("causality", ("prefixes", "left padding", *_CONTROLS)),
    ("mask polarity", ("padding", "mask is used", "left padding", "a row of padding")),
    ("mask is used", ("padding", "left padding")),
    ("logits are not probabilities", ("initial loss", "gradient", "loss of the scores")),
    ("residual path", ("gradient", "layer", "layers learn")),
    ("registered parameters", ("gradient", "optimizer coverage", "parameters move", "frozen", "layer count")),
    ("weight tying", ("layer count", "optimizer coverage", "initial loss")),
    ("position information", ("order matters", "attention comparison")),
    # What no token reaches has no places and no gradient.
    ("both sides are seen", ("position rows", "gradient flow")),
    ("layer distinctness", ("cached scores",)),
    ("layer count", ("gradient flow", "dropout acts", "dead units")),
    ("fresh weights differ", ("dead units", "gradient", "initial loss")),
    ("position rows", ("order matters", "position information")),
    # What an optimizer does not hold it neither moves nor zeroes.
    ("optimizer coverage", ("parameters move", "layers learn", "gradients are zeroed")),
    ("label alignment", (*_CONTROLS, "loss normalisation", "step follows the loss")),
    ("labels stay out of the input", _CONTROLS),
    ("padding in the loss", ("loss normalisation", "accumulation", "step follows the loss", "evaluation")),
    ("loss normalisation", ("accumulation", "step follows the loss")),
    ("loss depends on labels", ("accumulation", "each class counts", "the step reads its batch")),
    ("each class counts", ("accumulation", "the step reads its batch")),
    ("gradients are zeroed", ("accumulation", "order of the step", "parameters move", "step follows")),
    ("order of the step", ("parameters move", "step follows the loss")),
    ("exact leakage", ("near duplicate leakage",)),
    ("conflicting labels", ("likely label errors",)),
    ("swapped labels", ("likely label errors", "evaluation agreement", "label order")),
    (
        "finite run",
        ("loss decreases", "loss stays down", "no loss spikes", "learns more", "loss is plausible"),
    ),
)
"""Parts of checks' names, each with those of the checks that fail for the same reason.

From the general to the particular: a later line cannot lift what an earlier one has lowered.
"""
_LAST = ("overfit",)
_SPEAKS = "shapes"
"""The check that reports an error that many had: it asks least of a model."""
_FADES = 0.9
_BLOCKS = 0.95


def ordered(findings: Iterable[Finding]) -> tuple[tuple[Finding, ...], dict[str, str]]:
    """Pick the problems and put the likeliest cause first.

    A problem counts as its check says how likely it is a cause; less than each problem that explains it
    (`CAUSES`). That a model cannot learn one batch by heart says last, as any other fault may be behind it.

    Parameters
    ----------
    findings : iterable of Finding

    Returns
    -------
    tuple of Finding
        The problems, each once.
    dict of str to str
        Names of checks whose problem another one explains, each with the name of that one's check.
    """
    findings = tuple(findings)
    problems = _once(_crashes_together([finding for finding in findings if finding.is_problem], findings))
    weights = [0.05 if _named(problem, _LAST) else problem.likelihood for problem in problems]
    follows: dict[str, str] = {}
    for cause, consequences in CAUSES:
        for index, explaining in enumerate(problems):
            if cause not in explaining.check or _crashed(explaining):
                continue
            for other, problem in enumerate(problems):
                explained = other != index and cause not in problem.check and _named(problem, consequences)
                if explained and not _crashed(problem):
                    weights[other] = min(weights[other], _FADES * weights[index])
                    follows.setdefault(problem.check, explaining.check)
    order = sorted(range(len(problems)), key=lambda index: -weights[index])
    return tuple(problems[index] for index in order), follows


def _crashes_together(problems: Sequence[Finding], findings: Sequence[Finding]) -> list[Finding]:
    """Report an error once that stopped several checks; it comes first if it stopped half of all that ran."""
    ran = sum(finding.status != "not applicable" for finding in findings)
    together: dict[str, list[Finding]] = {}
    for problem in problems:
        if _crashed(problem):
            together.setdefault(_error(problem), []).append(problem)
    for same in together.values():
        same.sort(key=lambda item: item.check != _SPEAKS)
    kept = []
    for problem in problems:
        same = together[_error(problem)] if _crashed(problem) else [problem]
        if problem is not same[0]:
            continue
        if len(same) > 1:
            names = ", ".join(item.check for item in same[1:])
            likelihood = _BLOCKS if 2 * len(same) >= ran else max(item.likelihood for item in same)
            problem = replace(
                problem,
                summary=f"{problem.summary} (and so did {names})",
                likelihood=likelihood,
            )
        kept.append(problem)
    return kept


def _once(problems: Sequence[Finding]) -> list[Finding]:
    """Leave out what says the same: one check of one place, or one sentence about one component."""
    kept: list[Finding] = []
    seen: set[tuple[str, ...]] = set()
    for problem in problems:
        keys: set[tuple[str, ...]] = {("says", problem.component, problem.summary)}
        if problem.where:
            keys.add(("place", problem.check, problem.component, problem.where.rpartition(": ")[2]))
        if not keys & seen:
            kept.append(problem)
        seen |= keys
    return kept


def _error(problem: Finding) -> str:
    # The numbers in it are those of each check's own batch.
    return re.sub(r"\d+", "#", problem.summary)


def _crashed(problem: Finding) -> bool:
    return problem.summary.startswith(CRASHED)


def _named(problem: Finding, fragments: Sequence[str]) -> bool:
    return any(fragment in problem.check for fragment in fragments)
