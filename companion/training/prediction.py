"""Runs a torch model over examples, without gradients and without dropout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Example, batches

__all__ = ["predict_logits"]


def predict_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    max_length: int = 512,
) -> NDArray[np.float32]:
    """Compute the logits of every example, in the order of the examples.

    The model is left in the mode it was found in.

    Parameters
    ----------
    model : PreTrainedModel
        On any device.
    tokenizer : PreTrainedTokenizerBase
        The model's fast tokenizer.
    examples : sequence of Example
        Labels are ignored.
    batch_size : int
    max_length : int
        Longer texts are cut to this many tokens.

    Returns
    -------
    ndarray of float32, shape (examples, num_labels)
    """
    logits = np.empty((len(examples), len(model.config.id2label or ())), dtype=np.float32)
    was_training = model.training
    model.eval()
    unlabelled = [example._replace(label=None) for example in examples]
    with torch.inference_mode():
        for batch in batches(
            unlabelled,
            tokenizer,
            batch_size=batch_size,
            max_length=max_length,
        ):
            index = batch.pop("index").numpy()
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            logits[index] = model(**inputs).logits.float().cpu().numpy()
    model.train(was_training)
    return logits
