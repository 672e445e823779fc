"""Finds what a text such as ``train:make_model`` stands for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from companion.debugging.adapters.calls import kind_of

__all__ = ["located"]


def located(text: str) -> Callable[..., Any]:
    """Import a function or a class by name.

    Parameters
    ----------
    text : str
        ``module:name`` or ``file.py:name``; the name may have dots. Modules of the current directory are
        found as well as installed ones. Importing a module runs its code.

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        When the text is no such pair, the module is not found or breaks, or the name is missing in it or
        stands for nothing that can be called.
    """
    home, colon, name = text.rpartition(":")
    if not colon or not home or not name:
        raise ValueError(f"{text!r} names no function: expected MODULE:NAME, such as train:make_model")
    found: Any = _imported(home, text)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [item for item in vars(found) if not item.startswith("_")] if _has_dict(found) else []
            listed = ", ".join(public[:12]) or "nothing"
            raise ValueError(f"{home} has no {name!r}; it has: {listed}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{text} is {kind_of(found)}, expected a function or a class")
    return found  # type: ignore[no-any-return]


def _imported(home: str, text: str) -> ModuleType:
    """Import a module by its name, or a file by its path."""
    file = Path(home)
    if file.suffix == ".py" and not file.is_file():
        raise ValueError(f"{text}: there is no file {home}")
    with _current_directory_first():
        try:
            if file.suffix == ".py":
                return _module_of(file)
            importlib.invalidate_caches()
            return importlib.import_module(home)
        except ModuleNotFoundError as error:
            if error.name and (home == error.name or home.startswith(f"{error.name}.")):
                raise ValueError(
                    f"{text}: there is no module {error.name!r} in {Path.cwd()} or among the installed ones"
                ) from None
            raise ValueError(f"{text}: importing {home} failed: {error}") from error
        except (Exception, SystemExit) as error:  # the code of a stranger, who may have forgotten the guard
            raise ValueError(
                f"{text}: importing {home} failed with {type(error).__name__}: {error}. "
                'What runs a training belongs under `if __name__ == "__main__":`.'
            ) from error


def _module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look the module up by name.
    before = sys.modules.get(file.stem)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(file.stem)
        if before is not None:
            sys.modules[file.stem] = before
        raise
    return module


@contextmanager
def _current_directory_first() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _has_dict(thing: Any) -> bool:
    return hasattr(thing, "__dict__")
