"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Batch, Example, Task, batches
from companion.settings import get_settings
from companion.training.callbacks import Callback, Diverged, RunState
from companion.training.checkpoints import Checkpoints
from companion.training.config import TrainingConfig
from companion.training.device import choose_device, choose_dtype
from companion.training.distributed import Processes, joined, micro_batches
from companion.training.evaluation import evaluate
from companion.training.objectives import Objective, Regression
from companion.training.optimization import make_optimizer, make_schedule
from companion.training.preparation import check, default_objective, identity, prepared, private_random
from companion.training.records import Evaluation, StepRecord, TrainingRun
from companion.training.shortcuts import shortcuts

__all__ = ["fit"]

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example] | Iterable[Example],
    *,
    config: TrainingConfig | None = None,
    dev: Sequence[Example] | None = None,
    task: Task | None = None,
    objective: Objective | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoints: Path | None = None,
    resume: bool = False,
) -> TrainingRun:
    """Train a model in place.

    On one machine, with the same number of threads, equal seeds give equal weights. Under ``torchrun`` the
    same call trains on all of its processes, sharded.

    Parameters
    ----------
    model : PreTrainedModel
        Left on the CPU, in evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        The model's fast tokenizer.
    train : sequence or iterable of Example
        What to learn from. Of a stream, `TrainingConfig.max_steps` steps are taken; to be read more than once
        it must be iterable more than once.
    config : TrainingConfig, optional
    dev : sequence of Example, optional
        Evaluated after every epoch, or every `TrainingConfig.evaluate_every` steps, and at the end.
    task : Task, optional
        Says how `dev` is scored. Without it, `dev` is measured by the objective.
    objective : Objective, optional
        What is minimised. Default: what fits the model's head.
    callbacks : sequence of Callback
        Called in this order.
    checkpoints : Path, optional
        A folder for checkpoints. They are written after each evaluation, at the end, and every
        `TrainingConfig.checkpoint_every` steps.
    resume : bool
        Go on from the newest intact checkpoint, to the bit; from the start where there is none.

    Returns
    -------
    TrainingRun
        One record per step and one per evaluation, those from before an interruption included.

    Raises
    ------
    ValueError
        When there is nothing to learn from, a label does not fit the model, or a checkpoint belongs to
        another run.
    Diverged
        A ValueError too: the loss or the predictions stopped being finite.
    OSError
        When a checkpoint cannot be written; the earlier ones are intact.
    """
    config, objective = config or TrainingConfig(), objective or default_objective(model, tokenizer)
    check(model, train, dev, task, objective, config)
    device = choose_device()
    dtype = choose_dtype(config.precision, device)
    max_length = min(config.max_length, int(tokenizer.model_max_length))
    data = batches(
        train,
        tokenizer,
        batch_size=config.batch_size,
        max_length=max_length,
        shuffle=True,
        seed=config.seed,
        workers=config.workers,
        multiple_of=8 if dtype == torch.bfloat16 else 1,  # see `_backward`
        regression=isinstance(objective, Regression),
    )
    per_epoch = math.ceil(len(train) / config.batch_size) if isinstance(train, Sequence) else 0
    total_steps = min(filter(None, (config.epochs * per_epoch, config.max_steps)))

    with ExitStack() as stack:
        processes, store = stack.enter_context(joined()), None
        if checkpoints is not None:
            whose = identity(model, train, objective, config)
            store = Checkpoints(checkpoints, whose, config.keep, processes)
        stack.enter_context(private_random(config.seed + processes.rank, device))
        if store:
            stack.enter_context(store.opened(resume=resume))
        trained, rows = stack.enter_context(prepared(model, data, objective, config, device, processes))
        stack.enter_context(shortcuts(trained, objective, device))
        optimizer = make_optimizer(trained, config, device)
        if rows:
            rows.follow(optimizer)
        schedule = make_schedule(optimizer, config, total_steps)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        state = RunState(trained, tokenizer, optimizer, schedule, scaler, config, device, total_steps)
        resumed_from = store.restore(state) if store and resume else 0
        bar = stack.enter_context(_progress_bar(state, processes))
        for callback in callbacks:
            callback.on_start(state)

        start, evaluating, seen = time.perf_counter(), 0.0, 0
        over = state.step == total_steps or state.stop
        while not over:
            epoch, batch = state.epoch, None
            trained.train()
            for batch in data.at(epoch, state.batch):
                loss, terms, grad_norm = _backward(state, batch, objective, dtype, processes, callbacks)
                rate = float(optimizer.param_groups[0]["lr"])  # a callback may have set it
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)

                state.step, state.batch = state.step + 1, state.batch + 1
                if state.batch == per_epoch:
                    state.epoch, state.batch = epoch + 1, 0
                state.order = sha256(f"{state.order}{batch['index'].tolist()}".encode()).hexdigest()
                seen += len(batch["index"])
                speed = seen / (time.perf_counter() - start - evaluating)
                record = StepRecord(state.step, loss, rate, grad_norm, speed, terms)
                state.steps.append(record)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                for callback in callbacks:
                    callback.on_step(state, record)

                over = state.step == total_steps or state.stop
                due = over or _every(config.evaluate_every, state.step, default=state.epoch > epoch)
                if dev is not None and due:
                    before = time.perf_counter()
                    metrics = evaluate(
                        trained, tokenizer, dev, task=task, objective=objective, max_length=max_length
                    )
                    evaluation = Evaluation(epoch + 1, state.step, metrics)
                    state.evaluations.append(evaluation)
                    for callback in callbacks:
                        callback.on_evaluation(state, evaluation)
                    over = over or state.stop
                    evaluating += time.perf_counter() - before
                if store and (over or due or _every(config.checkpoint_every, state.step)):
                    store.save(state)
                if over:
                    break
            else:
                _next_pass(state, epoch, batch)
        for callback in callbacks:
            callback.on_end(state)
        seconds = time.perf_counter() - start
    return TrainingRun(
        config,
        tuple(state.steps),
        tuple(state.evaluations),
        _NAMES[dtype],
        str(device),
        processes.count,
        seconds,
        state.order,
        resumed_from,
    )


