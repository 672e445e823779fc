"""Distillation: a small model learns from a large one.

Two stages, as objectives of the one loop: `LanguageDistillation` before a task is known (the triple loss of
DistilBERT), `TaskDistillation` on a task. `distil_language` and `distil` run them in one call each.
`make_student` takes a student's layers from its teacher, `fit_mlm_head` gives an encoder without an output
layer one to teach with.
"""

from __future__ import annotations

from companion.training.distillation.cache import TeacherCache
from companion.training.distillation.distil import Distilled, Recipe, distil
from companion.training.distillation.head import FittedHead, fit_mlm_head, unigram_loss
from companion.training.distillation.language import PUBLISHED_CONFIG, distil_language
from companion.training.distillation.losses import cosine_distance, kl_with_temperature, masked_cross_entropy
from companion.training.distillation.objectives import (
    LanguageDistillation,
    RegressionDistillation,
    TaskDistillation,
    evenly_paired,
)
from companion.training.distillation.published import (
    PUBLISHED,
    PUBLISHED_ABLATION,
    Published,
    average,
    implied,
    retention,
)
from companion.training.distillation.student import (
    Compression,
    compression,
    every_other_layer,
    layers_of,
    make_student,
    random_student,
    transplant,
)
from companion.training.distillation.teacher import ask, logits_at, same_vocabulary

__all__ = [
    "PUBLISHED",
    "PUBLISHED_ABLATION",
    "PUBLISHED_CONFIG",
    "Compression",
    "Distilled",
    "FittedHead",
    "LanguageDistillation",
    "Published",
    "Recipe",
    "RegressionDistillation",
    "TaskDistillation",
    "TeacherCache",
    "ask",
    "average",
    "compression",
    "cosine_distance",
    "distil",
    "distil_language",
    "evenly_paired",
    "every_other_layer",
    "fit_mlm_head",
    "implied",
    "kl_with_temperature",
    "layers_of",
    "logits_at",
    "make_student",
    "masked_cross_entropy",
    "random_student",
    "retention",
    "same_vocabulary",
    "transplant",
    "unigram_loss",
]
