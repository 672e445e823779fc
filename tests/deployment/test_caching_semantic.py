"""The semantic cache at work: what it answers, when it passes on, and how it switches itself off."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from companion.deployment.answering import Answer, Question
from companion.deployment.caching import (
    BorrowedAnswer,
    CacheTally,
    Certificate,
    HashedWords,
    HitBudget,
    SemanticCache,
    StateEncoder,
)
from companion.deployment.caching.certificate import Bounded
from companion.deployment.problems import DEADLINE_EXCEEDED, ProblemError

FOREVER = math.inf
CERTIFICATE = Certificate(0.8, "", HitBudget(0.01), 1000, Bounded(0, 500, 0.0087), None, "words", "v1")


class Words:
    """Counts four letters; fails for "boom"."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def __call__(self, text: str) -> np.ndarray:
        self.embedded.append(text)
        if text == "boom":
            raise RuntimeError("secret")
        return np.array([text.count(letter) for letter in "abcd"], dtype=np.float32)


class Model:
    """Says yes where there are more a's than b's."""

    def __init__(self) -> None:
        self.version = "v1"
        self.asked: list[str] = []
        self.refuses = False

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        if self.refuses:
            raise ProblemError(DEADLINE_EXCEEDED, "late")
        self.asked.append(question.text)
        yes = 0.9 if question.text.count("a") > question.text.count("b") else 0.1
        return Answer((1 - yes, yes), ("no", "yes"), self.version)


def built(model: Model, embed: Words | None = None, certificate: Certificate = CERTIFICATE, **keywords):
    keywords = {"audit_share": 0.0, "embedder": "words", "counter": CacheTally(), **keywords}
    return SemanticCache(model, embed or Words(), certificate, version=lambda: model.version, **keywords)


def asked(cache: SemanticCache, *texts: str, pair: str | None = None) -> list[Answer]:
    async def run() -> list[Answer]:
        return [await cache.answer(Question(text, pair), deadline=FOREVER) for text in texts]

    return asyncio.run(run())


def test_a_similar_question_gets_the_answer_of_the_first():
    model = Model()
    cache = built(model)
    own, borrowed, other = asked(cache, "aaab", "aaabb", "cd")
    assert model.asked == ["aaab", "cd"]
    assert isinstance(borrowed, BorrowedAnswer)
    assert (borrowed.values, borrowed.labels, borrowed.model_version) == (own.values, own.labels, "v1")
    assert 0.8 < borrowed.similarity < 1
    assert not isinstance(other, BorrowedAnswer)
    assert cache._counter.to_dict() == {"semantic": {"hit": 1, "miss": 2, "stored": 2}}
    report = cache.report()
    assert (report.questions, report.hits, report.audited, report.off) == (3, 1, 0, "")
    assert report.lookup_s > 0
    assert report.model_s >= 0


def test_a_question_below_the_threshold_runs():
    model = Model()
    asked(built(model), "ab", "ac")  # 0.5
    assert model.asked == ["ab", "ac"]


def test_what_is_borrowed_is_not_lent_again():
    """The cache holds the model's answers only, so that an error does not wander from text to text."""
    model = Model()
    cache = built(model)
    asked(cache, "aaaa", "aaab", "aabb")
    assert model.asked == ["aaaa", "aabb"]  # near to the second, not to the first


def off_by(what: str) -> tuple[Certificate, str]:
    if what == "threshold":
        return replace(CERTIFICATE, threshold=None, reason="too few trials"), "too few trials"
    if what == "embedder":
        return replace(CERTIFICATE, embedder="other"), "about other, the vectors are from words"
    return replace(CERTIFICATE, model_version="v0"), "about model v0, but v1 answers"


@pytest.mark.parametrize("what", ["threshold", "embedder", "model"])
def test_off_means_that_nothing_is_embedded(what):
    certificate, reason = off_by(what)
    model, embed = Model(), Words()
    cache = built(model, embed, certificate)
    asked(cache, "aaab", "aaab")
    assert (model.asked, embed.embedded) == (["aaab", "aaab"], [])
    assert reason in cache.off
    assert cache.report().verdict == f"no: it is off, {cache.off}"
    assert cache._counter.to_dict() == {"semantic": {"bypassed": 2}}


