"""Model folders as users bring them: small, with random weights and a tokenizer of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOPICS = {
    "world": ("minister", "embassy", "treaty", "border"),
    "sport": ("striker", "coach", "medal", "stadium"),
    "business": ("shares", "profit", "merger", "investors"),
    "science": ("telescope", "protein", "climate", "researchers"),
}
_TEMPLATES = (
    "the {0} spoke about the {1} on {2}",
    "on {2} nobody expected the {0} to matter more than the {1}",
    "a {0}, a {1} and another {0}: what {2} brought, in short",
    "{1} again: why the {0} was late on {2}, and what it means for all who waited for it until the evening",
)
_DAYS = ("monday", "tuesday", "friday", "sunday")


def news(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield headlines with their topics, the topics in turn, no headline twice."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        topic = list(TOPICS)[len(seen) % len(TOPICS)]
        words = rng.sample(TOPICS[topic], 2)
        text = rng.choice(_TEMPLATES).format(*words, rng.choice(_DAYS)) + f" ({rng.randrange(1000)})"
        if text not in seen:
            seen.add(text)
            yield text, topic


def tokenizer(kind: str, **options: Any) -> Any:
    """Train a tokenizer on the headlines: WordPiece with BERT's frame, or GPT-2's bytes without any."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [text for text, _ in news(200)]
    if kind == "gpt2":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer()
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    core.train_from_iterator(texts, trainer)
    if kind != "gpt2":
        core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (kind == "bert")
    settings = {"model_input_names": inputs, "model_max_length": 48} | special | options
    return PreTrainedTokenizerFast(tokenizer_object=core, **{k: v for k, v in settings.items() if v})


def config(kind: str, **options: Any) -> Any:
    """Describe a small model of a family for the four topics."""
    import transformers

    labels = dict(enumerate(TOPICS))
    shared: dict[str, Any] = {
        "id2label": labels,
        "label2id": {name: i for i, name in labels.items()},
    } | options
    if kind == "gpt2":
        shared = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0} | shared
        return transformers.GPT2Config(
            vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64, **shared
        )
    if kind == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=300, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64, **shared
        )
    return transformers.BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        **shared,
    )


def write(folder: Path, kind: str, *, seed: int = 0, spread: float = 0.3, **options: Any) -> Path:
    """Write a folder of a family as transformers does; every parameter is random, so that answers differ."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    words = {name: options.pop(name) for name in ("padding_side", "pad_token") if name in options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config(kind, **options))
        for parameter in model.parameters():
            parameter.data.add_(spread * torch.randn_like(parameter))
    logging.disable_progress_bar()  # a command's test looks at what is on stderr
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    tokenizer(kind, **words).save_pretrained(folder)
    return folder
