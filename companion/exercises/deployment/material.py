"""What a server is asked: texts that were written a moment ago, and what is expected of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from companion.data.tasks import Example

__all__ = ["Material", "Requirements", "draw"]


@dataclass(frozen=True)
class Requirements:
    """What a server has to reach.

    Attributes
    ----------
    close : float
        Largest difference between a served probability and the model's own.
    accuracy : float
        Share of fresh texts that are right.
    calibration : float
        Largest difference between the mean probability of the given label and the share that is right.
    integer_share : float
        Of the weights in products of matrices, how many are whole numbers.
    size : float
        Bytes of the graph's file, as a share of four for each number in it.
    speed : float
        Throughput over the naive server's, the middle of the rounds.
    judged, each_round, rounds : int
        How many texts are judged, how many each round of the race takes, and how many rounds it has; with
        no round there is no race, and no marks for it.
    candidates : int
        From how many texts those are chosen on which whole numbers show.
    ready_seconds, reply_seconds, drain_seconds : float
        How long it may take to start, to answer the first texts, and to stop.
    """

    close: float = 1e-4
    accuracy: float = 0.75
    calibration: float = 0.15
    integer_share: float = 0.9
    size: float = 0.6
    speed: float = 3.0
    judged: int = 160
    each_round: int = 64
    rounds: int = 3
    candidates: int = 192
    ready_seconds: float = 60.0
    reply_seconds: float = 30.0
    drain_seconds: float = 20.0


@dataclass(frozen=True)
class Material:
    """What is asked.

    Attributes
    ----------
    texts : tuple of str
        To be answered and judged.
    labels : tuple of int
        What is right for them.
    rounds : tuple of tuple of str
        For each round of the race texts that come nowhere else, so that nothing can have been kept.
    requirements : Requirements
    candidates : tuple of str
        Texts without labels. Those about which the model is least decided are asked as well: on them its
        whole numbers show.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    rounds: tuple[tuple[str, ...], ...]
    requirements: Requirements = field(default_factory=Requirements)
    candidates: tuple[str, ...] = ()


def draw(
    seed: int,
    *,
    examples: Sequence[Example] | None = None,
    requirements: Requirements | None = None,
) -> Material:
    """Write texts that no server has seen.

    Parameters
    ----------
    seed : int
        Another one gives other texts, from a grammar with more texts than anyone can store.
    examples : sequence of Example, optional
        Take these instead, in this order: for a model of another task.
    requirements : Requirements, optional
        There are texts for twice the rounds that they ask for, because a close race is run again.

    Returns
    -------
    Material

    Raises
    ------
    ValueError
        When there are too few examples, or some have no label.
    """
    wanted = requirements or Requirements()
    judged, each_round = wanted.judged, wanted.each_round
    needed = judged + 2 * wanted.rounds * each_round
    from companion.data.sentiment import generate

    half = (wanted.candidates + (needed if examples is None else 0) + 1) // 2
    made = generate(seed, train_size=0, dev_size=half, test_size=half)
    written = [one for pair in zip(made.dev, made.test, strict=True) for one in pair]
    if examples is None:
        examples, written = written[:needed], written[needed:]
    if len(examples) < needed:
        raise ValueError(f"there are {len(examples)} examples, expected at least {needed}")
    texts, labels = [one.text for one in examples], [one.label for one in examples[:judged]]
    if not all(type(label) is int for label in labels):
        raise ValueError("an example has no label, expected one for each that is judged")
    starts = range(judged, needed, each_round)
    return Material(
        tuple(texts[:judged]),
        tuple(int(label) for label in labels if label is not None),
        tuple(tuple(texts[start : start + each_round]) for start in starts),
        wanted,
        tuple(one.text for one in written[: wanted.candidates]),
    )