def test_another_model_is_not_answered_for():
    model = Model()
    cache = built(model)
    asked(cache, "aaab")
    model.version = "v2"
    asked(cache, "aaab", "aaab")
    assert len(model.asked) == 3
    model.version = "v1"  # rolled back: what the first model said still holds
    assert isinstance(asked(cache, "aaab")[0], BorrowedAnswer)


def test_an_answer_of_another_model_is_not_held():
    model = Model()
    cache = SemanticCache(
        model, Words(), CERTIFICATE, embedder="words", version=lambda: "v1", audit_share=0.0
    )
    model.version = "v2"  # after the look-up, before the answer
    asked(cache, "aaab", "aaab")
    assert len(model.asked) == 2


def test_pairs_pass_through():
    model, embed = Model(), Words()
    asked(built(model, embed), "aaab", "aaab", pair="b")
    assert (len(model.asked), embed.embedded) == (2, [])


def test_a_text_that_cannot_be_embedded_is_for_the_model(caplog):
    model = Model()
    cache = built(model)
    asked(cache, "boom", "boom", "xyz", "xyz", "aaab", "aaab")
    assert model.asked == ["boom", "boom", "xyz", "xyz", "aaab"]
    counted = cache._counter.to_dict()["semantic"]
    assert counted == {"error": 2, "bypassed": 2, "miss": 1, "stored": 1, "hit": 1}
    assert [record.message for record in caplog.records] == ["a text could not be embedded: RuntimeError"]


def test_a_text_that_is_embedded_too_slowly_is_for_the_model():
    slow = threading.Event()

    class Slow(Words):
        def __call__(self, text: str) -> np.ndarray:
            assert slow.wait(30)
            return super().__call__(text)

    async def run() -> None:
        model, embed = Model(), Slow()
        cache = built(model, embed)
        first = asyncio.create_task(cache.answer(Question("aaab"), deadline=FOREVER))
        await asyncio.sleep(0)
        await cache.answer(Question("cd"), deadline=time.monotonic() + 0.01)  # its turn never comes
        assert model.asked == ["cd"]
        slow.set()
        await first
        assert embed.embedded == ["aaab"]

    asyncio.run(run())


def test_an_audit_gives_the_models_own_answer():
    model = Model()
    cache = built(model, audit_share=1.0)
    first, right, wrong = asked(cache, "aaabb", "aaab", "aabbb")
    assert model.asked == ["aaabb", "aaab", "aabbb"]
    assert [max(answer.values) == answer.values[1] for answer in (first, right, wrong)] == [True, True, False]
    report = cache.report()
    assert (report.hits, report.audited, report.false_hits) == (2, 2, 1)
    counted = cache._counter.to_dict()["semantic"]
    assert counted == {"miss": 1, "stored": 1, "hit": 2, "audited": 2, "false_hit": 1}


def test_audits_are_a_share_of_the_hits():
    model = Model()
    asked(built(model, audit_share=0.3, rng=random.Random(0)), *["aaab"] * 401)
    assert 80 < len(model.asked) - 1 < 160


def test_who_is_audited_is_not_refused():
    model = Model()
    cache = built(model, audit_share=1.0)
    asked(cache, "aaab")
    model.refuses = True
    assert isinstance(asked(cache, "aaab")[0], BorrowedAnswer)
    with pytest.raises(ProblemError):
        asked(cache, "cd")
    assert cache.report().audited == 0


def test_too_many_false_hits_switch_it_off_for_good(caplog):
    model, embed = Model(), Words()
    cache = built(model, embed, audit_share=1.0)
    asked(cache, "aaabb", *["aabbb"] * 50)
    report = cache.report()
    assert 1 < report.false_hits == report.audited < 20
    assert "audited hits were false, the budget is 1.00%" in cache.off
    assert "switched itself off" in caplog.text
    assert report.pays is False
    embedded = len(embed.embedded)
    asked(cache, "aaabb", "aaabb")
    assert len(embed.embedded) == embedded
    assert model.asked[-2:] == ["aaabb"] * 2


