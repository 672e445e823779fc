"""Plain FastAPI: a `def` handler, which runs in the pool of threads, and no batching."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI
from model import Model, parse
from pydantic import BaseModel

chosen = parse()
app = FastAPI()


class Body(BaseModel):
    text: str


@cache
def model() -> Model:
    return Model(chosen.folder, chosen.threads)


@app.post("/predict")
def predict(body: Body) -> dict[str, Any]:
    return model()([body.text])[0]


@app.on_event("startup")
def load() -> None:
    model()


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        "fastapi_app:app",
        host="127.0.0.1",
        port=chosen.port,
        workers=chosen.processes,
        log_level="warning",
        access_log=False,
    )
