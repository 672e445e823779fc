"""What every peer serves: the same tokenizer, graph and softmax, with nothing of this project's package."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Model:
    """An exported folder, opened as its owner's manual says: padded to a multiple of eight, no spinning."""

    def __init__(self, folder: Path, threads: int) -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.labels: list[str] = manifest["labels"]
        self.inputs: list[str] = manifest["inputs"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(manifest["max_length"])
        self.tokenizer.enable_padding(pad_to_multiple_of=8, pad_id=config.get("pad_token_id") or 0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=providers)

    def __call__(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        encodings = self.tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        feed = {name: np.array(columns[name], dtype=np.int64) for name in self.inputs}
        logits = self.session.run(None, feed)[0].astype(np.float64)
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32).tolist()
        return [self.answer(row) for row in shares]

    def answer(self, row: list[float]) -> dict[str, Any]:
        return {
            "label": self.labels[row.index(max(row))],
            "probabilities": dict(zip(self.labels, row, strict=True)),
        }


def parse() -> argparse.Namespace:
    """Read the command line; in a process that a server started of its own, that of the first one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, in each process")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--wait-ms", type=float, default=5, help="how long a batch is waited for")
    words = os.environ.setdefault("SERVED", shlex.join(sys.argv[1:]))
    return parser.parse_args(shlex.split(words))
