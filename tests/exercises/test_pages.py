"""The exercise pages: made from their solutions, and made right."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_exercises", ROOT / "tools" / "exercises.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebook(*cells: tuple[str, str]) -> dict[str, Any]:
    return {
        "cells": [
            {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True), "outputs": ["x"]}
            for kind, text in cells
        ],
        "metadata": {},
    }


def sources(page: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in page["cells"]]


def test_every_page_is_what_its_solution_gives() -> None:
    command = [sys.executable, str(ROOT / "tools" / "exercises.py"), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_a_page_that_is_out_of_date_or_has_no_solution_is_found(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"ROOT": tmp_path, "SOLUTIONS": tmp_path / "solutions", "EXERCISES": tmp_path / "pages"}
    for name, folder in folders.items():
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(tool, name, folder)
    source = folders["SOLUTIONS"] / "a.ipynb"
    source.write_text(json.dumps(notebook(("code", "x = 1"))))
    assert tool.main(["--check"]) == 1 and not (folders["EXERCISES"] / "a.ipynb").exists()
    assert tool.main([]) == 0 and tool.main(["--check"]) == 0
    source.write_text(json.dumps(notebook(("code", "x = 2"))))
    assert tool.main(["--check"]) == 1
    assert tool.main([]) == 0
    source.unlink()
    assert tool.main(["--check"]) == 1
    assert "has no solution" in capsys.readouterr().out


def test_solutions_and_hidden_tests_are_cut_and_the_starter_is_whole(tool: ModuleType) -> None:
    code = (
        "def f(x):\n    ### BEGIN SOLUTION\n    y = 2\n\n    return x * y\n    ### END SOLUTION\n\n\n"
        "result = f\n### BEGIN HIDDEN TESTS\nassert f(2) == 4\n### END HIDDEN TESTS\nresult"
    )
    [cut] = sources(tool.exercise(notebook(("code", code))))
    assert cut == 'def f(x):\n    raise NotImplementedError("your turn")\n\n\nresult = f\nresult'
    scope: dict[str, Any] = {}
    exec(cut, scope)  # defining it raises nothing
    with pytest.raises(NotImplementedError):
        scope["f"](2)


def test_text_of_the_solution_goes_and_text_of_the_exercise_comes(tool: ModuleType) -> None:
    text = (
        "<!-- solution -->\nAnswer\n<!-- /solution -->\n<!-- exercise: # Task\n\nDo it. -->\n\n[b](../c.md)"
    )
    assert sources(tool.exercise(notebook(("markdown", text)))) == ["# Task\n\nDo it.\n\n[b](../../c.md)"]
    gone = tool.exercise(notebook(("markdown", "<!-- solution -->x<!-- /solution -->"), ("code", "y")))
    assert sources(gone) == ["y"]
    assert gone["cells"][0]["outputs"] == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("### BEGIN SOLUTION\nx = 1\n### END SOLUTION", "outside a function"),
        ("def f():\n    ### BEGIN SOLUTION\n    return 1", "no partner"),
        ("x = 1\n### END HIDDEN TESTS", "no partner"),
    ],
)
def test_marks_that_would_spoil_the_page_are_refused(tool: ModuleType, code: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tool.exercise(notebook(("code", code)))


def broken_page(tool: ModuleType) -> list[str]:
    solved = json.loads((ROOT / "solutions" / "broken-transformer.ipynb").read_text(encoding="utf-8"))
    return sources(tool.exercise(solved))


def test_an_empty_folder_of_the_learners_own_is_dealt_into(tool: ModuleType, tmp_path: Path) -> None:
    [cell] = [text for text in broken_page(tool) if text.startswith('mine = ""')]
    own = tmp_path / "mine"
    own.mkdir()
    dealt = []

    class Deals:
        @staticmethod
        def deal(folder: Path) -> None:
            dealt.append(folder)
            (folder / "exercise.json").write_text("{}")

    for _ in range(2):
        scope: dict[str, Any] = {"Path": Path, "broken_transformer": Deals}
        exec(cell.replace('mine = ""', f"mine = {str(own)!r}"), scope)
    assert dealt == [own], "an empty folder is dealt into, a dealt one is left alone"


def test_the_page_warns_before_it_names_a_bug(tool: ModuleType) -> None:
    page = "\n".join(broken_page(tool))
    assert page.count(":::{warning}") == 1
    before = page[: page.index(":::{warning}")]
    told = re.compile(r"attention.mask|\bmask|learning.rate|warm.?up|dropout", flags=re.I)
    assert not told.search(before), "nothing before the warning points at a bug"
    assert not [line for line in page.splitlines() if line.startswith("#") and told.search(line)]


def test_the_page_and_the_task_say_what_a_diff_shows(tool: ModuleType) -> None:
    page = "\n".join(broken_page(tool))
    told = (ROOT / "book" / "exercises" / "teaching.md").read_text(encoding="utf-8")
    for file in ("companion/models/transformer.py", "companion/debugging/recipe.py"):
        assert (ROOT / file).is_file() and file in page and file in told


def test_no_answer_is_left_on_a_page(tool: ModuleType) -> None:
    for source in (ROOT / "solutions").glob("*.ipynb"):
        solved = json.loads(source.read_text(encoding="utf-8"))
        page = "\n".join(sources(tool.exercise(solved)))
        assert "SOLUTION" not in page and "HIDDEN" not in page and "solution -->" not in page
        regions = [r for text in sources(solved) for r in tool.REGION.findall(text)]
        assert page.count(tool.STARTER) == len(regions) > 0