def test_a_model_that_changes_during_an_audit_is_no_evidence():
    model = Model()
    cache = SemanticCache(
        model, Words(), CERTIFICATE, embedder="words", version=lambda: "v1", audit_share=1.0
    )
    asked(cache, "aaabb")
    model.version = "v2"
    assert asked(cache, "aabbb")[0].model_version == "v2"
    assert cache.report().audited == 0


def test_the_balance_is_that_of_the_clock():
    """Each look at the clock takes a second: one to look up, one to run, none for a borrowed answer."""
    seconds = iter(range(1000))
    cache = built(Model(), clock=lambda: next(seconds), index=None)
    cache._index._clock = lambda: 0.0
    asked(cache, "aaab", "aaab", "aaab", "cd")
    report = cache.report()
    assert (report.lookup_s, report.model_s, report.break_even) == (1.0, 1.0, 1.0)
    assert (report.won_s, report.spent_s) == (2.0, 4.0)


def test_closing_forgets():
    model = Model()
    cache = built(model)

    async def run() -> None:
        await cache.answer(Question("aaab"), deadline=FOREVER)
        await cache.aclose()
        await cache.answer(Question("aaab"), deadline=FOREVER)

    asyncio.run(run())
    assert len(model.asked) == 2


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="audit_share"):
        built(Model(), audit_share=share)


# --- vectors


def test_hashed_words():
    embed = HashedWords(256)

    def cosine(one: str, other: str) -> float:
        a, b = embed(one), embed(other)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    text = "the quiet film was a delight from the first scene to the last"
    assert embed(text).shape == (256,)
    assert embed(text).tolist() == HashedWords(256)(text.upper()).tolist()
    assert cosine(text, text + ", honestly") > 0.8 > cosine(text, "my phone broke after two weeks") + 0.4
    assert not embed("!? ...").any()
    assert HashedWords(256).name != HashedWords(512).name
    with pytest.raises(ValueError, match="dimension is 1"):
        HashedWords(1)


def test_the_state_of_a_model_is_what_torch_computes(fp32_folder, model_folder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch_model = AutoModel.from_pretrained(model_folder).eval()
    pooled, mean = StateEncoder(fp32_folder, state="pooled"), StateEncoder(fp32_folder)
    early = StateEncoder(fp32_folder, norm=2)
    for text in ("The film was superb.", "", "a " * 200):
        with torch.no_grad():
            states = torch_model(
                **tokenizer(text, return_tensors="pt", truncation=True, max_length=48),
                output_hidden_states=True,
            )
        np.testing.assert_allclose(pooled(text), states.pooler_output[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(mean(text), states.last_hidden_state[0].mean(0).numpy(), atol=1e-5)
        np.testing.assert_allclose(early(text), states.hidden_states[1][0].mean(0).numpy(), atol=1e-5)
    assert len({pooled.name, mean.name, early.name}) == 3


def test_an_int8_model_has_states_too_but_not_of_every_token(onnx_folder, fp32_folder):
    exact, rounded = (
        StateEncoder(folder, state="pooled")("A dull film.") for folder in (fp32_folder, onnx_folder)
    )
    assert float(exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)) > 0.98
    assert StateEncoder(onnx_folder, norm=0)("A dull film.").shape == (32,)
    with pytest.raises(ValueError, match="one vector a token"):
        StateEncoder(onnx_folder)
    with pytest.raises(ValueError, match="there is no number 99"):
        StateEncoder(onnx_folder, norm=99)


def test_an_early_state_leaves_the_rest_of_the_graph_away(fp32_folder):
    import onnx

    from companion.deployment.caching.encoders import _cut, _normed

    model = onnx.load(str(fp32_folder / "model.onnx"))
    early = onnx.load_from_string(_cut(model, _normed(model.graph, 0, fp32_folder)))
    assert len(early.graph.node) < len(model.graph.node) / 2
    assert len(early.SerializeToString()) < len(model.SerializeToString())
