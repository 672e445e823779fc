"""Writes a model folder: complete or not at all."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from companion.artifacts import staged_folder
from companion.training.sharing import TrainingReport, write_report

__all__ = ["save"]


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    max_length: int | None = None,
    report: TrainingReport | None = None,
) -> Path:
    """Save a model and its tokenizer in plain Hugging Face layout.

    The files are written beside the folder and take its place in one step. An existing model folder is
    replaced; a folder that holds something else is left alone.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    folder : Path
        Where to; parents are made.
    max_length : int, optional
        The length in tokens that the model was trained with. It goes into the tokenizer's configuration, so
        that texts are cut in serving exactly as they were in training.
    report : TrainingReport, optional
        What to write into ``training.json``: how the model was made.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    ValueError
        When `folder` is a file, or holds files that are not a model.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if max_length is not None:
        tokenizer.model_max_length = min(max_length, tokenizer.model_max_length)
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with staged_folder(folder, marker="config.json") as staging:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            if report is not None:
                write_report(report, staging)
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    return folder
