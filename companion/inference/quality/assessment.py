"""The release gate's measurement: a candidate against its reference, example by example, on labelled data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from companion.data import Example, Task, check_labels, labels_of, score
from companion.inference.intervals import LEVEL, Estimate, check_level, paired_difference, proportion
from companion.inference.predictor import Predictor, probabilities_of
from companion.inference.quality.record import Calibration, ClassQuality, Quality
from companion.inference.quality.resampling import resampled_correlation, resampled_score
from companion.training.calibration import brier_score, reliability

__all__ = ["assess", "check_task"]


def assess(
    reference: Predictor,
    candidate: Predictor,
    examples: Sequence[Example],
    task: Task,
    *,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
    batch_size: int = 32,
) -> Quality:
    """Compare two predictors on the same labelled examples.

    Both see the same examples, so what counts is where they differ: the interval of the difference is far
    narrower than those of two separate measurements. For an accuracy it is Tango's score interval [1]_. Other
    metrics are resampled in pairs [2]_, an example always with both answers. A sample in which the two
    never, or hardly, disagree does not prove that they never do; so each resample also draws from one
    made-up example of each class for either way to disagree, as in Bonett and Price's interval [3]_.

    Parameters
    ----------
    reference : Predictor
        What is right by definition: the source of an export.
    candidate : Predictor
        With the same labels.
    examples : sequence of Example
        Labelled, and not seen in training. They should be as many, and as mixed, as in use.
    task : Task
        Says the metric and the labels. For a paired task the second texts are used.
    level : float
        Confidence level of all intervals.
    resamples : int
        Of the bootstrap, where the metric is not an accuracy.
    seed : int
        Of the bootstrap.
    batch_size : int

    Returns
    -------
    Quality

    Raises
    ------
    ValueError
        When there are no examples, one has no label, a predictor was not made for the task, or an answer is
        not finite.

    References
    ----------
    .. [1] Tango, "Equivalence test and confidence interval for the difference in proportions for the
       paired-sample design", Statistics in Medicine 17, 1998.
    .. [2] Efron and Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall 1993, chapter 13.
    .. [3] Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based
       on paired data", Journal of Educational and Behavioral Statistics 37, 2012.
    """
    _check(reference, candidate, examples, task, level, resamples)
    truth = np.asarray(labels_of(examples))
    texts = [example.text for example in examples]
    pairs = [example.pair or "" for example in examples] if task.paired else None
    answers = [one.logits(texts, pairs, batch_size=batch_size) for one in (reference, candidate)]
    scores = [score(task, truth.tolist(), logits)[task.metric] for logits in answers]
    resample = (resamples, seed)
    ends: tuple[float, float] | None = None
    if task.is_regression:
        ends = resampled_correlation(truth, answers[0][:, 0], answers[1][:, 0], level, *resample)
        return _quality(task, examples, level, scores, ends, resample)
    truth = truth.astype(np.int64)
    chosen = [logits.argmax(axis=1) for logits in answers]
    right = [answer == truth for answer in chosen]
    if task.metric != "accuracy":
        ends = resampled_score(task, truth, chosen[0], chosen[1], level, *resample)
    return _quality(
        task,
        examples,
        level,
        scores,
        ends,
        resample,
        disagreements=_disagreements(right[0], right[1]),
        flips=proportion(int((chosen[0] != chosen[1]).sum()), len(examples), level=level),
        classes=tuple(
            _class_quality(label, truth == index, (chosen[0], chosen[1]), (right[0], right[1]), level)
            for index, label in enumerate(task.labels)
        ),
        calibration=_calibration(answers, truth),
    )


def check_task(predictor: Predictor, task: Task, name: str) -> None:
    """Refuse a predictor that was made for another task.

    Parameters
    ----------
    predictor : Predictor
        Its labels are compared by `companion.data.check_labels`.
    task : Task
    name : str
        What to call the predictor in the error: its folder.

    Raises
    ------
    ValueError
        When the one has labels that the other has not.
    """
    check_labels(task, predictor.labels, name, is_regression=predictor.is_regression)


def _check(
    reference: Predictor,
    candidate: Predictor,
    examples: Sequence[Example],
    task: Task,
    level: float,
    resamples: int,
) -> None:
    check_level(level)
    if not examples:
        raise ValueError("there are no examples, expected labelled ones that were not trained on")
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}, expected at least 100 for the ends of an interval")
    check_task(reference, task, "the reference")
    check_task(candidate, task, "the candidate")
    if reference.labels != candidate.labels:
        raise ValueError(
            f"the reference predicts {', '.join(reference.labels)}, the candidate "
            f"{', '.join(candidate.labels)}: expected the same labels in the same order"
        )


def _quality(
    task: Task,
    examples: Sequence[Example],
    level: float,
    scores: Sequence[float],
    ends: tuple[float, float] | None,
    resample: tuple[int, int],
    *,
    disagreements: tuple[int, int] | None = None,
    flips: Estimate | None = None,
    classes: tuple[ClassQuality, ...] = (),
    calibration: Calibration | None = None,
) -> Quality:
    """Put a record together; without `ends` of a bootstrap the disagreements give the interval."""
    value = scores[0] - scores[1]
    if ends is None:
        assert disagreements is not None
        found = paired_difference(*disagreements, len(examples), level=level)
        ends = found.low, found.high
    return Quality(
        task=task.name,
        metric=task.metric,
        examples=len(examples),
        level=level,
        reference=scores[0],
        candidate=scores[1],
        # A percentile of resamples can miss the value itself, by its bias or by a rounding error.
        drop=Estimate(value, min(ends[0], value), max(ends[1], value)),
        method="Tango score interval" if task.metric == "accuracy" else "paired bootstrap",
        resamples=None if task.metric == "accuracy" else resample[0],
        seed=None if task.metric == "accuracy" else resample[1],
        only_reference_right=disagreements[0] if disagreements else None,
        only_candidate_right=disagreements[1] if disagreements else None,
        flips=flips,
        classes=classes,
        calibration=calibration,
    )


def _disagreements(reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> tuple[int, int]:
    """Count the examples that only the reference, and only the candidate, gets right."""
    return int((reference & ~candidate).sum()), int((candidate & ~reference).sum())


def _class_quality(
    label: str,
    members: NDArray[np.bool_],
    chosen: tuple[NDArray[np.int64], NDArray[np.int64]],
    right: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    level: float,
) -> ClassQuality:
    """Describe the examples of one true class: the answers of both, and which of them are right."""
    count = int(members.sum())
    if not count:
        return ClassQuality(label, 0, None, None, None, None)
    worse, better = _disagreements(right[0][members], right[1][members])
    return ClassQuality(
        label=label,
        examples=count,
        reference=float(right[0][members].mean()),
        candidate=float(right[1][members].mean()),
        drop=paired_difference(worse, better, count, level=level),
        flips=proportion(int((chosen[0] != chosen[1])[members].sum()), count, level=level),
    )


def _calibration(answers: Sequence[NDArray[np.float32]], truth: NDArray[np.int64]) -> Calibration:
    rows = [probabilities_of(logits, is_regression=False) for logits in answers]
    errors = [float(np.clip(reliability(shares, truth).ece, 0, 1)) for shares in rows]
    return Calibration(*errors, *(brier_score(shares, truth) for shares in rows))
