"""LitServe: FastAPI before worker processes, with batches by arrival."""

from __future__ import annotations

from typing import Any

import litserve
from model import Model, parse

chosen = parse()


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model(chosen.folder, chosen.threads)

    # Without types: LitServe would make a schema of the body of them, and the strings that they are here.
    def decode_request(self, request, **kwargs):  # type: ignore[no-untyped-def]
        return str(request["text"])

    def predict(self, x: Any, **kwargs: Any) -> Any:
        return self.model(x) if chosen.batch > 1 else self.model([x])[0]

    def encode_response(self, output, **kwargs):  # type: ignore[no-untyped-def]
        return output


if __name__ == "__main__":
    batching = {"max_batch_size": chosen.batch, "batch_timeout": chosen.wait_ms / 1000}
    api = Classifier(api_path="/predict", **(batching if chosen.batch > 1 else {}))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=chosen.processes)
    server.run(
        host="127.0.0.1",
        port=chosen.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
