"""The API reference: one page for each top-level module, written from what can be imported.

No list of names is kept by hand. A name is public when its module's `__all__` has it, or, in a module without
`__all__`, when it is defined there and does not begin with an underscore.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias, ModuleType
from typing import Any, TypeVar

from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublicName:
    """One name and where the reader imports it from."""

    module: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        """The dotted path."""
        return f"{self.module}.{self.name}"


def pages(package: str) -> dict[str, list[str]]:
    """Return the modules that each page shows, in order, by the page's name."""
    found = importlib.import_module(package)
    result: dict[str, list[str]] = {}
    for info in pkgutil.iter_modules(found.__path__):
        if info.name.startswith("_"):
            continue
        top = f"{package}.{info.name}"
        inner = pkgutil.walk_packages(importlib.import_module(top).__path__, f"{top}.") if info.ispkg else ()
        public = (
            name.name for name in inner if not any(part.startswith("_") for part in name.name.split("."))
        )
        result[info.name] = [top, *public]
    return result


def _inner_modules(paths: list[str], prefix: str) -> Iterator[str]:
    """Yield the dotted names below a package without importing it."""
    for info in pkgutil.iter_modules(paths, f"{prefix}."):
        yield info.name
        if info.ispkg:
            below = [f"{path}/{info.name.rpartition('.')[2]}" for path in paths]
            yield from _inner_modules(below, info.name)


