"""Follows the gradients of every layer through a few steps, of any model and any training step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.utils import clip_grad

from companion.debugging.attention_maps import attention_maps
from companion.debugging.subject import Subject, seeded
from companion.training.monitoring import signals
from companion.training.monitoring.attention import attention_entropy
from companion.training.monitoring.observations import Observation
from companion.training.records import StepRecord

__all__ = ["GradientHistory", "ShortRun", "short_run"]


class GradientHistory:
    """Observes each step of an optimizer while it is open, without a word in the training step.

    ::

        with GradientHistory(model, optimizer) as history:
            for batch in batches:
                train_step(model, optimizer, batch)
        plot_gradient_norms(history.observations)

    Gradients are measured where torch's clipping is called, before it, or where there is no such call, when
    the optimizer's step begins. A step that clips in a way of its own calls `measure` before. Weights and
    gradients are those of a run without it.

    Parameters
    ----------
    model : Module
        Its trainable parameters are grouped by layer: see
        `companion.training.monitoring.signals.parameters_by_layer`.
    optimizer : Optimizer
    every : int
        Steps between observations.

    Attributes
    ----------
    observations : list of Observation
        Of step 1 and every `every`-th one. The loss is NaN, and the throughput: the optimizer knows neither.

    Raises
    ------
    ValueError
        When `every` is below 1, or the model has nothing to train.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every is {every}: expected at least 1 step between observations")
        self._layers = signals.parameters_by_layer(model)
        if not self._layers:
            raise ValueError(f"{type(model).__name__} has no trainable parameter: expected at least one")
        self._optimizer, self._every = optimizer, every
        self._device = next(iter(self._layers.values()))[0].device
        self._step = 0
        self._norms: dict[str, float] | None = None
        self._before: dict[str, list[torch.Tensor]] = {}
        self._stack = ExitStack()
        self._spent = 0.0
        self.observations: list[Observation] = []

    def __enter__(self) -> GradientHistory:
        """Start to observe."""
        pre = self._optimizer.register_step_pre_hook(lambda *_: self._begin())
        self._stack.callback(pre.remove)
        post = self._optimizer.register_step_post_hook(lambda *_: self._end())
        self._stack.callback(post.remove)
        for name in ("_clip_grads_with_norm_", "clip_grad_value_"):
            self._stack.enter_context(self._seen_before(name))
        return self

    def __exit__(self, *error: object) -> None:
        """Stop, and leave no hook behind."""
        self._stack.close()

    def measure(self) -> None:
        """Take the norms of the gradients as they are now; the first call in a step counts."""
        if self._norms is None and self._due:
            with self._timed():
                self._norms = signals.gradient_norms(self._layers)

    @property
    def _due(self) -> bool:
        return self._step == 0 or (self._step + 1) % self._every == 0

    def _begin(self) -> None:
        self.measure()
        if self._due:
            with self._timed():
                self._before = signals.copy_weights(self._layers)

    def _end(self) -> None:
        due, self._step = self._due, self._step + 1
        if not due or self._norms is None:
            return
        with self._timed():
            ratios = signals.update_ratios(self._before, self._layers)
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self.observations.append(
            Observation(
                step=self._step,
                loss=math.nan,
                learning_rate=max(rates),
                grad_norm=math.hypot(*self._norms.values()),
                grad_norm_by_layer=self._norms,
                update_ratio_by_layer=ratios,
                attention_entropy_by_layer={},
                examples_per_second=math.nan,
                memory=signals.memory_in_use(self._device),
                seconds_of_monitoring=self._spent,
            )
        )
        self._norms, self._before, self._spent = None, {}, 0.0

    @contextmanager
    def _seen_before(self, name: str) -> Iterator[None]:
        """Measure before a function of `torch.nn.utils.clip_grad` runs, by whatever name it was imported."""
        clip: Callable[..., Any] | None = getattr(clip_grad, name, None)
        if clip is None:
            yield
            return

        def seen(*args: Any, **kwargs: Any) -> Any:
            self.measure()
            return clip(*args, **kwargs)

        with ExitStack() as stack:
            for home in (clip_grad, torch.nn.utils):
                if getattr(home, name, None) is clip:
                    stack.enter_context(patch.object(home, name, seen))
            yield

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._spent += time.perf_counter() - start


