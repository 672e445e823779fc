"""What make does: the environment, and the tools behind its targets."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Stands for Python where make calls it, and writes down what is installed: nothing is.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  --version) echo "Python 3.11.0" ;;
  "-m venv --clear .venv")
    echo venv >> log; rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip install"*) echo install >> log; test ! -e broken ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the Makefile and what decides about its environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", f"PYTHON={folder / 'python'}", *targets]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def log(folder: Path) -> list[str]:
    """Return what was made and installed since the last call."""
    path = folder / "log"
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_make_alone_says_what_there_is(checkout: Path) -> None:
    answer = make(checkout)
    for target in ("env", "book", "test", "clean"):
        assert f"make {target}" in answer.stdout
    assert log(checkout) == []


def test_the_environment_is_installed_once(checkout: Path) -> None:
    assert make(checkout, "env").returncode == 0
    assert log(checkout) == ["venv", "install"]
    assert make(checkout, "env").returncode == 0
    assert log(checkout) == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_list_is_installed_into_the_same_environment(name: str, checkout: Path) -> None:
    make(checkout, "env")
    log(checkout)
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    make(checkout, "env")
    assert log(checkout) == ["install"]
    make(checkout, "env")
    assert log(checkout) == []


def test_an_interrupted_installation_begins_again_from_nothing(checkout: Path) -> None:
    (checkout / "broken").touch()
    answer = make(checkout, "env")
    assert answer.returncode != 0
    assert "complete" not in answer.stdout
    assert log(checkout) == ["venv", "install"]
    (checkout / "broken").unlink()
    assert make(checkout, "env").returncode == 0
    assert log(checkout) == ["venv", "install"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return tools/test.py as a module that writes its reports into a temporary folder."""
    specification = importlib.util.spec_from_file_location("make_test", ROOT / "tools" / "test.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    # Its dataclass looks its module up.
    monkeypatch.setitem(sys.modules, "make_test", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "REPORTS", tmp_path / "reports")
    return module


def test_a_failed_step_is_shown_in_full_and_fails_the_whole(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tool.run("bad", [sys.executable, "-c", "print('why'); print('last words'); raise SystemExit(3)"])
    good = tool.run("good", [sys.executable, "-c", "print('quiet'); print('====== 3 passed in 0.1s ======')"])
    shown = capsys.readouterr().out
    assert "why" in shown
    assert "quiet" not in shown
    assert (bad.passed, bad.result) == (False, "FAILED: last words")
    assert (good.passed, good.result) == (True, "3 passed in 0.1s")

    ran: list[str] = []

    def step(name: str, outcome: object) -> list[object]:
        ran.append(name)
        return [outcome]

    monkeypatch.setattr(tool, "check_code", lambda: step("code", bad))
    monkeypatch.setattr(tool, "check_package", lambda: step("package", good))
    monkeypatch.setattr(tool, "notebooks", lambda: [])
    assert tool.main() == 1
    assert ran == ["code", "package"]
    assert "FAILED: bad" in capsys.readouterr().out
    monkeypatch.setattr(tool, "check_code", lambda: step("code", good))
    assert tool.main() == 0


def test_a_notebook_runs_again_only_when_it_or_the_package_changed(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notebook = tmp_path / "book" / "page.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("{}")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool.cache_key, "cache_key", lambda root: state["package"])
    state, passes, ran = {"package": "1"}, [False, True, True, True], []

    def pytest_step(name: str, *arguments: str, env: object = None) -> object:
        ran.append(name)
        return tool.Outcome(name, passes[len(ran) - 1], "", 1.0)

    monkeypatch.setattr(tool, "pytest", pytest_step)
    assert not tool.check_notebook(notebook).passed
    assert tool.check_notebook(notebook).passed, "a failure is not remembered"
    assert tool.check_notebook(notebook).result == "unchanged since it passed, not run again"
    assert len(ran) == 2
    state["package"] = "2"
    tool.check_notebook(notebook)
    assert len(ran) == 3
    notebook.write_text("{ }")
    tool.check_notebook(notebook)
    assert len(ran) == 4


def test_stripping_keeps_only_checked_outputs(tmp_path: Path) -> None:
    def cell(*tags: str) -> dict[str, object]:
        output = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
        return {
            "cell_type": "code",
            "execution_count": 1,
            "id": f"cell-{len(tags)}",
            "metadata": {"tags": list(tags), "scrolled": True},
            "outputs": [output],
            "source": ["print(1)"],
        }

    path = tmp_path / "page.ipynb"
    notebook = {
        "cells": [cell(), cell("nbval-check-output")],
        "metadata": {"vscode": 1},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(notebook))
    command = [sys.executable, str(ROOT / "tools" / "strip_notebooks.py"), str(path)]
    assert subprocess.run(command, capture_output=True).returncode == 1
    after = json.loads(path.read_text())
    assert (after["cells"][0]["outputs"], after["cells"][0]["execution_count"]) == ([], None)
    assert after["cells"][1]["outputs"] == cell()["outputs"]
    assert after["metadata"] == {}
    assert subprocess.run(command, capture_output=True).returncode == 0
