"""The prediction log: one line per answer, written beside the server's work and never in its way."""

from __future__ import annotations

import hashlib
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from queue import Empty, SimpleQueue

import anyio.to_thread

from companion.deployment.answering import Answer, Answerer, Question
from companion.deployment.watching.features import CountTokens, measure_text
from companion.deployment.watching.files import LogFiles
from companion.deployment.watching.records import Loss, Prediction, loss_line, prediction_line

__all__ = ["LogCounts", "LogLimits", "LoggedAnswerer", "PredictionLog"]

logger = logging.getLogger("companion.deployment")

_AT_ONCE = 1 << 16
"""Bytes of lines that are written together when many wait; with fewer waiting, each is written at once."""

_FAILED = (
    "the prediction log in %s cannot be written: %s. Answers go on without it; the next attempt is in %g s"
)

_PATIENCE_S = 10.0
"""Longest wait for a flush: a disk that hangs must not keep a server from ending."""


@dataclass(frozen=True)
class LogLimits:
    """What a prediction log may take.

    Parameters
    ----------
    file_bytes : int
        Largest file.
    total_bytes : int
        All files together. Has to hold a file of each process that writes into the folder, and one more.
    queue_answers : int
        Answers that wait to be written; more are dropped, and counted.
    queue_characters : int
        Characters of the texts that wait with them.
    retry_s : float
        After a line could not be written: seconds until the next attempt.

    Raises
    ------
    ValueError
        When a limit lets nothing through.
    """

    file_bytes: int = 16 << 20
    total_bytes: int = 256 << 20
    queue_answers: int = 4096
    queue_characters: int = 4 << 20
    retry_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could be logged."""
        for field in fields(self):
            if (value := getattr(self, field.name)) <= 0:
                raise ValueError(f"LogLimits: {field.name} is {value}, expected more than 0.")
        if self.file_bytes < 4096:
            raise ValueError(f"LogLimits: file_bytes is {self.file_bytes}, expected at least 4096.")
        if self.total_bytes < 2 * self.file_bytes:
            raise ValueError(
                f"LogLimits: total_bytes is {self.total_bytes:,}, expected room for two files of "
                f"{self.file_bytes:,}: give {2 * self.file_bytes:,} or more."
            )


@dataclass(frozen=True)
class LogCounts:
    """What became of the answers that were offered to a log, since it was made.

    Attributes
    ----------
    written : int
        Have a line.
    dropped : int
        Found the queue full, or the log closed.
    lost : int
        Could not be written: the disk was full, the folder not writable, the line too long.
    waiting : int
        Are in the queue, or the one that is being written.
    """

    written: int = 0
    dropped: int = 0
    lost: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Offered:
    time: float
    question: Question
    answer: Answer
    request_id: str | None

    @property
    def characters(self) -> int:
        return len(self.question.text) + len(self.question.pair or "")


@dataclass(frozen=True, slots=True)
class _Flush:
    done: threading.Event
    last: bool


class PredictionLog:
    """Writes one line of JSON per answer, in a thread of its own.

    A line holds the time, the request's id, the model's version, the probabilities, whether a cache gave
    them, a keyed hash of the text and numbers about it (`TextFeatures`). The text itself is only there when
    asked for. Nothing that goes wrong here reaches who asks: what cannot be queued is dropped, what cannot be
    written is lost, both are counted, and a note of how many goes into the log as soon as it can be written
    again.

    Parameters
    ----------
    folder : Path
        For the files; several processes may share it. Made with the first line.
    limits : LogLimits, optional
    share : float
        Of the answers, drawn at random, that are logged.
    text : bool
        Whether to write the texts too.
    key : bytes, optional
        Of the hashes, at least 16 bytes. With one key all processes give equal texts equal hashes. Who has
        the key can find out whether a text that he guesses was asked: keep it away from the log. Default: a
        random one that nobody learns.
    count_tokens : callable, optional
        See `token_counter`.
    clock, monotonic : callable
        Seconds since 1970, and since any moment.
    random_source : random.Random, optional
        Draws the share.

    Raises
    ------
    ValueError
        When the share is not a share, or the key is short.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: LogLimits | None = None,
        share: float = 1.0,
        text: bool = False,
        key: bytes | None = None,
        count_tokens: CountTokens | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random_source: random.Random | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, expected more than 0 and at most 1; no log at all for 0")
        if key is not None and not 16 <= len(key) <= 64:
            raise ValueError(
                f"key has {len(key)} bytes, expected 16 to 64: draw one with secrets.token_bytes"
            )
        self.folder = Path(folder)
        self.limits = limits or LogLimits()
        self._share, self._text = share, text
        self._key = key or secrets.token_bytes(32)
        self._count_tokens = count_tokens
        self._clock, self._monotonic = clock, monotonic
        self._random = random_source or random.Random()
        self._files = LogFiles(
            self.folder,
            file_bytes=self.limits.file_bytes,
            total_bytes=self.limits.total_bytes,
            clock=clock,
        )
        self._at_once = min(_AT_ONCE, self.limits.file_bytes)
        self._queue: SimpleQueue[_Offered | _Flush] = SimpleQueue()
        self._lock = threading.Lock()  # of all that follows
        self._thread: threading.Thread | None = None
        self._closed = False
        self._written = self._dropped = self._lost = 0
        self._waiting = self._waiting_characters = 0
        self._unreported = 0
        self._retry_at: float | None = None  # the writing thread's own

    @property
    def counts(self) -> LogCounts:
        """What became of the answers so far."""
        with self._lock:
            return LogCounts(self._written, self._dropped, self._lost, self._waiting)

    def offer(self, question: Question, answer: Answer, request_id: str | None = None) -> None:
        """Log an answer, or drop it: this only puts it into a queue and returns.

        Parameters
        ----------
        question : Question
        answer : Answer
        request_id : str, optional
        """
        if self._share < 1 and self._random.random() >= self._share:
            return
        offered = _Offered(self._clock(), question, answer, request_id)
        with self._lock:
            if (
                self._closed
                or self._waiting >= self.limits.queue_answers
                or self._waiting_characters + offered.characters > self.limits.queue_characters
            ):
                self._dropped += 1
                self._unreported += 1
                return
            self._start()
            self._waiting += 1
            self._waiting_characters += offered.characters
            self._queue.put(offered)  # within the lock: nothing comes behind the last flush

    async def flush(self) -> bool:
        """Wait until all that is queued now is written or lost.

        Returns
        -------
        bool
            False when that took more than ten seconds: the disk hangs.
        """
        return await anyio.to_thread.run_sync(self._settle, False)

    async def aclose(self) -> bool:
        """Write what is queued and let go of the files; what is offered later is dropped.

        Returns
        -------
        bool
            As of `flush`.
        """
        return await anyio.to_thread.run_sync(self._settle, True)

    def _settle(self, last: bool) -> bool:
        request = _Flush(threading.Event(), last)
        with self._lock:
            done = self._closed or self._thread is None
            self._closed |= last
            if not done:
                self._queue.put(request)
        return done or request.done.wait(_PATIENCE_S)

    def _start(self) -> None:
        """Start the thread with the first answer: a process that forks before has none to lose."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
            thread.start()  # raises where the system has no thread left: the next answer tries again
            self._thread = thread

    # --- the writing thread

    def _work(self) -> None:
        lines: list[bytes] = []
        size = 0
        while True:
            try:
                item = self._queue.get_nowait() if lines else self._queue.get()
            except Empty:
                item = None
            line = self._taken(item) if isinstance(item, _Offered) else None
            if lines and (not isinstance(item, _Offered) or size + len(line or b"") > self._at_once):
                self._write(lines)
                lines, size = [], 0
            if line is not None:
                lines.append(line)
                size += len(line)
                time.sleep(0)  # lets the event loop's thread go first
            if isinstance(item, _Flush):
                if item.last:
                    self._report_losses()
                    self._files.close()
                item.done.set()
                if item.last:
                    return

    def _taken(self, offered: _Offered) -> bytes | None:
        """Make an answer's line; None where that fails, which costs the line and nothing else."""
        try:
            line = self._line(offered)
            if len(line) <= self.limits.file_bytes:
                return line
            reason = f"its line has {len(line):,} bytes, a file at most {self.limits.file_bytes:,}"
        except Exception as error:  # a tokenizer's, or a number that JSON does not know
            reason = type(error).__name__  # its text could hold the question's
        finally:
            with self._lock:
                self._waiting -= 1
                self._waiting_characters -= offered.characters
        logger.warning("the answer to request %s is not logged: %s", offered.request_id, reason)
        self._count_lost(1)
        return None

    def _line(self, offered: _Offered) -> bytes:
        question, answer = offered.question, offered.answer
        return prediction_line(
            Prediction(
                time=offered.time,
                request_id=offered.request_id,
                model_version=answer.model_version,
                labels=answer.labels,
                values=answer.values,
                features=measure_text(question, self._count_tokens),
                digest=_digest(question, self._key),
                share=self._share,
                text=question.text if self._text else None,
                pair=question.pair if self._text else None,
                cached=answer.cached,
            )
        )

    def _write(self, lines: list[bytes]) -> None:
        now = self._monotonic()
        if self._retry_at is not None and now < self._retry_at:
            self._count_lost(len(lines))
            return
        try:
            self._files.write(b"".join(lines))
        except Exception as error:  # whatever it is: the next lines may be luckier
            self._count_lost(len(lines))
            if self._retry_at is None:
                logger.warning(_FAILED, self.folder, error, self.limits.retry_s)
            self._retry_at = now + self.limits.retry_s
            return
        if self._retry_at is not None:
            logger.warning("the prediction log in %s is written again", self.folder)
            self._retry_at = None
        with self._lock:
            self._written += len(lines)
        self._report_losses()

    def _report_losses(self) -> None:
        """Note in the log how many answers it lacks."""
        with self._lock:
            count = self._unreported
        if not count or self._retry_at is not None:
            return
        try:
            self._files.write(loss_line(Loss(self._clock(), count)))
        except Exception:  # the next lines meet it as well
            return
        with self._lock:
            self._unreported -= count

    def _count_lost(self, count: int) -> None:
        with self._lock:
            self._lost += count
            self._unreported += count


