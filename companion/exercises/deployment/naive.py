"""A server that answers, and is wrong in six ways. None of them shows when one looks at one answer.

Run it with the folder of an exported model in ``MODEL`` and a port in ``PORT``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from tokenizers import Tokenizer

app = FastAPI()


@app.get("/health/ready")
async def ready() -> dict[str, str]:
    """Say that the server is ready."""
    return {"status": "ready"}


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    """Classify a text."""
    text = (await request.json())["text"]
    folder = Path(os.environ["MODEL"])
    manifest = json.loads((folder / "manifest.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(manifest["max_length"])
    tokenizer.enable_padding(length=manifest["max_length"])
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ids = np.array([tokenizer.encode(text).ids])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    wanted = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    logits = session.run(None, wanted)[0][0]
    best = int(logits.argmax())
    return {"label": manifest["labels"][best], "confidence": float(logits[best])}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
