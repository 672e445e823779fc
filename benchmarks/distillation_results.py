"""The measurements of `benchmarks/distillation.py`, printed as tables."""

from __future__ import annotations

import statistics

from store import Store


class Results(Store):
    """The measurements so far."""

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
            if isinstance(row, dict) and "factor" in row:
                low, high = row["spread"]
                lines.append(f"{name:52} {row['factor']:.2f} times faster ({low:.2f} to {high:.2f})")
        return "\n".join(lines)
