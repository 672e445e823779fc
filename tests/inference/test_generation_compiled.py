"""A compiled step writes the same text, and is compiled once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from decoders import decoder, left_padded, prompts
from torch._dynamo.testing import CompileCounter

from companion.inference import Beam, Greedy, Sampling, cache_bytes, compile_step, generate

STRATEGIES = [Greedy(), Sampling(temperature=0.8, top_k=20, seed=5), Beam(2)]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Leave no compiled code behind."""
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_fixed_shapes_change_no_word(positions, strategy):
    model, ids, mask = decoder(positions=positions), prompts(), left_padded([3, 8, 5], 8)
    options = {"attention_mask": mask, "max_new_tokens": 40, "strategy": strategy, "eos_token_id": 7}
    fixed = generate(model, ids, compiled=compile_step(model, backend="eager"), **options)
    plain = generate(model, ids, **options)
    assert fixed.token_ids == plain.token_ids
    assert fixed.finished == plain.finished
    for here, there in zip(fixed.log_probabilities, plain.log_probabilities, strict=True):
        assert here == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize("shape", [{"norm": "post", "positions": "sinusoidal"}, {"tied": False}], ids=str)
def test_a_traced_step_changes_no_word(shape):
    model, ids = decoder(**shape), prompts(2)
    traced = compile_step(model, capacity=48, backend="aot_eager")
    found = generate(model, ids, max_new_tokens=40, compiled=traced)
    assert found.token_ids == generate(model, ids, max_new_tokens=40).token_ids
    assert found.work.cache_bytes == cache_bytes(model.config, batch=2, tokens=48)


def test_a_step_is_compiled_once_for_all_lengths_and_texts():
    model, counter = decoder(), CompileCounter()
    compiled = compile_step(model, backend=counter)
    generate(model, prompts(2), max_new_tokens=2, compiled=compiled)
    assert counter.frame_count == 1  # at the second token: the first comes with the prompt
    steps = counter.op_count
    found = generate(model, prompts(2, seq=5, seed=3), max_new_tokens=50, compiled=compiled)
    assert (counter.frame_count, counter.op_count) == (1, steps)
    eos = found.token_ids[0][10]  # a row that ends early changes no shape
    generate(model, prompts(2, seq=5, seed=3), max_new_tokens=50, compiled=compiled, eos_token_id=eos)
    assert counter.frame_count == 1
    generate(model, prompts(3), max_new_tokens=20, compiled=compiled)
    assert counter.frame_count == 2  # another number of rows has other shapes


def test_a_growing_cache_would_be_compiled_again_and_again():
    """Show that the count above can tell: slices of the cache have a shape for each length."""
    from companion.inference.generation.steps import WithCache

    model, counter, ids = decoder(), CompileCounter(), prompts(1)
    reader = WithCache(model, torch.ones_like(ids), capacity=20)
    with torch.inference_mode():
        reader.read(ids)
        step = torch.compile(lambda new: reader.read(new), backend=counter, dynamic=False)
        for _ in range(4):
            step(ids[:, :1])
    assert counter.frame_count >= 4


def test_steps_that_do_not_fit_are_refused():
    model = decoder()
    compiled = compile_step(model, capacity=20, backend="eager")
    with pytest.raises(ValueError, match="make 21, expected 20 at most"):
        generate(model, prompts(), max_new_tokens=13, compiled=compiled)
    with pytest.raises(ValueError, match="the compiled step is that of another model"):
        generate(decoder(), prompts(), max_new_tokens=3, compiled=compiled)
    with pytest.raises(ValueError, match="a compiled step always uses a cache"):
        generate(model, prompts(), max_new_tokens=3, compiled=compiled, use_cache=False)
    for capacity in (0, 65):
        with pytest.raises(
            ValueError, match=f"the capacity is {capacity} tokens, expected 1 to the model's 64"
        ):
            compile_step(model, capacity=capacity, backend="eager")


def test_without_a_compiler_the_error_says_so(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"no C\+\+ compiler was found: install g\+\+"):
        compile_step(decoder())


@pytest.mark.timeout(600)  # it waits for a compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile writes C++: install g++")
def test_machine_code_changes_no_word(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, ids = decoder(layers=1), prompts(2)
    found = generate(model, ids, max_new_tokens=40, compiled=compile_step(model))
    assert found.token_ids == generate(model, ids, max_new_tokens=40).token_ids
