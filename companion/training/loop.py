"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Example, Task, batches, labels_of, score
from companion.settings import get_settings
from companion.training.config import TrainingConfig
from companion.training.device import choose_device, choose_dtype
from companion.training.prediction import predict_logits
from companion.training.records import Evaluation, StepRecord, TrainingRun

__all__ = ["fit", "linear_schedule", "parameter_groups"]


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example],
    *,
    config: TrainingConfig | None = None,
    dev: Sequence[Example] | None = None,
    task: Task | None = None,
) -> TrainingRun:
    """Fine-tune a sequence classifier in place.

    AdamW [1]_ with decay on weight matrices only, a linear warm-up and decay of the learning rate, clipped
    gradients, bf16 autocast where the device has it, batches of similar length. On one machine, with the same
    number of threads, equal seeds give equal weights.

    Parameters
    ----------
    model : PreTrainedModel
        Left on the CPU, in evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        The model's fast tokenizer.
    train : sequence of Example
        Each with a label.
    config : TrainingConfig, optional
    dev : sequence of Example, optional
        Scored after every epoch; needs `task`.
    task : Task, optional
        Says how `dev` is scored.

    Returns
    -------
    TrainingRun
        One record per step and one per evaluation.

    Raises
    ------
    ValueError
        When there is nothing to learn from, a label does not fit the model, or the loss stops being finite.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    config = config or TrainingConfig()
    _check(model, train, dev, task)
    device = choose_device()
    dtype = choose_dtype(config.precision, device)
    regression = model.config.problem_type == "regression"
    max_length = min(config.max_length, int(tokenizer.model_max_length))
    total_steps = config.epochs * math.ceil(len(train) / config.batch_size)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        fused=device.type in ("cpu", "cuda"),
    )
    schedule = linear_schedule(optimizer, total_steps, config.warmup_share)
    steps: list[StepRecord] = []
    evaluations: list[Evaluation] = []
    bar = tqdm(total=total_steps, desc="training", unit="step", disable=not get_settings().progress)
    start, evaluating = time.perf_counter(), 0.0
    cuda = [device] if device.type == "cuda" else []
    with bar, torch.random.fork_rng(devices=cuda):
        torch.manual_seed(config.seed)
        torch.nn.Module.to(model, device)
        for epoch in range(config.epochs):
            model.train()
            for batch in batches(
                train,
                tokenizer,
                batch_size=config.batch_size,
                max_length=max_length,
                shuffle=True,
                seed=config.seed,
                epoch=epoch,
                workers=config.workers,
                # bf16 kernels are compiled per shape, so few shapes pay; float32 kernels are not.
                multiple_of=math.gcd(8, max_length) if dtype == torch.bfloat16 else 1,
                regression=regression,
            ):
                inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "index"}
                learning_rate = schedule.get_last_lr()[0]
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                    loss = model(**inputs).loss
                loss.backward()
                grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                _stop_if_diverged(model, optimizer, len(steps) + 1, loss, grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)

                done = len(steps) + 1
                examples = min(done * config.batch_size, (epoch + 1) * len(train))
                seconds = time.perf_counter() - start - evaluating
                record = StepRecord(
                    done, loss.item(), float(learning_rate), grad_norm.item(), examples / seconds
                )
                steps.append(record)
                bar.update()
                bar.set_postfix(loss=f"{record.loss:.3f}", refresh=False)
            if dev is not None and task is not None:
                before = time.perf_counter()
                logits = predict_logits(model, tokenizer, dev, max_length=max_length)
                metrics = score(task, labels_of(dev), logits)
                evaluations.append(Evaluation(epoch + 1, len(steps), metrics))
                evaluating += time.perf_counter() - before
    torch.nn.Module.to(model, "cpu").eval()
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return TrainingRun(tuple(steps), tuple(evaluations), name, str(device), time.perf_counter() - start)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the trainable parameters into those that decay and those that do not.

    Matrices decay. Vectors (biases, the scales of normalisation layers) do not: pulling them to zero does not
    make the function smoother.

    Parameters
    ----------
    model : torch.nn.Module
    weight_decay : float

    Returns
    -------
    list of dict
        Two groups for a torch optimizer; together they hold every trainable parameter once.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def linear_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Raise the learning rate linearly to its peak, then lower it linearly to zero.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its learning rate is the peak.
    total_steps : int
        Steps of the whole run.
    warmup_share : float
        Share of them that warms up, at least one step unless 0.

    Returns
    -------
    torch.optim.lr_scheduler.LambdaLR
        To be stepped after every optimizer step.
    """
    warmup = math.ceil(total_steps * warmup_share)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _stop_if_diverged(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    loss: torch.Tensor,
    grad_norm: torch.Tensor,
) -> None:
    """Raise before a step that would put NaN into the weights."""
    if math.isfinite(loss.item()) and math.isfinite(grad_norm.item()):
        return
    learning_rate = optimizer.param_groups[0]["initial_lr"]
    optimizer.zero_grad(set_to_none=True)
    torch.nn.Module.to(model, "cpu").eval()
    raise ValueError(
        f"step {step}: the loss is {loss.item()}, the gradient norm {grad_norm.item()}. "
        f"Training diverged; lower the learning rate (now {learning_rate:g})."
    )


def _check(
    model: PreTrainedModel, train: Sequence[Example], dev: Sequence[Example] | None, task: Task | None
) -> None:
    """Refuse what would fail, or learn nonsense, an epoch later."""
    if not train:
        raise ValueError("there are no training examples. Check the file or --max-examples.")
    if (dev is None) != (task is None):
        raise ValueError("dev and task go together: the task says how the development examples are scored")
    num_labels = len(model.config.id2label or ())
    regression = model.config.problem_type == "regression"
    for name, split in (("training", train), ("development", dev or ())):
        for index, example in enumerate(split):
            label = example.label
            if label is None:
                raise ValueError(f"{name} example {index} has no label")
            if regression and not math.isfinite(label):
                raise ValueError(f"{name} example {index} has the target {label}, expected a finite number")
            if not regression and label not in range(num_labels):
                raise ValueError(
                    f"{name} example {index} has label {label}, but the model has {num_labels} labels: "
                    f"expected 0 to {num_labels - 1}"
                )
    if not regression and len({example.label for example in train}) < 2:
        raise ValueError("all training examples have the same label: there is nothing to learn")
