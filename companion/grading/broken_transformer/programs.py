"""Right and wrong programs for a learner's tests: none is the one that they were given."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from companion.debugging.zoo.bug import Bug, Edit
from companion.debugging.zoo.editing import source_of
from companion.exercises.broken_transformer.planted import DEFAULT, Planted, breaks, zoo
from companion.exercises.broken_transformer.testing import VARIANTS, variant

__all__ = ["RIGHT", "Program", "right_programs", "wrong_programs"]

_MUTANTS = 12

RIGHT: Mapping[str, tuple[Edit, ...]] = {
    **VARIANTS,
    "torch's own attention": (
        Edit(
            "transformer",
            "        scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))\n",
            "        drop = self.dropout.p if self.training else 0.0\n"
            "        mixed = nn.functional.scaled_dot_product_attention(\n"
            "            query, key, value, attn_mask=visible, dropout_p=drop\n"
            "        )\n"
            "        return self.output(self.merge_heads(mixed))\n"
            "        scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))\n",
        ),
    ),
    "a cosine schedule": (
        Edit(
            "recipe",
            "        return max(0.0, (steps - step) / max(1, steps - warmup))\n",
            "        done = (step - warmup) / max(1, steps - warmup)\n"
            "        return 0.5 + 0.5 * float(torch.cos(torch.tensor(3.141592653589793 * min(1.0, done))))\n",
        ),
    ),
    "one batch more of padding": (
        Edit(
            "recipe",
            "    width = max(len(ids) for ids, _ in rows)\n",
            "    width = -(-max(len(ids) for ids, _ in rows) // 4) * 4\n",
        ),
    ),
}
"""Right programs, as edits of the right code."""


@dataclass(frozen=True)
class Program:
    """Two sources.

    Attributes
    ----------
    title : str
        For the report; never sent to where the tests run.
    model, train : str
    """

    title: str
    model: str
    train: str


def right_programs() -> tuple[Program, ...]:
    """Return right programs that are not alike."""
    return tuple(Program(title, *variant(edits)) for title, edits in RIGHT.items())


def wrong_programs(
    planted: Planted, seed: int, pool: Sequence[Bug] | None = None, most: int = _MUTANTS
) -> tuple[Program, ...]:
    """Return programs with one bug each: those of the learner's components first, then others.

    Parameters
    ----------
    planted : Planted
        What the learner was given; none of these is among the programs.
    seed : int
        Draws them.
    pool : sequence of Bug, optional
        Bugs to draw from instead of the zoo's and the default ones.
    most : int
        Programs, at most.
    """
    given = {edit for bug in planted.bugs for edit in bug.edits}
    bugs = [*zoo(), *DEFAULT] if pool is None else list(pool)
    random.Random(seed).shuffle(bugs)
    components = {bug.component for bug in planted.bugs}
    bugs.sort(key=lambda bug: bug.component not in components)
    near = [bug for bug in bugs if bug.component in components][: most * 2 // 3]
    chosen = [*near, *(bug for bug in bugs if bug not in near)]
    programs: list[Program] = []
    for bug in chosen:
        if len(programs) < most and not given.intersection(bug.edits) and breaks(bug):
            programs.append(Program(bug.title, source_of(bug, "transformer"), source_of(bug, "recipe")))
    return tuple(programs)
