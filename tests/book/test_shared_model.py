"""Pages that use the five-minute page's model make it by one recipe, and store it under one key."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]


def cell(page: str, beginning: str) -> str:
    """Return the one code cell of a page that begins so."""
    cells = nbformat.read(ROOT / "book" / f"{page}.ipynb", as_version=4).cells
    (found,) = (one.source for one in cells if one.cell_type == "code" and one.source.startswith(beginning))
    return str(found)


@pytest.mark.parametrize(
    ("page", "beginning"),
    [("deployment", "def fine_tune("), ("deployment", "def export_all("), ("inference", "def fine_tune(")],
)
def test_what_is_stored_under_one_key_is_made_by_one_recipe(page: str, beginning: str) -> None:
    ours, theirs = cell(page, beginning), cell("five-minutes", beginning)
    assert ours.startswith(theirs)


@pytest.mark.parametrize("page", ["deployment", "inference"])
def test_the_keys_are_those_of_the_five_minute_page(page: str) -> None:
    ours, theirs = cell(page, "recipe = "), cell("five-minutes", "recipe = ")
    assert theirs.startswith(ours)
