"""BentoML: worker processes, with its adaptive batches where more than one text may ride together."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
from model import Model, parse

chosen = parse()


class _Loaded:
    def __init__(self) -> None:
        self.model = Model(chosen.folder, chosen.threads)


if chosen.batch > 1:

    @bentoml.service(workers=chosen.processes)
    class Classifier(_Loaded):
        # It refuses what would wait for longer than this, by its own estimate: far too much to be refused.
        @bentoml.api(route="/predict", batchable=True, max_batch_size=chosen.batch, max_latency_ms=10_000)
        def predict(self, texts: list[str]) -> list[dict[str, Any]]:
            return self.model(texts)

else:

    @bentoml.service(workers=chosen.processes)
    class Classifier(_Loaded):  # type: ignore[no-redef]
        @bentoml.api(route="/predict")
        def predict(self, text: str) -> dict[str, Any]:
            return self.model([text])[0]


if __name__ == "__main__":
    where = str(Path(__file__).parent)
    address = ["--host", "127.0.0.1", "--port", str(chosen.port)]
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_app:Classifier", "--working-dir", where]
    os.execv(sys.executable, [*command, *address])
