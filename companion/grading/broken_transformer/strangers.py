"""Finds bugs that are in the files and were not dealt: files of another deal are no repair of this one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from companion.debugging.zoo.bug import Bug, Edit
from companion.debugging.zoo.editing import right_source
from companion.exercises.broken_transformer.planted import DEFAULT, FILES, Planted, breaks, zoo

__all__ = ["strangers"]

_AROUND = 60
"""Characters beside an edit, where what it left behind is not telling by itself."""


def strangers(
    files: Mapping[str, str], planted: Planted, wrong: Collection[str], pool: Sequence[Bug] | None = None
) -> tuple[Bug, ...]:
    """Return the bugs that were handed in and never dealt.

    Parameters
    ----------
    files : mapping of str to str
        The texts that were handed in, by their names.
    planted : Planted
    wrong : collection of str
        The behaviours that are not right in them.
    pool : sequence of Bug, optional
        What `deal` was given.

    Returns
    -------
    tuple of Bug
        Those whose wrong code is in a file and shows in a behaviour: right code that happens to hold the same
        words is no stranger.
    """
    dealt = {edit for bug in planted.bugs for edit in bug.edits}
    known = {
        edit: bug for bug in (*zoo(), *(pool or ()), *DEFAULT) for edit in bug.edits if edit not in dealt
    }
    texts = {name: _plain(text) for name, text in files.items()}
    own = {"transformer": _plain(planted.model), "recipe": _plain(planted.train)}
    found: dict[str, Bug] = {}
    for edit, bug in known.items():
        text = texts.get(FILES[edit.file], "")
        traces = (trace for trace in _traces(edit) if trace not in own[edit.file])
        if next(traces, "\0") in text and breaks(bug) & set(wrong):
            found.setdefault(bug.name, bug)
    return tuple({bug.edits: bug for bug in found.values()}.values())


def _traces(edit: Edit) -> Iterator[str]:
    """Give what tells that an edit was made: what it put there, or that with what lies around it."""
    right = right_source(edit.file)
    start = right.index(edit.before)
    end = start + len(edit.before)
    around = right[max(0, start - _AROUND) : start], right[end : end + _AROUND]
    for trace in (_plain(edit.after), _plain(edit.after.join(around))):
        if trace not in _plain(right):
            yield trace


def _plain(text: str) -> str:
    """Return a text without spaces and line ends: these are written in many ways."""
    return "".join(text.split())
