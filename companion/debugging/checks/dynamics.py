"""Checks on a run's losses: what it looks like when learning stalls, blows up, or goes too well.

They see symptoms. A right run can be slow and noisy, so each compares with the noise of its own curve, and
with what always guessing the same would give; and most faults of a model leave no trace in a curve at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from companion.debugging.checks.curves import FEW, constant_guess, curve_of, spikes
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject
from companion.training.records import Evaluation, StepRecord

__all__: list[str] = []

_SMALL = 0.05
"""The share of its first level by which any learning that deserves the name lowers a loss."""


@check(family="dynamics", component="training step", needs=("steps",), likelihood=0.3)
def loss_decreases(subject: Subject) -> Finding:
    """Does the loss fall at all?"""
    curve, guess = curve_of(subject.steps), constant_guess(subject)
    if subject.steps[0].step > 1:
        raise NotApplicable(f"the records begin at step {subject.steps[0].step}: it may have fallen before")
    drop, doubt = curve.start - curve.end, 3 * math.sqrt(2) * curve.error
    evidence = {"first level": curve.start, "last level": curve.end, "noise": curve.noise}
    if drop > doubt:
        return loss_decreases.ok(f"the loss falls from {curve.start:.3g} to {curve.end:.3g}", evidence)
    if guess is not None and curve.start < 0.8 * guess:
        raise NotApplicable(f"the loss begins at {curve.start:.3g}, where guessing gives {guess:.3g}")
    if len(subject.steps) < 3 * FEW or drop + doubt > _SMALL * abs(curve.start):
        raise NotApplicable(
            f"a fall of {drop:.3g} is within the noise of {len(subject.steps)} steps ({curve.noise:.2g} each)"
        )
    return loss_decreases.problem(
        f"the loss is {curve.start:.3g} in the first steps and {curve.end:.3g} in the last; single losses "
        f"vary by {curve.noise:.2g}",
        evidence,
        why="Nothing has been learned, whatever the metric says.",
        fix="In this order: does the model overfit one batch, do its parameters move in a step, does the "
        "optimizer hold them, is the learning rate above zero, do inputs and labels belong together?",
    )


@check(family="dynamics", component="schedule", needs=("steps",), likelihood=0.4)
def loss_stays_down(subject: Subject) -> Finding:
    """Does the loss end well above where it has been?"""
    curve, guess = curve_of(subject.steps), constant_guess(subject)
    least = curve.levels[curve.lowest]
    rise, gain = curve.end - least, curve.start - least
    scale = max(abs(curve.start), guess or 0.0)
    evidence = {"first level": curve.start, "lowest level": least, "last level": curve.end}
    grown = curve.end - curve.start > max(4 * math.sqrt(2) * curve.error, 0.1 * scale)
    fell_back = rise > max(6 * curve.error, 0.1 * scale, 0.5 * gain)
    if not grown and not fell_back:
        return loss_stays_down.ok(
            f"the loss ends at {curve.end:.3g}, its lowest level is {least:.3g}", evidence
        )
    lowest = curve.steps[curve.lowest]
    return loss_stays_down.problem(
        f"the loss ends at {curve.end:.3g}, after {least:.3g} around step {lowest} and {curve.start:.3g} at "
        "the start",
        evidence,
        where=f"from step {lowest} on",
        why="The last weights are worse than earlier ones, and a run that diverges does not come back.",
        fix="Lower the learning rate or lengthen the warm-up; clip gradients before the step; look whether "
        "gradients are set to zero between steps.",
    )


@check(family="dynamics", component="training step", needs=("steps",), likelihood=0.3)
def learns_more_than_a_constant(subject: Subject) -> Finding:
    """Is the loss stuck where a model that ignores its input would be?"""
    curve, guess = curve_of(subject.steps, at_least=5 * FEW), constant_guess(subject)
    if guess is None:
        raise NotApplicable("nothing says what loss a constant guess would give")
    if any(len(record.terms) > 1 for record in subject.steps):
        raise NotApplicable("its loss is a sum of several terms, which no guess can be compared with")
    half = curve.levels[len(curve.levels) // 2 :]
    level, progress = median(half), half[0] - half[-1]
    error = curve.error / math.sqrt(len(half))
    evidence = {"level of the last half": level, "constant guess": guess, "progress in it": progress}
    if level - 2 * error < 0.98 * guess or progress > max(0.01 * guess, 2 * math.sqrt(2) * curve.error):
        said = f"the loss of the last half is {level:.3g}, where always guessing the same gives {guess:.3g}"
        return learns_more_than_a_constant.ok(said, evidence)
    return learns_more_than_a_constant.problem(
        f"the loss stands at {level:.3g} over the last half of {len(subject.steps)} steps, no better than "
        f"always guessing the same ({guess:.3g})",
        evidence,
        why="The model has learned how often each answer occurs, and nothing from its input.",
        fix="Does the input reach the output (causality, masks, gradient flow), do labels belong to their "
        "texts, is the learning rate far too high or too low? A hard task can also need more steps.",
    )


@check(family="dynamics", component="batching", needs=("steps",), likelihood=0.2)
def no_loss_spikes(subject: Subject) -> Finding:
    """Are there losses that stand out of those before them?"""
    if len(subject.steps) <= FEW:
        raise NotApplicable(f"{len(subject.steps)} steps are too few to tell a spike from noise")
    found = spikes(subject.steps)
    evidence = {"spikes": float(len(found)), "steps": float(len(subject.steps))}
    if not found:
        return no_loss_spikes.ok(f"no loss of {len(subject.steps)} steps stands out", evidence)
    worst = max(found, key=lambda record: record.loss)
    before = median(r.loss for r in subject.steps if worst.step - 50 <= r.step < worst.step)
    where = ", ".join(str(record.step) for record in found[:5]) + (", ..." if len(found) > 5 else "")
    return no_loss_spikes.problem(
        f"{len(found)} spikes in {len(subject.steps)} steps; at step {worst.step} the loss is "
        f"{worst.loss:.3g}, after a median of {before:.3g}",
        {**evidence, "largest": worst.loss, "median before it": before},
        where=f"steps {where}",
        why="A spike costs what was learned before it, and is often the first sign of divergence.",
        fix="Look at these batches (wrong labels, odd texts, very short ones); if they are in order, clip "
        "gradients, lower the learning rate or lengthen the warm-up.",
    )


@check(family="dynamics", component="splits", needs=("steps", "evaluations"), likelihood=0.2)
def generalises(subject: Subject) -> Finding:
    """Does the development set go on getting better for as long as the training loss falls?"""
    if len(subject.evaluations) < 4:
        raise NotApplicable(f"{len(subject.evaluations)} evaluations are too few to see them turn")
    series = _series(subject.evaluations)
    if not series:
        raise NotApplicable("no metric is in all evaluations")
    turned = {name: found for name, values in series.items() if (found := _turn(name, values))}
    scores = [name for name in series if not _is_loss(name)]
    # A loss that rises while the score holds is overconfidence: it has chapters of its own.
    guilty = [name for name in turned if name in scores or not scores]
    if not guilty:
        return generalises.ok(
            f"{', '.join(series)}: no turn for the worse in {len(subject.evaluations)} evaluations",
            {name: values[-1] for name, values in series.items()},
        )
    name = guilty[0]
    index, best, last = turned[name]
    step = subject.evaluations[index].step
    before = _level_at(subject.steps, step)
    end = _level_at(subject.steps, subject.steps[-1].step)
    evidence = {f"best {name}": best, f"last {name}": last, "train loss then": before, "train loss last": end}
    if not end < before:
        return generalises.ok(
            f"{name} gets worse from step {step} on, and so does the training loss", evidence
        )
    return generalises.problem(
        f"{name} is best at step {step} ({best:.3g}) and {last:.3g} at the end, while the training loss "
        f"falls from {before:.3g} to {end:.3g}",
        evidence,
        where=f"from step {step} on",
        why="From there on the model learns its training texts by heart; the last weights are not the best.",
        fix=f"Keep the weights of step {step} (early stopping), train for fewer epochs, or use more data, "
        "dropout or weight decay.",
    )


def _series(evaluations: Sequence[Evaluation]) -> dict[str, list[float]]:
    names = [n for n in evaluations[0].metrics if all(n in seen.metrics for seen in evaluations)]
    series = {name: [seen.metrics[name] for seen in evaluations] for name in names}
    return {name: values for name, values in series.items() if all(map(math.isfinite, values))}


def _is_loss(name: str) -> bool:
    return any(part in name.lower() for part in ("loss", "perplexity", "error", "nll", "entropy"))


def _turn(name: str, values: Sequence[float]) -> tuple[int, float, float] | None:
    """Return where a metric was best, its value there and at the end, if it has turned beyond its noise."""
    costs = [value if _is_loss(name) else -value for value in values]
    best = min(range(len(costs)), key=lambda index: costs[index])
    after = costs[best + 1 :]
    steps = [abs(b - a) for a, b in pairwise(costs[best:])]
    if len(after) < 2:
        return None
    # An evaluation that jumps up and down by as much as it has lost has not turned.
    jumps = [max(0.0, a - b) for a, b in pairwise(costs[best:])]
    margin = max(0.1 * abs(costs[best]) if _is_loss(name) else 0.03, 2 * max(jumps), 0.5 * median(steps))
    if min(after[-2:]) - costs[best] <= margin:
        return None
    return best, values[best], values[-1]


def _level_at(records: Sequence[StepRecord], step: int) -> float:
    """Return the median loss of the tenth of the run before a step."""
    width = max(5, len(records) // 10)
    losses = [record.loss for record in records if record.step <= step and math.isfinite(record.loss)]
    return median(losses[-width:]) if losses else math.nan


@check(family="dynamics", component="loss", needs=("steps",), likelihood=0.4)
def loss_is_plausible(subject: Subject) -> Finding:
    """Does a language model know words that nobody could know?"""
    if subject.kind not in ("causal language model", "masked language model"):
        raise NotApplicable("only a language model has a loss that is known to be above zero")
    curve, guess = curve_of(subject.steps), constant_guess(subject)
    losses = [
        e.metrics["loss"] for e in subject.evaluations if math.isfinite(e.metrics.get("loss", math.nan))
    ]
    if guess is None or not losses:
        raise NotApplicable("without a development loss, a low loss can be texts learned by heart")
    limit, held_out = _SMALL * guess, losses[-1]
    evidence = {"train loss": curve.end, "development loss": held_out, "constant guess": guess}
    if curve.end > limit:
        return loss_is_plausible.ok(
            f"the training loss ends at {curve.end:.3g}; guessing by frequency gives {guess:.3g}", evidence
        )
    if held_out > limit and subject.evaluations[-1].epoch > 2:
        raise NotApplicable(
            f"{subject.evaluations[-1].epoch} epochs are enough to know the training texts by heart"
        )
    if held_out <= limit and _repetitive(subject):
        raise NotApplicable(
            "its texts are so regular, or so few, that each word may follow from the one before"
        )
    both = "and so does the development loss" if held_out <= limit else f"the development loss {held_out:.3g}"
    return loss_is_plausible.problem(
        f"the training loss ends at {curve.end:.3g}, {both}; guessing words by frequency gives {guess:.3g}",
        evidence,
        component="loss" if held_out <= limit else "splits",
        why="No text is that predictable: the model sees the word that it is to say, and will not see it "
        "when it writes.",
        fix="Are targets shifted by one, is the mask causal, are masked words really masked? If only the "
        "training loss is low: does training see something that evaluation does not?",
    )


def _repetitive(subject: Subject) -> bool:
    """Whether knowing one word tells most of the next one, in the texts that are at hand."""
    from companion.debugging.checks.curves import entropy_of

    rows = [row for batch in subject.batches if "input_ids" in batch for row in batch["input_ids"].tolist()]
    rows = [[word for word in row if word != subject.pad_token_id] for row in rows]
    pairs = [pair for row in rows for pair in pairwise(row)]
    if len(pairs) < 500:
        return True
    first = entropy_of([pair[0] for pair in pairs])
    return entropy_of(pairs) - first < 0.1 * first
