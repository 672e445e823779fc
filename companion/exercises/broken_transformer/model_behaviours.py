"""What a right ``model.py`` does. Weights are drawn by their names: their order is a model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from companion.exercises.broken_transformer.behaviour import WORDS, behaviour

__all__: list[str] = []

PLACES = 16


def make(module: Any, seed: int, jitter: bool = True, **shape: Any) -> nn.Module:
    """Return a small model, in evaluation mode, with weights as large as trained ones."""
    config = module.TransformerConfig(
        **{"vocab_size": WORDS, "width": 16, "heads": 2, "max_length": PLACES, "dropout": 0.1, **shape}
    )
    model: nn.Module = module.Transformer(config).eval()
    if jitter:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                draw = torch.Generator().manual_seed(sum(map(ord, name)) * 1_009 + seed)
                scale = (
                    0.2 if parameter.dim() < 2 else 0.5 if "tokens" in name else parameter.size(-1) ** -0.5
                )
                noise = torch.randn(parameter.shape, generator=draw)
                # Not the fresh weights plus noise: these come from an order that is not part of behaviour.
                base = 1.0 if name.endswith("norm.weight") else 0.0
                parameter.copy_(base + scale * noise)
    return model


def texts(seed: int, *, left: bool = False, rows: int = 4, seq: int = 10) -> tuple[Tensor, Tensor]:
    """Draw ids and a mask, int64 (rows, seq), padded on one side with ids that a model could mistake."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (rows, seq), generator=draw)
    lengths = torch.randint(2, seq, (rows, 1), generator=draw)
    lengths[0] = seq
    place = torch.arange(seq)
    return ids, ((place >= seq - lengths) if left else (place < lengths)).long()


_SHAPES: dict[str, dict[str, Any]] = {
    "a classifier": {"classes": 2},
    "a classifier with norms after the sums": {"classes": 3, "norm": "post", "positions": "sinusoidal"},
    "a decoder": {"causal": True},
    "a decoder with rotary positions": {"causal": True, "positions": "rotary", "tied": False},
    "a decoder that classifies": {"causal": True, "classes": 2, "activation": "relu"},
    "a model of pairs": {"token_types": 2, "activation": "gelu_tanh"},
}


def _scores(shape: dict[str, Any], left: bool) -> Callable[[Any, int], Any]:
    def scores(module: Any, seed: int) -> Any:
        model = make(module, seed, **shape)
        ids, mask = texts(seed, left=left)
        with torch.no_grad():
            found = model(ids, mask)
            whole = model(ids)
        if not shape.get("classes"):  # what is said at padding is nobody's business
            found = found.masked_fill(mask[..., None] == 0, 0.0)
        return [found.tolist(), whole.tolist()]

    return scores


for _name, _shape in _SHAPES.items():
    for _left in (False, True):
        _side = "left" if _left else "right"
        behaviour(
            f"scores of {_name}, padding on the {_side}",
            "model.py",
            f"the scores of {_name} are not those of a right model with its weights, padding on the {_side}",
        )(_scores(_shape, _left))


@behaviour("scores with a cache", "model.py", "a decoder with a cache does not say what it says without one")
def cached(module: Any, seed: int) -> Any:
    """Read a text in two parts."""
    from companion.models.cache import KeyValueCache

    model = make(module, seed, causal=True)
    ids, _ = texts(seed)
    config: Any = model.config
    cache = KeyValueCache(config, len(ids))
    with torch.no_grad():
        return [model(ids[:, :6], cache=cache).tolist(), model(ids[:, 6:], cache=cache).tolist()]


@behaviour("parameters", "model.py", "parameters are missing, shared or new: a saved model would not load")
def parameters(module: Any, seed: int) -> Any:
    """Count the numbers of each kind of parameter, by a number made of its name."""
    shapes = ({"classes": 2}, {"causal": True}, {"norm": "post", "tied": False, "layers": 3})
    found = []
    for shape in shapes:
        named = sorted(make(module, seed, jitter=False, **shape).named_parameters())
        found.append([[sum(map(ord, name)) % 9973, parameter.numel()] for name, parameter in named])
    return found


@behaviour("fresh weights", "model.py", "fresh weights are too large, too small, or the same twice", 0.3)
def fresh(module: Any, seed: int) -> Any:
    """Measure the spread of fresh matrices, and how far layers differ."""
    model = make(module, seed, jitter=False, width=64, heads=4, layers=3)
    own = dict(model.named_parameters())
    spread = [own[name].std().item() * 50 for name in sorted(own) if own[name].dim() > 1]
    pairs = [(name, name.replace("blocks.0.", "blocks.1.")) for name in sorted(own) if "blocks.0." in name]
    apart = [(own[a] - own[b]).abs().max().item() > 0 for a, b in pairs if own[a].dim() > 1]
    return [*spread, *map(float, apart)]


def _blank(module: Any, dropout: float) -> nn.Module:
    """Return a model in training mode in which nothing happens: one row of weights makes it happen again."""
    model = make(module, 0, jitter=False, classes=16, layers=1, dropout=dropout)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        dict(model.named_parameters())["head.weight"].copy_(torch.eye(16))
    return model.train()


def _fill(model: nn.Module, name: str, value: Tensor | float) -> None:
    with torch.no_grad():
        parameter = dict(model.named_parameters())[name]
        parameter.copy_(torch.as_tensor(value).expand_as(parameter))


def _shares(model: nn.Module, seed: int) -> list[float]:
    """Return the share of dropped numbers, and how many values the others have."""
    ids = torch.randint(3, WORDS, (400, 8), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        out = model(ids)
    middle = (out.amin(1, keepdim=True) + out.amax(1, keepdim=True)) / 2
    kept = [row[row > row.min() + 1e-3] for row in out]
    values = [len(torch.unique(torch.round(row * 500))) for row in kept]
    return [(out < middle).float().mean().item(), sum(values) / len(values)]


@behaviour(
    "dropout after the embeddings", "model.py", "in training, the embeddings are not dropped as often", 0.1
)
def drop_embeddings(module: Any, seed: int) -> Any:
    """Let the embeddings alone speak."""
    model = _blank(module, 0.3)
    _fill(model, "tokens.weight", 1.0)
    return _shares(model, seed)


@behaviour(
    "dropout after feed-forward",
    "model.py",
    "in training, the feed-forward part is not dropped as often",
    0.1,
)
def drop_feed_forward(module: Any, seed: int) -> Any:
    """Let the feed-forward part alone speak."""
    model = _blank(module, 0.3)
    _fill(model, "blocks.0.feed_forward.contract.bias", 1.0)
    return _shares(model, seed)


@behaviour(
    "randomness inside attention",
    "model.py",
    "in training, attention is not as random as in a right model",
    0.1,
)
def drop_attention(module: Any, seed: int) -> Any:
    """Let attention alone speak, the same at each token: what differs between heads is dropped weights.

    Sums of what is left of the weights: a head's numbers are equal, and two heads' are not.
    """
    model = _blank(module, 0.3)
    _fill(model, "blocks.0.attention.value.bias", 1.0)
    _fill(model, "blocks.0.attention.output.weight", torch.eye(16))
    _, values = _shares(model, seed)
    still = _shares(model.eval(), seed)
    return [values, *still]
