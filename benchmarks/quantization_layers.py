"""Which layers pay for narrow numbers, and how few must stay wide: the part `sensitivity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from companion import inference
from companion.inference.quantization.schemes import Scheme, quantize
from companion.inference.sessions import run_all


def layers(graph: Any, feeds: Sequence[dict[str, Any]], scheme: Scheme) -> dict[str, Any]:
    found = inference.sensitivities(graph, feeds, scheme)
    return {"texts": len(feeds), "layers": [asdict(one) | {"layer": one.layer} for one in found]}


def mixed(
    graph: Any,
    seen: Sequence[dict[str, Any]],
    unseen: Sequence[dict[str, Any]],
    truth: Sequence[float],
    scheme: Scheme,
    order: Sequence[str],
    budget: float,
) -> dict[str, Any]:
    """Keep the fewest layers wide that hold the flips on texts seen; judge the result on others."""
    wide = graph.SerializeToString()
    expected = run_all(wide, seen).argmax(axis=1)

    def acceptable(kept: tuple[str, ...]) -> bool:
        narrow = quantize(graph, scheme, keep=kept).SerializeToString()
        return bool((run_all(narrow, seen).argmax(axis=1) != expected).mean() <= budget)

    kept = inference.fewest_kept(order, acceptable)
    row: dict[str, Any] = {"budget": budget, "kept": kept, "of": len(order)}
    reference = run_all(wide, unseen).argmax(axis=1)
    for name, names in {"none kept": (), "mixed": order if kept is None else kept}.items():
        narrow = quantize(graph, scheme, keep=names).SerializeToString()
        chosen = run_all(narrow, unseen).argmax(axis=1)
        row[name] = {
            "accuracy": float((chosen == np.array(truth)).mean()),
            "flips": int((chosen != reference).sum()),
            "share_of_fp32": len(narrow) / len(wide),
        }
    return row | {"accuracy_fp32": float((reference == np.array(truth)).mean())}
