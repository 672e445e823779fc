"""Makes modules with bugs in them out of the right source."""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

from companion.debugging import recipe as right_recipe
from companion.debugging.subject import Subject
from companion.debugging.zoo.bug import Bug, Configuration, File
from companion.debugging.zoo.subjects import reference_subject
from companion.models import transformer as right_transformer

__all__ = ["edited", "module_of", "right_source", "source_of", "subject_at", "subject_of"]

_RIGHT: dict[File, ModuleType] = {"transformer": right_transformer, "recipe": right_recipe}


def edited(bugs: Bug | Iterable[Bug]) -> tuple[ModuleType, ModuleType]:
    """Return the transformer and the recipe with one bug or several in them.

    Parameters
    ----------
    bugs : Bug or iterable of Bug

    Returns
    -------
    (module, module)
        New modules at each call; tracebacks and `inspect` show their edited source.

    Raises
    ------
    ValueError
        When the right code does not hold what an edit replaces exactly once, when two edits overlap, or
        when the result is not Python.
    """
    chosen = _as_tuple(bugs)
    return _module(chosen, "transformer"), _module(chosen, "recipe")


def right_source(file: File) -> str:
    """Return a file without a bug."""
    return inspect.getsource(_RIGHT[file])


def source_of(bugs: Bug | Iterable[Bug], file: File) -> str:
    """Return a file with bugs in it, as text. Raises as `edited` does."""
    right = right_source(file)
    places: list[tuple[int, int, str, str]] = []
    for bug in _as_tuple(bugs):
        for edit in bug.edits:
            if edit.file == file:
                start = _find(right, edit.before, bug, file)
                places.append((start, start + len(edit.before), edit.after, bug.name))
    places.sort()
    for (_, end, _, first), (start, _, _, second) in itertools.pairwise(places):
        if start < end:
            raise ValueError(
                f"bugs {first!r} and {second!r} edit the same lines of the {file}: choose others to combine"
            )
    for start, end, after, _ in reversed(places):
        right = right[:start] + after + right[end:]
    return right


def subject_of(bugs: Bug | Sequence[Bug], *, right: bool = False) -> Subject:
    """Return the subject in which a bug shows: the edited model, recipe and data.

    Parameters
    ----------
    bugs : Bug or sequence of Bug
        Of several, the first says what the model is for; shapes and settings add up.
    right : bool
        Return the same without the bugs.
    """
    chosen = _as_tuple(bugs)
    shape = {name: value for bug in chosen for name, value in bug.shape.items()}
    settings = {name: value for bug in chosen for name, value in bug.settings.items()}
    return subject_at(() if right else chosen, Configuration(chosen[0].kind, shape, settings))


def subject_at(bugs: Bug | Iterable[Bug], configuration: Configuration) -> Subject:
    """Return a subject with these bugs, or with none, in a configuration of your choice."""
    chosen = _as_tuple(bugs)
    touched = {edit.file for bug in chosen for edit in bug.edits}
    transformer, recipe = (
        _module(chosen, file) if file in touched else right for file, right in _RIGHT.items()
    )
    return reference_subject(
        configuration.kind,
        transformer=transformer,
        recipe=recipe,
        settings=dict(configuration.settings),
        **configuration.shape,
    )


def _as_tuple(bugs: Bug | Iterable[Bug]) -> tuple[Bug, ...]:
    return (bugs,) if isinstance(bugs, Bug) else tuple(bugs)


def _find(source: str, before: str, bug: Bug, file: File) -> int:
    count = source.count(before)
    if count != 1:
        raise ValueError(
            f"bug {bug.name!r} replaces {before!r}, which occurs {count} times in the {file}, expected once: "
            "adapt the bug to the code"
        )
    return source.index(before)


def _module(bugs: tuple[Bug, ...], file: File) -> ModuleType:
    source = source_of(bugs, file)
    label = "+".join(bug.name for bug in bugs) or "right"
    try:
        return module_of(source, f"companion_zoo.{label}.{file}", f"<zoo {label} {file}.py>")
    except SyntaxError as error:
        raise ValueError(f"{label} does not leave Python behind: {error}; mend the edit") from error


def module_of(source: str, name: str, filename: str) -> ModuleType:
    """Run a text as a module of its own.

    Parameters
    ----------
    source : str
    name : str
        What the module is called, and found under in ``sys.modules``.
    filename : str
        What tracebacks call it. Need not exist.
    """
    module = ModuleType(name)
    module.__file__ = filename
    # Where dataclasses look for the names in annotations, and tracebacks and inspect for the source.
    sys.modules[name] = module
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module
