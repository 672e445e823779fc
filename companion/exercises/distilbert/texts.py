"""Small inputs for the checks: a tokenizer, batches and a teacher, all drawn from the check's seed."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from companion.data import Batch

__all__ = ["make_batch", "make_teacher", "make_tokenizer"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer(seed: int, words: int = 500) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose special tokens lie anywhere: an id learnt by heart is wrong.

    Parameters
    ----------
    seed : int
    words : int
        Besides the five special tokens.

    Returns
    -------
    PreTrainedTokenizerFast
    """
    tokens = [*SPECIAL, *(f"word{number}" for number in range(words))]
    random.Random(f"companion/exercises/{seed}").shuffle(tokens)
    pieces = Tokenizer(
        models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pad, unknown, start, end, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token=pad,
        unk_token=unknown,
        cls_token=start,
        sep_token=end,
        mask_token=mask,
        model_max_length=64,
    )


def make_batch(
    tokenizer: PreTrainedTokenizerFast, rows: int, length: int, generator: torch.Generator
) -> Batch:
    """Draw texts of different lengths: ``[CLS]``, words, ``[SEP]``, padding on the right.

    Returns
    -------
    dict
        ``input_ids`` and ``attention_mask``, int64 (rows, length).
    """
    ids = torch.arange(len(tokenizer))
    usual = ids[~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))]
    drawn = usual[torch.randint(len(usual), (rows, length), generator=generator)]
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    place = torch.arange(length)
    drawn[:, 0] = tokenizer.cls_token_id
    drawn = torch.where(place == lengths - 1, tokenizer.sep_token_id, drawn)
    drawn = torch.where(place >= lengths, tokenizer.pad_token_id, drawn)
    return {"input_ids": drawn, "attention_mask": (place < lengths).long()}


def make_teacher(seed: int, layers: int, vocabulary: int = 505) -> PreTrainedModel:
    """Draw a small masked language model without dropout, whose layers all do something different.

    Returns
    -------
    PreTrainedModel
        In evaluation mode.
    """
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # fresh layers are nearly alike: nobody could tell them apart
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    model.eval()
    return model
