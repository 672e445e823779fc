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


def edited(*edits: tuple[str, str]) -> ModuleType:
    """Return the reference's module with its source edited; each edit must apply."""
    source = inspect.getsource(transformer)
    for before, after in edits:
        assert before in source, f"the reference no longer has {before!r}"
        source = source.replace(before, after)
    module = ModuleType(f"edited_transformer_{next(_numbers)}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module


def planted(*edits: tuple[str, str], kind: str = "causal language model", **shape: object) -> Subject:
    """Return the edited reference as a subject."""
    return reference_subject(kind, transformer=edited(*edits), **shape)
