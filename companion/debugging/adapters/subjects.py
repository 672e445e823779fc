"""From what people have to a subject: a model, a factory or a folder, and whatever is around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from companion.data import Batch, Example
from companion.debugging.adapters.batches import BatchForm, joined, read_batches
from companion.debugging.adapters.calls import named_call, takes
from companion.debugging.adapters.locating import located
from companion.debugging.adapters.losses import loss_of
from companion.debugging.adapters.models import maker_of, optimizer_maker, schedule_maker
from companion.debugging.adapters.sizes import classes_of, probe, refuse_form, vocabulary_of
from companion.debugging.adapters.texts import needed_texts
from companion.debugging.calling import Scores, default_scores, mask_name, scores_of
from companion.debugging.checks.registry import NotApplicable
from companion.debugging.subject import Kind, MakeModel, Subject, TrainStep, seeded
from companion.training.records import Evaluation, StepRecord

__all__ = ["KINDS", "Extras", "subject_from", "subjects_from"]

KINDS: Mapping[str, Kind | str] = MappingProxyType(
    {
        "classification": "classification",
        "text-classification": "classification",
        "regression": "regression",
        "causal-lm": "causal language model",
        "clm": "causal language model",
        "language-model": "causal language model",
        "causal-language-model": "causal language model",
        "masked-lm": "masked language model",
        "mlm": "masked language model",
        "masked-language-model": "masked language model",
        "encoder": "encoder",
        "seq2seq": "seq2seq",
    }
)
"""What a task's name stands for. ``seq2seq`` is two subjects: an encoder and a causal decoder."""
_DEFAULT_LENGTH = 128
_BATCHES = 8


@dataclass(frozen=True)
class Extras:
    """What surrounds a model, as people have it: see `subject_from`."""

    optimizer: Any = None
    schedule: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    train_step: Callable[..., Any] | None = None
    batches: Iterable[Any] = ()
    splits: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    collate: Callable[..., Any] | None = None
    encode: Callable[[str], list[int]] | None = None
    encode_served: Callable[[str], list[int]] | None = None
    evaluate: Callable[..., float] | None = None
    steps: Sequence[StepRecord] = ()
    evaluations: Sequence[Evaluation] = ()
    scores: Scores | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    classes: int | None = None
    pad_token_id: int | None = None
    fresh: bool | None = None


def subject_from(model: nn.Module | Callable[[], Any] | str | Path, *, task: str, **extras: Any) -> Subject:
    """Make a subject of a model and whatever surrounds it.

    Parameters
    ----------
    model : Module, callable, str or Path
        A module, which is copied and never changed; a function or class that makes one without arguments; a
        folder in Hugging Face layout; or a function's name as ``module:name``.
    task : str
        One of `KINDS`.
    optimizer : Optimizer or callable, optional
        Of the given module, or a function that takes a model.
    schedule : callable, optional
        Takes an optimizer, and the number of steps if it has a parameter for it.
    loss : callable, optional
        Of a model and a batch, or of scores and labels. Default: the model's own if it computes one, else
        cross-entropy, or the mean squared error of a regression.
    train_step : callable, optional
        Called by the names of its parameters: ``model``, ``optimizer``, and ``batch``, or ``batches`` or
        ``parts`` for the micro-batches of one step; ``scheduler`` and ``device`` where it must have them. See
        `companion.debugging.adapters.calls.takes`.
    batches : iterable, optional
        A loader, of which the first batches are read: dicts, or tuples (inputs, labels).
    splits, label_names, collate, encode, encode_served, evaluate, steps, evaluations, optional
        As in `Subject`. From a folder with a tokenizer comes `encode`.
    scores : callable, optional
        How the model is called, if it is not by the names of its parameters.
    vocab_size, max_length, classes, pad_token_id : int, optional
        Default: from the configuration, or from a call of the model. A position table that cannot be seen
        is tried out, up to 128 tokens.
    fresh : bool, optional
        Whether the weights are untrained. Default: those that a factory makes.

    Returns
    -------
    Subject

    Raises
    ------
    FileNotFoundError, ValueError
        When something is not what it should be, or a size is not known. An encoder-decoder is two subjects:
        see `subjects_from`.
    """
    parts = subjects_from(model, task=task, **extras)
    if len(parts) > 1:
        raise ValueError(f"{task} models have the parts {', '.join(parts)}: use subjects_from")
    return next(iter(parts.values()))


