"""mosec: a server in Rust before worker processes in Python."""

from __future__ import annotations

import sys
from typing import Any

from model import Model, parse

chosen = parse()  # first: mosec reads the same command line
sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(chosen.port), "--log-level", "warning"]

from mosec import Server, Worker  # noqa: E402


class Classifier(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model(chosen.folder, chosen.threads)

    def forward(self, data: Any) -> Any:
        if chosen.batch == 1:  # mosec then gives one body, not a list
            return self.model([data["text"]])[0]
        return self.model([body["text"] for body in data])


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Classifier,
        num=chosen.processes,
        max_batch_size=chosen.batch,
        max_wait_time=round(chosen.wait_ms) if chosen.batch > 1 else 0,
        route="/predict",
    )
    server.run()
