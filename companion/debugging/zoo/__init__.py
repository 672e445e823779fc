"""The zoo: bugs as small edits of the right code, and what finds them."""

from __future__ import annotations

from companion.debugging.zoo import (
    architecture_attention,
    architecture_ends,
    architecture_layers,
    architecture_masks,
    architecture_positions,
    architecture_stream,
    data,
    evaluation,
    optimizer,
    tokenization,
    training,
    training_loss,
    training_scores,
)
from companion.debugging.zoo.bug import Bug, Configuration, Edit
from companion.debugging.zoo.editing import edited, source_of, subject_at, subject_of

__all__ = ["BUGS", "Bug", "Configuration", "Edit", "edited", "named", "source_of", "subject_at", "subject_of"]

BUGS: tuple[Bug, ...] = (
    *architecture_masks.BUGS,
    *architecture_attention.BUGS,
    *architecture_positions.BUGS,
    *architecture_layers.BUGS,
    *architecture_ends.BUGS,
    *architecture_stream.BUGS,
    *training_loss.BUGS,
    *training_scores.BUGS,
    *training.BUGS,
    *optimizer.BUGS,
    *data.BUGS,
    *tokenization.BUGS,
    *evaluation.BUGS,
)
"""All bugs, by what they are in."""


def named(name: str) -> Bug:
    """Return a bug by its name.

    Raises
    ------
    ValueError
        When there is none.
    """
    for bug in BUGS:
        if bug.name == name:
            return bug
    raise ValueError(f"no bug is called {name!r}, expected one of {', '.join(bug.name for bug in BUGS)}")