def subjects_from(
    model: nn.Module | Callable[[], Any] | str | Path, *, task: str, **extras: Any
) -> dict[str, Subject]:
    """Make the subjects that a model is made of: one, or for ``seq2seq`` its ``decoder`` and ``encoder``.

    The decoder is a causal language model whose scores are asked for with one fixed source; its batches are
    the targets. The parameters are those of `subject_from`.

    Returns
    -------
    dict of str to Subject
        By part; the only part of a model is called ``model``.
    """
    kind = _kind(task)
    odd = sorted(extras.keys() - Extras.__dataclass_fields__.keys())
    if odd:
        raise ValueError(f"unknown: {odd[0]!r}; known: {', '.join(Extras.__dataclass_fields__)}")
    around = Extras(**extras)
    given: Any = model
    if isinstance(model, str | Path):
        given, around = _from_text(model, kind, around)
    make, fresh = maker_of(given, around.fresh)
    optimizer_of = optimizer_maker(around.optimizer, given)
    with seeded(0):
        example = make()
    if kind == "seq2seq":
        parts = _encoder_and_decoder(make, example, fresh, around)
    else:
        parts = {"model": _whole(make, example, kind, fresh, around)}
    name = next(iter(parts))
    parts[name] = replace(
        parts[name], make_optimizer=optimizer_of, make_schedule=schedule_maker(around.schedule)
    )
    return parts


def _kind(task: str) -> Any:
    name = task.lower().replace("_", "-").replace(" ", "-")
    if name not in KINDS:
        raise ValueError(f"the task is {task!r}, expected one of: {', '.join(KINDS)}")
    return KINDS[name]


def _from_text(text: str | Path, kind: str, around: Extras) -> tuple[Any, Extras]:
    """Open a model folder, or import a function."""
    folder = Path(text).expanduser()
    if not folder.exists() and isinstance(text, str) and ":" in text:
        return located(text), around
    if not folder.exists():
        raise FileNotFoundError(
            f"{text} does not exist, expected a model folder, or MODULE:NAME of a function that makes a model"
        )
    from companion.debugging.adapters.huggingface import opened

    found = opened(folder, kind)
    # Texts are cut where the tokenizer says, if it says anything.
    length = around.max_length or min(
        getattr(found.tokenizer, "model_max_length", 10**9),
        probe(found.model, default_scores).max_length or 512,
    )
    names: dict[Any, str] = dict(found.model.config.id2label or {})
    labels = tuple(names[index] for index in sorted(names)) if kind == "classification" else ()
    encode = found.encode(length)
    return found.model, replace(
        around,
        max_length=length,
        encode=around.encode or encode,
        encode_served=around.encode_served or encode,
        label_names=around.label_names or labels,
        pad_token_id=_first(around.pad_token_id, getattr(found.tokenizer, "pad_token_id", None)),
    )


def _whole(make: MakeModel, model: nn.Module, kind: Kind, fresh: bool, around: Extras) -> Subject:
    """Return the subject of a model in one part."""
    scores = around.scores or _scores_of(model, kind)
    sizes = probe(model, scores)
    refuse_form(sizes, kind, model)
    batches, form = read_batches(around.batches, _BATCHES)
    pad = _first(around.pad_token_id, sizes.pad_token_id, 0)
    whole = Subject(
        make_model=make,
        kind=kind,
        vocab_size=around.vocab_size or vocabulary_of(sizes, model),
        classes=classes_of(sizes, kind, model, around.classes),
        max_length=_first(around.max_length, sizes.max_length, _DEFAULT_LENGTH),
        pad_token_id=pad,
        fresh=fresh,
        scores=scores,
        loss=loss_of(around.loss, model, kind, scores, form, flat=sizes.flat),
        train_step=_train_step(around.train_step, form, pad),
        collate=around.collate,
        encode=around.encode,
        encode_served=around.encode_served,
        evaluate=around.evaluate,
        batches=batches,
        splits=around.splits,
        label_names=around.label_names,
        steps=around.steps,
        evaluations=around.evaluations,
    )
    return replace(whole, texts=needed_texts(whole))