class LoggedAnswerer:
    """Passes questions on and logs the answers.

    Parameters
    ----------
    inner : Answerer
        Answers. Its errors pass unchanged and are not logged here: they are no answers.
    log : PredictionLog
        Closed by `aclose`.
    request_id : callable
        Names the request that is being answered, or gives None.
    """

    def __init__(
        self, inner: Answerer, log: PredictionLog, *, request_id: Callable[[], str | None] = lambda: None
    ) -> None:
        self.inner = inner
        self.log = log
        self._request_id = request_id

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question; see `Answerer`."""
        answer = await self.inner.answer(question, deadline=deadline)
        try:
            self.log.offer(question, answer, self._request_id())
        except Exception as error:  # no log is worth an answer
            logger.warning("an answer is not logged: %s", type(error).__name__)
        return answer

    async def aclose(self) -> None:
        """Write what is queued and close the log."""
        await self.log.aclose()


def _digest(question: Question, key: bytes) -> str:
    """Hash a question; a pair is not the same as its two texts in one."""
    hashed = hashlib.blake2b(key=key, digest_size=12)
    for part in (question.text, question.pair):
        data = b"" if part is None else part.encode("utf-8", "surrogatepass")
        hashed.update(f"{-1 if part is None else len(data)}:".encode() + data)
    return hashed.hexdigest()
