"""The measurements of `benchmarks/quantization.py`, printed as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantization_recovery import Recovered, recovered

Rows = Mapping[str, Mapping[str, Any]]


def text(rows: Rows) -> str:
    """Write all tables for which there are measurements."""
    tables = [accuracies(rows), *races(rows), *sensitive(rows), *recoveries(rows)]
    return "\n\n".join(table for table in tables if table)


def accuracies(rows: Rows) -> str:
    found = under(rows, "accuracy")
    if not found:
        return ""
    first = next(iter(found.values()))
    lines = [
        f"accuracy of torch FP32: {first['reference']:.4f} on {first['examples']} examples",
        f"{'':26} accuracy  drop in points (95%)       flips  moved by batch  size   needs",
    ]
    for name, row in found.items():
        drop = row["drop_points"]
        interval = f"{drop['value']:+.2f} ({drop['low']:+.2f} to {drop['high']:+.2f})"
        size = f"{row['share_of_fp32']:.1%}" if "share_of_fp32" in row else "-"
        needs = " ".join(row.get("cpu_features", ())) or "-"
        lines.append(
            f"{name:26} {row['accuracy']:.4f}    {interval:26} {row['flips']:5} {row['moved_by_batch']:15} "
            f"{size:>6}  {needs}"
        )
    return "\n".join(lines)


def races(rows: Rows) -> list[str]:
    """One table for each part that was timed: texts per second, and how many times faster int8 is."""
    tables = []
    for part in ("speed", "peers", "torch"):
        found = {size: row for size, row in under(rows, part).items() if "texts_per_second" in row}
        if not found:
            continue
        sizes = list(found)
        head = "".join(f"  batch {size:>2}: per second, int8 is faster" for size in sizes)
        lines = [f"{part}, {found[sizes[0]]['threads']} threads", f"{'':26}{head}"]
        for name in found[sizes[0]]["texts_per_second"]:
            cells = []
            for size in sizes:
                ratio = found[size]["int8_is_faster"][name]
                shown = f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})"
                cells.append(f"{found[size]['texts_per_second'][name]:15.0f}   {shown:>19}")
            lines.append(f"{name:26}" + "  ".join(cells))
        tables.append("\n".join(lines))
    return tables


def sensitive(rows: Rows) -> list[str]:
    tables = []
    for name, row in under(rows, "sensitivity").items():
        lines = [f"{name}: the layers that pay most, each narrowed alone, {row['texts']} texts"]
        lines += [
            f"  {layer['layer']:50} divergence {layer['divergence']:.2e}, flips {layer['flips']}"
            for layer in row["layers"][:5]
        ]
        for key, chosen in under(rows, "mixed").items():
            scheme, _, budget = key.partition("/")
            if scheme == name:
                none, some = chosen["none kept"], chosen["mixed"]
                kept = "all" if chosen["kept"] is None else len(chosen["kept"])
                lines.append(
                    f"  flips of at most {float(budget):.2%}: {kept} of {chosen['of']} stay wide; held out: "
                    f"accuracy {none['accuracy']:.4f} -> {some['accuracy']:.4f} (FP32 "
                    f"{chosen['accuracy_fp32']:.4f}), flips {none['flips']} -> {some['flips']}, size "
                    f"{none['share_of_fp32']:.0%} -> {some['share_of_fp32']:.0%}"
                )
        tables.append("\n".join(lines))
    return tables


def recoveries(rows: Rows) -> list[str]:
    """What training with rounding won back, by configuration, over seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for key, row in under(rows, "qat").items():
        found.setdefault(key.rpartition("/")[0], []).append(row)
    return [recovery_lines(name, recovered(seeds)) for name, seeds in found.items()]


def recovery_lines(name: str, found: Recovered) -> str:
    shares = ", ".join("-" if share is None else f"{share:.0%}" for share in found.shares)
    lines = [f"{name}: {len(found.shares)} seeds; lost against FP32 in points, of the accuracy of all seeds"]
    for variant, lost in found.lost.items():
        low, high = lost.low, lost.high
        lines.append(f"  {variant:42} {100 * lost.value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})")
    if found.share is not None:
        whole = f"{found.share.value:.0%} ({found.share.low:.0%} to {found.share.high:.0%})"
        lines.append(f"  recovered {whole}; by seed: {shares}")
    return "\n".join(lines)


def under(rows: Rows, part: str) -> dict[str, Mapping[str, Any]]:
    return {key.removeprefix(f"{part}/"): row for key, row in rows.items() if key.startswith(f"{part}/")}
