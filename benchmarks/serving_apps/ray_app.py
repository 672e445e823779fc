"""Ray Serve: a proxy before replicas, with `serve.batch` where more than one text may ride together."""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from model import Model, parse
from ray import serve
from starlette.requests import Request

chosen = parse()


@serve.deployment(num_replicas=chosen.processes, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5})
class Classifier:
    def __init__(self, folder: Any, threads: int, batch: int) -> None:
        self.model, self.batch = Model(folder, threads), batch

    @serve.batch(max_batch_size=chosen.batch, batch_wait_timeout_s=chosen.wait_ms / 1000)
    async def together(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.model(texts)

    async def __call__(self, request: Request) -> dict[str, Any]:
        text = (await request.json())["text"]
        return await self.together(text) if self.batch > 1 else self.model([text])[0]


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port})
    application = Classifier.bind(chosen.folder, chosen.threads, chosen.batch)
    serve.run(application, route_prefix="/predict")
    while True:
        time.sleep(1)
