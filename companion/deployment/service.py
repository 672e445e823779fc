"""The one model of a server: loaded in the background, warmed up, run one request at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import anyio.to_thread

from companion.deployment.problems import MODEL_FAILED, NOT_READY, ProblemError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger("companion.deployment")


class Versioned(Protocol):
    """What the server reads of a manifest."""

    @property
    def model_version(self) -> str:
        """Short id of the exported model."""


class ServedModel(Protocol):
    """What the server needs of a model; `companion.inference.predictor.OnnxPredictor` has it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits; not used for a regression."""

    @property
    def is_regression(self) -> bool:
        """Whether the single logit is the answer."""

    @property
    def manifest(self) -> Versioned:
        """The export's description of itself."""

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> npt.NDArray[np.float32]:
        """Give logits, shape `(len(texts), num_labels)`."""

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> npt.NDArray[np.float32]:
        """Give probabilities, shape `(len(texts), num_labels)`."""


class ModelService:
    """Load a model off the event loop and put requests to it, one after another.

    One at a time, first come first served: an onnxruntime session already spreads one run over all of
    its threads, so a second run at the same moment would only make both slower, hold memory twice, and
    use more cores than `threads` allows. Requests that wait hold no thread.

    Parameters
    ----------
    load : callable
        Makes the model; called once, in a worker thread.
    """

    def __init__(self, load: Callable[[], ServedModel]) -> None:
        self._load = load
        self._model: ServedModel | None = None
        self._turn = anyio.CapacityLimiter(1)
        self.report: Callable[[Exception], None] = _log
        """Told when loading fails; by default it writes to the log."""
        self.failure: Exception | None = None
        """Why there will never be a model."""
        self.settled = asyncio.Event()
        """Set when loading has ended, well or badly."""

    @property
    def model(self) -> ServedModel:
        """The loaded model.

        Raises
        ------
        ProblemError
            503 `not-ready` while it loads, 503 `model-failed` when it never will be.
        """
        if self.failure is not None:
            raise ProblemError(MODEL_FAILED, "This server cannot answer; its log has the reason.")
        if self._model is None:
            raise ProblemError(NOT_READY, "Try again in a moment.", retry_after_s=1)
        return self._model

    async def load(self) -> None:
        """Load and warm up the model; afterwards `model` gives it, or `failure` says why not."""
        try:
            self._model = await anyio.to_thread.run_sync(self._load_and_warm, abandon_on_cancel=True)
        except Exception as error:
            self.failure = error
            self.report(error)
        finally:
            self.settled.set()

    def _load_and_warm(self) -> ServedModel:
        model = self._load()
        # The first run allocates memory and may fail where loading did not: no client should meet it.
        values = _run(model, "The first run is slower than the others.", None)
        expected = 1 if model.is_regression else len(model.labels)
        if len(values) != expected:
            raise ValueError(
                f"the model gives {len(values)} numbers a text, expected {expected}, one per label: "
                "export it again."
            )
        return model

    async def answer(self, text: str, pair: str | None) -> list[float]:
        """Run the model on one text.

        Returns
        -------
        list of float
            Probabilities in the order of the labels, or the score alone for a regression.

        Raises
        ------
        ProblemError
            If the model is not loaded.
        RuntimeError
            If the model gave something that is not a finite number.
        """
        return await anyio.to_thread.run_sync(_run, self.model, text, pair, limiter=self._turn)


def _log(error: Exception) -> None:
    logger.error("the model could not be loaded: %s", error)


def _run(model: ServedModel, text: str, pair: str | None) -> list[float]:
    infer = model.logits if model.is_regression else model.probabilities
    row = infer([text], None if pair is None else [pair])[0]
    values = [float(value) for value in row]
    if not all(-float("inf") < value < float("inf") for value in values):
        raise RuntimeError(f"the model gave {values}, expected finite numbers")
    return values
