"""Subjects made of the reference transformer and the recipe, or of edited ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

from companion.data import Example
from companion.data.sentiment import generate
from companion.debugging import recipe as right_recipe
from companion.debugging.subject import Kind, Subject
from companion.models import transformer as right_transformer

__all__ = ["fresh_reviews", "reference_subject", "reviews", "small_config", "toy_splits"]

REVIEWS, FRESH = 300, 40
SENT_TWICE = 24
Review = tuple[str, str]
"""A text, and the name of its label."""


@lru_cache
def _generated() -> tuple[tuple[Review, ...], tuple[Review, ...]]:
    made = generate(0, train_size=REVIEWS, dev_size=FRESH, test_size=0)
    names = made.task.labels
    parts = [
        [(example.text, names[int(example.label or 0)]) for example in part]
        for part in (made.train, made.dev)
    ]
    return tuple(parts[0]), tuple(parts[1])


@lru_cache
def reviews() -> tuple[Review, ...]:
    """Return generated reviews as they come in: some were sent twice, and without capitals."""
    first = _generated()[0]
    again = [
        (text.lower() if index % 2 else text, name) for index, (text, name) in enumerate(first[:SENT_TWICE])
    ]
    return (*first, *again)


def fresh_reviews() -> tuple[Review, ...]:
    """Return reviews that are not among `reviews`: what comes after the training."""
    return _generated()[1]


def toy_splits(recipe: ModuleType = right_recipe, settings: Any = None) -> dict[str, tuple[Example, ...]]:
    """Return `reviews` as a recipe prepares them: ``train`` and ``dev``."""
    return dict(_prepared(recipe, settings or recipe.Settings()))


@lru_cache(maxsize=4)
def _prepared(recipe: ModuleType, settings: Any) -> dict[str, tuple[Example, ...]]:
    prepared = recipe.prepare(reviews(), settings)
    return {name: tuple(Example(*row) for row in rows) for name, rows in prepared.items()}


def small_config(transformer: ModuleType, kind: Kind, **shape: Any) -> Any:
    """Return the smallest configuration, of the reference or of an edited one, that still learns."""
    chosen = {"width": 32, "causal": kind == "causal language model"}
    return transformer.TransformerConfig(**{**chosen, "classes": 2 * (kind == "classification"), **shape})


def reference_subject(
    kind: Kind = "classification",
    *,
    transformer: ModuleType = right_transformer,
    recipe: ModuleType = right_recipe,
    splits: dict[str, Sequence[Example]] | None = None,
    settings: dict[str, Any] | None = None,
    **shape: Any,
) -> Subject:
    """Return the reference transformer with the recipe around it, as a subject.

    Parameters
    ----------
    kind : {"classification", "causal language model", "masked language model"}
    transformer, recipe : module
        `companion.models.transformer` and `companion.debugging.recipe`, or edited copies of them.
    splits : dict, optional
        Other data than `toy_splits`.
    settings : dict, optional
        For the recipe's `Settings`.
    **shape
        For `TransformerConfig`.
    """
    masked = kind == "masked language model"
    setup = recipe.Settings(**{"batch_size": 8, "masked": masked, **(settings or {})})
    data = toy_splits(recipe, setup) if splits is None else dict(splits)
    train = data["train"]
    vocabulary = recipe.Vocabulary([example.text for example in train], size=400)
    config = small_config(transformer, kind, vocab_size=len(vocabulary), max_length=setup.max_length, **shape)
    encode = partial(vocabulary.encode, max_length=setup.max_length)
    rows = [(encode(example.text), int(example.label or 0)) for example in train[:64]]
    return Subject(
        make_model=lambda: transformer.Transformer(config),
        kind=kind,
        vocab_size=config.vocab_size,
        classes=config.classes,
        max_length=config.max_length,
        pad_token_id=recipe.PAD,
        make_optimizer=lambda model: recipe.make_optimizer(model, setup),
        make_schedule=lambda optimizer, steps: recipe.make_schedule(optimizer, steps, setup),
        loss=recipe.mean_loss,
        train_step=lambda model, optimizer, parts: recipe.train_step(model, optimizer, parts, setup),
        collate=partial(recipe.collate, pad_left=setup.pad_left),
        encode=encode,
        encode_served=lambda text: recipe.served(vocabulary, text, setup),
        evaluate=recipe.evaluate,
        batches=list(recipe.batches(rows, setup, epoch=0)),
        splits=data,
        label_names=tuple(right_recipe.LABELS),
    )
