"""The execution cache: a changed package runs its pages again, an unchanged one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cache_key
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CONF = """
import sys
sys.path.insert(0, {extension!r})
extensions = ["myst_nb", "companion_book"]
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
html_math_renderer = "mathml"
exclude_patterns = ["_build", "companion"]
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Return a book of one notebook, which writes a line to `runs.txt` whenever it runs."""
    (tmp_path / "companion").mkdir()
    (tmp_path / "companion" / "__init__.py").write_text("ANSWER = 1\n")
    (tmp_path / "companion" / "ledger.toml").write_text("")
    (tmp_path / "constraints.txt").write_text("numpy==2\n")
    (tmp_path / "conf.py").write_text(CONF.format(extension=str(ROOT / "book" / "_ext")))
    log = str(tmp_path / "runs.txt")
    code = f"from pathlib import Path\nwith Path({log!r}).open('a') as log:\n    log.write('run ')"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Page"), nbformat.v4.new_code_cell(code)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "index.ipynb")
    return tmp_path


def build(book: Path) -> int:
    """Build the book and return how often its notebook has run so far."""
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", ".", "_build/html"]
    done = subprocess.run(command, cwd=book, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return len((book / "runs.txt").read_text().split())


def test_a_changed_package_runs_the_page_again(book: Path) -> None:
    assert build(book) == 1
    assert build(book) == 1, "nothing changed"
    (book / "companion" / "__init__.py").write_text("ANSWER = 2\n")
    assert build(book) == 2, "the package changed"
    (book / "companion" / "__init__.py").write_text("ANSWER = 1\n")
    assert build(book) == 2, "the change was taken back: its results are still there"


@pytest.mark.parametrize(
    "change",
    [
        lambda root, patch: (root / "companion" / "__init__.py").write_text("ANSWER = 3\n"),
        lambda root, patch: (root / "companion" / "ledger.toml").write_text("[[claim]]\n"),
        lambda root, patch: (root / "companion" / "new.py").write_text(""),
        lambda root, patch: (root / "companion" / "__init__.py").rename(root / "companion" / "other.py"),
        lambda root, patch: (root / "constraints.txt").write_text("numpy==3\n"),
        lambda root, patch: patch.setenv("COMPANION_PROFILE", "full"),
        lambda root, patch: patch.setenv("COMPANION_SEED", "1"),
    ],
    ids=["source", "ledger", "new file", "renamed file", "versions", "profile", "seed"],
)
def test_the_key_changes_with_everything_that_can_change_a_result(
    book: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    before = cache_key.cache_key(book)
    change(book, monkeypatch)  # type: ignore[operator]
    assert cache_key.cache_key(book) != before


def test_the_key_does_not_change_with_what_has_no_effect(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key.cache_key(book)
    monkeypatch.setenv("COMPANION_HOME", "/elsewhere")
    monkeypatch.setenv("COMPANION_PROGRESS", "1")
    (book / "index.ipynb").touch()
    (book / "companion" / "__pycache__").mkdir()
    (book / "companion" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert cache_key.cache_key(book) == before


def test_old_caches_are_deleted(tmp_path: Path) -> None:
    for age, name in enumerate(["newest", "newer", "old", "older"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    assert sorted(path.name for path in cache_key.prune(tmp_path)) == ["old", "older"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newer", "newest"]
    assert cache_key.prune(tmp_path / "missing") == []
