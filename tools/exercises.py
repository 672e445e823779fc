"""Make the exercise pages from their solutions: `python tools/exercises.py [--check]`.

A solution is the one source. From it an exercise page is made by these rules:

- Code between `### BEGIN SOLUTION` and `### END SOLUTION` becomes a line that raises NotImplementedError;
  code between `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS` goes. These are nbgrader's own marks.
- Text between `<!-- solution -->` and `<!-- /solution -->` goes; what is in `<!-- exercise: ... -->` shows.
- Relative paths get one step longer, because the page lies one folder deeper.

With `--check` nothing is written; the exit status is 1 when a page is not what its solution gives.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS, EXERCISES = ROOT / "solutions", ROOT / "book" / "exercises"

STARTER = 'raise NotImplementedError("your turn")'
REGION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION(?:\n|\Z)", flags=re.M | re.S)
HIDDEN = re.compile(
    r"^[ \t]*### BEGIN HIDDEN TESTS\n.*?^[ \t]*### END HIDDEN TESTS(?:\n|\Z)", flags=re.M | re.S
)
MARK = re.compile(r"### (?:BEGIN|END) (?:SOLUTION|HIDDEN TESTS)")


def starter(source: str) -> str:
    """Cut what a learner is to write, and the tests that only a solution passes.

    Raises
    ------
    ValueError
        When a mark has no partner, or a region is not inside a function: the page could not be run.
    """
    for region in REGION.finditer(source):
        if not region[1]:
            raise ValueError(
                f"a solution begins outside a function in {source.splitlines()[0]!r}: expected it indented, "
                "so that the page runs before anything is written"
            )
    cut = HIDDEN.sub("", REGION.sub(lambda region: f"{region[1]}{STARTER}\n", source)).rstrip("\n")
    if MARK.search(cut):
        raise ValueError(f"a mark has no partner in {source.splitlines()[0]!r}: expected BEGIN and END")
    return cut


def statement(source: str) -> str:
    """Cut the text that belongs to the solution alone, show what belongs to the exercise alone."""
    cut = re.sub(r"<!-- solution -->.*?<!-- /solution -->\n*", "", source, flags=re.S)
    return re.sub(r"<!-- exercise: (.*?) -->", r"\1", cut, flags=re.S).strip()


def deeper(source: str) -> str:
    """Lengthen relative paths by one step."""
    return re.sub(r"(\]\(|literalinclude\} )\.\./", r"\1../../", source)


def exercise(solution: dict[str, Any]) -> dict[str, Any]:
    """Return the exercise page of a solution; no cell keeps outputs."""
    page = copy.deepcopy(solution)
    cells = []
    for cell in page["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            cell["metadata"].pop("execution", None)
            source = starter(source)
        else:
            source = deeper(statement(source))
        cell["source"] = source.splitlines(keepends=True)
        if source:
            cells.append(cell)
    page["cells"] = cells
    return page


def written(page: dict[str, Any]) -> str:
    return json.dumps(page, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say what is out of date")
    check = parser.parse_args(arguments).check
    stale = 0
    for source in sorted(SOLUTIONS.glob("*.ipynb")):
        page = EXERCISES / source.name
        expected = written(exercise(json.loads(source.read_text(encoding="utf-8"))))
        if page.is_file() and page.read_text(encoding="utf-8") == expected:
            continue
        if check:
            print(f"{page.relative_to(ROOT)} is not what its solution gives: run python tools/exercises.py")
            stale += 1
            continue
        page.parent.mkdir(parents=True, exist_ok=True)
        beside = page.with_name(page.name + ".new")
        beside.write_text(expected, encoding="utf-8")
        beside.replace(page)
        print(f"wrote {page.relative_to(ROOT)}")
    for page in sorted(EXERCISES.glob("*.ipynb")):
        if not (SOLUTIONS / page.name).is_file():
            print(
                f"{page.relative_to(ROOT)} has no solution in {SOLUTIONS.name}/: expected one to make it from"
            )
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
