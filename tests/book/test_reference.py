"""The API reference: every public name has a docstring and stands on a page; what is cited is in the list."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import reference
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> dict[str, list[str]]:
    """Return the modules of each page."""
    return reference.pages("companion")


@pytest.fixture(scope="module")
def public(pages: dict[str, list[str]]) -> list[reference.PublicName]:
    """Return every public name of the package; importing it all takes a while."""
    modules = [importlib.import_module(name) for names in pages.values() for name in names]
    return [name for module in modules for name in reference.public_names(module)]


def test_every_public_name_has_a_docstring(public: list[reference.PublicName]) -> None:
    assert len(public) > 40
    for name in public:
        if inspect.isclass(name.value) or inspect.isroutine(name.value):
            text = (name.value.__doc__ or "").strip()
            assert text, f"{name.path} has no docstring"
            assert not text.startswith(f"{name.name}("), f"{name.path} has only what dataclass wrote"


def test_every_public_name_stands_on_a_page(public: list[reference.PublicName], tmp_path: Path) -> None:
    written = reference.write_pages("companion", tmp_path)
    source = "\n".join(path.read_text(encoding="utf-8") for path in written)
    shown = set(
        re.findall(r"^\.\. auto(?:class|exception|function|data):: (\S+)$", source, flags=re.MULTILINE)
    )
    values = {id(name.value) for name in public if name.path in shown}
    missing = [name.path for name in public if name.path not in shown and id(name.value) not in values]
    assert not missing


def test_every_module_says_what_it_is_for(pages: dict[str, list[str]]) -> None:
    for modules in pages.values():
        for module in modules:
            assert (importlib.import_module(module).__doc__ or "").strip(), module


def test_there_is_a_page_for_each_module_of_the_package(pages: dict[str, list[str]]) -> None:
    found = {
        path.stem
        for path in (ROOT / "companion").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert set(pages) == {name for name in found if not name.startswith("_")}


def test_commands_come_first_and_show_no_signature(tmp_path: Path) -> None:
    """A command's signature in Python is made of Typer's objects, whose addresses change with each build."""
    reference.write_pages("companion", tmp_path)
    source = (tmp_path / "cli.rst").read_text(encoding="utf-8")
    assert source.index("``companion train``") < source.index("autofunction:: companion.cli.main")
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.rst").write_text(source, encoding="utf-8")
    settings = {"extensions": ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]}
    app = Sphinx(page, None, page / "out", page / "trees", "text", settings, status=None, warning=None)
    app.connect("autodoc-process-signature", reference.hide_command_signature)
    app.build()
    text = (page / "out" / "index.txt").read_text(encoding="utf-8")
    assert "object at 0x" not in text
    assert "companion.cli.training.train()\n" in text
    assert "companion.cli.options.show(report: dict[str, Any], as_json: bool)" in " ".join(text.split())


def test_a_stale_page_is_removed_and_an_unchanged_one_is_left_alone(tmp_path: Path) -> None:
    written = reference.write_pages("companion", tmp_path)
    times = {path: path.stat().st_mtime_ns for path in written}
    (tmp_path / "gone.rst").write_text("")
    assert reference.write_pages("companion", tmp_path) == written
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_entries_that_share_a_description_are_split() -> None:
    lines = ["low, high : float", "    The bounds.", "", "A sentence, with a comma."]
    reference.split_shared_entries(None, "class", "x", None, None, lines)
    assert lines[:4] == ["low : float", "    The bounds.", "high : float", "    The bounds."]
    assert lines[-1] == "A sentence, with a comma."


def test_the_bibliography_holds_what_is_cited_and_nothing_else() -> None:
    entries = set(
        re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), flags=re.MULTILINE)
    )
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for suffix in ("md", "ipynb")
        for path in (ROOT / "book").rglob(f"*.{suffix}")
    )
    cited = {
        key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")
    }
    assert cited == entries


def test_numbered_references_do_not_meet_on_a_page() -> None:
    lines = ["The rule [1]_ and its proof [2]_.", "", ".. [1] One, 1999.", "    .. [2] Two, 2001."]
    reference.number_references(None, "function", "companion.a.Thing", None, None, lines)
    assert lines == [
        "The rule [#companion-a-thing-1]_ and its proof [#companion-a-thing-2]_.",
        "",
        ".. [#companion-a-thing-1] One, 1999.",
        "    .. [#companion-a-thing-2] Two, 2001.",
    ]
