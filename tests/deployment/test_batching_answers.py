"""Answers do not depend on company: bit for bit those of the predictor alone, with a real INT8 model."""

from __future__ import annotations

import asyncio
import math
import random
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion.deployment import create_app
from companion.deployment.answering import Question
from companion.deployment.batching import BatchingLimits
from companion.deployment.batching.batcher import Batcher
from companion.inference.predictor import OnnxPredictor, probabilities_of
from companion.inference.throughput.cost import BatchCost

WORDS = ("the", "film", "was", "terrible", "wonderful", "we", "went", "there", "spring", "zebra", "!", "日本")

ROOMY = BatchingLimits(wait_s=1e6, stuck_after_s=2e6)
"""Nobody is refused, however slow the machine is."""

texts = st.builds(
    lambda seed, length: " ".join(random.Random(seed).choices(WORDS, k=length)),
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 2, 5, 9, 20, 45, 200]),
)
questions = st.builds(Question, texts, st.none() | texts)
costs = st.sampled_from([BatchCost(1e-1, 1e-9), BatchCost(1e-3, 1e-4), BatchCost(1e-6, 1e-4, 1e-6)])


class Sizes:
    """An observer that counts texts of batches."""

    def __init__(self):
        self.found = []

    def batch(self, *, texts, tokens, padded_tokens, seconds):
        self.found.append(texts)

    def queue(self, length, oldest_age_s):
        pass

    def waited(self, seconds):
        assert seconds >= 0

    def event(self, name):
        raise AssertionError(name)


@pytest.fixture(scope="module")
def predictor(onnx_folder):
    predictor = OnnxPredictor(onnx_folder, threads=1)
    assert predictor.manifest.check.moved_by_batch == 0, "else this server would form no batches"
    return predictor


def alone(predictor, question):
    pairs = None if question.pair is None else [question.pair]
    return predictor.probabilities([question.text], pairs)[0]


def test_any_concurrency_and_grouping_gives_the_bits_of_the_predictor_alone(predictor):
    sizes = Sizes()

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(
        asked=st.lists(questions, min_size=1, max_size=24),
        workers=st.integers(1, 3),
        cost=costs,
        pauses=st.lists(st.booleans(), min_size=24, max_size=24),
    )
    def check(asked, workers, cost, pauses):
        async def main():
            batcher = Batcher(predictor, workers=workers, limits=ROOMY, start=cost, observer=sizes)
            batcher.start()
            try:
                tasks = []
                for question, pause in zip(asked, pauses, strict=False):
                    tasks.append(asyncio.create_task(batcher.answer(question, deadline=math.inf)))
                    if pause:
                        await asyncio.sleep(0)
                return await asyncio.gather(*tasks)
            finally:
                await batcher.aclose()

        for question, answer in zip(asked, asyncio.run(main()), strict=True):
            expected = alone(predictor, question)
            assert answer.values == tuple(float(value) for value in expected)
            assert np.array(answer.values, dtype=np.float32).tobytes() == expected.tobytes()
            assert answer.labels == predictor.labels
            assert answer.model_version == predictor.manifest.model_version

    check()
    assert sum(size > 1 for size in sizes.found) >= 20, "the answers did have company"
    assert 1 in sizes.found


def test_over_http_the_bits_are_those_of_the_predictor_alone(onnx_folder, predictor, running_client):
    patient = BatchingLimits(wait_s=50, stuck_after_s=60, timeout_s=60)
    client = running_client(create_app(onnx_folder, workers=2, threads=2, batching=patient))
    numbers = count()
    asked = [" ".join(random.Random(next(numbers)).choices(WORDS, k=1 + n % 40)) for n in range(60)]
    waiting = [client.start("POST", "/predict", json={"text": text}) for text in asked]
    for text, future in zip(asked, waiting, strict=True):
        expected = dict(zip(predictor.labels, map(float, predictor.probabilities([text])[0]), strict=True))
        assert future.result(60).json()["probabilities"] == expected


def test_a_hundred_thousand_characters_hold_up_nobody(onnx_folder, predictor):
    """The event loop goes on while a worker reads, and the tokens that are cut off are not kept."""
    long = "the film was wonderful " * 4348

    async def main():
        batcher = Batcher(predictor, workers=1, limits=ROOMY)
        batcher.start()
        try:
            turns, task = 0, asyncio.create_task(batcher.answer(Question(long), deadline=math.inf))
            while not task.done():
                await asyncio.sleep(0)
                turns += 1
            return turns, await task
        finally:
            await batcher.aclose()

    turns, answer = asyncio.run(main())
    assert len(long) > 100_000
    assert answer.values == tuple(float(value) for value in predictor.probabilities([long])[0])
    assert turns > 10, "the loop had its turns meanwhile"


@settings(deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 20), labels=st.integers(1, 40), scale=st.floats(0.01, 80)
)
def test_the_softmax_of_a_text_is_the_same_in_company(seed, rows, labels, scale):
    logits = np.random.default_rng(seed).normal(0, scale, (rows, labels)).astype(np.float32)
    together = probabilities_of(logits, is_regression=False)
    alone = [probabilities_of(logits[row : row + 1], is_regression=False) for row in range(rows)]
    assert np.array_equal(together, np.concatenate(alone))
