"""The first module that makes NaN or infinity is named, in whatever way values are nested."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from companion.debugging.nonfinite import (
    first_nonfinite,
    first_nonfinite_gradient,
    statistics_of,
)
from companion.debugging.subject import seeded
from companion.models import Transformer, TransformerConfig

IDS = torch.arange(1, 11).view(2, 5)


def reference(**shape) -> Transformer:
    with seeded(0):
        return Transformer(TransformerConfig(vocab_size=20, width=16, classes=2, **shape)).eval()


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    own = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    return own + sum(len(parameter._backward_hooks or ()) for parameter in model.parameters())


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x - x)


class Wrapped(nn.Module):
    """Its own line makes the infinity that the linear layer is then given."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how

    def forward(self, x):
        return self.how(self.second(self.first(x).abs() / 0.0))


def test_a_right_model_has_none():
    for shape in ({}, {"causal": True, "norm": "post", "positions": "rotary"}):
        assert first_nonfinite(reference(**shape), lambda model: model(IDS)) is None


def test_a_broken_weight_is_named_with_its_module():
    model = reference()
    with torch.no_grad():
        model.blocks[1].feed_forward.expand.weight[0, 0] = math.inf
    found = first_nonfinite(model, lambda model: model(IDS))
    assert found.module == "blocks.1.feed_forward.expand"
    assert found.kind == "Linear"
    assert found.parameters == ("weight",)
    assert not found.inputs.bad()
    assert found.outputs.infinite + found.outputs.nan + found.outputs.minus_infinite > 0
    assert found.inputs.elements == IDS.numel() * 16
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x,
        lambda x: (x, None),
        lambda x: {"states": [x]},
        lambda x: BaseModelOutput(last_hidden_state=x),
    ],
)
def test_what_a_modules_own_line_makes_is_its_own_fault_whatever_it_returns(how):
    found = first_nonfinite(Wrapped(how), lambda model: model(torch.ones(2, 4)))
    assert (found.module, found.kind) == ("", "Wrapped")
    assert found.outputs.bad()


def test_a_softmax_over_a_row_that_sees_nothing_is_named():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.softmax = nn.Softmax(dim=-1)

        def forward(self, x, mask):
            return self.softmax(x.masked_fill(mask == 0, -math.inf))

    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    found = first_nonfinite(Masked(), lambda model: model(torch.zeros(2, 3), mask))
    assert found.module == "softmax"
    assert found.inputs.minus_infinite == 4
    assert found.outputs.nan == 3
    assert first_nonfinite(Masked(), lambda model: model(torch.zeros(2, 3), mask[:1])) is None


def test_minus_infinity_counts_only_if_asked():
    model = nn.Sequential(nn.Linear(3, 3), Logarithm())
    run = lambda model: model(torch.ones(1, 3))  # noqa: E731
    assert first_nonfinite(model, run) is None
    assert first_nonfinite(model, run, minus_infinity=True).module == "1"


def test_a_module_that_works_in_place_is_not_judged_by_what_it_made_of_its_input():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.div_(0.0)

    found = first_nonfinite(nn.Sequential(nn.Identity(), InPlace()), lambda model: model(torch.ones(2)))
    assert found.module == "1"
    assert found.inputs.high == 1.0


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_hugging_face_models(family):
    small = {"num_hidden_layers": 2, "num_attention_heads": 2}
    with seeded(0):
        model, broken = {
            "bert": lambda: (
                BertForSequenceClassification(
                    BertConfig(vocab_size=20, hidden_size=16, intermediate_size=16, **small)
                ),
                "bert.encoder.layer.1.attention.self.key",
            ),
            "gpt2": lambda: (
                GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16)),
                "transformer.h.1.attn.c_attn",
            ),
            "t5": lambda: (
                T5ForConditionalGeneration(
                    T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
                ),
                "decoder.block.1.layer.1.EncDecAttention.k",
            ),
        }[family]()
    model.eval()
    more = {"decoder_input_ids": IDS} if family == "t5" else {}

    def call(model):
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more)

    assert first_nonfinite(model, call) is None
    with torch.no_grad():
        model.get_submodule(broken).weight[0, 0] = math.nan
    assert first_nonfinite(model, call).module == broken


def test_an_error_is_passed_on_and_leaves_no_hook():
    model = reference()
    with pytest.raises(ValueError, match="tokens"):
        first_nonfinite(model, lambda model: model(torch.ones(1, 500, dtype=torch.long)))
    assert hooks_of(model) == 0


def test_hooks_of_others_stay():
    model = nn.Sequential(nn.Linear(2, 2))
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    first_nonfinite(model, lambda model: model(torch.ones(1, 2)))
    model(torch.ones(1, 2))
    assert seen == [1, 1]


def test_the_first_gradient_that_is_not_finite_is_the_one_next_to_the_fault():
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.above = nn.Linear(3, 3, bias=False), nn.Linear(3, 1)

        def forward(self, x):
            hidden = self.below(x)
            return self.above((hidden - hidden).sqrt()).sum()

    model = Rooted()
    kept = torch.full_like(model.below.weight, 7.0)
    model.below.weight.grad = kept
    found = first_nonfinite_gradient(model, lambda model: model(torch.ones(2, 3)))
    assert found.parameter == "below.weight"
    assert found.gradient.nan == 9
    assert not found.weights.bad()
    assert model.below.weight.grad is kept
    assert model.above.weight.grad is None
    assert hooks_of(model) == 0


def test_right_gradients_are_all_finite():
    assert first_nonfinite_gradient(reference(), lambda model: model(IDS).square().sum()) is None


def test_statistics_count_everything_in_nested_values():
    nested = (torch.tensor([1.0, math.nan]), {"a": [torch.tensor([-math.inf, 3.0, math.inf])]}, IDS, None)
    seen = statistics_of(nested)
    assert (seen.elements, seen.nan, seen.infinite, seen.minus_infinite) == (5, 1, 1, 1)
    assert (seen.low, seen.high, seen.dtype) == (1.0, 3.0, "float32")
    assert str(seen) == "5 float32 numbers from 1 to 3, 1 NaN and 1 +inf and 1 -inf among them"
