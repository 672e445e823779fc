"""Are the labels what the task says they are?"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from companion.data import Example
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.samples import class_count, class_labels, is_class, joined, sampled
from companion.debugging.finding import Finding
from companion.debugging.label_errors import label_errors, noise_rate, out_of_fold
from companion.debugging.near_duplicates import normalised
from companion.debugging.subject import Subject

__all__ = ["conflicting_labels", "label_balance", "label_range", "label_shift", "likely_label_errors"]

ROWS = 8_000
WORTH_A_WORD, MISLEADING = 0.9, 0.99
"""Shares of train that one class has: from where on accuracy starts high, and from where on it ends there."""
_FOLDS = 5


@check(family="data", component="labels", needs=("splits",), likelihood=0.9)
def label_range(subject: Subject) -> Finding:
    """Does every row have a label of the kind that the task has, and is there more than one?"""
    if subject.kind not in ("classification", "regression"):
        raise NotApplicable(f"a {subject.kind} reads no labels")
    rows = [(name, i, row.label) for name, part in subject.splits.items() for i, row in enumerate(part)]
    # Public test sets have no labels, or -1 for all.
    unlabelled = {row.label for row in subject.splits.get("test", ())} <= {None, -1}
    known = [row for row in rows if row[0] != "test" or not unlabelled]
    wrong = [row for row in known if not _in_range(row[2], subject)]
    train = Counter(repr(label) for name, _, label in known if name == "train")
    evidence = {"rows": float(len(rows)), "wrong": float(len(wrong)), "values in train": float(len(train))}
    classes = len(subject.label_names)
    if wrong:
        split, place, label = wrong[0]
        expected = (
            f"0 to {class_count(subject) - 1}" if subject.kind == "classification" else "a finite number"
        )
        return label_range.problem(
            f"{len(wrong)} of {len(known)} labels are not of this task, the first is {label!r}; expected "
            f"{expected}",
            evidence,
            where=f"{split}, row {place}",
            why="A label outside the range stops the loss on a GPU without a readable message, and -1 or 255 "
            "may be read as 'leave this row out'.",
            fix="Map the file's labels to 0, 1, ... in one place, and refuse what is not in the map.",
        )
    if classes and subject.kind == "classification" and classes != class_count(subject):
        return label_range.problem(
            f"there are {classes} label names and {class_count(subject)} classes",
            {**evidence, "names": float(classes), "classes": float(class_count(subject))},
            where="label_names",
            why="A class without a name, or a name without a score, is reported as another one.",
            fix="Make the model with as many classes as there are labels.",
        )
    if len(train) == 1:
        return label_range.problem(
            f"all {sum(train.values())} labels of train are {next(iter(train))}",
            evidence,
            where="train",
            why="The loss falls to zero and nothing is learnt.",
            fix="Look at how the label column is read: the wrong column, or a filter, leaves one value.",
        )
    return label_range.ok(f"{len(known)} labels, all within range", evidence)


def _in_range(label: object, subject: Subject) -> bool:
    if subject.kind == "regression":
        return isinstance(label, int | float) and math.isfinite(label)
    return isinstance(label, int | float) and is_class(label) and 0 <= label < class_count(subject)


@check(family="data", component="labels", needs=("splits",), likelihood=0.2)
def label_balance(subject: Subject) -> Finding:
    """Does one class make up so much of train that accuracy says nothing, or is one missing?

    A rare class is how the world is, and no fault of the data. It becomes one where the number that is looked
    at no longer tells a model from none.
    """
    _, labels = class_labels(subject)
    classes = class_count(subject)
    counts = Counter(label for label in labels if 0 <= label < classes)
    if not counts:
        raise NotApplicable("there are no two classes")
    label, most = counts.most_common(1)[0]
    share = most / sum(counts.values())
    held_out = {row.label for name, part in subject.splits.items() if name != "train" for row in part}
    missing = [c for c in range(classes) if not counts[c] and c in held_out]
    evidence = {"majority share": share, "classes missing in train": float(len(missing))}
    if missing:
        return label_balance.problem(
            f"class {_named(missing[0], subject)} is in another split and has no example in train",
            evidence,
            where="train",
            why="It cannot be learnt.",
            fix="Split at random within each class.",
            likelihood=0.8,
        )
    always = (
        f"{share:.1%} of train is {_named(label, subject)}: always saying so has an accuracy of {share:.1%}"
    )
    if share >= MISLEADING:
        return label_balance.problem(
            f"{always}, and accuracy cannot tell it from a model",
            evidence,
            where="train",
            why="Accuracy looks good while the rare class is never found.",
            fix="Score with F1 or Matthews correlation; weight the loss or sample the rare class more often.",
        )
    if share >= WORTH_A_WORD:
        return label_balance.ok(f"{always}; F1 or Matthews correlation says more", evidence)
    return label_balance.ok(f"the largest class has {share:.0%} of train", evidence)


def _named(label: int, subject: Subject) -> str:
    names = subject.label_names
    return f"{label} ({names[label]})" if 0 <= label < len(names) else str(label)


@check(family="data", component="labels", needs=("splits",), likelihood=0.4)
def label_shift(subject: Subject) -> Finding:
    """Are the classes as frequent in dev as in train?"""
    from scipy.stats import chi2_contingency

    train = Counter(class_labels(subject)[1])
    dev = Counter(class_labels(subject, "dev")[1])
    seen = sorted(train.keys() | dev.keys())
    if len(seen) < 2 or min(sum(train.values()), sum(dev.values())) < 20:
        raise NotApplicable("it needs two classes, and 20 labels in train and in dev")
    table = np.array([[counts[label] for label in seen] for counts in (train, dev)], dtype=float)
    p_value = float(chi2_contingency(table).pvalue)
    shares = table / table.sum(axis=1, keepdims=True)
    moved = float(abs(shares[0] - shares[1]).sum() / 2)
    evidence = {"share that differs": moved, "p-value": p_value}
    largest = int(abs(shares[0] - shares[1]).argmax())
    said = f"{shares[0, largest]:.0%} of train and {shares[1, largest]:.0%} of dev are {seen[largest]}"
    if p_value < 1e-4 and moved >= 0.15:
        return label_shift.problem(
            f"{said}: chance gives such a difference with probability {p_value:.1g}",
            evidence,
            where="train and dev",
            why="The model learns how frequent the classes are in train, and guesses by that in doubt.",
            fix="Split at random within each class, or look for the step that filters one split.",
        )
    return label_shift.ok(said, evidence)


@check(family="data", component="labels", needs=("splits",), likelihood=0.4)
def conflicting_labels(subject: Subject) -> Finding:
    """Has the same text got different labels?"""
    if subject.kind not in ("classification", "regression"):
        raise NotApplicable(f"a {subject.kind} reads no labels")
    rows = [row for part in subject.splits.values() for row in part if row.label is not None]
    groups = _same_text(rows)
    numbers = [float(row.label) for row in rows if isinstance(row.label, int | float)]
    if not numbers:
        raise NotApplicable("no row has a label that is a number")
    apart = 0.0 if subject.kind == "classification" else 0.25 * (max(numbers) - min(numbers))
    repeated = [group for group in groups if len(group) > 1]
    clashes = [group for group in repeated if _spread(group) > apart]
    share = sum(map(len, clashes)) / len(rows)
    evidence = {"texts": float(len(clashes)), "rows": share * len(rows), "share of rows": share}
    if share >= 0.005:
        return conflicting_labels.problem(
            f"{len(clashes)} texts occur with different labels, in {share:.1%} of the rows",
            evidence,
            where=f"for example the text with the label {clashes[0][0].label} and {clashes[0][1].label}: "
            f"{clashes[0][0].text[:60]!r}",
            why="No model can be right about both: this is the floor of the error rate.",
            fix="Look at them: labelled twice by different people, or joined to the wrong row.",
        )
    return conflicting_labels.ok(
        f"{len(clashes)} of {len(repeated)} texts that occur more than once have different labels", evidence
    )


def _same_text(rows: Iterable[Example]) -> list[list[Example]]:
    groups: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for row in rows:
        if row.text.strip():
            groups[normalised(row.text), normalised(row.pair or "")].append(row)
    return [sorted(group, key=lambda row: float(row.label or 0)) for group in groups.values()]


def _spread(group: Sequence[Example]) -> float:
    """Return how far the labels of one text are apart."""
    labels = [float(row.label or 0) for row in group]
    return max(labels) - min(labels)


@check(family="data", component="labels", needs=("splits",), slow=True, likelihood=0.5)
def likely_label_errors(subject: Subject) -> Finding:
    """Do more labels contradict confident predictions than hard texts explain?"""
    rows, found = class_labels(subject)
    enough = {label for label, count in Counter(found).items() if count >= 2 * _FOLDS}
    kept = sampled([(joined(r), y) for r, y in zip(rows, found, strict=True) if y in enough], ROWS)
    names = sorted(enough)
    if len(names) < 2:
        raise NotApplicable(f"it needs two classes with {2 * _FOLDS} examples each")
    texts, labels = [text for text, _ in kept], [names.index(label) for _, label in kept]
    probabilities = out_of_fold(texts, labels, folds=_FOLDS)
    majority = max(Counter(labels).values()) / len(labels)
    accuracy = float((probabilities.argmax(axis=1) == np.array(labels)).mean())
    if accuracy - majority < 0.2 * (1 - majority):
        raise NotApplicable(
            f"a linear model of words is right about {accuracy:.0%} of {len(labels)} texts it has not seen, "
            f"and the largest class alone gives {majority:.0%}: it cannot tell a wrong label from a hard "
            "text. Give `label_errors` the probabilities of your own model"
        )
    noise = noise_rate(labels, probabilities)
    candidates = label_errors(texts, labels, probabilities=probabilities)
    evidence = {
        "estimated share": noise.rate,
        "at least": noise.low,
        "at most": noise.high,
        "candidates": float(len(candidates)),
        "examples": float(len(labels)),
        "accuracy of the linear model": accuracy,
    }
    if noise.low >= 0.04:
        first = candidates[0].index if candidates else 0
        return likely_label_errors.problem(
            f"about {noise.rate:.0%} of the labels contradict confident predictions (at least "
            f"{noise.low:.0%}); {len(candidates)} of {len(labels)} are candidates to look at",
            evidence,
            where=f"train, first candidate: {texts[first][:60]!r}",
            why="Wrong labels cap the score, and a large model learns them by heart.",
            fix="Read the first candidates of `label_errors` and correct what is wrong. People confirm about "
            "half of such candidates: delete none unseen.",
        )
    if noise.high > 0.05:
        raise NotApplicable(
            f"from {noise.low:.0%} to {noise.high:.0%} of the labels may be wrong: {len(labels)} examples "
            "and a linear model of words cannot say more"
        )
    return likely_label_errors.ok(f"at most {noise.high:.0%} of the labels are likely to be wrong", evidence)
