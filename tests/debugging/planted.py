"""Plants faults: the reference with an edit, as a subject."""

from __future__ import annotations

import inspect
import sys
from itertools import count
from types import ModuleType

from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject
from companion.models import transformer

_numbers = count()


def edited(*edits: tuple[str, str], of: ModuleType = transformer, more: str = "") -> ModuleType:
    """Return a module with its source edited and added to; each edit must apply."""
    source = inspect.getsource(of)
    for before, after in edits:
        assert before in source, f"{of.__name__} no longer has {before!r}"
        source = source.replace(before, after)
    module = ModuleType(f"edited_{next(_numbers)}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source + more, module.__name__, "exec"), module.__dict__)
    return module


def planted(*edits: tuple[str, str], kind: str = "causal language model", **shape: object) -> Subject:
    """Return the edited reference as a subject."""
    return reference_subject(kind, transformer=edited(*edits), **shape)
