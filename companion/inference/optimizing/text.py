"""An optimization for a terminal: a table of all candidates, and in plain words why one was taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from companion.inference.benchmarking.report import Faster, MeasuredFolder
from companion.inference.benchmarking.text import number, times
from companion.inference.optimizing.choosing import compared
from companion.inference.optimizing.record import Aim, Optimization, Tried, alone, batched
from companion.inference.quality.record import percents, points
from companion.inference.tables import table

__all__ = ["explain", "report"]

_SOURCE = "the source"
_WORDS = ("candidate", "verdict")
"""Columns of words."""
_BETTER = {
    "latency": "answers one text fastest",
    "throughput": "answers the most texts per second",
    "size": "has the smallest folder",
}


def report(found: Optimization) -> str:
    """Write the table of all candidates, and the explanation below it.

    Parameters
    ----------
    found : Optimization

    Returns
    -------
    str
    """
    rows = [] if found.source is None else [_measured(_SOURCE, found.source, found.objective)]
    title = f"{found.task}, {found.examples:,} examples; objective: {found.objective}"
    rows += [_row(one, found) for one in found.tried]
    return f"{table(title, rows, left=_WORDS)}\n\n{explain(found)}"


def explain(found: Optimization) -> str:
    """Say what was taken, by how much it won, what it costs, and why nothing else was taken.

    Parameters
    ----------
    found : Optimization

    Returns
    -------
    str
        Lines of whole sentences.
    """
    winner = found.winner
    parts = [_nothing(found)] if winner is None else list(_won(winner, found))
    refused = [
        f"{_full_name(one)}: {one.refused}."
        for one in found.tried
        if one.refused is not None and one is not winner
    ]
    if refused:
        parts.append("Refused:\n" + "\n".join(f"- {line}" for line in refused))
    return "\n".join([*parts, *found.notes])


def _nothing(found: Optimization) -> str:
    return (
        f"Nothing is written to {found.out}: not even the fp32 export is shown to answer as the source does. "
        "Give more held-out examples, or compare the two folders with companion benchmark."
    )


def _won(winner: Tried, found: Optimization) -> Iterator[str]:
    if found.fallback:
        yield (
            f"No narrow candidate is shown to stay within {found.max_drop:g} points, so {found.out} holds "
            "the model in fp32, as it is."
        )
    elif found.tied:
        yield (
            f"{_full_name(winner)} is written to {found.out}. By {found.objective} this run cannot tell it "
            f"from {_listed(found.tied)}, and of these it changes the fewest answers."
        )
    else:
        yield f"{_full_name(winner)} {_BETTER[found.objective]}. It is written to {found.out}."
    yield _speed(winner, found)
    yield _cost(winner, found)
    yield from _others(winner, found)


def _speed(winner: Tried, found: Optimization) -> str:
    assert winner.measured is not None and winner.bytes is not None and found.source is not None
    single, many = alone(winner.measured), batched(winner.measured)
    parts = [
        f"One text takes {_milliseconds(winner.measured)} ms{_than_source(single.faster)}",
        f"in batches of {many.batch_size} it answers {number(many.texts_per_second)} texts per second"
        f"{_than_source(many.faster)}",
    ]
    plain = next((one for one in found.tried if one.name == "fp32" and one.measured is not None), None)
    if plain is not None and plain is not winner:
        aim: Aim = "throughput" if found.objective == "throughput" else "latency"
        parts.append(f"against fp32 in onnxruntime that is {_times(compared(plain, winner, aim))}")
    size = f"Its folder has {winner.bytes / 1e6:.1f} MB"
    if found.source.bytes:
        size += f", the source's {found.source.bytes / 1e6:.1f}"
    return "; ".join(parts) + f". {size}."


def _cost(winner: Tried, found: Optimization) -> str:
    assert winner.quality is not None and winner.gate is not None
    flips = winner.quality.flips
    changed = "" if flips is None else f", and {percents(flips)} % of the answers change"
    outcome = "" if winner.gate else f" That is {winner.gate.outcome}."
    neighbours = (
        f" In a check on other texts, {winner.moved_by_batch} answers moved with the batch they were in."
        if winner.moved_by_batch
        else ""
    )
    return (
        f"It costs {points(winner.quality.drop)} points of {found.metric} on {found.examples:,} held-out "
        f"examples{changed}; {found.max_drop:g} points are allowed.{outcome}{neighbours}"
    )


def _others(winner: Tried, found: Optimization) -> Iterator[str]:
    """Compare those that could have been taken."""
    rest = [one for one in found.tried if one.refused is None and one is not winner]
    if found.objective == "size":
        if rest:
            sizes = [f"{one.name} ({(one.bytes or 0) / 1e6:.1f} MB)" for one in rest]
            yield f"Larger: {_listed(sizes)}."
        return
    if close := [one for one in rest if one.name in found.tied]:
        ratios = [f"{one.name} is {_times(compared(winner, one, found.objective))}" for one in close]
        yield f"Too close to call: {_listed(ratios)}."
    if slow := [one for one in rest if one.name not in found.tied]:
        ratios = [f"{one.name} ({_times(compared(winner, one, found.objective))})" for one in slow]
        yield f"Within the budget, but slower: {_listed(ratios)}."


def _row(one: Tried, found: Optimization) -> dict[str, str]:
    row = _measured(_full_name(one), one.measured, found.objective)
    quality = one.quality
    if one.name == found.chosen:
        verdict = "taken"
    elif one.refused is not None:
        verdict = "cannot be made" if one.gate is None else one.gate.outcome
    else:
        verdict = "as good" if one.name in found.tied else "passes"
    return row | {
        "MB": "-" if one.bytes is None else f"{one.bytes / 1e6:.1f}",
        "drop, points": "-" if quality is None else points(quality.drop),
        "changed, %": "-" if quality is None or quality.flips is None else percents(quality.flips),
        "verdict": verdict,
    }


def _measured(name: str, found: MeasuredFolder | None, objective: Aim) -> dict[str, str]:
    """Describe the speed; the columns in their order."""
    row = dict.fromkeys(("candidate", "MB", "drop, points", "changed, %", "ms, one text"), "-")
    row |= {"candidate": name, "texts/s": "-", "times faster": "-", "verdict": ""}
    if found is None:
        return row
    single, many = alone(found), batched(found)
    return row | {
        "MB": "-" if found.bytes is None else f"{found.bytes / 1e6:.1f}",
        "ms, one text": _milliseconds(found),
        "texts/s": number(many.texts_per_second),
        "times faster": times((many if objective == "throughput" else single).faster) or "-",
    }


def _milliseconds(found: MeasuredFolder) -> str:
    return number(1e3 * alone(found).timing.median)


def _full_name(one: Tried) -> str:
    return f"{one.name}, {len(one.kept)} of {one.of} weights kept" if one.kept else one.name


def _than_source(faster: Faster | None) -> str:
    return "" if faster is None else f", {_times(faster)} than the source"


def _times(found: Faster) -> str:
    """Write a ratio such that it is above 1: faster, or slower."""
    ends = found.spread if found.low is None or found.high is None else (found.low, found.high)
    if found.median >= 1:
        return f"{found.median:.2f} times faster ({ends[0]:.2f} to {ends[1]:.2f})"
    return f"{1 / found.median:.2f} times slower ({1 / ends[1]:.2f} to {1 / ends[0]:.2f})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
