"""The fine-tuning stage in one call: a classifier in, a smaller classifier out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from transformers import PreTrainedModel

from companion.data import Example, Task, labels_of, score
from companion.models import Classifier
from companion.training.callbacks import Callback
from companion.training.config import TrainingConfig
from companion.training.distillation.cache import TeacherCache
from companion.training.distillation.objectives import (
    RegressionDistillation,
    TaskDistillation,
    evenly_paired,
)
from companion.training.distillation.student import (
    Compression,
    compression,
    every_other_layer,
    make_student,
)
from companion.training.distillation.teacher import Pairs, borrowed, same_vocabulary
from companion.training.loop import fit
from companion.training.objectives import Classification
from companion.training.prediction import predict_logits
from companion.training.preparation import check
from companion.training.records import TrainingRun

__all__ = ["Distilled", "Recipe", "distil"]

Compared = Literal["last", "even"]
# A pass of a student of half the layers costs half of the teacher's, which takes two by default.
_CONFIG = TrainingConfig(epochs=4)


@dataclass(frozen=True)
class Recipe:
    """What a student of a classifier minimises; see `TaskDistillation`.

    Attributes
    ----------
    temperature : float
    kl, hard, cosine : float
        Weights; 0 leaves a term out.
    compared : {"last", "even"}
        Whose hidden states the cosine compares: the last layers', or those of every layer of the student,
        each with the teacher's at the same share of the way up.
    """

    temperature: float = 2.0
    kl: float = 1.0
    hard: float = 1.0
    cosine: float = 1.0
    compared: Compared = "even"

    def __post_init__(self) -> None:
        """Refuse a name that is not known; the objective looks at the rest."""
        if self.compared not in get_args(Compared):
            raise ValueError(f"compared is {self.compared!r}, expected 'last' or 'even'")

    def pairs(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return the hidden states that are compared."""
        even = self.compared == "even"
        return evenly_paired(student_layers, teacher_layers) if even else ((-1, -1),)


@dataclass(frozen=True)
class Distilled:
    """A student, and how it compares with its teacher.

    Attributes
    ----------
    student : Classifier
    compression : Compression
    teacher_metrics, student_metrics : dict of str to float
        On the development examples, as returned by `companion.data.score`; empty without any.
    run : TrainingRun
    teacher_seconds : float
        The teacher's one pass over the examples; 0 where it was asked at every step.
    seconds : float
        All of it: the teacher's pass, the training, the evaluations during it.
    """

    student: Classifier
    compression: Compression
    teacher_metrics: dict[str, float]
    student_metrics: dict[str, float]
    run: TrainingRun
    teacher_seconds: float
    seconds: float

    @property
    def retention(self) -> float:
        """The share of the teacher's metric that the student keeps.

        Raises
        ------
        ValueError
            When nothing was measured, or the teacher's metric is not above 0 and a share means nothing.
        """
        if not self.teacher_metrics:
            raise ValueError("nothing was measured: give development examples and a task")
        name, value = next(iter(self.teacher_metrics.items()))
        if value <= 0:
            raise ValueError(f"the teacher's {name} is {value}: no share of it can be kept")
        return self.student_metrics[name] / value


