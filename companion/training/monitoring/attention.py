"""How widely a model's attention looks: its entropy per layer, from a forward pass of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from companion.data import Batch
from companion.training.objectives import model_inputs

__all__ = ["attention_entropy", "entropy_by_layer", "in_evaluation_mode"]


def attention_entropy(weights: torch.Tensor, mask: torch.Tensor, *, causal: bool = False) -> float | None:
    r"""Return the mean normalised entropy of attention weights.

    For each real token i of each text and head it is :math:`-\sum_j a_{ij} \ln a_{ij} / \ln n_i`, where
    :math:`n_i` counts the real tokens that i can attend to: 1 for uniform attention, 0 for all on one token.
    Where it falls to 0 in training, the attention has collapsed [1]_.

    Parameters
    ----------
    weights : Tensor
        (batch, heads, seq, seq), each row a distribution.
    mask : Tensor
        (batch, seq): 1 for real tokens, 0 for padding.
    causal : bool
        Whether tokens attend only to themselves and to those before them.

    Returns
    -------
    float or None
        None when no token can attend to two.

    References
    ----------
    .. [1] Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
       ICML 2023.
    """
    real = mask.bool()
    visible = real.cumsum(dim=1) if causal else real.sum(dim=1, keepdim=True).expand_as(real)
    counted = real & (visible > 1)
    if not counted.any():
        return None
    entropy = torch.special.entr(weights.float()).sum(dim=-1)
    share = entropy / visible.clamp(min=2).log().unsqueeze(1)
    return float(share.transpose(1, 2)[counted].mean())


def entropy_by_layer(model: torch.nn.Module, inputs: Batch, *, rows: int = 8) -> dict[str, float] | None:
    """Run a model once, without gradients and dropout, and measure its attention.

    Nothing is left changed: not the mode of any module, nor the attention implementation (only ``eager``
    gives weights), nor torch's random state.

    Parameters
    ----------
    model : torch.nn.Module
    inputs : dict of str to Tensor
        A batch on the model's device; its first `rows` rows are used.
    rows : int

    Returns
    -------
    dict of str to float or None
        By layer: ``layer 0`` and so on, of an encoder-decoder ``encoder layer 0`` and ``decoder layer 0``
        (not the attention between the two). None when the model gives no attention weights.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    part = {name: tensor[:rows] for name, tensor in model_inputs(inputs).items()}
    mask = part["attention_mask"]
    width = int(mask.any(dim=0).nonzero().max()) + 1  # what is padding in all rows costs time
    part = {name: tensor[:, :width] for name, tensor in part.items()}
    with ExitStack() as stack:
        cuda = [mask.device] if mask.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(torch.no_grad())
        stack.enter_context(in_evaluation_mode(model))
        stack.enter_context(_eager(model))
        output = model(**part, output_attentions=True)
    return _measured(output, mask[:, :width])


def _measured(output: Any, mask: torch.Tensor) -> dict[str, float] | None:
    kinds = {
        "attentions": "layer",
        "encoder_attentions": "encoder layer",
        "decoder_attentions": "decoder layer",
    }
    given = {name: getattr(output, kind, None) for kind, name in kinds.items()}
    stacks = {name: layers for name, layers in given.items() if layers}
    if not stacks:
        return None
    found: dict[str, float] = {}
    for name, layers in stacks.items():
        causal = all(_is_causal(weights) for weights in layers if weights is not None)
        for index, weights in enumerate(layers):
            if weights is not None:
                value = attention_entropy(weights, mask, causal=causal)
                found |= {} if value is None else {f"{name} {index}": value}
    return found


def _is_causal(weights: torch.Tensor) -> bool:
    """Tell from the weights: nothing in the configuration says it for all models."""
    return not bool(weights.triu(diagonal=1).any())


@contextmanager
def in_evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off, and each module back to its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        if sharded:
            _reshard(model)


def _reshard(model: torch.nn.Module) -> None:
    """Put shards back in the place of whole parameters: the outermost unit keeps those after a pass."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    before = _implementations(model.config)
    if set(before.values()) == {"eager"}:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _implementations(config: Any) -> dict[str, str]:
    """Return the attention implementation of a model and of the models that it is made of."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    own = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    return {"": config._attn_implementation, **own}
