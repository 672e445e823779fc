"""What a handed-in model says without a server, and what its graph is made of.

Run as a program, because a graph that somebody hands in may end the process that opens it: folder and texts
come as JSON on stdin, `ModelFacts` go as JSON to stdout.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from companion.exercises.deployment.twins import in_floats

__all__ = ["ModelFacts", "facts_of", "main", "read_facts"]

_INTEGER = (
    *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm"),
    *("QAttention", "ConvInteger", "QLinearConv"),
)
_FLOAT = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "Attention", "Conv", "FusedConv")
_SECONDS = 300.0
_UNDECIDED, _TELLING = 48, 24
"""How many candidates the twin answers as well, and how many of them are asked in the end."""


@dataclass(frozen=True)
class ModelFacts:
    """A model alone.

    Attributes
    ----------
    labels : tuple of str
    probabilities : tuple of tuple of float
        Of each text, computed alone.
    integer_products, float_products : int
        How many products of matrices with weights ran in one pass, by the profile of onnxruntime.
    integer_share : float
        Of the weights in these, how many are whole numbers of eight bits.
    size : float
        Bytes of ``model.onnx``, as a share of four for each number that it holds.
    telling : tuple of str
        Texts on which the answers of this graph and of its twin in 32 bits differ most, the largest first.
    telling_own, telling_floats : tuple of tuple of float
        The answers of the graph, and of its twin, to these.
    """

    labels: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    integer_products: int
    float_products: int
    integer_share: float
    size: float
    telling: tuple[str, ...] = ()
    telling_own: tuple[tuple[float, ...], ...] = ()
    telling_floats: tuple[tuple[float, ...], ...] = ()


def read_facts(
    model: Path,
    texts: Sequence[str],
    *,
    candidates: Sequence[str] = (),
    wrap: Callable[[list[str]], list[str]] = list,
    environment: dict[str, str] | None = None,
) -> ModelFacts:
    """Ask a model in a process of its own.

    Parameters
    ----------
    model : Path
        An exported folder.
    texts : sequence of str
    candidates : sequence of str
        From these the telling texts are chosen.
    wrap : callable
        Takes a command, returns one that runs it with fewer rights.
    environment : dict of str to str, optional

    Raises
    ------
    ValueError
        When the folder cannot be used; the message says why.
    """
    root = str(Path(__file__).parents[3])
    start = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import main; main()"
    job = json.dumps({"model": str(model), "texts": list(texts), "candidates": list(candidates)}).encode()
    command = wrap([sys.executable, "-B", "-c", start])
    try:
        ended = subprocess.run(
            command, input=job, capture_output=True, timeout=_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the model did not answer {len(texts)} texts within {_SECONDS:.0f} s") from None
    try:
        said = json.loads(ended.stdout)
    except (ValueError, RecursionError):
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["nothing was printed"])[-1]
        raise ValueError(f"opening the model ended the process ({ended.returncode}): {last[:200]}") from None
    if "error" in said:
        raise ValueError(str(said["error"])[:400])
    told: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in said.items()
    }
    for name in ("probabilities", "telling_own", "telling_floats"):
        told[name] = tuple(map(tuple, told[name]))
    return ModelFacts(**told)


def facts_of(model: Path, texts: Sequence[str], candidates: Sequence[str] = ()) -> ModelFacts:
    """Ask a model in this process; see `read_facts`.

    Raises
    ------
    FileNotFoundError, ValueError
        When the folder is not an exported classifier.
    """
    from companion.inference.predictor import OnnxPredictor

    predictor = OnnxPredictor(model, threads=1)
    if predictor.is_regression:
        raise ValueError("the model predicts a number, expected one that tells labels apart")
    rows = predictor.probabilities(texts, batch_size=1)
    return ModelFacts(
        predictor.labels,
        tuple(tuple(map(float, row)) for row in rows),
        **_products(model, predictor.feed(predictor.encode(["A good film, and not a bad one."]))),
        size=_size(model / "model.onnx"),
        **_telling(model / "model.onnx", predictor, candidates),
    )


def main() -> None:
    """Read a question from stdin, write its answer to stdout."""
    asked = json.load(sys.stdin)
    try:
        said = asdict(facts_of(Path(asked["model"]), asked["texts"], asked["candidates"]))
    except Exception as error:  # onnxruntime and tokenizers raise classes of their own
        said = {"error": f"{type(error).__name__}: {error}"}
    json.dump(said, sys.stdout)


def _telling(file: Path, predictor: Any, candidates: Sequence[str]) -> dict[str, Any]:
    """Choose the texts that tell a graph from its twin: about them it is undecided, and rounding shows."""
    import numpy as np
    import onnx
    import onnxruntime

    twin = in_floats(onnx.load(str(file))) if candidates else None
    if twin is None:
        return {}
    own = predictor.probabilities(candidates, batch_size=1)
    ordered = np.sort(own, axis=1)
    undecided = np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")[:_UNDECIDED].tolist()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = twin.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = []
    for place in undecided:
        feed = predictor.feed(predictor.encode([candidates[place]]))
        logits = session.run(None, feed)[0][0].astype(float)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        found.append((float(np.abs(own[place] - shares).max()), place, shares))
    chosen = sorted(found, key=lambda one: -one[0])[:_TELLING]
    return {
        "telling": tuple(candidates[place] for _, place, _ in chosen),
        "telling_own": tuple(tuple(map(float, own[place])) for _, place, _ in chosen),
        "telling_floats": tuple(tuple(map(float, shares)) for _, _, shares in chosen),
    }


def _products(model: Path, feed: dict[str, Any]) -> dict[str, Any]:
    """Run the graph once with onnxruntime's profiler, and count what ran: not what the file says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # Weights that were put into another order beforehand have no shape in the profile.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory() as scratch:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(
            str(model / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    counts, weights = Counter[str](), Counter[str]()
    for event in events:
        told = event.get("args", {})
        operator = told.get("op_name", "")
        if event.get("cat") != "Node" or operator not in (*_INTEGER, *_FLOAT):
            continue
        kind = "integer" if operator in _INTEGER else "float"
        if size := _weights(told.get("input_type_shape", [])):
            counts[kind] += 1
            weights[kind] += size
    return {
        "integer_products": counts["integer"],
        "float_products": counts["float"],
        "integer_share": weights["integer"] / max(1, weights.total()),
    }


def _weights(inputs: Sequence[dict[str, Sequence[int]]]) -> int:
    """Return the size of the matrix that a product has beside its input; 0 for one of two inputs."""
    shapes = [shape for entry in inputs[1:] for shape in entry.values()]
    flat = [math.prod(shape) for shape in shapes if len(shape) == 2]
    blocks = [math.prod(shape) for shape in shapes if len(shape) == 3 and shape[0] > 1]
    return max(flat or (blocks if len(inputs) > 2 else []), default=0)


def _size(file: Path) -> float:
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    numbers = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    files = [one for one in file.parent.iterdir() if one.name.startswith(file.name) and one.is_file()]
    return float(sum(one.stat().st_size for one in files) / max(1, 4 * numbers))


if __name__ == "__main__":
    main()
