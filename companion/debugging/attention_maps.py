"""Sees the attention weights of any model, however it computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from companion.debugging.calling import default_scores
from companion.debugging.subject import Subject
from companion.training.monitoring.attention import in_evaluation_mode

__all__ = ["AttentionMaps", "attention_maps"]

AttentionMaps = list[tuple[str, Tensor]]
"""For each place where attention is computed, in order: the module's path, and (batch, heads, seq, keys)."""

_SOFTMAX = {torch.softmax, Tensor.softmax, functional.softmax, torch._softmax}


def attention_maps(
    subject: Subject | nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    call: Callable[[nn.Module], Any] | None = None,
) -> AttentionMaps:
    """Run a model once and return its attention weights.

    They are taken where torch computes them: from every softmax whose result has the shape of attention,
    be it a module or a function; from `torch.nn.MultiheadAttention`; and out of
    `scaled_dot_product_attention`, which keeps them to itself, from its queries and keys. So no model needs a
    switch for it: the reference transformer, other people's, and those of transformers in any implementation
    but ``flash_attention`` and ``flex_attention``.

    Parameters
    ----------
    subject : Subject or Module
        Of a subject a new model is made. The model runs without dropout and without gradients, and is left as
        it was.
    input_ids : Tensor
        Int64 (batch, seq).
    attention_mask : Tensor, optional
        (batch, seq), 1 for real tokens.
    call : callable, optional
        Takes the model and runs it on whatever it needs, if ids and a mask are not that.

    Returns
    -------
    list of (str, Tensor)
        In order of execution: the path of the module that computes the attention, and its weights, float32
        (batch, heads, seq, keys). In an encoder-decoder those between the two are among them.

    Raises
    ------
    ValueError
        When nothing in the model looks like attention.
    """
    model = subject.model() if isinstance(subject, Subject) else subject
    scores = subject.scores if isinstance(subject, Subject) else default_scores
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    with _spied(model, len(input_ids)) as spy:
        if call is not None:
            call(model)
        elif getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            model(**arguments, decoder_input_ids=input_ids)
        else:
            scores(model, input_ids, attention_mask)
    if not spy.maps:
        raise ValueError(
            f"{type(model).__name__} computes nothing that looks like attention: expected a softmax with a "
            "result (batch, heads, seq, keys), scaled_dot_product_attention or MultiheadAttention; load a "
            'model of transformers with attn_implementation="eager"'
        )
    return spy.maps


class _Spy(TorchFunctionMode):
    """Keeps the weights that pass through torch's functions, with the module that was running."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.running: list[str] = []
        self.maps: AttentionMaps = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func is functional.scaled_dot_product_attention:
            self.keep(_hidden_weights(*args, **given))
        elif func in _SOFTMAX:
            self.keep(result)
        return result

    def keep(self, weights: Tensor) -> None:
        """Add weights if they are attention: not those over words, classes or experts."""
        if weights.dim() == 3 and weights.size(1) == weights.size(2) and weights.size(0) % self.batch == 0:
            weights = weights.reshape(self.batch, -1, *weights.shape[1:])
        if weights.dim() == 4 and weights.size(0) == self.batch:
            name = self.running[-1] if self.running else ""
            self.maps.append((name, weights.detach().float().clone()))


def _hidden_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights that torch's `scaled_dot_product_attention` uses, as its documentation has them."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~past, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    # A row that sees nothing is all zeros, as in torch's function.
    return torch.softmax(scores.float(), dim=-1).masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)


@contextmanager
def _spied(model: nn.Module, batch: int) -> Iterator[_Spy]:
    spy, handles = _Spy(batch), []

    def entered(name: str) -> None:
        spy.running.append(name)

    def left(module: nn.Module, output: Any) -> None:
        name = spy.running.pop()
        if isinstance(module, nn.MultiheadAttention) and output[1] is not None:
            spy.running.append(name)
            spy.keep(output[1] if output[1].dim() == 4 else output[1][None])
            spy.running.pop()

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Softmax):
                continue  # what it computes is its owner's attention
            if isinstance(module, nn.MultiheadAttention):
                handles.append(module.register_forward_pre_hook(_with_weights, with_kwargs=True))
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: entered(name)))
            handles.append(module.register_forward_hook(lambda m, args, output: left(m, output)))
        for handle in handles:
            stack.callback(handle.remove)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # it computes a whole layer in one call
        stack.enter_context(torch.no_grad())
        stack.enter_context(in_evaluation_mode(model))
        stack.enter_context(spy)
        yield spy


def _with_weights(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Ask `torch.nn.MultiheadAttention` for the weights of each head."""
    return args[:4], {**_named(args[4:]), **kwargs, "need_weights": True, "average_attn_weights": False}


def _named(rest: Sequence[Any]) -> dict[str, Any]:
    names = ("need_weights", "attn_mask", "average_attn_weights", "is_causal")
    return dict(zip(names, rest, strict=False))
