r"""What other tools make of the same model. Runs in an environment of its own, which companion is not in.

    python3.11 -m venv PEERS
    PEERS/bin/pip install torch==2.13.0 torchao==0.18.0 optimum==2.1.0 optimum-onnx==0.1.0 \
        transformers==4.57.6 onnx==1.23.2 onnxruntime==1.31.1
    PEERS/bin/python benchmarks/quantization_peers.py versions
    PEERS/bin/python benchmarks/quantization_peers.py optimum FP32_ONNX_FOLDER PRESET OUT.onnx
    PEERS/bin/python benchmarks/quantization_peers.py serve MODEL_FOLDER KIND THREADS

`benchmarks/quantization.py --peers-python PEERS/bin/python` calls all of them. `serve` reads a question in
each line of its standard input and answers in a line, so that the two processes can take turns.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

TOOLS = ("optimum", "optimum-onnx", "onnxruntime", "onnx", "torchao", "torch", "transformers")
KINDS = ("torchao INT8", "torchao INT8 compiled", "torch FP32")


def main() -> None:
    verb, *rest = sys.argv[1:] or ["nothing"]
    verbs = {"versions": versions, "optimum": optimum, "serve": serve}
    if verb not in verbs:
        raise SystemExit(f"{verb} is asked for, expected one of {', '.join(verbs)}")
    verbs[verb](*rest)


def versions() -> None:
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            found[tool] = "none"
    print(json.dumps(found))


def optimum(folder: str, preset: str, out: str) -> None:
    """Quantize dynamically with one of optimum's presets, as its documentation does."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(folder, file_name="model.onnx")
    chosen = getattr(AutoQuantizationConfig, preset)(is_static=False)
    with tempfile.TemporaryDirectory() as work:
        quantizer.quantize(save_dir=work, quantization_config=chosen)
        shutil.copyfile(Path(work) / "model_quantized.onnx", out)


def serve(folder: str, kind: str, threads: str) -> None:
    """Answer {"texts": [...], "batch_size": n} with {"logits": [...]}, line by line, until there is none."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    import torch

    torch.set_num_threads(int(threads))
    model, tokenizer = opened(folder, kind)
    print(json.dumps({"ready": kind}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        logits = run(model, tokenizer, asked["texts"], asked["batch_size"])
        print(json.dumps({"logits": logits}), file=answers, flush=True)


def opened(folder: str, kind: str) -> tuple[Any, Any]:
    """Open a model folder, and quantize its linear layers as torchao's documentation does."""
    if kind not in KINDS:
        raise SystemExit(f"{kind} is asked for, expected one of {', '.join(KINDS)}")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    if kind.startswith("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(model, dynamic=True) if kind.endswith("compiled") else model, tokenizer


def run(model: Any, tokenizer: Any, texts: list[str], batch_size: int) -> list[list[float]]:
    """Compute logits: longest first, lengths padded to multiples of 8, as the other candidates do."""
    import torch

    encoded = tokenizer(texts, truncation=True)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(texts)), key=lambda index: -lengths[index])
    logits: list[list[float]] = [[]] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            rows = {name: [values[i] for i in index] for name, values in encoded.items()}
            batch = tokenizer.pad(rows, pad_to_multiple_of=8, return_tensors="pt")
            for position, row in zip(index, model(**batch).logits.float().tolist(), strict=True):
                logits[position] = row
    return logits


if __name__ == "__main__":
    main()
