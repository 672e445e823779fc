"""Strip notebooks: `python tools/strip_notebooks.py FILE...`. Exits 1 when a file was changed, as hooks do.

Outputs stay only in cells with the tag nbval-check-output, where nbval compares them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CHECKED = "nbval-check-output"


def strip(notebook: dict[str, Any]) -> None:
    """Remove, in place, what a run leaves behind: outputs, execution counts, editor state."""
    for name in ("widgets", "vscode", "toc"):
        notebook["metadata"].pop(name, None)
    notebook["metadata"].get("language_info", {}).pop("version", None)
    for cell in notebook["cells"]:
        for name in ("collapsed", "scrolled", "execution", "ExecuteTime"):
            cell["metadata"].pop(name, None)
        if cell["cell_type"] == "code" and CHECKED not in cell["metadata"].get("tags", []):
            cell["outputs"], cell["execution_count"] = [], None


def main(paths: list[str]) -> int:
    changed = 0
    for path in map(Path, paths):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        strip(notebook)
        after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if json.loads(before) != notebook:
            beside = path.with_name(path.name + ".new")
            beside.write_text(after, encoding="utf-8")
            beside.replace(path)
            print(f"stripped {path}")
            changed = 1
    return changed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
