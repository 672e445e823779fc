"""Text from a decoder: with and without a cache, by prompt length and batch; compiled; memory and formula.

    OMP_NUM_THREADS=2 python benchmarks/generation.py --out RESULTS.json [--quick]

The model is the reference decoder with random weights. All ways of a row write the same words: a row says
so, or the benchmark stops. They take turns; a ratio is that of one round, its median and its spread are those
of all rounds. Each row is written as soon as it is there: the same command run again goes on there.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from store import Store

from companion import inference
from companion.models import KeyValueCache, Transformer, TransformerConfig

# Untied and with wide random matrices: a fresh tied model writes one word for ever.
MODEL = {"vocab_size": 30_000, "width": 384, "layers": 6, "heads": 6, "max_length": 1024}
SMALL = {"vocab_size": 3_000, "width": 64, "layers": 2, "heads": 2, "max_length": 256}
SPREAD = 0.06

Ways = dict[str, Callable[[], inference.Generated]]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    shape, new = (SMALL, 32) if quick else (MODEL, 256)
    settings = {
        "model": shape,
        "new_tokens": new,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
    }
    store = Store(arguments.out, settings)
    model = decoder(shape)
    for name, measure in rows(model, new, arguments.repeats, quick).items():
        if not arguments.only or name in arguments.only:
            store.measured(name, measure)
    print(report(store.rows))


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, gone on with if it is there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows; default: all")
    parser.add_argument("--quick", action="store_true", help="a small model and short texts: seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def rows(model: Transformer, new: int, repeats: int, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is measured, by name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for batch, prompt in ((1, 4), (2, 16)) if quick else ((1, 16), (1, 128), (1, 512), (8, 16)):
        found[f"cache, batch {batch}, prompt {prompt}"] = partial(cached, model, batch, prompt, new, repeats)
    for batch, prompt in ((1, 4),) if quick else ((1, 16), (8, 16)):
        found[f"compiled, batch {batch}, prompt {prompt}"] = partial(
            compiled, model, batch, prompt, new, repeats
        )
    for batch, tokens in ((512, 256),) if quick else ((1, 1024), (32, 1024)):
        found[f"memory, batch {batch}, {tokens} tokens"] = partial(memory, model.config, batch, tokens)
    return found


def decoder(shape: dict[str, int]) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**shape, causal=True, tied=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(SPREAD * torch.randn_like(parameter) * (parameter.dim() > 1))
    return model


def prompts(model: Transformer, rows: int, length: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=source)


def cached(model: Transformer, rows: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Time the same text with and without a cache."""
    write = partial(inference.generate, model, prompts(model, rows, prompt), max_new_tokens=new)
    ways: Ways = {"without": partial(write, use_cache=False), "with": partial(write, use_cache=True)}
    found, timings = side_by_side(ways, repeats)
    expected = inference.cache_bytes(model.config, batch=rows, tokens=prompt + new - 1)
    median, spread = inference.ratio(timings["without"], timings["with"])
    return {
        **shown(found, timings),
        "faster": median,
        "faster_spread": spread,
        "fewer_flops": found["without"].work.flops(model.config) / found["with"].work.flops(model.config),
        "cache_bytes": found["with"].work.cache_bytes,
        "cache_bytes_formula": expected,
    }


def compiled(model: Transformer, rows: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Time the same text with the growing cache, and with fixed shapes, compiled and not."""
    ids = prompts(model, rows, prompt)
    write = partial(inference.generate, model, ids, max_new_tokens=new)
    step, plain = (
        inference.compile_step(model, capacity=prompt + new, backend=backend)
        for backend in ("inductor", "eager")
    )
    start = time.perf_counter()
    inference.generate(model, ids, max_new_tokens=2, compiled=step)
    seconds = time.perf_counter() - start
    ways: Ways = {
        "growing": write,
        "fixed, not compiled": partial(write, compiled=plain),
        "fixed, compiled": partial(write, compiled=step),
    }
    found, timings = side_by_side(ways, repeats)
    median, spread = inference.ratio(timings["growing"], timings["fixed, compiled"])
    return {**shown(found, timings), "faster": median, "faster_spread": spread, "compile_seconds": seconds}


def side_by_side(
    ways: Ways, repeats: int
) -> tuple[dict[str, inference.Generated], dict[str, inference.Timing]]:
    """Time ways of writing the same text, and keep what each wrote."""
    found: dict[str, inference.Generated] = {}

    def keeping(name: str) -> None:
        found[name] = ways[name]()

    timings = inference.side_by_side({name: partial(keeping, name) for name in ways}, repeats=repeats)
    first, *others = found.values()
    if any(other.token_ids != first.token_ids for other in others):
        raise SystemExit(f"{', '.join(found)} wrote different texts: their times cannot be compared")
    return found, timings


def shown(found: dict[str, inference.Generated], timings: dict[str, inference.Timing]) -> dict[str, Any]:
    texts = next(iter(found.values())).token_ids
    words = sum(map(len, texts))
    return {
        "equal": True,
        "different_words": len(set().union(*texts)),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "tokens_per_second": {name: timing.rate(words) for name, timing in timings.items()},
        "work": {name: asdict(text.work) for name, text in found.items()},
    }


def memory(config: TransformerConfig, rows: int, tokens: int) -> dict[str, Any]:
    """Fill a cache, and compare the formula with its tensors and with the growth of the process."""
    block = torch.randn(rows, config.heads, tokens, config.width // config.heads)
    gc.collect()
    before = psutil.Process().memory_info().rss
    cache = KeyValueCache(config, rows, capacity=tokens)
    for layer in range(config.layers):
        cache.extend(layer, block, block)
    grown = psutil.Process().memory_info().rss - before
    expected = inference.cache_bytes(config, batch=rows, tokens=tokens)
    return {
        "formula": expected,
        "per_token": inference.cache_bytes(config),
        "tensors": cache.nbytes,
        "process": grown,
        "process_to_formula": grown / expected,
    }


def report(rows: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, row in rows.items():
        if "formula" in row:
            line = f"formula {row['formula']:,} bytes, tensors {row['tensors']:,}, process {row['process']:,}"
        else:
            speeds = ", ".join(f"{way} {rate[0]:.1f}" for way, rate in row["tokens_per_second"].items())
            low, high = row["faster_spread"]
            line = f"tokens per second: {speeds}; {row['faster']:.2f}x ({low:.2f}-{high:.2f})"
            if "fewer_flops" in row:
                line += f", {row['fewer_flops']:.1f}x fewer operations"
            else:
                line += f", compiled in {row['compile_seconds']:.0f} s"
        lines.append(f"{name:32} {line}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
