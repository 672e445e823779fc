"""Run every chapter and render the site: what `make book` calls.

Warnings are errors, a failed cell fails the build. Says at the end what was done and how long it took.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
SITE = BUILD / "html"
# Written when a build ends well: the key of all that it was built from.
COMPLETE = BUILD / ".complete"
SOURCES = ("_config.yml", "_toc.yml", "pyproject.toml", "book", "companion", "solutions", "tools/book.py")

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import cache_key  # noqa: E402


def key() -> str:
    """Return a key for all that the site is built from: every source file, the versions and the settings."""
    hashed = hashlib.sha256(cache_key.cache_key(ROOT).encode())
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts and ".ipynb_checkpoints" not in file.parts:
                hashed.update(
                    f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes()
                )
    return hashed.hexdigest()


def unchanged() -> bool:
    """Say whether the site is there, and is what these sources give."""
    return (SITE / "index.html").exists() and COMPLETE.exists() and COMPLETE.read_text() == key()


def forget_pages() -> None:
    """Make Sphinx read every page again: it warns about a page when it reads it, and at no other time.

    Without this, a build that failed on a warning would pass the second time. Executed notebooks stay cached.
    """
    for folder in (BUILD / ".doctrees", SITE / ".doctrees"):
        shutil.rmtree(folder, ignore_errors=True)


def build() -> int:
    """Render the site and return the exit status."""
    if not COMPLETE.exists():
        forget_pages()
    COMPLETE.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(ROOT)]
    status = subprocess.run([*command, "-W", "-n", "--keep-going"], cwd=ROOT).returncode
    if status == 0 and not (SITE / "index.html").exists():
        print(f"no {SITE / 'index.html'} was written")
        return 1
    if status == 0:
        COMPLETE.write_text(key())
    return status


def runs(since: datetime) -> list[tuple[str, float, bool]]:
    """Return each notebook in the execution cache: path, seconds, and whether it ran since then."""
    from jupyter_cache import get_cache

    folder = BUILD / ".jupyter_cache" / cache_key.cache_key(ROOT)
    if not folder.is_dir():
        return []
    found = {}  # an edited notebook has a record for each state: the newest counts
    for entry in sorted(get_cache(folder).list_cache_records(), key=lambda entry: entry.created):
        path = Path(entry.uri)
        if path.is_file() and path.is_relative_to(ROOT):
            seconds = float(entry.data.get("execution_seconds", 0.0))
            found[path.relative_to(ROOT).as_posix()] = seconds, entry.created.replace(tzinfo=UTC) >= since
    return sorted(((name, *run) for name, run in found.items()), key=lambda run: -run[1])


def pages() -> int:
    """Count the pages of the site, from its search index."""
    text = (SITE / "searchindex.js").read_text(encoding="utf-8")
    return len(json.loads(text[text.index("(") + 1 : text.rindex(")")])["docnames"])


def main() -> int:
    since, started = datetime.now(UTC).replace(microsecond=0), time.monotonic()
    status = 0 if unchanged() else build()
    seconds = time.monotonic() - started
    if status:
        print(f"\nbook: FAILED after {seconds:.0f} s; the messages are above")
        return status
    notebooks = runs(since)
    executed = [run for run in notebooks if run[2]]
    kept = len(notebooks) - len(executed)
    print(f"\nbook: {pages()} pages; notebooks: {len(executed)} executed, {kept} unchanged; {seconds:.0f} s")
    for name, took, fresh in notebooks[:10]:
        print(f"  {took:7.1f} s  {name}{'' if fresh else '  (from the cache)'}")
    print(f"book: open {SITE / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
