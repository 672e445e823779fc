"""How long a run lasts, how long it warms up, and how often it writes something down."""

from __future__ import annotations

import math

from companion.training.config import OptimizerName
from companion.training.recommendations.rates import LARGE_DECODER, Kind

__all__ = ["FEW_EXAMPLES", "choose_epochs", "choose_records", "choose_warmup"]

# The data sets on which fine-tuning was found unstable have fewer examples (Mosbach et al. 2021).
FEW_EXAMPLES = 10_000


def choose_epochs(
    kind: Kind, parameters: int, examples: int, mean_tokens: float, epochs: int | None
) -> tuple[int, tuple[str, ...]]:
    """Choose the passes over the data, and say how."""
    if epochs is not None:
        return epochs, (f"epochs: {epochs} as given (the caller)",)
    if kind == "pretraining":
        wanted, tokens = 20 * parameters, examples * mean_tokens
        epochs = min(max(math.ceil(wanted / tokens), 1), 4)
        why = [
            f"epochs: {epochs}; the data has {tokens:.2g} tokens, a compute-optimal run of this model sees "
            f"{wanted:.2g}, 20 a parameter (Hoffmann et al. 2022)"
        ]
        if wanted > 4 * tokens:
            why.append(
                "epochs: up to 4 passes are worth nearly as much as new text, more bring less "
                "(Muennighoff et al. 2023)"
            )
        return epochs, tuple(why)
    if kind == "encoder" and examples < FEW_EXAMPLES:
        return 20, ("epochs: 20 on few examples, keeping the best checkpoint (Mosbach et al. 2021)",)
    if kind == "decoder" and parameters >= LARGE_DECODER:
        return 2, ("epochs: 2 for large decoders (Touvron et al. 2023)",)
    source = "Devlin et al. 2019 search 2 to 4" if kind == "encoder" else "Radford et al. 2018"
    return 3, (f"epochs: 3 ({source})",)


def choose_warmup(
    kind: Kind, total: int, batch_size: int, few: bool, optimizer: OptimizerName
) -> tuple[int, str]:
    """Choose the steps of the warm-up, and say how."""
    if optimizer == "lamb":
        share = min(batch_size / (320 * 512), 0.2)
        source = f"warm-up: {share:.1%} of the steps, growing with the batch up to a fifth (You et al. 2020)"
        return math.ceil(share * total), source
    if kind == "pretraining":
        steps = min(max(math.ceil(0.02 * total), 10_000), 50_000)
        if steps <= 0.1 * total:
            usual = "of 10,000 to 50,000 (Devlin et al. 2019; claim lr-pretraining)"
            return steps, f"warm-up: {steps:,} steps, {usual}"
        return math.ceil(0.1 * total), (
            f"warm-up: 10% of the steps; the usual 10,000 would be {10_000 / total:.0%} of this run's "
            f"{total:,} (claim warmup-share)"
        )
    share, source = (0.1, "Mosbach et al. 2021") if few else (0.06, "Liu et al. 2019")
    return math.ceil(share * total), f"warm-up: {share:.0%} of the steps ({source}; claim warmup-share)"


def choose_records(per_epoch: int, total: int) -> tuple[int, int, tuple[str, ...]]:
    """Choose how often to checkpoint and to log, and say how."""
    checkpoint_every = per_epoch if per_epoch <= 2000 else 2000
    checkpoints = "every epoch" if checkpoint_every == per_epoch else "every 2,000 steps: an epoch is longer"
    log_every = 500 if total >= 50_000 else 100 if total >= 1000 else max(1, total // 10)
    log = f"log: every {log_every} steps"
    if log_every < 100:
        log += f", for every 100 would leave {total // 100} points of this run's {total}"
    return (
        checkpoint_every,
        log_every,
        (
            f"checkpoints: {checkpoints}, the last three kept (claim keep-three)",
            f"{log} (claim log-interval)",
        ),
    )
