"""Judges a diagnosis by where it points and which family it names. What it says in words is for people."""

from __future__ import annotations

import ast
import difflib
import itertools
import json
from dataclasses import dataclass
from typing import Any

from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.editing import right_source
from companion.exercises.broken_transformer.planted import FILES, Planted
from companion.grading.broken_transformer.marks import Diagnosis

__all__ = ["Place", "judge_diagnosis", "place_of"]

_NEAR, _LONGEST = 2, 60
"""Lines beside the bug that count as hit, and the longest range that is an answer."""


@dataclass(frozen=True)
class Place:
    """Where a bug is in a file as it was dealt.

    Attributes
    ----------
    file : str
    lines : frozenset of int
        Counted from 1.
    names : frozenset of str
        Functions and classes around them: ``forward``, ``Attention.forward``, ``Attention``.
    """

    file: str
    lines: frozenset[int]
    names: frozenset[str]


def judge_diagnosis(text: str | None, planted: Planted) -> Diagnosis:
    """Judge ``diagnosis.json``.

    Parameters
    ----------
    text : str, optional
        None when it was not handed in.
    planted : Planted

    Returns
    -------
    Diagnosis
        Entries are given to bugs in the way that is best for the learner; each counts once, and after the
        third none does.
    """
    entries, errors = _entries(text)
    places = [place_of(bug, planted) for bug in planted.bugs]
    count = len(places)
    best: tuple[tuple[bool, ...], tuple[bool, ...]] = ((False,) * count, (False,) * count)
    padded: list[dict[str, Any]] = [*entries, *({} for _ in range(count - len(entries)))]
    for order in itertools.permutations(padded, count):
        located = tuple(_points_at(entry, place) for entry, place in zip(order, places, strict=True))
        named = tuple(
            hit and entry.get("family") == bug.family
            for hit, entry, bug in zip(located, order, planted.bugs, strict=True)
        )
        if 2 * sum(located) + sum(named) > 2 * sum(best[0]) + sum(best[1]):
            best = located, named
    return Diagnosis(*best, errors)


def place_of(bug: Bug, planted: Planted) -> Place:
    """Return where a bug is in the files as dealt, other bugs' shifts of the lines included."""
    file = bug.edits[0].file
    dealt = planted.model if file == "transformer" else planted.train
    lines: set[int] = set()
    for edit in bug.edits:
        if edit.file == file:
            lines |= _changed(edit.before, edit.after, right_source(file), dealt)
    names = set()
    for node in _definitions(ast.parse(dealt)):
        first, last, name = node
        if any(first <= line <= last for line in lines):
            names |= {name, name.rpartition(".")[2], name.partition(".")[0]}
    return Place(FILES[file], frozenset(lines), frozenset(names))


def _changed(before: str, after: str, right: str, dealt: str) -> set[int]:
    """Return the lines of the dealt file that an edit made, or those around what it took away."""
    own = right.replace(before, after).splitlines()
    matcher = difflib.SequenceMatcher(None, right.splitlines(), own, autojunk=False)
    touched: set[int] = set()
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag != "equal":
            touched |= set(range(start, end)) or {max(0, start - 1), min(start, len(own) - 1)}
    # The other bugs' edits move lines: follow them.
    follow = difflib.SequenceMatcher(None, own, dealt.splitlines(), autojunk=False)
    where = {
        block.a + step: block.b + step for block in follow.get_matching_blocks() for step in range(block.size)
    }
    return {where[line] + 1 for line in touched if line in where}


def _definitions(tree: ast.AST, prefix: str = "") -> list[tuple[int, int, str]]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = prefix + node.name
            found += [(node.lineno, node.end_lineno or node.lineno, name), *_definitions(node, f"{name}.")]
    return found


def _entries(text: str | None) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Read the entries, at most three."""
    if text is None:
        return [], ("diagnosis.json was not handed in",)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [], (f"diagnosis.json is not JSON: {str(error)[:200]}",)
    if not isinstance(found, list):
        return [], ("diagnosis.json does not hold a list",)
    entries = [entry for entry in found[:3] if isinstance(entry, dict)]
    said = [entry for entry in entries if isinstance(entry.get("what"), str) and entry["what"].strip()]
    errors = ["diagnosis.json has more than three entries: the first three count"] * (len(found) > 3)
    errors += ["an entry without a sentence in `what` does not count"] * (len(said) < len(entries))
    return said, tuple(errors)


def _points_at(entry: dict[str, Any], place: Place) -> bool:
    if entry.get("file") != place.file:
        return False
    name = entry.get("function")
    if isinstance(name, str) and name.strip().removesuffix("()") in place.names:
        return True
    lines = entry.get("lines", entry.get("line"))
    pair = [lines, lines] if type(lines) is int else lines
    if not isinstance(pair, list) or len(pair) != 2 or any(type(line) is not int for line in pair):
        return False
    first, last = pair
    if not 0 <= last - first < _LONGEST:
        return False
    return any(first - _NEAR <= line <= last + _NEAR for line in place.lines)
