"""Batches: every example once, right padding, the same order whatever the workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from companion.data import Example, batches
from companion.data.batching import WINDOW_BATCHES


def make_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Words become ids; [CLS] and [SEP] go around them as in BERT."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{f"w{i}": 4 + i for i in range(50)}}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special | names | options)


TOKENIZER = make_tokenizer()


def make_examples(lengths: list[int]) -> list[Example]:
    return [Example(" ".join(f"w{(i + k) % 50}" for k in range(n)), i % 2) for i, n in enumerate(lengths)]


def dump(loader: Any) -> list[dict[str, list[Any]]]:
    return [{name: tensor.tolist() for name, tensor in batch.items()} for batch in loader]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=0, max_size=80),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    bucket=st.booleans(),
    multiple_of=st.sampled_from([1, 8]),
    stream=st.booleans(),
)
def test_invariants(
    lengths: list[int], batch_size: int, shuffle: bool, bucket: bool, multiple_of: int, stream: bool
) -> None:
    examples = make_examples(lengths)
    loader = batches(
        iter(examples) if stream else examples,
        TOKENIZER,
        batch_size=batch_size,
        max_length=24,
        shuffle=shuffle,
        bucket=bucket,
        multiple_of=multiple_of,
    )
    found = list(loader)
    assert len(found) == -(-len(examples) // batch_size)
    assert sorted(index for batch in found for index in batch["index"].tolist()) == list(range(len(examples)))
    for batch in found:
        rows, width = batch["input_ids"].shape
        assert set(batch) == {"input_ids", "attention_mask", "labels", "index"}
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())
        assert rows <= batch_size and width % multiple_of == 0
        used = batch["attention_mask"].sum(dim=1)
        assert width - int(used.max()) < multiple_of
        for position, index in enumerate(batch["index"].tolist()):
            expected = TOKENIZER(examples[index].text, truncation=True, max_length=24)["input_ids"]
            assert batch["input_ids"][position].tolist() == expected + [0] * (width - len(expected))
            assert batch["attention_mask"][position].tolist() == [1] * len(expected) + [0] * (
                width - len(expected)
            )
            assert batch["labels"][position] == examples[index].label


def test_order_is_a_function_of_seed_and_epoch() -> None:
    examples = make_examples([random.Random(i).randrange(1, 40) for i in range(200)])

    def order(**options: Any) -> list[int]:
        loader = batches(examples, TOKENIZER, batch_size=8, shuffle=True, **options)
        return [index for batch in loader for index in batch["index"].tolist()]

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    orders = [order(seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(found) for found in orders}) == 4
    loader = batches(examples, TOKENIZER, batch_size=8, shuffle=True, seed=1)
    assert dump(loader.at(2)) == dump(
        batches(examples, TOKENIZER, batch_size=8, shuffle=True, seed=1, epoch=2)
    )
    assert dump(loader) == dump(loader)


def test_without_shuffle_and_bucket_the_order_is_kept() -> None:
    loader = batches(make_examples([9, 2, 30, 4, 5]), TOKENIZER, batch_size=2, bucket=False)
    assert [batch["index"].tolist() for batch in loader] == [[0, 1], [2, 3], [4]]


def test_buckets_save_padding_and_are_still_shuffled() -> None:
    examples = make_examples([random.Random(i).randrange(1, 60) for i in range(1000)])

    def padding(**options: Any) -> float:
        masks = [batch["attention_mask"] for batch in batches(examples, TOKENIZER, batch_size=16, **options)]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(shuffle=True, bucket=True) < 0.2 < 0.4 < padding(shuffle=True, bucket=False)
    assert padding(bucket=True) < 0.2
    loader = batches(examples, TOKENIZER, batch_size=16, shuffle=True)
    widths = [batch["input_ids"].shape[1] for batch in loader]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_change_nothing(shuffle: bool) -> None:
    examples = make_examples([1 + i % 17 for i in range(60)])
    options = {"batch_size": 4, "shuffle": shuffle, "seed": 3}
    alone = dump(batches(examples, TOKENIZER, **options))
    assert dump(batches(examples, TOKENIZER, workers=2, **options)) == alone


@pytest.mark.parametrize("stream", [False, True])
def test_global_random_state_is_left_alone(stream: bool) -> None:
    examples = make_examples([5, 6, 7])
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    list(batches(iter(examples) if stream else examples, TOKENIZER, shuffle=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert python_state == random.getstate()


def test_pairs_have_token_types() -> None:
    examples = [Example("w1 w2", 0, "w3"), Example("w4", 1, "w5 w6 w7")]
    (batch,) = batches(examples, TOKENIZER, bucket=False)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3, 7, 3, 0, 0], [2, 8, 3, 9, 10, 11, 3, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0]]
    (batch,) = batches(examples, make_tokenizer(model_input_names=["input_ids", "attention_mask"]))
    assert "token_type_ids" not in batch


def test_labels_are_optional_and_may_be_numbers() -> None:
    (batch,) = batches([Example("w1"), Example("w2")], TOKENIZER)
    assert "labels" not in batch
    (batch,) = batches([Example("w1", 2.5), Example("w2", 1)], TOKENIZER, regression=True, bucket=False)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [2.5, 1.0]


def test_padding_side_of_the_tokenizer() -> None:
    (batch,) = batches(make_examples([2]), make_tokenizer(padding_side="left"))
    assert batch["input_ids"].tolist() == [[0, 0, 0, 0, 2, 4, 5, 3]]
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_nothing_in_nothing_out() -> None:
    assert list(batches([], TOKENIZER, shuffle=True)) == []
    assert len(batches([], TOKENIZER)) == 0


def test_stream_reads_one_window_at_a_time() -> None:
    read = 0

    def source() -> Iterator[Example]:
        nonlocal read
        for example in make_examples([3] * 1000):
            read += 1
            yield example

    loader = batches(source(), TOKENIZER, batch_size=2, shuffle=True)
    assert read == 0
    assert not hasattr(loader, "__len__")
    iterator = iter(loader)
    next(iterator)
    assert read == 2 * WINDOW_BATCHES
    assert sum(1 for _ in iterator) == 499
    with pytest.raises(ValueError, match="has been read already"):
        iter(loader)


def test_stream_that_can_be_reopened_is_read_again() -> None:
    class Reopened:
        def __iter__(self) -> Iterator[Example]:
            return iter(make_examples([3, 4, 5]))

    loader = batches(Reopened(), TOKENIZER)
    assert dump(loader) == dump(loader) != []


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([Example("w1", 0), Example("w2")], {}, "example 1: only some have a label"),
        ([Example("w1", 0, "w2"), Example("w2", 1)], {}, "example 1: only some have a second text"),
        ([Example("w1", 0.5)], {}, "example 0: label 0.5 is not a class index"),
        ([Example("w1", 0)], {"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ([Example("w1", 0)], {"max_length": 2}, "max_length is 2, but 2 special tokens"),
        ([Example("w1", 0, "w2")], {"max_length": 4}, "max_length is 4, but 3 special tokens"),
        ([Example("w1", 0)], {"workers": -1}, "workers is -1"),
        ([Example("w1", 0)], {"multiple_of": 0}, "multiple_of is 0"),
    ],
)
def test_wrong_input(examples: list[Example], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(examples, TOKENIZER, **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            list(batches(iter(examples), TOKENIZER))


def test_tokenizer_without_padding_token() -> None:
    with pytest.raises(ValueError, match="has no padding token; set one first"):
        batches(make_examples([1]), make_tokenizer(pad_token=None))
