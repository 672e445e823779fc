"""The measurements of `benchmarks/serving.py`, as ratios and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from serving_candidates import OURS

from companion.inference.tables import ratio_with_spread, table

Rows = Mapping[str, Mapping[str, Any]]
CEILING = "onnxruntime alone"
RATE_ASKED, CEILING_ASKED = 1.1, 0.85


def text(rows: Rows) -> str:
    """Write what there are measurements for."""
    parts = [picks(rows), race(rows), overload(rows)]
    return "\n\n".join(part for part in parts if part)


def under(rows: Rows, part: str) -> dict[str, Mapping[str, Any]]:
    return {name.partition("/")[2]: row for name, row in rows.items() if name.startswith(f"{part}/")}


def best(rows: Rows, names: Sequence[str], part: str = "pick") -> str:
    """Choose the name with the highest median rate among those that were tried."""
    tried = under(rows, part)
    return max((name for name in names if name in tried), key=lambda name: median_of(tried[name]["rates"]))


def median_of(values: Sequence[float]) -> float:
    return statistics.median(values)


def ratios(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Divide round by round; return the median, the lowest and the highest."""
    found = [a / b for a, b in zip(upper, lower, strict=True)]
    return statistics.median(found), (min(found), max(found))


def rounds_of(rows: Rows) -> dict[str, dict[str, list[float]]]:
    """Turn rounds into columns: by candidate, then by what was measured. Complete rounds alone count."""
    rounds = [row["candidates"] for row in under(rows, "race").values()]
    names = [name for name in (rounds[0] if rounds else {}) if all(name in one for one in rounds)]
    return {name: {key: [one[name][key] for one in rounds] for key in rounds[0][name]} for name in names}


def judged(rows: Rows) -> dict[str, Any]:
    """Say how ours stands to the best peer, and to the ceiling."""
    columns = rounds_of(rows)
    peers = [name for name in columns if name not in (OURS, CEILING)]
    if OURS not in columns or not peers:
        return {}
    strongest = max(peers, key=lambda name: median_of(columns[name]["rate"]))
    found: dict[str, Any] = {"best_peer": strongest}
    rate, rate_spread = ratios(columns[OURS]["rate"], columns[strongest]["rate"])
    p99, p99_spread = ratios(columns[OURS]["p99_ms"], columns[strongest]["p99_ms"])
    found |= {"rate": rate, "rate_spread": rate_spread, "p99": p99, "p99_spread": p99_spread}
    found["holds"] = rate >= RATE_ASKED and p99 <= 1
    if CEILING in columns:
        share, spread = ratios(columns[OURS]["rate"], columns[CEILING]["rate"])
        found |= {"ceiling": share, "ceiling_spread": spread, "ceiling_holds": share >= CEILING_ASKED}
    return found


def picks(rows: Rows) -> str:
    found = [
        {"tried": f"{part} {name}", "a second": ", ".join(f"{rate:.0f}" for rate in row["rates"])}
        for part in ("pick", "ceiling")
        for name, row in under(rows, part).items()
    ]
    return table("settings tried, answers or texts a second", found, left=["tried"]) if found else ""


def race(rows: Rows) -> str:
    columns = rounds_of(rows)
    if not columns:
        return ""
    lines = [
        {
            "server": name,
            "a second": f"{median_of(column['rate']):.0f}",
            "lowest": f"{min(column['rate']):.0f}",
            "highest": f"{max(column['rate']):.0f}",
            **{
                key.replace("_", ", "): f"{median_of(column[key]):.0f}" if key in column else ""
                for key in ("p50_ms", "p99_ms")
            },
            "cpu ms each": f"{median_of(column['cpu_ms']):.2f}" if "cpu_ms" in column else "",
            "MB": f"{median_of(column['memory_mb']):.0f}" if "memory_mb" in column else "",
        }
        for name, column in sorted(columns.items(), key=lambda item: -median_of(item[1]["rate"]))
    ]
    count = len(next(iter(columns.values()))["rate"])
    parts = [table(f"in turns, median of {count} rounds", lines, left=["server"])]
    if found := judged(rows):
        parts.append(
            f"ours to the best peer ({found['best_peer']}): requests a second "
            f"{ratio_with_spread(found['rate'], found['rate_spread'])}, asked at least {RATE_ASKED}; p99 "
            f"{ratio_with_spread(found['p99'], found['p99_spread'])}, asked at most 1: "
            + ("holds" if found["holds"] else "does not hold")
        )
        if "ceiling" in found:
            parts.append(
                f"ours to the ceiling: {ratio_with_spread(found['ceiling'], found['ceiling_spread'])}, asked "
                f"at least {CEILING_ASKED}: " + ("holds" if found["ceiling_holds"] else "does not hold")
            )
    return "\n".join(parts)


def overload(rows: Rows) -> str:
    lines = []
    for name, row in under(rows, "overload").items():
        probe, memory = row["probe"], row["memory_mb"]
        lines += [
            f"overload {name}: {row['offered_times']:.1f} times the peak offered; answered "
            f"{row['of_peak']:.2f} of the peak (asked 0.90 to 1.10); of the accepted in time "
            f"{row['in_time']:.2%} (asked 99%); {row['refused']} refused, {row['unexplained']} of them "
            f"without Retry-After, {row['broken']} connections broken, other answers "
            f"{row['other_answers'] or 'none'}",
            f"  by another client's clock {probe['late']} of {probe['accepted']} accepted came late, the "
            f"longest took {probe['longest_ms']:.0f} ms; memory {memory['peak_load']:.0f} MB at the peak, "
            f"{memory['overload']:.0f} MB under overload",
        ]
    return "\n".join(lines)
