"""The measurements of a benchmark, kept as they come: the same command run again goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from companion import artifacts


class Store:
    """Measurements in a JSON file, all made with the same settings.

    `stamp` goes into each row, beside its date and machine.
    """

    def __init__(self, path: Path, settings: dict[str, Any], **stamp: Any) -> None:
        self.path, self.settings, self.stamp = path, settings, stamp
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["settings"] != settings:
                raise SystemExit(
                    f"{path} was measured with other settings: {_other(kept['settings'], settings)}"
                )
            self.rows = kept["rows"]

    def measured(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a stored row, or measure it and store it with date and machine."""
        if key not in self.rows:
            row = measure()
            self._keep(key, row)
            shown = {name: value for name, value in row.items() if not isinstance(value, dict | list)}
            print(key, json.dumps(shown), flush=True)
        return self.rows[key]

    def change(self, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Measure a part of a stored row again, and date it anew."""
        self._keep(key, change(self.rows[key]))

    def _keep(self, key: str, row: dict[str, Any]) -> None:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows[key] = row | {"date": date, **self.stamp, "machine": artifacts.machine()}
        with artifacts.staged_file(self.path) as file:
            file.write_text(json.dumps({"settings": self.settings, "rows": self.rows}) + "\n")


def _other(kept: dict[str, Any], asked: dict[str, Any]) -> str:
    names = [name for name in {**kept, **asked} if kept.get(name) != asked.get(name)]
    found = ", ".join(f"{name} {str(kept.get(name))[:60]}, not {str(asked.get(name))[:60]}" for name in names)
    return f"{found}. Give another --out, or the same settings"