def public_names(module: ModuleType) -> Iterator[PublicName]:
    """Yield the public names of one module; modules that it exports are pages or sections of their own."""
    declared = getattr(module, "__all__", None)
    names = declared if declared is not None else [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        value = getattr(module, name)
        defined_here = declared is not None or getattr(value, "__module__", None) == module.__name__
        if defined_here and not inspect.ismodule(value):
            yield PublicName(module.__name__, name, value)


def sections(modules: list[str]) -> list[tuple[ModuleType, list[PublicName]]]:
    """Return each module of a page with the names it shows: what a package exports is shown there alone."""
    seen: set[int] = set()
    result = []
    for name in modules:
        module = importlib.import_module(name)
        new = [public for public in public_names(module) if id(public.value) not in seen]
        seen |= {id(public.value) for public in new}
        result.append((module, new))
    return result


def write_pages(package: str, folder: Path) -> list[Path]:
    """Write the pages of `package` to `folder`, touch only what changed, and remove what is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for page, modules in pages(package).items():
        path = folder / f"{page}.rst"
        try:
            text = _page(modules)
        except ImportError as error:
            LOGGER.warning("the reference page of %s.%s is missing: %s", package, page, error)
            continue
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        written.append(path)
    for stale in set(folder.glob("*.rst")) - set(written):
        stale.unlink()
    return written


def skip_member(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what Python writes itself: a named tuple's fields, pydantic's machinery."""
    if (getattr(value, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return True if name.startswith("model_") and what in {"class", "pydantic_model"} else None


def split_shared_entries(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Write `low, high` of a section as two entries, which napoleon does not do for attributes."""
    result: list[str] = []
    for index, line in enumerate(lines):
        shared = re.fullmatch(r"(\w+(?:, \w+)+)( : .*)?", line)
        below = list(itertools.takewhile(lambda text: text.startswith("    "), lines[index + 1 :]))
        if not shared or not below:
            result.append(line)
            continue
        first, *others = shared[1].split(", ")
        for entry in (first, *others[:-1]):
            result += [entry + (shared[2] or ""), *below]
        result.append(others[-1] + (shared[2] or ""))
    lines[:] = result


def number_references(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Give each docstring's numbered references names of their own; the page then counts them through."""
    own = re.sub(r"\W", "-", name).lower()
    for index, line in enumerate(lines):
        cited = re.sub(r"\[(\d+)\]_", rf"[#{own}-\1]_", line)
        lines[index] = re.sub(r"^(\s*\.\.) \[(\d+)\]", rf"\1 [#{own}-\2]", cited)


def drop_type_docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Clear the docstring of a constant that is only its type's, such as that of `dict`."""
    kind = getattr(value, "__origin__", type(value))
    if what == "data" and " ".join(lines).split() == (inspect.getdoc(kind) or "").split():
        lines.clear()


def hide_command_signature(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, answer: str | None
) -> tuple[str, str] | None:
    """Leave out the signature of a command: its options stand among the commands, by their names there.

    Typer's descriptions of them would be written as objects with an address, another one at each build.
    """
    application = _application(".".join(name.split(".")[:2]))
    return ("", "") if what == "function" and value in _functions(application) else None


def _application(module: str) -> Any:
    """Return the Typer application that a module holds, or None."""
    found = getattr(importlib.import_module(module), "app", None)
    return found if type(found).__name__ == "Typer" else None


def _functions(application: Any) -> Iterator[Any]:
    """Yield the functions behind the commands of a Typer application."""
    if application is not None:
        yield from (command.callback for command in application.registered_commands)
        for group in application.registered_groups:
            yield from _functions(group.typer_instance)


def resolve_foreign(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Leave a type in a signature unlinked when it is not one of the package's public names.

    Autodoc writes another library's type that a module imports for the type checker alone as if it were the
    module's own, and does the same for a private type.
    """
    if node.get("refdomain") != "py" or node.get("reftype") != "class":
        return None
    module_name, _, name = node["reftarget"].rpartition(".")
    if not module_name:
        return None
    if name.startswith("_") or any(part.startswith("_") for part in module_name.split(".")):
        return contnode
    try:
        value = getattr(importlib.import_module(module_name), name, None)
    except ImportError:
        return None
    ours = getattr(value, "__module__", "").startswith("companion") and not isinstance(value, TypeVar)
    return None if ours else contnode


def _page(modules: list[str]) -> str:
    """Return one page as reStructuredText."""
    parts = []
    for index, (module, names) in enumerate(sections(modules)):
        if index and not names:
            continue
        title = module.__name__
        parts.append(f"{title}\n{('-' if index else '=') * len(title)}\n")
        parts.append(f".. automodule:: {title}\n")
        if index == 0 and (commands := _commands(title)):
            parts.append(f"{commands}\nIn Python\n---------\n")
        parts.extend(_entry(public) for public in names)
    return "\n".join(parts)


def _entry(public: PublicName) -> str:
    """Return the directive that shows one name."""
    if inspect.isclass(public.value) and not isinstance(public.value, GenericAlias):
        kind, options = "class", "   :members:\n   :show-inheritance:\n"
        if issubclass(public.value, BaseException):
            kind = "exception"
        elif public.value.__bases__ == (object,):
            options = "   :members:\n"
    elif inspect.isroutine(public.value):
        kind, options = "function", ""
    else:
        kind, options = "data", "   :no-value:\n"
    return f".. auto{kind}:: {public.path}\n{options}"


def _commands(module: str) -> str:
    """Return the commands with their help, for the module that holds the Typer application."""
    application = _application(module)
    if application is None:
        return ""
    from typer.main import get_command

    lines = ["Commands\n--------\n"]
    lines += _command_lines(get_command(application), "companion")
    return "\n".join(lines)


def _command_lines(command: Any, name: str) -> list[str]:
    """Return one command, its options and its subcommands as definition lists."""
    commands = getattr(command, "commands", {})
    lines = []
    if not commands:
        lines += [f"``{name}``", f"   {_one_line(command.help)}", ""]
        for parameter in command.params:
            shown = " ".join([*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "argument":
                shown = (parameter.name or "").upper()
            lines += [f"   ``{shown}``", f"      {_one_line(getattr(parameter, 'help', None))}", ""]
    for inner_name, inner in commands.items():
        lines += _command_lines(inner, f"{name} {inner_name}")
    return lines


def _one_line(text: str | None) -> str:
    """Return a help text as one line of reStructuredText."""
    paragraph = (text or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("*", r"\*").replace("`", "``").replace("````", "``") or "\\ "
