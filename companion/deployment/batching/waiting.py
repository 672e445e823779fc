"""The line of requests: who is let in, who is told to come back, and what a worker does next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import islice

from companion.deployment.batching.choosing import choose
from companion.deployment.batching.estimating import Estimates
from companion.deployment.batching.heartbeat import Heartbeat
from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.batching.refusals import draining, overloaded, too_late
from companion.deployment.batching.waiter import Waiter, Work
from companion.deployment.problems import ProblemError

__all__ = ["Line"]

_ENCODED_TOGETHER = 16  # texts that one worker turns into tokens before it looks at the line again
_CHARACTERS_TOGETHER = 20_000  # and their characters, unless one alone has more
_MARGIN = 0.8  # share of a request's time that the estimate may fill; the rest is for what it does not know


class Line:
    """A bounded line in the order of arrival, shared by an event loop and some worker threads.

    Workers take from it by themselves: none waits for another thread to hand it the next batch. Every step
    under the lock is short: nothing is encoded or run there.

    Parameters
    ----------
    limits : BatchingLimits
    estimates : Estimates
    heartbeat : Heartbeat
    batch_size : int, optional
        The most texts of a batch. Default: the limits' own.
    clock : callable
        Seconds, never going back; the deadlines are by it.
    """

    def __init__(
        self,
        limits: BatchingLimits,
        estimates: Estimates,
        heartbeat: Heartbeat,
        *,
        batch_size: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._estimates = estimates
        self._heartbeat = heartbeat
        self._batch_size = batch_size or limits.batch_size
        self._clock = clock
        self._waiters: dict[Waiter, None] = {}  # a dict keeps the order and forgets anyone at once
        self._changed = threading.Condition(threading.Lock())
        self._alone_s = 0.0
        self._characters = 0
        self._draining = False
        self._closed = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiters)

    @property
    def draining(self) -> bool:
        """Whether nobody is let in any more."""
        return self._draining

    def oldest_s(self) -> float:
        """Return how long the oldest has waited, in seconds; 0 when nobody does."""
        with self._changed:
            oldest = next(iter(self._waiters), None)
        return 0.0 if oldest is None else self._clock() - oldest.arrived

    def wait_s(self) -> float:
        """Estimate how long a request that came now would wait before it runs, in seconds."""
        backlog = self._alone_s * self._estimates.pace
        return (self._heartbeat.remaining_s() + backlog) / self._heartbeat.workers

    # --- admission: called by the event loop

    def refusal(self) -> ProblemError | None:
        """Say why no request at all would be let in now; None when one may be.

        Cheap, and needs nothing of the request: a server that is far too busy can refuse before it reads.
        """
        if self._draining:
            return draining()
        return self._no_room(0.0 if self._free() else self.wait_s())

    def offer(self, waiter: Waiter) -> None:
        """Let a request in, or refuse it.

        While a worker is free nothing is refused on an estimate: the estimate may be wrong, and only what
        runs can correct it.

        Parameters
        ----------
        waiter : Waiter
            Its time of arrival and its estimated cost are filled in.

        Raises
        ------
        ProblemError
            - 503 `draining` when the server is about to stop.
            - 504 `deadline-exceeded` when the deadline has passed already: to try again with it is in vain.
            - 503 `overloaded` when the line is full, and when the work ahead of the request, with its own,
              would take longer than it waits. That is not yet a missed deadline but a lack of room: the same
              request may be answered in time a moment later, or by another server, so it gets `Retry-After`.
        """
        with self._changed:
            now = waiter.arrived = self._clock()
            if self._draining:
                raise draining()
            if waiter.deadline <= now:
                raise too_late()
            free = self._free()
            wait = 0.0 if free else self.wait_s()
            if error := self._no_room(wait):
                raise error
            self._estimate(waiter)
            if self._waiters and self._characters + waiter.characters > self._limits.characters:
                raise overloaded(f"{self._characters:,} characters wait already.", self.wait_s())
            if not free:
                needed, time_left = wait + waiter.alone_s, _MARGIN * (waiter.deadline - now)
                if needed > time_left:
                    detail = (
                        f"The answer would take {needed:.2f} s, expected at most {time_left:.2f} s, which is "
                        f"{_MARGIN:.0%} of the time that this request has."
                    )
                    raise overloaded(detail, needed - time_left)
            self._waiters[waiter] = None
            self._characters += waiter.characters
            self._alone_s += waiter.alone_s
            self._changed.notify()

    def discard(self, waiter: Waiter) -> None:
        """Let a request leave for which nobody waits any more. It may have left already."""
        with self._changed:
            waiter.abandoned = True
            self._remove(waiter)

    def drain(self) -> None:
        """Let nobody in any more. Who waits is served."""
        with self._changed:
            self._draining = True

    def close(self) -> None:
        """Let nobody in, and send the workers home when the line is empty."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()

    # --- work: called by the workers

    def take(self, worker: int) -> Work | None:
        """Wait until there is something to do, and begin it.

        Parameters
        ----------
        worker : int
            Who asks. Its heartbeat begins here; the worker ends it.

        Returns
        -------
        Work or None
            None when the line is closed and empty.
        """
        with self._changed:
            while (work := self._next(worker)) is None:
                if self._closed and not self._waiters:
                    return None
                self._changed.wait()
            return work

    def poll(self, worker: int) -> Work | None:
        """Begin what there is to do, as `take`; None when that is nothing now."""
        with self._changed:
            return self._next(worker)

    def encoded(self, waiters: list[Waiter]) -> None:
        """Note that requests now have their tokens, and estimate their cost anew.

        Parameters
        ----------
        waiters : list of Waiter
            Their `encoding` and `tokens` are set. Some may have left meanwhile.
        """
        with self._changed:
            for waiter in waiters:
                waiter.claimed = False
                if waiter in self._waiters:
                    self._alone_s -= waiter.alone_s
                    waiter.alone_s = self._estimates.batch_s(1, waiter.tokens)
                    self._alone_s += waiter.alone_s

    # --- with the lock held

    def _next(self, worker: int) -> Work | None:
        now = self._clock()
        window = list(islice(self._waiters, self._limits.window))
        if late := [waiter for waiter in window if waiter.deadline <= now]:
            for waiter in late:
                waiter.abandoned = True
                self._remove(waiter)
            self._heartbeat.begin(worker, 0.0)
            return Work("expire", late)
        if raw := _share_to_encode(window):
            for waiter in raw:
                waiter.claimed = True
            characters = sum(waiter.characters for waiter in raw)
            self._heartbeat.begin(worker, self._estimates.encoding_s(characters))
            self._pass_on()
            return Work("encode", raw)
        ready = [waiter for waiter in window if waiter.encoding is not None]
        if not ready:
            return None
        # Who has nothing to do takes its share: two texts on two cores are done sooner apart than together.
        helpers = max(1, self._heartbeat.idle)
        places = choose(
            [waiter.tokens for waiter in ready],
            self._estimates.cost,
            padded_tokens=self._limits.padded_tokens,
            batch_size=min(self._batch_size, -(-len(ready) // helpers)),
        )
        chosen = [ready[place] for place in places]
        for waiter in chosen:
            self._remove(waiter)
        longest = max(waiter.tokens for waiter in chosen)
        self._heartbeat.begin(worker, self._estimates.batch_s(len(chosen), longest))
        self._pass_on()
        return Work("run", chosen)

    def _pass_on(self) -> None:
        """Wake one more worker if there is work for it; it will wake the next."""
        if any(not waiter.claimed for waiter in islice(self._waiters, self._limits.window)):
            self._changed.notify()

    def _remove(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            del self._waiters[waiter]
            self._characters -= waiter.characters
            # An empty line has no work, whatever rounding left over.
            self._alone_s = self._alone_s - waiter.alone_s if self._waiters else 0.0
            if self._closed and not self._waiters:
                self._changed.notify_all()

    def _no_room(self, wait_s: float) -> ProblemError | None:
        if len(self._waiters) >= self._limits.requests:
            return overloaded(f"{len(self._waiters)} requests wait already.", wait_s)
        if wait_s > self._limits.wait_s:
            return overloaded(f"A request would wait for {wait_s:.1f} s.", wait_s - self._limits.wait_s)
        return None

    def _free(self) -> bool:
        """Whether a worker has nothing to do and nobody waits for it."""
        return len(self._waiters) < self._heartbeat.idle

    def _estimate(self, waiter: Waiter) -> None:
        waiter.tokens = self._estimates.tokens(waiter.characters)
        waiter.alone_s = self._estimates.batch_s(1, waiter.tokens) + self._estimates.encoding_s(
            waiter.characters
        )


def _share_to_encode(window: list[Waiter]) -> list[Waiter]:
    """Choose the next texts to turn into tokens: several short ones, or a long one by itself."""
    share: list[Waiter] = []
    characters = 0
    for waiter in window:
        if waiter.encoding is None and not waiter.claimed:
            characters += waiter.characters
            if share and characters > _CHARACTERS_TOGETHER:
                break
            share.append(waiter)
            if len(share) == _ENCODED_TOGETHER:
                break
    return share