@dataclass(frozen=True)
class ShortRun:
    """What a few steps have left: enough for the checks of a run's dynamics.

    Attributes
    ----------
    steps : tuple of StepRecord
    observations : tuple of Observation
    """

    steps: tuple[StepRecord, ...]
    observations: tuple[Observation, ...]


def short_run(subject: Subject, *, steps: int = 40, attention_rows: int = 2, seed: int = 0) -> ShortRun:
    """Train a subject's model for a few steps on its batches, again and again, and keep records.

    Parameters
    ----------
    subject : Subject
        With `make_optimizer`, `train_step` and `batches`, and a schedule if it has one.
    steps : int
    attention_rows : int
        Of each batch, for the attention entropy after the step; 0 leaves it out.
    seed : int

    Returns
    -------
    ShortRun
        A step's loss is what `train_step` returns, or if that is no number, `Subject.loss` before the step.

    Raises
    ------
    ValueError
        When one of these is missing.
    """
    missing = [name for name in ("make_optimizer", "train_step", "batches") if not getattr(subject, name)]
    if missing or subject.make_optimizer is None or subject.train_step is None:
        raise ValueError(f"the subject has no {', '.join(missing)}: a run of {steps} steps needs them")
    model = subject.model(seed=seed)
    records: list[StepRecord] = []
    with seeded(seed):
        optimizer = subject.make_optimizer(model)
        schedule = subject.make_schedule(optimizer, steps) if subject.make_schedule else None
        start, examples = time.perf_counter(), 0
        with GradientHistory(model, optimizer) as history:
            for step in range(steps):
                batch = subject.batches[step % len(subject.batches)]
                rate = max(float(group["lr"]) for group in optimizer.param_groups)
                fallback = _loss_before(subject, model, batch)
                loss = _number(subject.train_step(model, optimizer, [batch]), fallback)
                examples += len(next(iter(batch.values())))
                if len(history.observations) <= step:
                    raise ValueError(
                        f"step {step + 1} of train_step took no optimizer step: expected one on the "
                        "optimizer that it is given"
                    )
                seen = history.observations[step]
                speed = examples / (time.perf_counter() - start)
                entropies = _entropies(subject, model, batch, attention_rows)
                records.append(StepRecord(step + 1, loss, rate, seen.grad_norm, speed))
                history.observations[step] = _completed(seen, loss, rate, speed, entropies)
                if schedule is not None:
                    schedule.step()
    return ShortRun(tuple(records), tuple(history.observations))


def _entropies(subject: Subject, model: nn.Module, batch: Any, rows: int) -> dict[str, float]:
    """Return the attention entropy of each place where a text attends to itself; none if none is seen."""
    if rows == 0 or "input_ids" not in batch or "attention_mask" not in batch:
        return {}
    ids, mask = batch["input_ids"][:rows], batch["attention_mask"][:rows]
    given = mask if subject.takes_mask() else None
    try:
        maps = attention_maps(model, ids, given, call=lambda model: subject.scores(model, ids, given))
    except ValueError:
        return {}
    found: dict[str, float] = {}
    for name, weights in maps:
        if weights.shape[-2:] == (mask.size(1),) * 2:
            causal = not bool(weights.triu(diagonal=1).any())
            value = attention_entropy(weights, mask, causal=causal)
            found |= {} if value is None else {name: value}
    return found


def _loss_before(subject: Subject, model: nn.Module, batch: Any) -> float:
    if subject.loss is None:
        return math.nan
    with torch.no_grad(), seeded(0):
        return float(subject.loss(model, batch))


def _number(value: Any, fallback: float) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value.detach())
    return float(value) if isinstance(value, int | float) else fallback


def _completed(
    seen: Observation, loss: float, rate: float, speed: float, entropies: dict[str, float]
) -> Observation:
    return replace(
        seen,
        loss=loss,
        learning_rate=rate,
        examples_per_second=speed,
        attention_entropy_by_layer=entropies,
    )
