"""`sentiment`: the generated review task (see `grammar` for how a review is written).

The test split uses opinion words, and partly nouns, that train and dev never use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from companion.data.grammar import Review, word_count
from companion.data.lexicon import HELD_OUT, SEEN
from companion.data.tasks import TASKS, Example, TaskData

__all__ = ["MAX_WORDS", "MIN_WORDS", "Damage", "damage", "generate"]

MIN_WORDS, MAX_WORDS = 4, 120
_MEDIAN_LOG, _SPREAD_LOG = 3.05, 0.62
"""Target lengths are log-normal in words: median e**3.05 = 21."""


@dataclass(frozen=True)
class Damage:
    """Data with planted defects, and where they are: the answer key for a checker.

    Attributes
    ----------
    data : TaskData
        The damaged data; dev and test are untouched.
    flipped : tuple of int
        Positions in train whose label is wrong.
    duplicated : tuple of int
        Positions in train that repeat another train example, text and label.
    leaked : tuple of int
        Positions in train that hold a test example, text and label.
    """

    data: TaskData
    flipped: tuple[int, ...]
    duplicated: tuple[int, ...]
    leaked: tuple[int, ...]


def generate(
    seed: int = 0,
    *,
    train_size: int = 8_000,
    dev_size: int = 1_000,
    test_size: int = 1_000,
    label_noise: float = 0.0,
    duplicates: float = 0.0,
    leakage: float = 0.0,
) -> TaskData:
    """Generate the review task.

    Labels are balanced in every split, no text occurs twice, and the test split shares no opinion word with
    train and dev. The splits of one seed do not change when only train grows: dev and test are written first.

    Parameters
    ----------
    seed : int
        The same seed gives the same data on every machine.
    train_size, dev_size, test_size : int
        Number of examples.
    label_noise : float
        Share of train examples with a flipped label, 0 to 1.
    duplicates : float
        Share of train examples replaced by copies of other train examples, 0 to 1.
    leakage : float
        Share of the test split that is copied over train examples, 0 to 1.

    Returns
    -------
    TaskData

    Raises
    ------
    ValueError
        If a size is negative, or a share is out of range or asks for more examples than train has.
    """
    for name, size in (("train_size", train_size), ("dev_size", dev_size), ("test_size", test_size)):
        if size < 0:
            raise ValueError(f"{name} is {size}, expected 0 or more")
    seen: set[str] = set()
    test = _split(seed, "test", test_size, seen)
    dev = _split(seed, "dev", dev_size, seen)
    train = _split(seed, "train", train_size, seen)
    data = TaskData(TASKS["sentiment"], train, dev, test)
    return damage(data, seed, label_noise=label_noise, duplicates=duplicates, leakage=leakage).data


def damage(
    data: TaskData,
    seed: int = 0,
    *,
    label_noise: float = 0.0,
    duplicates: float = 0.0,
    leakage: float = 0.0,
) -> Damage:
    """Plant defects in the train split and say where. No example gets two of them.

    Parameters
    ----------
    data : TaskData
        A two-class task.
    seed : int
        Chooses the positions.
    label_noise, duplicates, leakage : float
        As in `generate`.

    Returns
    -------
    Damage

    Raises
    ------
    ValueError
        If the task has not two classes, or a share is out of range or asks for more examples than train has.
    """
    if data.task.num_labels != 2:
        raise ValueError(f"defects can be planted in a two-class task, {data.task.name!r} is none")
    shares = {"label_noise": label_noise, "duplicates": duplicates, "leakage": leakage}
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} is {share}, expected a share from 0 to 1")
    size = len(data.train)
    counts = [round(label_noise * size), round(duplicates * size), round(leakage * len(data.test))]
    if sum(counts) > size or (counts[1] and sum(counts) == size):
        raise ValueError(f"{sum(counts)} examples to damage, but train has {size}; ask for smaller shares")
    rng = random.Random(f"companion/sentiment/damage/{seed}")
    order = list(range(size))
    rng.shuffle(order)
    flipped, duplicated, leaked, clean = (
        order[: counts[0]],
        order[counts[0] : counts[0] + counts[1]],
        order[counts[0] + counts[1] : sum(counts)],
        order[sum(counts) :],
    )
    train = list(data.train)
    for position in flipped:
        example = train[position]
        if example.label is not None:
            train[position] = example._replace(label=1 - example.label)
    for position in duplicated:
        train[position] = train[rng.choice(clean)]
    for position, source in zip(leaked, rng.sample(range(len(data.test)), counts[2]), strict=True):
        train[position] = data.test[source]
    flipped_, duplicated_, leaked_ = (tuple(sorted(part)) for part in (flipped, duplicated, leaked))
    return Damage(replace(data, train=tuple(train)), flipped_, duplicated_, leaked_)


def _split(seed: int, name: str, size: int, seen: set[str]) -> tuple[Example, ...]:
    """Write `size` fresh examples, half of them positive, and add their texts to `seen`."""
    rng = random.Random(f"companion/sentiment/{seed}/{name}")
    lexicon = HELD_OUT if name == "test" else SEEN
    labels = [index % 2 for index in range(size)]
    rng.shuffle(labels)
    examples: list[Example] = []
    for label in labels:
        text = ""
        while not MIN_WORDS <= word_count(text) <= MAX_WORDS or text.lower() in seen:
            words = round(min(max(rng.lognormvariate(_MEDIAN_LOG, _SPREAD_LOG), MIN_WORDS), MAX_WORDS))
            text = Review(rng, lexicon, unseen_nouns=name == "test", label=label).write(words)
        seen.add(text.lower())
        examples.append(Example(text, label))
    return tuple(examples)
