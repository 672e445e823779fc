"""Correct solutions that are written differently, and tests as a good learner writes them."""

from __future__ import annotations

from companion.debugging.zoo.editing import right_source

_RIGHT_MODEL, _RIGHT_TRAIN = right_source("transformer"), right_source("recipe")


def change(source: str, *pairs: tuple[str, str]) -> str:
    for before, after in pairs:
        assert before in source, before
        source = source.replace(before, after)
    return source


def attention(body: str) -> str:
    start = _RIGHT_MODEL.index("        scores = query @ key")
    end = _RIGHT_MODEL.index("    def split_heads")
    return _RIGHT_MODEL[:start] + body + "\n" + _RIGHT_MODEL[end:]


_TORCHS_OWN = """\
        drop = self.dropout.p if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, visible, dropout_p=drop)
        return self.output(self.merge_heads(mixed))
"""

_EINSUM = """\
        bias = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(visible.logical_not(), -1e9)
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * query.size(-1) ** -0.5 + bias
        weights = nn.functional.dropout(scores.softmax(-1), self.dropout.p, self.training)
        mixed = torch.einsum("bhqk,bhkd->bqhd", weights, value)
        return self.output(mixed.reshape(*mixed.shape[:2], -1))
"""

_INFINITE = """\
        scores = torch.matmul(query, key.mT).div(query.shape[-1] ** 0.5)
        scores = scores.where(visible, scores.new_full((), float("-inf")))
        weights = torch.softmax(scores, dim=3).nan_to_num()
        if self.training and self.dropout.p:
            kept = torch.rand_like(weights) >= self.dropout.p
            weights = weights * kept / (1 - self.dropout.p)
        return self.output(self.merge_heads(torch.matmul(weights, value)))
"""

_COLLATE = _RIGHT_TRAIN[_RIGHT_TRAIN.index("    width = max(len(ids)") : _RIGHT_TRAIN.index("def batches(")]

_PAD_SEQUENCE = """\
    from torch.nn.utils.rnn import pad_sequence

    side = "left" if pad_left else "right"
    texts = [torch.tensor(ids) for ids, _ in rows]
    ones = [torch.ones_like(text) for text in texts]
    return {
        "input_ids": pad_sequence(texts, batch_first=True, padding_value=PAD, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
        "labels": torch.tensor([label for _, label in rows]),
    }


"""

_FILLED = """\
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    width = int(lengths.max())
    place = torch.arange(width)[None]
    mask = place >= (width - lengths)[:, None] if pad_left else place < lengths[:, None]
    filled = torch.full(mask.shape, PAD)
    filled[mask] = torch.tensor([token for ids, _ in rows for token in ids])
    return {"labels": torch.tensor([label for _, label in rows]), "input_ids": filled,
            "attention_mask": mask.long()}


"""

_SCHEDULE = _RIGHT_TRAIN[
    _RIGHT_TRAIN.index("    warmup = max(1, round(") : _RIGHT_TRAIN.index("def train_step(")
]

_COSINE = """\
    import math

    rise = max(1, int(0.15 * steps))

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))

    return LambdaLR(optimizer, share)


"""

_CHAINED = """\
    from torch.optim.lr_scheduler import LinearLR, SequentialLR

    rise = max(1, steps // 8)
    up = LinearLR(optimizer, 0.1, 1.0, rise)
    down = LinearLR(optimizer, 1.0, 0.05, max(1, steps - rise))
    return SequentialLR(optimizer, [up, down], [rise])


"""

SOLUTIONS = {
    "as it was": (_RIGHT_MODEL, _RIGHT_TRAIN),
    "torch's own attention, pad_sequence, foreach": (
        attention(_TORCHS_OWN),
        change(
            _RIGHT_TRAIN,
            (_COLLATE, _PAD_SEQUENCE),
            (
                "AdamW(groups, lr=settings.learning_rate)",
                "AdamW(groups, lr=settings.learning_rate, foreach=True)",
            ),
        ),
    ),
    "einsum, an additive mask, other names, a cosine at half the rate": (
        change(attention(_EINSUM), ("split_heads", "by_head"), ("visibility", "who_sees_whom")),
        change(
            _RIGHT_TRAIN,
            (_SCHEDULE, _COSINE),
            ("learning_rate: float = 1e-3", "learning_rate: float = 5e-4"),
            ("targets_of", "answers"),
            ("loss_sum", "summed"),
        ),
    ),
    "minus infinity made safe, dropout by hand, a filled mask, chained schedules": (
        attention(_INFINITE),
        change(_RIGHT_TRAIN, (_COLLATE, _FILLED), (_SCHEDULE, _CHAINED)),
    ),
}

DIAGNOSIS = [
    {"file": "train.py", "function": "collate", "family": "data", "what": "The mask is 1 at padding."},
    {"file": "model.py", "function": "Attention.forward", "family": "architecture", "what": "No dropout."},
    {"file": "train.py", "function": "Settings", "family": "training", "what": "The rate is too high."},
]

