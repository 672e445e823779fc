"""Is the same text on both sides of a split?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from companion.data import Example
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.samples import joined, sampled, train_and_held_out
from companion.debugging.finding import Finding
from companion.debugging.near_duplicates import near_duplicates, normalised, similarity
from companion.debugging.subject import Subject

__all__ = ["exact_leakage", "near_duplicate_leakage", "repeated_rows"]

TRAIN_ROWS, HELD_OUT_ROWS = 8_000, 500
_ALIKE = 0.7
_FEW_WORDS = 5
"""Shorter texts ("very good") are written twice by chance."""

Key = tuple[str, str]


def _key(row: Example) -> Key:
    return normalised(row.text), normalised(row.pair or "")


def _words(key: Key) -> int:
    return sum(len(part.split()) for part in key)


@check(family="data", component="splits", needs=("splits",), likelihood=0.8)
def exact_leakage(subject: Subject) -> Finding:
    """Is a text of train also in dev or test?"""
    train, others = train_and_held_out(subject)
    known = {_key(row) for row in train}
    evidence = {"examples": float(len(train))}
    worst, worst_share, worst_count, first = "", 0.0, 0, ""
    for name, rows in others:
        keys = [_key(row) for row in rows]
        places = [i for i, key in enumerate(keys) if key in known and _words(key) >= _FEW_WORDS]
        share = len(places) / len(rows)
        evidence[f"share of {name} that is in train"] = share
        if len(places) >= 2 and share >= worst_share:
            worst, worst_share, worst_count, first = name, share, len(places), f"{name}, row {places[0]}"
    if worst_share >= 0.01:
        return exact_leakage.problem(
            f"{worst_count} texts of {worst} ({worst_share:.1%}) are also in train; expected none",
            evidence,
            where=first,
            why="They are remembered, not understood: the score is too good, and chooses the wrong model.",
            fix="Remove duplicates before splitting, or keep all copies of a text on one side.",
        )
    return exact_leakage.ok(f"less than 1% of any split is also in train (most: {worst_share:.1%})", evidence)


@check(family="data", component="splits", needs=("splits",), likelihood=0.7)
def near_duplicate_leakage(subject: Subject) -> Finding:
    """Is a text of dev or test almost the same as one of train?"""
    train, others = train_and_held_out(subject)
    searched = sampled(train, TRAIN_ROWS)
    part = len(searched) / len(train)
    evidence = {"examples": float(len(searched)), "share of train searched": part}
    worst, worst_share, first = "", 0.0, ""
    for name, rows in others:
        asked = sampled(rows, HELD_OUT_ROWS)
        if sum(_words(_key(row)) >= 10 for row in asked) < 10:
            continue
        hits = _near(asked, searched)
        # What is found in a part of train is a part of what there is.
        share = min(1.0, len(hits) / len(asked) / part)
        evidence |= {f"share of {name}": share, f"found in {name}": float(len(hits))}
        if len(hits) >= 2 and share > worst_share:
            mine, theirs, alike = hits[0]
            worst, worst_share = name, share
            first = f"{name} {asked[mine].text[:60]!r} and train {searched[theirs].text[:60]!r}: {alike:.2f}"
    if len(evidence) == 2:
        raise NotApplicable(
            "it needs 10 texts of at least 10 words: in a few words, a template looks like a copy"
        )
    if worst_share >= 0.02:
        return _near_problem(searched, evidence, worst, worst_share, first)
    return near_duplicate_leakage.ok(
        f"less than 2% of any split is almost the same as a text of train (most: {worst_share:.1%})", evidence
    )


def _near_problem(
    train: Sequence[Example], evidence: dict[str, float], name: str, share: float, first: str
) -> Finding:
    """Tell copies between the splits from text that repeats itself everywhere."""
    asked = sampled(train, HELD_OUT_ROWS // 2, seed=1)
    inside = len(_near(asked, train)) / len(asked)
    evidence = {**evidence, "share inside train": inside}
    also = f", as are {inside:.1%} of the texts of train to one another" if inside >= share / 2 else ""
    return near_duplicate_leakage.problem(
        f"{share:.1%} of {name} is almost the same as a text of train{also}",
        evidence,
        where=first,
        why="The score measures memory, not what the model does with new texts.",
        fix="Put near duplicates on one side: group them (`near_duplicates`) and split the groups. If "
        "copies were made to enlarge the data, split first and enlarge train only."
        + (" If texts come from one template or source, split by that." if also else ""),
        likelihood=0.35 if also else None,
    )


def _near(asked: Sequence[Example], among: Sequence[Example]) -> list[tuple[int, int, float]]:
    """Return (position, position, similarity), the closest for each text that is alike but not equal.

    Both texts of a pair must be alike: one premise with two hypotheses is two questions.
    """
    best: dict[int, tuple[float, int]] = {}
    for pair in near_duplicates([joined(r) for r in asked], [joined(r) for r in among], threshold=_ALIKE):
        mine, theirs = asked[pair.first], among[pair.second]
        if _key(mine) == _key(theirs):
            continue
        if mine.pair is not None and theirs.pair is not None:
            parts = similarity(mine.text, theirs.text), similarity(mine.pair, theirs.pair)
            if min(parts) < _ALIKE:
                continue
        best[pair.first] = max(best.get(pair.first, (0.0, -1)), (pair.similarity, pair.second))
    found = [(mine, theirs, alike) for mine, (alike, theirs) in best.items()]
    return sorted(found, key=lambda hit: -hit[2])


@check(family="data", component="splits", needs=("splits",), likelihood=0.2)
def repeated_rows(subject: Subject) -> Finding:
    """Is a text in train more than once?"""
    train = subject.splits.get("train", ())
    counts = Counter(key for key in map(_key, train) if _words(key) >= _FEW_WORDS)
    total = sum(counts.values())
    if total < 20:
        raise NotApplicable(f"it needs 20 texts of at least {_FEW_WORDS} words in train")
    extra = total - len(counts)
    most = counts.most_common(1)[0][1]
    evidence = {"share": extra / total, "copies of the commonest": float(most), "examples": float(total)}
    if extra / total >= 0.03 and extra >= 3:
        return repeated_rows.problem(
            f"{extra} of {total} texts of train ({extra / total:.1%}) repeat an earlier one, one of them "
            f"{most} times",
            evidence,
            where="train",
            why="What is repeated counts more, and a random split of such data leaks.",
            fix="Keep one of each, unless the counts are meant.",
        )
    return repeated_rows.ok(f"{extra} of {total} texts of train repeat an earlier one", evidence)