def _encoder_and_decoder(
    make: MakeModel, model: nn.Module, fresh: bool, around: Extras
) -> dict[str, Subject]:
    """Return the two subjects of a model that reads one text and writes another."""
    names = inspect.signature(model.forward).parameters
    if not {"input_ids", "decoder_input_ids"} <= names.keys() or not hasattr(model, "get_encoder"):
        raise ValueError(
            f"{type(model).__name__} is no encoder-decoder of transformers: expected forward(input_ids, "
            "decoder_input_ids, ...) and get_encoder(). Give its two halves as models of their own"
        )
    from companion.debugging.adapters.huggingface import decoder_scores, fixed_source

    words = around.vocab_size or vocabulary_of(probe(model, default_scores), model)
    raw, form = read_batches(around.batches, _BATCHES)
    pad = _first(around.pad_token_id, getattr(model.config, "pad_token_id", None), 0)
    step = _train_step(around.train_step, form, pad)
    scores = around.scores or decoder_scores(model, words)
    whole = replace(
        around,
        scores=scores,
        loss=around.loss or _next_words(scores),
        train_step=None,
        batches=[_targets_only(batch, pad) for batch in raw if "labels" in batch],
        vocab_size=words,
    )
    decoder = _whole(make, model, "causal language model", fresh, whole)

    def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Batch]) -> Any:
        assert step is not None
        return step(model, optimizer, [_with_source(part, fixed_source, words) for part in parts])

    # The halves of T5 and its kin take as many tokens as there is memory for; others say how many.
    half = Extras(vocab_size=words, max_length=decoder.max_length, pad_token_id=pad, fresh=fresh)
    encoder = _whole(lambda: make().get_encoder(), model.get_encoder(), "encoder", fresh, half)  # type: ignore[operator]
    return {"decoder": replace(decoder, train_step=train_step if step else None), "encoder": encoder}


def _next_words(scores: Scores) -> Callable[..., Tensor]:
    from torch.nn import functional

    from companion.debugging.adapters.losses import targets_of

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        targets = targets_of(batch, "causal language model")
        logits = scores(model, batch["input_ids"], batch["attention_mask"])
        return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())

    return loss


def _targets_only(batch: Batch, pad: int) -> Batch:
    """Return the batch that a decoder sees of texts and their targets."""
    real = batch["labels"] >= 0
    ids = batch["labels"].masked_fill(~real, pad)
    return {"input_ids": ids, "attention_mask": real.long(), "labels": batch["labels"]}


def _with_source(batch: Batch, source: Callable[[int, int], Tensor], words: int) -> Batch:
    """Return the batch that a loop sees, with a made-up source."""
    ids = source(len(batch["input_ids"]), words).contiguous()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _scores_of(model: nn.Module, kind: Kind) -> Scores:
    """Return how to call a model: as it is, unless it answers differently than it trains."""
    if hasattr(model, "config") and hasattr(model, "from_pretrained"):
        from companion.debugging.adapters.huggingface import pretrained_scores

        return pretrained_scores(model, kind)  # type: ignore[arg-type]
    names = inspect.signature(model.forward).parameters
    target = next((name for name in ("targets", "target", "labels") if name in names), None)
    # nanoGPT and its kin score the last token alone, unless they are given something to be wrong about.
    if kind == "causal language model" and target is not None:
        return _told_targets(target)
    return default_scores


def _told_targets(name: str) -> Scores:
    def scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        known = mask_name(model)
        if attention_mask is not None and known is None and bool((attention_mask == 0).any()):
            raise NotApplicable(f"{type(model).__name__}.forward has no parameter for a padding mask")
        given = {name: input_ids}
        if known is not None and attention_mask is not None:
            given[known] = attention_mask
        found = scores_of(model(input_ids, **given))
        # Some flatten their scores to (batch * seq, words), as the cross-entropy wants them.
        flattened = found.dim() == 2 and len(found) == input_ids.numel()
        return found.reshape(*input_ids.shape, -1) if flattened else found

    return scores


def _train_step(function: Callable[..., Any] | None, form: BatchForm | None, pad: int) -> TrainStep | None:
    """Return a step of (model, optimizer, micro-batches) from one that is called by its parameters' names.

    A step that takes one batch gets the micro-batches as one: it has no accumulation to test.
    """
    if function is None:
        return None
    offered = ("model", "optimizer", "batch", "parts", "schedule", "device")
    plan = takes(function, offered, "the train step")
    roles = set(plan.values())
    for needed in ("model", "batch"):
        if needed not in roles and not (needed == "batch" and "parts" in roles):
            raise ValueError(
                f"the train step has no parameter for the {needed}: the doctor gives it models and "
                "batches of its own. Expected such as step(model, optimizer, batch)"
            )

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Batch]) -> Any:
        written = [form.write(part) if form else part for part in parts]
        given: dict[str, Any] = {"model": model, "optimizer": optimizer, "parts": written}
        if "batch" in roles:
            whole = joined(parts, pad)
            given["batch"] = form.write(whole) if form else whole
        if "schedule" in roles:
            given["schedule"] = LambdaLR(optimizer, lambda count: 1.0)
        if "device" in roles:
            given["device"] = torch.device("cpu")
        return named_call(function, plan, given)

    return step


def _first(*values: int | None) -> Any:
    return next((value for value in values if value is not None), None)
