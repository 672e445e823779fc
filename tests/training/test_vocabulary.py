"""Leaving out the unused rows of the embedding table changes nothing but the time."""

from __future__ import annotations

import pytest
import torch

from companion.data import Example, Task
from companion.models import load
from companion.training import TrainingConfig, fit, predict_logits
from companion.training import preparation as preparation
from companion.training.vocabulary import UsedRows, use_rows

LABELS = ("negative", "positive")
TASK = Task("toy", "accuracy", LABELS, False, "one adjective decides")


def trained(encoder, examples, dev, **changes):
    classifier = load(encoder, labels=LABELS)
    basis = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "max_length": 48, "precision": "fp32"}
    config = TrainingConfig(**{**basis, "weight_decay": 0.3, **changes})
    run = fit(classifier.model, classifier.tokenizer, examples, config=config, dev=dev, task=TASK)
    return run, classifier


@pytest.fixture
def whole_table(monkeypatch):
    monkeypatch.setattr(preparation, "use_rows", lambda model, used: None)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"max_grad_norm": 0.05}], ids=str)
def test_a_run_ends_with_the_same_weights(encoder_folder, toy, changes, request):
    """With strong decay, so that rows which nobody uses move too; dev texts have words that train has not."""
    dev = [Example("the sausage was awful, said the unhappy postman", 0), *toy[96:112]]
    run, ours = trained(encoder_folder, toy[:96], dev, **changes)
    request.getfixturevalue("whole_table")
    whole, plain = trained(encoder_folder, toy[:96], dev, **changes)
    for name, tensor in plain.model.state_dict().items():
        # Adam divides by the root of the second moment: rounding in the smallest gradients is not small.
        torch.testing.assert_close(ours.model.state_dict()[name], tensor, rtol=2e-3, atol=2e-4)
    table, there = (c.model.bert.embeddings.word_embeddings.weight for c in (ours, plain))
    start = load(encoder_folder, labels=LABELS).model.bert.embeddings.word_embeddings.weight
    used = ours.tokenizer([e.text for e in toy[:96]])["input_ids"]
    idle = sorted(set(range(len(start))) - {i for ids in used for i in ids} - {0})
    torch.testing.assert_close(table[idle], there[idle], rtol=1e-6, atol=0)
    assert not torch.equal(table[idle], start[idle]), "decayed"
    assert [step.loss for step in run.steps] == pytest.approx([step.loss for step in whole.steps], rel=1e-3)
    assert [e.metrics for e in run.evaluations] == [e.metrics for e in whole.evaluations]


def test_texts_with_other_words_are_read_as_the_whole_table_would(encoder_folder, toy):
    classifier = load(encoder_folder, labels=LABELS)
    model, tokenizer = classifier.model, classifier.tokenizer
    other = [Example("a strange new sausage, ninety times"), *[e._replace(label=None) for e in toy[:4]]]
    before = predict_logits(model, tokenizer, other, max_length=48)
    full = model.get_input_embeddings()
    ids = tokenizer([e.text for e in toy[:4]])["input_ids"]
    rows = use_rows(model, torch.tensor(sorted({0, *(i for line in ids for i in line)})))
    assert isinstance(model.get_input_embeddings(), UsedRows)
    after = predict_logits(model, tokenizer, other, max_length=48)
    torch.testing.assert_close(torch.from_numpy(after), torch.from_numpy(before))
    weight = full.weight.clone()
    model.set_input_embeddings(rows.restored())
    assert model.get_input_embeddings() is full
    assert torch.equal(full.weight, weight)


def test_it_is_not_done_where_it_would_be_wrong_or_useless(encoder_folder):
    from transformers import BertConfig, BertForMaskedLM

    model = load(encoder_folder, labels=LABELS).model
    some = torch.arange(100)
    model.get_input_embeddings().weight.requires_grad_(False)
    assert use_rows(model, some) is None
    model.get_input_embeddings().weight.requires_grad_(True)
    assert use_rows(model, torch.arange(799)) is None
    tied = BertForMaskedLM(
        BertConfig(
            vocab_size=800,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=16,
            tie_word_embeddings=True,
        )
    )
    assert use_rows(tied, some) is None
    assert use_rows(model, some) is not None


def test_a_run_that_breaks_leaves_the_whole_table(encoder_folder, toy):
    from companion.training import Callback

    class Break(Callback):
        def on_step(self, state, record):
            raise RuntimeError("enough")

    classifier = load(encoder_folder, labels=LABELS)
    full = classifier.model.get_input_embeddings()
    with pytest.raises(RuntimeError, match="enough"):
        fit(
            classifier.model,
            classifier.tokenizer,
            toy[:32],
            config=TrainingConfig(batch_size=16, max_length=48, precision="fp32"),
            callbacks=[Break()],
        )
    assert classifier.model.get_input_embeddings() is full
    assert full.weight.shape == (800, 32)