GOOD_TESTS = """
import torch
from types import SimpleNamespace


def made(model, seed=0, **shape):
    torch.manual_seed(seed)
    net = model.Transformer(model.TransformerConfig(40, width=16, heads=2, max_length=24, **shape)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return net


def test_padding_does_not_matter(model, train):
    net = made(model, classes=2)
    ids = torch.randint(3, 40, (3, 10))
    mask = torch.ones_like(ids)
    mask[:, 6:] = 0
    other = torch.where(mask.bool(), ids, 5)
    assert torch.allclose(net(ids, mask), net(other, mask), atol=1e-4)
    assert torch.allclose(net(ids, mask), net(ids[:, :6]), atol=1e-4)
    assert not torch.allclose(net(ids, mask), net(ids), atol=1e-4)


def test_left_padding_does_not_matter(model, train):
    net = made(model, classes=2)
    ids = torch.randint(3, 40, (3, 6))
    pads = torch.full((3, 4), 7)
    mask = torch.cat((torch.zeros_like(pads), torch.ones_like(ids)), 1)
    assert torch.allclose(net(torch.cat((pads, ids), 1), mask), net(ids), atol=1e-4)


def test_rows_do_not_meet(model, train):
    net = made(model, classes=2)
    ids = torch.randint(3, 40, (4, 7))
    mask = torch.ones_like(ids)
    mask[1:, 4:] = 0
    for row in range(4):
        assert torch.allclose(net(ids, mask)[row], net(ids[row:row + 1], mask[row:row + 1])[0], atol=1e-4)


def test_no_token_sees_the_future(model, train):
    net = made(model, causal=True)
    ids = torch.randint(3, 40, (2, 10))
    other = ids.clone()
    other[:, 6:] = 3 + (other[:, 6:] - 2) % 37
    assert torch.allclose(net(ids)[:, :6], net(other)[:, :6], atol=1e-4)
    assert not torch.allclose(net(ids)[:, 6:], net(other)[:, 6:], atol=1e-4)


def test_order_matters(model, train):
    net = made(model)
    ids = torch.arange(3, 13)[None]
    assert (net(ids) - net(ids.flip(1)).flip(1)).abs().max() > 1e-3


def test_what_blocks_add_comes_on_top_of_what_was_there(model, train):
    net = made(model)
    for block in net.blocks:
        for name, parameter in block.named_parameters():
            if parameter.dim() == 2 or name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
    scores = net(torch.arange(3, 13)[None])[0]
    assert torch.pdist(scores).min() > 1e-3


def test_every_block_is_called(model, train):
    net = made(model, classes=2)
    called = []
    for block in net.blocks:
        block.register_forward_hook(lambda *_: called.append(1))
    net(torch.randint(3, 40, (2, 8)))
    assert len(called) == len(net.blocks)


def test_scores_are_no_probabilities(model, train):
    scores = made(model, classes=2)(torch.randint(3, 40, (4, 8)))
    assert not torch.allclose(scores.exp().sum(-1), torch.ones(4), atol=1e-3)
    assert not torch.allclose(scores.sum(-1), torch.ones(4), atol=1e-3)


def test_training_is_random_and_evaluation_is_not(model, train):
    net = made(model, classes=2, dropout=0.3)
    ids = torch.randint(3, 40, (3, 10))
    assert torch.equal(net(ids), net(ids))
    net.train()
    assert not torch.allclose(net(ids), net(ids))


def test_attention_equals_torchs(model, train):
    net = made(model, causal=True)
    block = net.blocks[0].attention
    caught = {}
    block.query.register_forward_hook(lambda m, i, o: caught.update(q=o))
    block.key.register_forward_hook(lambda m, i, o: caught.update(k=o))
    block.value.register_forward_hook(lambda m, i, o: caught.update(v=o))
    block.output.register_forward_hook(lambda m, i, o: caught.update(o=i[0]))
    if net.config.positions == "rotary":
        return
    net(torch.randint(3, 40, (2, 8)))
    q, k, v = (caught[n].unflatten(-1, (2, 8)).transpose(1, 2) for n in "qkv")
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(caught["o"], wanted.transpose(1, 2).flatten(2), atol=1e-4)


def test_the_mask_is_one_at_words(model, train):
    rows = [([3, 4, 5], 0), ([6], 1), ([7, 8, 9, 3, 4], 1)]
    for left in (False, True):
        batch = train.collate(rows, pad_left=left)
        assert batch["attention_mask"].sum(1).tolist() == [3, 1, 5]
        for ids, mask, (wanted, _) in zip(batch["input_ids"], batch["attention_mask"], rows):
            assert ids[mask.bool()].tolist() == wanted
        assert batch["labels"].tolist() == [0, 1, 1]


class Stub(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(classes=2, causal=False)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.places, self.modes = [], []

    def forward(self, ids, mask=None, *rest):
        self.places.append(self.weight[1].item())
        self.modes.append(self.training)
        return self.weight.expand(len(ids), 2) + 0.0 * ids.sum()


def test_the_learning_rate_rises_and_falls(model, train):
    stub = Stub()
    rows = [([3, 4], 1)] * 640
    train.train(stub, rows, train.Settings())
    places = [*stub.places, stub.weight[1].item()]
    moved = [b - a for a, b in zip(places, places[1:])]
    top = max(moved)
    assert 1e-5 < top < 5e-3
    assert moved[0] < 0.7 * top and moved[-1] < 0.4 * top
    assert moved[len(moved) // 2] > 0.2 * top


def test_evaluation_counts(model, train):
    stub = Stub()
    with torch.no_grad():
        stub.weight.copy_(torch.tensor([0.0, 1.0]))
    batches = [train.collate([([3], 1)] * 6), train.collate([([3], 0)] * 2)]
    assert abs(train.evaluate(stub, batches) - 0.75) < 1e-6
    assert not any(stub.modes)


def test_a_step_follows_the_gradient_of_the_mean(model, train):
    stub = Stub()
    optimizer = torch.optim.SGD(stub.parameters(), lr=1.0)
    parts = [train.collate([([3], 1)] * 3), train.collate([([3], 0)] * 1)]
    for _ in range(2):
        before = stub.weight.detach().clone()
        wanted = before.softmax(0) - torch.tensor([0.25, 0.75])
        train.train_step(stub, optimizer, parts, train.Settings(max_grad_norm=100.0))
        assert torch.allclose(stub.weight, before - wanted, atol=1e-5)
"""
