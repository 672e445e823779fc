"""What a bug costs: the loss that one sees, and the one that is true."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion import artifacts
from companion.debugging import recipe as right_recipe
from companion.debugging.subject import seeded
from companion.debugging.zoo.bug import Bug, Configuration
from companion.debugging.zoo.editing import edited, source_of
from companion.debugging.zoo.subjects import fresh_reviews, small_config, toy_splits

__all__ = ["Judged", "judged", "measured"]

VERSION = 1
WORDS, RATE = 24, 5
"""Of the longest text in a run, and by how much its learning rate is multiplied."""

PREFIX_TEXTS, PREFIX_TOKENS = 12, 24
"""Of how many fresh texts a decoder's honest loss is computed, and of how many of their tokens."""


@dataclass(frozen=True)
class Judged:
    """A short training run, and two opinions of it. A loss that is not a number is None.

    Attributes
    ----------
    seen : float or None
        Held-out loss, in nats, as the edited recipe computes it on the data that it held out.
    honest : float or None
        Loss of the trained model on fresh texts, one by one, without padding, as they would be served: of a
        decoder token by token, each from nothing but what comes before it.
    curve : tuple of float or None
        The loss of each step, as the edited recipe reports it.
    seconds : float
    error : str
        What the run died of; empty if it did not.
    """

    seen: float | None
    honest: float | None
    curve: tuple[float | None, ...]
    seconds: float
    error: str = ""


def measured(
    bugs: Bug | Iterable[Bug],
    configuration: Configuration | None = None,
    *,
    seed: int = 0,
    epochs: int = 8,
    home: Path | None = None,
) -> Judged:
    """Return `judged` from the store, made when it is not there.

    Parameters
    ----------
    bugs, configuration, seed, epochs
        As for `judged`.
    home : Path, optional
        The store's folder instead of the settings' home.
    """
    chosen = (bugs,) if isinstance(bugs, Bug) else tuple(bugs)
    where = configuration or chosen[0].configuration
    inputs = {
        "transformer": source_of(chosen, "transformer"),
        "recipe": source_of(chosen, "recipe"),
        "configuration": asdict(where) | {"because": ""},
        "seed": seed,
        "epochs": epochs,
    }
    values = artifacts.record(
        "zoo-bug",
        lambda: asdict(judged(chosen, where, seed=seed, epochs=epochs)),
        version=VERSION,
        inputs=inputs,
        home=home,
    )
    return Judged(**{**values, "curve": tuple(values["curve"])})


def judged(
    bugs: Bug | Iterable[Bug], configuration: Configuration | None = None, *, seed: int = 0, epochs: int = 8
) -> Judged:
    """Train with bugs, briefly, and judge the result by the edited code and honestly.

    Parameters
    ----------
    bugs : Bug or iterable of Bug
        None at all for the right code.
    configuration : Configuration, optional
        The first bug's own, if not given.
    seed : int
        Of weights, order and dropout.
    epochs : int
    """
    chosen = (bugs,) if isinstance(bugs, Bug) else tuple(bugs)
    where = configuration or chosen[0].configuration
    start = time.perf_counter()
    try:
        with seeded(seed):
            seen, honest, curve = _run(*edited(chosen), where, seed, epochs)
        error = ""
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, ArithmeticError) as reason:
        seen, honest, curve, error = None, None, (), f"{type(reason).__name__}: {reason}"[:200]
    return Judged(seen, honest, curve, round(time.perf_counter() - start, 2), error)


def _run(
    transformer: ModuleType, recipe: ModuleType, where: Configuration, seed: int, epochs: int
) -> tuple[float | None, float | None, tuple[float | None, ...]]:
    masked, causal = where.kind == "masked language model", where.kind == "causal language model"
    given = {"epochs": epochs, "batch_size": 16, "masked": masked, "seed": seed, **where.settings}
    # A model of this size, and a run as short as this, bear a higher rate than the recipe's own.
    given["learning_rate"] = RATE * recipe.Settings().learning_rate
    setup = recipe.Settings(**given)
    splits = toy_splits(recipe, setup)
    vocabulary = recipe.Vocabulary([example.text for example in splits["train"]], size=400)
    rows = {
        name: [
            (vocabulary.encode(text, setup.max_length), int(label or 0))
            for text, label, _ in part
            if len(right_recipe.words_of(text)) <= WORDS
        ]
        for name, part in splits.items()
    }
    shape = {"vocab_size": len(vocabulary), "max_length": setup.max_length, **where.shape}
    config = small_config(transformer, where.kind, **shape)
    model = transformer.Transformer(config)
    curve = recipe.train(model, rows["train"], setup)
    seen = recipe.held_out_loss(model, list(recipe.batches(rows["dev"], setup)))
    fresh = [(recipe.served(vocabulary, text, setup), name) for text, name in fresh_reviews()]
    model.eval()
    with torch.no_grad():
        if masked:
            honest = _of_hidden_words(model, [(ids, 0) for ids, _ in fresh])
        elif causal:
            honest = _of_prefixes(model, [ids for ids, _ in fresh])
        else:
            honest = _of_labels(model, fresh)
    return _number(seen), _number(honest), tuple(_number(loss) for loss in curve)


def _of_labels(model: nn.Module, texts: Sequence[tuple[list[int], str]]) -> float:
    losses = [_loss(model(torch.tensor([ids]))[0], right_recipe.LABELS[name]) for ids, name in texts]
    return sum(losses) / len(losses)


def _of_prefixes(model: nn.Module, texts: Sequence[list[int]]) -> float:
    losses = []
    for ids in texts[:PREFIX_TEXTS]:
        for end in range(1, min(len(ids), PREFIX_TOKENS)):
            losses.append(_loss(model(torch.tensor([ids[:end]]))[0, -1], ids[end]))
    return sum(losses) / len(losses)


def _of_hidden_words(model: nn.Module, rows: Sequence[tuple[list[int], int]]) -> float:
    single = right_recipe.Settings(batch_size=1, masked=True)
    return right_recipe.held_out_loss(model, list(right_recipe.batches(rows, single)))


def _loss(scores: Tensor, target: int) -> float:
    return functional.cross_entropy(scores[None].float(), torch.tensor([target])).item()


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
