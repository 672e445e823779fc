"""Batches for a server on processors: a bounded line, length-aware batches, deadlines, a heartbeat.

`batcher.Batcher` is the `Answerer` that all of it makes up. Read the parts one at a time: `waiting` (who is
let in, and what comes next), `choosing` (who rides together), `estimating` (what it will take), `running` (a
batch, and each request's own outcome), `workers` (the threads), `heartbeat` (what hangs), `deadlines` (the
middleware). Importing this package imports neither numpy nor onnxruntime: a server opens its port first.
"""

from __future__ import annotations

from companion.deployment.batching.deadlines import TIMEOUT_HEADER, RequestDeadline
from companion.deployment.batching.limits import BatchingLimits

__all__ = ["TIMEOUT_HEADER", "BatchingLimits", "RequestDeadline"]
