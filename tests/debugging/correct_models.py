"""Right models that checks must leave alone: the reference in all variants, and other people's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

VOCABULARY = 60
REFERENCE = {
    f"{kind.split()[0]}-{norm}-{positions}-{'tied' if tied else 'untied'}{'-causal' if causal else ''}": {
        "kind": kind,
        "norm": norm,
        "positions": positions,
        "tied": tied,
        "causal": causal,
    }
    for kind, norm, positions, tied, causal in itertools.product(
        ("causal language model", "classification"),
        ("pre", "post"),
        ("learned", "sinusoidal", "rotary"),
        (True, False),
        (False, True),
    )
    if (kind == "classification" and tied) or (kind != "classification" and causal)
}


class EncoderClassifier(nn.Module):
    """A classifier around `nn.TransformerEncoder`."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.pos = nn.Parameter(0.02 * torch.randn(1, 32, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        hidden = self.embed(x) + self.pos[:, : x.size(1)]
        hidden = self.encoder(hidden, src_key_padding_mask=src_key_padding_mask)
        if src_key_padding_mask is None:
            return self.fc(hidden.mean(1))
        keep = (~src_key_padding_mask).float()[..., None]
        return self.fc((hidden * keep).sum(1) / keep.sum(1))


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


@dataclass
class GPTConfig:
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 32
    block_size: int = 32
    dropout: float = 0.1


class FusedAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (
            part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(c, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c)))


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, 88, bias=False)
        self.w3 = nn.Linear(width, 88, bias=False)
        self.w2 = nn.Linear(88, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class GPTBlock(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = RMSNorm(config.n_embd), RMSNorm(config.n_embd)
        self.attn, self.mlp = FusedAttention(config), SwiGLU(config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SmallGPT(nn.Module):
    """Fused projections, RMSNorm, SwiGLU, no mask argument, no dropout on weights."""

    def __init__(self) -> None:
        super().__init__()
        config = self.config = GPTConfig()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList([GPTBlock(config) for _ in range(config.n_layer)]),
                "ln_f": RMSNorm(config.n_embd),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, VOCABULARY, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, None]:
        x = self.transformer["wte"](idx) + self.transformer["wpe"](torch.arange(idx.size(1)))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x)), None


class AliBiBlock(nn.Module):
    """Post-norm, ReLU, scores with a bias that falls with distance, names of its own."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.nhead = heads
        self.W_q, self.W_k, self.W_v, self.W_o = (nn.Linear(d, d) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (w(x).view(b, t, self.nhead, -1).transpose(1, 2) for w in (self.W_q, self.W_k, self.W_v))
        distance = (torch.arange(t)[:, None] - torch.arange(t)).abs()
        slopes = 2.0 ** -torch.arange(1, self.nhead + 1)
        scores = q @ k.mT / math.sqrt(d // self.nhead) - slopes[:, None, None] * distance
        scores = scores.masked_fill(mask[:, None, None] == 0, -1e9)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d)
        x = self.norm1(x + self.W_o(y))
        return self.norm2(x + self.mlp(x))


class AliBiTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 32, padding_idx=0)
        self.layers = nn.ModuleList([AliBiBlock(32, 4) for _ in range(3)])
        self.out = nn.Linear(32, VOCABULARY)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.table(tokens) * math.sqrt(32)
        mask = torch.ones_like(tokens) if mask is None else mask
        for layer in self.layers:
            x = layer(x, mask)
        return self.out(x)


def t5_scores(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    source = ids[:1, :5].expand(len(ids), -1)
    return model(input_ids=source, decoder_input_ids=ids, decoder_attention_mask=mask).logits


def others() -> dict[str, Subject]:
    """Models that other people write, with tiny random weights."""
    t = transformers
    bert = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    llama = {**bert, "num_key_value_heads": 2, "pad_token_id": 0}
    distil = {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 32,
    }
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    t5 = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }

    def subject(kind: str, make: Callable[[], nn.Module], **more: object) -> Subject:
        return Subject(make_model=make, kind=kind, vocab_size=VOCABULARY, max_length=32, **more)

    causal, masked = "causal language model", "masked language model"
    return {
        "BertForMaskedLM": subject(masked, lambda: t.BertForMaskedLM(t.BertConfig(**bert))),
        "BertModel": subject("encoder", lambda: t.BertModel(t.BertConfig(**bert))),
        "BertForSequenceClassification": subject(
            "classification", lambda: t.BertForSequenceClassification(t.BertConfig(**bert)), classes=2
        ),
        "DistilBertForSequenceClassification": subject(
            "classification",
            lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(**distil)),
            classes=2,
        ),
        "GPT2LMHeadModel": subject(causal, lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2))),
        "LlamaForCausalLM": subject(causal, lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama))),
        "T5EncoderModel": subject("encoder", lambda: t.T5EncoderModel(t.T5Config(**t5))),
        "T5ForConditionalGeneration": subject(
            causal, lambda: t.T5ForConditionalGeneration(t.T5Config(**t5)), scores=t5_scores
        ),
        "nn.TransformerEncoder pre": subject("classification", lambda: EncoderClassifier(True), classes=3),
        "nn.TransformerEncoder post": subject("classification", lambda: EncoderClassifier(False), classes=3),
        "SmallGPT": subject(causal, SmallGPT),
        "AliBi": subject(masked, AliBiTagger),
    }


def correct_subjects() -> dict[str, Subject]:
    """All right models by name."""
    made = {
        name: reference_subject(
            **{key: value for key, value in shape.items() if key != "causal"}, causal=shape["causal"]
        )
        for name, shape in REFERENCE.items()
    }
    return {**made, **others()}
