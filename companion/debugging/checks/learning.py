"""Does anything get learned: one batch by heart, and at this learning rate?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count, islice, pairwise

from companion.data import Batch
from companion.debugging.checks.controls import at_the_start, loss_on, rate_before, trained
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.spying import copied, row_count, some_rows
from companion.debugging.subject import Subject, seeded

__all__ = ["learning_rate", "overfit_one_batch"]

_NEEDS = ("make_model", "make_optimizer", "loss", "train_step", "batches")
_LONGER = 60
_ROUND, _ROUNDS, _LONGER_ROUNDS = 20, 3, 9
"""Steps on one batch between two looks at its loss, and how many looks: at first, and if it stays up."""


def one_batch(subject: Subject, rows: int = 8) -> Batch:
    """Return the first rows of the first batch."""
    first = subject.batches[0]
    return some_rows(first, range(min(rows, row_count(first))))


@check(family="training", component="training step", needs=_NEEDS, slow=True, likelihood=0.2)
def overfit_one_batch(subject: Subject) -> Finding:
    """Does the loss on one batch go down when there is nothing else to learn?"""
    batch = one_batch(subject)
    start = loss_on(subject, subject.model(), batch)
    if start < 0.05:
        raise NotApplicable(f"the loss is {start:.2g} before training")
    goal, seen = 0.75 * start, dict[float, list[float]]()
    runs = {factor: course(subject, batch, factor) for factor in (1.0, 10.0, 0.1)}
    for factor, run in runs.items():
        seen[factor] = list(islice(run, _ROUNDS))
        if min(seen[factor]) < 0.5 * start:
            break
    best = min(seen, key=lambda factor: min(seen[factor]))
    if not min(seen[best]) < goal:
        _can_tell(subject, seen[best], start, goal)
        own = seen[1.0]
        # A plain gradient stays for long where all answers are alike, and gets on from there.
        if math.isfinite(own[-1]) and abs(own[-1] - start) > 1e-3 * start:
            own += up_to(goal, islice(runs[1.0], _LONGER_ROUNDS))
            best = min(seen, key=lambda factor: min(seen[factor]))
    reached, steps = min(seen[best]), _ROUND * max(map(len, seen.values()))
    evidence = {
        "loss before": start,
        **{f"after {_ROUND * len(run)} steps at {f:g}x the rate": run[-1] for f, run in seen.items()},
    }
    if not reached < goal:
        return overfit_one_batch.problem(
            f"{steps} steps on one batch bring the loss from {start:.3g} to {reached:.3g} at best, at its "
            "own learning rate, ten times it and a tenth",
            evidence,
            why="What cannot learn eight rows by heart learns nothing from more.",
            fix="Look at the other findings first: this one says that something is wrong, not what.",
        )
    return overfit_one_batch.ok(f"the loss on one batch goes from {start:.3g} to {reached:.3g}", evidence)


def _can_tell(subject: Subject, losses: Sequence[float], start: float, goal: float) -> None:
    """Raise NotApplicable where a loss that has not come down is no evidence."""
    weights = list(subject.model().parameters())
    share = sum(p.numel() for p in weights if p.requires_grad) / max(sum(p.numel() for p in weights), 1)
    if share < 0.1:
        raise NotApplicable(
            f"{share:.1%} of the numbers in the model are trained, which may be too few to learn one batch"
        )
    before, last = (one - other for one, other in pairwise(losses[-3:]))
    # If each round goes on to gain as many times less than the round before, this is still to come.
    slower = last / before if before > 0 else 1.0
    left = math.inf if slower >= 1 else last * slower / (1 - slower)
    if last > 2e-3 * start and losses[-1] - left < goal:
        raise NotApplicable(
            f"after {_ROUND * len(losses)} steps the loss on one batch is {losses[-1]:.3g}, from "
            f"{start:.3g}, and still falls"
        )


def course(subject: Subject, batch: Batch, factor: float) -> Iterator[float]:
    """Train on one batch, at a multiple of the learning rate; yield its loss now and then, without an end.

    A loss that is not a number is infinite.
    """
    model, optimizer = at_the_start(subject, factor=factor)
    assert subject.train_step is not None
    for number in count():
        model.train()
        with seeded(number):
            for _ in range(_ROUND):
                subject.train_step(model, optimizer, [copied(batch)])
        loss = loss_on(subject, model, batch)
        yield loss if math.isfinite(loss) else math.inf


def up_to(goal: float, losses: Iterator[float]) -> Iterator[float]:
    """Yield losses up to the first that is below a goal."""
    for loss in losses:
        yield loss
        if loss < goal:
            return


@check(family="training", component="optimizer", needs=_NEEDS, slow=True, likelihood=0.5)
def learning_rate(subject: Subject) -> Finding:
    """Does a step at this learning rate go down, and get anywhere?"""
    batch, steps = one_batch(subject), 12
    start = loss_on(subject, subject.model(), batch)
    after = {
        factor: loss_on(subject, trained(subject, [batch] * steps, factor=factor), batch)
        for factor in (1.0, 0.1, 100.0)
    }
    rate = rate_before(subject)
    evidence = {
        "learning rate": rate,
        "loss before": start,
        **{f"after {steps} steps at {factor:g}x": loss for factor, loss in after.items()},
    }
    slack = 0.02 * abs(start)
    if not after[1.0] < start + slack and after[0.1] < start - slack:
        return learning_rate.problem(
            f"{steps} steps on one batch at a learning rate of {rate:.2g} bring its loss from {start:.3g} to "
            f"{after[1.0]:.3g}; at a tenth of the rate to {after[0.1]:.3g}",
            evidence,
            why="The steps are too long: they jump over what they are to reach.",
            fix="Divide the learning rate by 3 until the loss falls from the start.",
        )
    fallen, faster = start - after[1.0], start - after[100.0]
    # Trained models take 2e-5 and more: new ones that get less and do not move are what this is about.
    if subject.fresh and rate < 1.5e-5 and faster > 0.04 * start and fallen < 0.05 * faster:
        return learning_rate.problem(
            f"{steps} steps on one batch at a learning rate of {rate:.2g} bring its loss from {start:.3g} to "
            f"{after[1.0]:.3g}; at a hundred times the rate to {after[100.0]:.3g}",
            evidence,
            why="New weights have far to go: at this rate they hardly leave their place.",
            fix="Try rates ten times as large until the loss no longer falls faster; 1e-5 is for "
            "trained models.",
            likelihood=0.4,
        )
    reached = {factor: _reached(subject, factor) for factor in (1.0, 0.1)}
    evidence |= {f"after {_LONGER} steps at {factor:g}x": loss for factor, loss in reached.items()}
    # Against the way that was gone, and against the loss: a tenth of nearly nothing is nothing.
    if reached[1.0] - reached[0.1] > max(0.08 * (start - reached[0.1]), 0.05 * abs(start)):
        return learning_rate.problem(
            f"{_LONGER} steps at a learning rate of {rate:.2g} reach a loss of "
            f"{reached[1.0]:.3g}, at a tenth of the rate {reached[0.1]:.3g}",
            evidence,
            why="The steps are so long that shorter ones get further: training settles high, or by luck.",
            fix="Divide the learning rate by 3 until a smaller one no longer gets further.",
        )
    return learning_rate.ok(f"{steps} steps bring the loss from {start:.3g} to {after[1.0]:.3g}", evidence)


def _reached(subject: Subject, factor: float) -> float:
    """Return the mean loss on a few batches after a short run on them, over two seeds."""
    few = list(subject.batches)[:4]
    order = [few[step % len(few)] for step in range(_LONGER)]
    models = [trained(subject, order, factor=factor, seed=seed) for seed in (0, 1)]
    return sum(loss_on(subject, model, batch) for model in models for batch in few) / (2 * len(few))
