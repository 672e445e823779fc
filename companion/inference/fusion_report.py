"""What a comparison of fusions found: operators, times, and where the times went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from companion.inference.profiling import OperatorProfile
from companion.inference.tables import table
from companion.inference.timing import Timing

__all__ = ["FUSIONS", "NUMBERS", "FusedGraph", "Fusion", "FusionReport", "Numbers", "Shape"]

Fusion = Literal["none", "attention", "attention and projections", "attention, first token"]
Numbers = Literal["fp32", "int8", "standard int8"]

FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
NUMBERS: tuple[Numbers, ...] = get_args(Numbers)
Shape = tuple[int, int]


@dataclass(frozen=True)
class FusedGraph:
    """One graph.

    Attributes
    ----------
    fusion : {"none", "attention", "attention and projections", "attention, first token"}
    numbers : {"fp32", "int8", "standard int8"}
    operators : dict of str to int
        Nodes by operator, in the file.
    seconds : dict of (int, int) to Timing
        Of one batch, by its rows and tokens.
    faster : dict of (int, int) to (float, (float, float))
        Than the graph with the same numbers and the first of the fusions: median and spread of the rounds.
    difference : float
        Largest difference of a logit from the first graph of all.
    profiles : dict of (int, int) to OperatorProfile
    """

    fusion: Fusion
    numbers: Numbers
    operators: dict[str, int]
    seconds: dict[Shape, Timing]
    faster: dict[Shape, tuple[float, tuple[float, float]]]
    difference: float
    profiles: dict[Shape, OperatorProfile]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "fusion": self.fusion,
            "numbers": self.numbers,
            "operators": self.operators,
            "difference": self.difference,
            "shapes": [
                {
                    "rows": shape[0],
                    "tokens": shape[1],
                    "seconds": list(self.seconds[shape].seconds),
                    "faster": self.faster[shape][0],
                    "spread": list(self.faster[shape][1]),
                    "profile": self.profiles[shape].to_dict(),
                }
                for shape in self.seconds
            ],
        }


@dataclass(frozen=True)
class FusionReport:
    """Graphs that took turns with the same batches.

    Attributes
    ----------
    graphs : tuple of FusedGraph
    shapes : tuple of (int, int)
        Rows and tokens of the batches.
    layers : int
        Of the model: so many attentions there are to fuse.
    """

    graphs: tuple[FusedGraph, ...]
    shapes: tuple[Shape, ...]
    layers: int

    def find(self, fusion: str, numbers: str) -> FusedGraph:
        """Return one graph; KeyError where it was not measured."""
        for graph in self.graphs:
            if (graph.fusion, graph.numbers) == (fusion, numbers):
                return graph
        raise KeyError((fusion, numbers))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {"layers": self.layers, "graphs": [graph.to_dict() for graph in self.graphs]}

    def text(self) -> str:
        """Write a table for a terminal: operators as counted in the files, and times."""
        rows = []
        for graph in self.graphs:
            row = {
                "numbers": graph.numbers,
                "fused": graph.fusion,
                "nodes": str(sum(graph.operators.values())),
            }
            row["attentions"] = str(sum(graph.operators.get(name, 0) for name in _FUSED))
            row["softmaxes"] = str(graph.operators.get("Softmax", 0))
            for shape in self.shapes:
                median, (low, high) = graph.faster[shape]
                row[f"{shape[0]}x{shape[1]} ms"] = f"{1e3 * graph.seconds[shape].median:.2f}"
                row[f"{shape[0]}x{shape[1]} faster"] = f"{median:.2f} ({low:.2f} to {high:.2f})"
            row["logits off by"] = f"{graph.difference:.1g}"
            rows.append(row)
        title = f"{self.layers} layers. Faster: than the same numbers unfused"
        return table(title, rows, left={"numbers", "fused"})

    def profile_text(self, numbers: str, shape: Shape | None = None, *, most: int = 12) -> str:
        """Write where the time of graphs with the same numbers goes: operators down, fusions across.

        Parameters
        ----------
        numbers : {"fp32", "int8", "standard int8"}
        shape : (int, int), optional
            Default: the first.
        most : int
            Operators with a line of their own.
        """
        shape = self.shapes[0] if shape is None else shape
        profiles = {g.fusion: g.profiles[shape] for g in self.graphs if g.numbers == numbers}
        spent = {
            row.operator: max(profile.seconds_per_run(row.operator) for profile in profiles.values())
            for profile in profiles.values()
            for row in profile.rows
        }
        names = sorted(spent, key=lambda name: -spent[name])
        parts: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in names[:most]]
        if len(names) > most:
            parts.append((f"{len(names) - most} others", tuple(names[most:])))
        rows = [
            {"operator": label} | {f: _share(profile, operators) for f, profile in profiles.items()}
            for label, operators in (*parts, ("all", ()))
        ]
        title = f"{numbers}, {shape[0]} x {shape[1]} tokens: milliseconds of a batch (nodes)"
        return table(title, rows, left={"operator"})


_FUSED = ("MultiHeadAttention", "Attention", "QAttention")


def _share(profile: OperatorProfile, operators: tuple[str, ...]) -> str:
    spent = profile.seconds_per_run(*operators)
    if operators and not spent:
        return "-"
    nodes = sum(row.nodes for row in profile.rows if not operators or row.operator in operators)
    return f"{1e3 * spent:.3f} ({nodes})"
