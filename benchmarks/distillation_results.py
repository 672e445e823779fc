"""The measurements of `benchmarks/distillation.py`: kept as they come, printed as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from companion import artifacts


class Results:
    """The measurements so far, in a JSON file."""

    def __init__(self, path: Path, settings: dict[str, Any], threads: int) -> None:
        self.path, self.settings, self.threads = path, settings, threads
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            stored = json.loads(self.path.read_text())
            if stored["settings"] != self.settings:
                raise SystemExit(
                    f"{self.path} was measured with {stored['settings']}, not {self.settings}: "
                    "give another --out, or the same settings"
                )
            self.rows = stored["rows"]

    def measured(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a stored row, or measure it and store it with date, threads and machine."""
        if key not in self.rows:
            row = measure()
            date = datetime.now(UTC).isoformat(timespec="seconds")
            stamp = {"date": date, "threads": self.threads, "machine": artifacts.machine()}
            self.rows[key] = row | stamp
            with artifacts.staged_file(self.path) as file:
                file.write_text(json.dumps({"settings": self.settings, "rows": self.rows}, indent=1))
            shown = {name: value for name, value in row.items() if not isinstance(value, dict)}
            print(key, json.dumps(shown), flush=True)
        return self.rows[key]

    def text(self) -> str:
        lines = [f"{'':52} teacher student retention minutes"]
        groups: dict[str, list[float]] = {}
        for key, row in self.rows.items():
            if "student" in row:
                kept = "-" if row["retention"] is None else f"{row['retention']:.2%}"
                scores = f"{row['teacher']:7.4f} {row['student']:7.4f} {kept:>9}"
                lines.append(f"{key:52} {scores} {row['seconds'] / 60:7.2f}")
                groups.setdefault(key.rpartition("/")[0], []).append(row["student"])
        for group, values in groups.items():
            if group.startswith("ablation"):
                spread = f"{min(values):.4f} to {max(values):.4f} over {len(values)} seeds"
                lines.append(f"{group:52} median {statistics.median(values):.4f}, {spread}")
        for name, row in self.rows.get("speed", {}).items():
            if "factor" in row:
                low, high = row["spread"]
                lines.append(f"{name:52} {row['factor']:.2f} times faster ({low:.2f} to {high:.2f})")
        return "\n".join(lines)