def _backward(
    state: RunState,
    batch: Batch,
    objective: Objective,
    dtype: torch.dtype,
    processes: Processes,
    callbacks: Sequence[Callback],
) -> tuple[float, dict[str, float], float]:
    """Leave the clipped gradients of a whole batch; return its loss, its terms and their norm unclipped."""
    config, device = state.config, state.device
    # Drawn from the step alone: a resumed run draws the same without having drawn what came before.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
    batch = objective.prepare(batch, generator)
    # The counts of the whole batch, not of the micro-batch: the gradients then add up to exactly its own.
    scales = {name: objective.weights[name] / max(1, n) for name, n in objective.counts(batch).items()}
    sums = dict.fromkeys(scales, torch.zeros((), device=device))
    # bf16 kernels are compiled per shape, so few shapes pay; float32 kernels are not.
    multiple_of = 8 if dtype == torch.bfloat16 else 1
    for part, counts in micro_batches(batch, config.micro_batch_size, processes, multiple_of=multiple_of):
        state.inputs = {name: tensor.to(device) for name, tensor in part.items()}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            terms = objective.sums(state.model, state.inputs)
        loss = sum((scales[name] * terms[name] for name in scales), torch.zeros((), device=device))
        # Sharding averages the gradients of the processes, and a sum is wanted.
        torch.autograd.backward(state.scaler.scale(loss * processes.count * counts))
        for name in sums:
            sums[name] = sums[name] + terms[name].detach() * counts
    state.scaler.unscale_(state.optimizer)
    for callback in callbacks:
        callback.on_gradients(state)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.max_grad_norm)
    grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    totals = processes.total({name: value.item() for name, value in sums.items()}, device)
    means = {name: totals[name] * scales[name] / objective.weights[name] for name in totals}
    value = sum(objective.weights[name] * mean for name, mean in means.items())
    _stop_if_diverged(state, value, grad_norm)
    return value, means if len(means) > 1 else {}, grad_norm


def _stop_if_diverged(state: RunState, loss: float, grad_norm: float) -> None:
    """Raise before a step that would put NaN into the weights; fp16's scaler skips such a step itself."""
    if math.isfinite(loss) and (math.isfinite(grad_norm) or state.scaler.is_enabled()):
        return
    state.optimizer.zero_grad(set_to_none=True)
    raise Diverged(
        f"step {state.step + 1}: the loss is {loss}, the gradient norm {grad_norm}. "
        f"Training diverged; lower the learning rate (now {state.config.learning_rate:g})."
    )


def _next_pass(state: RunState, epoch: int, last: Batch | None) -> None:
    """Begin the next pass over a stream that has come to its end."""
    if last is None and state.batch == 0:
        raise ValueError(
            "the stream has no training examples, or no more: open it so that it can be read again"
        )
    if state.epoch == epoch:
        state.epoch, state.batch = epoch + 1, 0


def _every(interval: int | None, step: int, *, default: bool = False) -> bool:
    return default if interval is None else step % interval == 0


def _progress_bar(state: RunState, processes: Processes) -> tqdm[None]:
    shown = get_settings().progress and processes.is_first
    return tqdm(total=state.total_steps, initial=state.step, desc="training", unit="step", disable=not shown)