def distil(
    teacher: Classifier,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    student: Classifier | None = None,
    recipe: Recipe | None = None,
    config: TrainingConfig | None = None,
    dev: Sequence[Example] | None = None,
    task: Task | None = None,
    cache_bytes: int = 2**30,
    callbacks: Sequence[Callback] = (),
    checkpoints: Path | None = None,
    resume: bool = False,
) -> Distilled:
    """Train a smaller classifier to answer as a fine-tuned one does.

    Parameters
    ----------
    teacher : Classifier
        Fine-tuned for the task. Its weights do not change.
    examples : sequence of Example
        Usually those that the teacher was trained on. Without labels where `Recipe.hard` is 0.
    layers : sequence of int, optional
        The teacher's layers that the student starts from. Default: every other one, from the first.
    student : Classifier, optional
        Starts from this instead, trained in place: one that went through the masked-language-model stage, a
        random one, another small model with the same vocabulary.
    recipe : Recipe, optional
    config : TrainingConfig, optional
        Default: four passes.
    dev : sequence of Example, optional
    task : Task, optional
        Says how `dev` is scored; needed with it.
    cache_bytes : int
        The teacher is asked once and its answers are kept, unless its hidden states take more than this.
    callbacks, checkpoints, resume
        As in `companion.training.fit`.

    Returns
    -------
    Distilled

    Raises
    ------
    ValueError
        When teacher and student do not fit together or a layer does not exist, and as in
        `companion.training.fit`.
    """
    recipe, config = recipe or Recipe(), config or _CONFIG
    student = _start(teacher, layers, student)
    if (dev is None) != (task is None):
        raise ValueError("dev and task go together: the task says how the development examples are scored")
    if recipe.hard and not teacher.is_regression:
        check(student.model, examples, dev, task, Classification(), config)
    start = time.perf_counter()
    with borrowed(teacher.model):
        objective = _objective(teacher, student.model, recipe)
        width = TeacherCache.bytes_per_token(teacher.model, objective.layers)
        if width * _tokens(teacher, examples, config) <= cache_bytes:
            cache = TeacherCache.compute(
                teacher.model,
                teacher.tokenizer,
                examples,
                layers=objective.layers,
                max_length=config.max_length,
                precision=config.precision,
            )
            objective = replace(objective, cache=cache)
        asked = time.perf_counter() - start if objective.cache else 0.0
        run = fit(
            student.model,
            student.tokenizer,
            examples,
            config=config,
            dev=dev,
            task=task,
            objective=objective,
            callbacks=callbacks,
            checkpoints=checkpoints,
            resume=resume,
        )
        seconds = time.perf_counter() - start
    teacher_metrics = _score(teacher, dev, task, config) if dev and task else {}
    student_metrics = run.evaluations[-1].metrics if run.evaluations else {}
    sizes = compression(teacher.model, student.model)
    return Distilled(student, sizes, teacher_metrics, student_metrics, run, asked, seconds)


def _start(teacher: Classifier, layers: Sequence[int] | None, student: Classifier | None) -> Classifier:
    """Return the student before it is trained."""
    if student is not None:
        if layers is not None:
            raise ValueError("both layers and a student are given: expected one of them")
        same_vocabulary(student.tokenizer, teacher.tokenizer)
        return student
    model = make_student(teacher.model, every_other_layer(teacher.model) if layers is None else layers)
    return replace(teacher, model=model, sha256=None, fresh=())


def _objective(teacher: Classifier, student: PreTrainedModel, recipe: Recipe) -> TaskDistillation:
    kind = RegressionDistillation if teacher.is_regression else TaskDistillation
    return kind(
        teacher=teacher.model,
        temperature=recipe.temperature,
        kl=recipe.kl,
        hard=recipe.hard,
        cosine=recipe.cosine,
        pairs=recipe.pairs(student.config.num_hidden_layers, teacher.model.config.num_hidden_layers),
    )


def _tokens(teacher: Classifier, examples: Sequence[Example], config: TrainingConfig) -> int:
    """Count the tokens that are left of the examples when they are cut."""
    length = min(config.max_length, int(teacher.tokenizer.model_max_length))
    texts, pairs = [example.text for example in examples], [example.pair or "" for example in examples]
    encoded = teacher.tokenizer(texts, pairs if any(pairs) else None, truncation=True, max_length=length)
    return sum(len(ids) for ids in encoded["input_ids"])


def _score(
    teacher: Classifier, dev: Sequence[Example], task: Task, config: TrainingConfig
) -> dict[str, float]:
    length = min(config.max_length, int(teacher.tokenizer.model_max_length))
    return score(
        task, labels_of(dev), predict_logits(teacher.model, teacher.tokenizer, dev, max_length=length)
    )
