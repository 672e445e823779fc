"""The first stage in one call: a masked language model in, a smaller one out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Example
from companion.training.callbacks import Callback
from companion.training.config import TrainingConfig
from companion.training.distillation.objectives import LanguageDistillation
from companion.training.distillation.student import every_other_layer, make_student
from companion.training.distillation.teacher import borrowed
from companion.training.loop import fit
from companion.training.records import TrainingRun

__all__ = ["PUBLISHED_CONFIG", "distil_language"]

PUBLISHED_CONFIG = TrainingConfig(
    epochs=3, learning_rate=5e-4, betas=(0.9, 0.98), warmup=0.05, max_grad_norm=5.0
)
"""DistilBERT's choices [1]_, but for the batch: its 4,000 examples or so are for eight GPUs.

References
----------
.. [1] The training code that came with Sanh et al., "DistilBERT, a distilled version of BERT", 2019.
"""


def distil_language(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    student: PreTrainedModel | None = None,
    objective: LanguageDistillation | None = None,
    config: TrainingConfig | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoints: Path | None = None,
    resume: bool = False,
) -> tuple[PreTrainedModel, TrainingRun]:
    """Train a smaller masked language model to answer as a large one does.

    Parameters
    ----------
    teacher : PreTrainedModel
        A masked language model (see `fit_mlm_head` for an encoder without a head). Its weights do not change.
    tokenizer : PreTrainedTokenizerBase
        Of both.
    texts : sequence of str
        No labels are needed.
    layers : sequence of int, optional
        The teacher's layers that the student starts from. Default: every other one, from the first.
    student : PreTrainedModel, optional
        Starts from this instead, trained in place.
    objective : LanguageDistillation, optional
        Default: the triple loss with its published weights, the distribution imitated where a token
        was hidden.
    config : TrainingConfig, optional
        Default: `PUBLISHED_CONFIG`.
    callbacks, checkpoints, resume
        As in `companion.training.fit`.

    Returns
    -------
    student : PreTrainedModel
        `transplant` puts its encoder under a classifier's head.
    run : TrainingRun

    Raises
    ------
    ValueError
        When layers and a student are given or the objective has another teacher, and as in
        `companion.training.fit`.
    """
    if student is not None and layers is not None:
        raise ValueError("both layers and a student are given: expected one of them")
    objective = objective or LanguageDistillation(teacher=teacher, tokenizer=tokenizer, positions="masked")
    if objective.teacher is not teacher:
        raise ValueError("the objective has another teacher: expected the one that is given")
    student = student or make_student(teacher, every_other_layer(teacher) if layers is None else layers)
    with borrowed(teacher):
        run = fit(
            student,
            tokenizer,
            [Example(text) for text in texts],
            config=config or PUBLISHED_CONFIG,
            objective=objective,
            callbacks=callbacks,
            checkpoints=checkpoints,
            resume=resume,
        )
    return student, run
