"""Puts the weights of BERT and GPT-2 into the transformer to read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from companion.models.transformer import Transformer, TransformerConfig

__all__ = ["from_transformers"]

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def from_transformers(model: PreTrainedModel) -> Transformer:
    """Return a `Transformer` with a model's weights.

    Parameters
    ----------
    model : PreTrainedModel
        Of the type ``bert`` or ``gpt2``, with any head.

    Returns
    -------
    Transformer
        In evaluation mode, with copies of the weights. Its `encode` gives the hidden states of the original;
        its scores are those of a GPT-2 language model. The heads of BERT are not taken over.

    Raises
    ------
    ValueError
        For another type of model, or an activation that the transformer does not have.
    """
    kind, config = model.config.model_type, model.config
    if kind not in _READERS:
        raise ValueError(f"the model's type is {kind!r}, expected one of {sorted(_READERS)}")
    activation = getattr(config, "hidden_act", None) or config.activation_function
    if activation not in _ACTIVATIONS:
        raise ValueError(f"the model's activation is {activation!r}, expected one of {sorted(_ACTIVATIONS)}")
    shape, weights = _READERS[kind](model, _ACTIVATIONS[activation])
    transformer = Transformer(shape)
    transformer.load_state_dict({"head.weight": weights["tokens.weight"], **weights})
    return transformer.eval()


def _bert(model: PreTrainedModel, activation: str) -> tuple[TransformerConfig, Mapping[str, Tensor]]:
    config, state = model.config, model.base_model.state_dict()
    shape = TransformerConfig(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        hidden=config.intermediate_size,
        max_length=config.max_position_embeddings,
        token_types=config.type_vocab_size,
        norm="post",
        dropout=config.hidden_dropout_prob,
        activation=activation,  # type: ignore[arg-type]
        eps=config.layer_norm_eps,
    )
    names = {
        "tokens": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    }
    inside = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.expand": "intermediate.dense",
        "feed_forward.contract": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    for layer in range(shape.layers):
        names |= {f"blocks.{layer}.{our}": f"encoder.layer.{layer}.{its}" for our, its in inside.items()}
    return shape, _renamed(state, names)


def _gpt2(model: PreTrainedModel, activation: str) -> tuple[TransformerConfig, Mapping[str, Tensor]]:
    config, state = model.config, model.base_model.state_dict()
    shape = TransformerConfig(
        vocab_size=config.vocab_size,
        width=config.n_embd,
        layers=config.n_layer,
        heads=config.n_head,
        hidden=config.n_inner or 4 * config.n_embd,
        max_length=config.n_positions,
        causal=True,
        norm="pre",
        dropout=config.resid_pdrop,
        activation=activation,  # type: ignore[arg-type]
        eps=config.layer_norm_epsilon,
    )
    names = {"tokens": "wte", "positions": "wpe", "final_norm": "ln_f"}
    for layer in range(shape.layers):
        ours, its = f"blocks.{layer}", f"h.{layer}"
        names |= {f"{ours}.attention_norm": f"{its}.ln_1", f"{ours}.feed_forward_norm": f"{its}.ln_2"}
    weights = dict(_renamed(state, names))
    turned = {
        "attention.output": "attn.c_proj",
        "feed_forward.expand": "mlp.c_fc",
        "feed_forward.contract": "mlp.c_proj",
    }
    for layer in range(shape.layers):
        ours, its = f"blocks.{layer}", f"h.{layer}"
        # GPT-2 multiplies from the right, and computes queries, keys and values in one product.
        for our, other in turned.items():
            weights[f"{ours}.{our}.weight"] = state[f"{its}.{other}.weight"].t()
            weights[f"{ours}.{our}.bias"] = state[f"{its}.{other}.bias"]
        for part in ("weight", "bias"):
            thirds = state[f"{its}.attn.c_attn.{part}"].t().chunk(3)
            for our, third in zip(("query", "key", "value"), thirds, strict=True):
                weights[f"{ours}.attention.{our}.{part}"] = third
    return shape, weights


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{our}.{part}": state[f"{its}.{part}"]
        for our, its in names.items()
        for part in ("weight", "bias")
        if f"{its}.{part}" in state
    }


_READERS = {"bert": _bert, "gpt2": _gpt2}
