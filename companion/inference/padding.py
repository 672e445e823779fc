"""One padding for a model, its tokenizer and its ONNX folder: behind the text, where no answer notices it."""

from __future__ import annotations

import torch

from companion.models import Classifier

__all__ = ["settle_padding"]

_TOLERANCE = 1e-3
"""Of the largest logit: far above what sums in another order do, far below what padding does."""


def settle_padding(classifier: Classifier) -> None:
    """Let a model and its tokenizer agree on the padding token, and pad behind the text where that is safe.

    A classifier such as GPT-2's reads the last token that is not the padding token, by the number that its
    configuration has for it. A tokenizer that pads with another one makes it read padding. And its positions
    are counted from the first column, so that padding in front of a text moves it: the answer would depend on
    the longest text of the batch. Behind the text, the causal mask hides it.

    Parameters
    ----------
    classifier : Classifier
        Its configuration and its tokenizer are changed in place.

    Raises
    ------
    ValueError
        When neither knows a padding token.
    """
    config, tokenizer = classifier.model.config, classifier.tokenizer
    if config.pad_token_id is None and tokenizer.pad_token_id is None:
        raise ValueError(
            f"{classifier.source} has no padding token, without which texts of different lengths cannot "
            "share a batch. Choose one, such as the end of text, and save both again: tokenizer.pad_token = "
            "tokenizer.eos_token; model.config.pad_token_id = tokenizer.pad_token_id"
        )
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    elif tokenizer.pad_token_id != config.pad_token_id:
        token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        if token is not None:  # else it is no token of this tokenizer, and cannot be looked for
            tokenizer.pad_token = token
    if tokenizer.padding_side == "left" and _padding_behind_is_hidden(classifier):
        tokenizer.padding_side = "right"


def _padding_behind_is_hidden(classifier: Classifier) -> bool:
    """Answer a text alone and with padding behind it."""
    model, tokenizer = classifier.model, classifier.tokenizer
    ids = tokenizer("A short text, to be padded.", truncation=True, max_length=8)["input_ids"]
    padding = [tokenizer.pad_token_id] * len(ids)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        alone, padded = (
            model(
                input_ids=torch.tensor([row], device=model.device),
                attention_mask=torch.tensor([mask], device=model.device),
            ).logits
            for row, mask in ((ids, [1] * len(ids)), (ids + padding, [1] * len(ids) + [0] * len(ids)))
        )
    model.train(was_training)
    return bool((alone - padded).abs().max() <= _TOLERANCE * alone.abs().max())
