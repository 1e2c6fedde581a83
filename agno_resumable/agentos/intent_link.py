"""One event loop's hold on the cancel intents of a log: a watcher that reads them, and the writes of this process."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from ..errors import LogClosed, LogUnavailable, ResumableError, RunNotFound
from ..log.protocol import EventLog
from .intents import IntentBook

__all__ = ["IntentLink"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

T = TypeVar("T")

_REFRESH = 30.0  # seconds between two reads, also when nothing changes: intents run out without a word
_RETRY = 1.0  # seconds until what could not be written or read is tried again
_LIMIT = 10_000


class IntentLink:
    """Keeps an ``IntentBook`` and a log in step, in the event loop in which it was made.

    Args:
        book: What this process knows.
        log: Gives the log, open.
        ttl: Seconds that an intent lives, by the store's clock.
        seen: Called with the runs that another process wants to be cancelled.
    """

    def __init__(
        self,
        book: IntentBook,
        log: Callable[[], Awaitable[EventLog]],
        *,
        ttl: float,
        seen: Callable[[Sequence[str]], object],
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._book = book
        self._log = log
        self._ttl = ttl
        self._seen = seen
        self._jobs: set[asyncio.Task[Any]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._silent = False  # a store that is away is told once
        # an empty context: it must not inherit that of the request which happened to be the first
        self._watcher: asyncio.Task[None] = contextvars.Context().run(self.loop.create_task, self._watch())
        self._retrying: asyncio.Task[None] | None = None
        if book.unsent:  # from a time when no loop ran
            self._retrying = contextvars.Context().run(self.loop.create_task, self._retry(0.0))

    @property
    def alive(self) -> bool:
        """Whether it still works: its loop may have ended without a word."""
        return self.loop.is_running() and not self._watcher.done()

    async def log(self) -> EventLog:
        """The log, open.

        Raises:
            LogUnavailable: It could not be opened.
        """
        try:
            return await self._log()
        except LogUnavailable:
            raise
        except ResumableError as error:
            raise LogUnavailable(f"The log of the cancellation manager could not be opened: {error}") from error

    async def call(self, job: Coroutine[Any, Any, T]) -> T:
        """Run ``job`` in the link's loop, to its end even if the caller is cancelled."""
        if asyncio.get_running_loop() is self.loop:
            return await asyncio.shield(self.start(job))
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._started(job), self.loop))

    def call_from_thread(self, job: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run ``job`` in the link's loop and wait for it, in a thread that has no running loop.

        Raises:
            LogUnavailable: It did not end within ``timeout`` seconds; it goes on.
        """
        future = asyncio.run_coroutine_threadsafe(self._started(job), self.loop)
        # not the built-in TimeoutError: they are the same only since Python 3.11
        try:
            return future.result(timeout)
        except asyncio.CancelledError:
            raise LogUnavailable("The cancellation manager's event loop has ended.", outcome_unknown=True) from None
        except BaseException as error:
            if future.done():
                raise
            raise LogUnavailable(
                f"The log did not take the cancellation within {timeout:g} s.", outcome_unknown=True
            ) from error

    def start(self, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``job`` in a task of the link's; call it in the link's loop."""
        task: asyncio.Task[T] = contextvars.Context().run(self.loop.create_task, job)
        self._jobs.add(task)
        task.add_done_callback(self._done)
        return task

    def start_from_anywhere(self, job: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run ``job`` in a task of the link's, without waiting for it."""
        with suppress(RuntimeError):  # the loop has ended just now
            self.loop.call_soon_threadsafe(lambda: self.start(job()))

    async def _started(self, job: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self.start(job))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits, and to the log by the job itself

    # ---------------------------------------------------------------- writes

    async def intend(self, run_id: str, *, runs_here: bool) -> bool:
        """Store the intent; returns whether the log knows the run as one that has not ended.

        Raises:
            LogUnavailable: The log could not be told; it will be tried again for as long as the intent lives.
        """
        async with self._turn(run_id):
            if not self._book.is_own(run_id):
                return False  # the run has ended meanwhile
            try:
                return await self._intend(run_id, runs_here)
            except ResumableError as error:
                self._try_again(run_id)
                logger.warning(
                    "the log could not be told of a cancelled run",
                    extra={"run_id": run_id, "error_type": type(error).__name__},
                )
                raise LogUnavailable(
                    f"Run {run_id!r} was cancelled in this process, but the log could not be told: {error} Other "
                    "processes will learn of it when the log answers again.",
                    run_id=run_id,
                    outcome_unknown=True,
                ) from error

    async def _intend(self, run_id: str, runs_here: bool) -> bool:
        log = await self.log()
        active: bool | None = None
        with suppress(RunNotFound):
            active = not (await log.request_cancel(run_id)).status.finished
        if active is False and not runs_here:
            # Nothing is left to be stopped; an intent would hit the next leg, if there will be one.
            if self._book.forget(run_id):
                self._book.dropped(run_id)
            return False
        await log.intend_cancel(run_id, ttl=self._ttl)
        self._book.stored(run_id)
        return active is True

    async def drop(self, run_id: str) -> None:
        """Take the intent back, because the run has ended; a failure is told to the log, and tried again."""
        async with self._turn(run_id):
            if run_id in self._book.live:
                return  # cancelled again meanwhile
            try:
                await (await self.log()).drop_intent(run_id)
            except ResumableError as error:
                self._try_again(run_id)
                logger.warning(
                    "the log could not be told that a cancelled run has ended",
                    extra={"run_id": run_id, "error_type": type(error).__name__},
                )
            else:
                self._book.dropped(run_id)

    def _try_again(self, run_id: str) -> None:
        self._book.failed(run_id)
        if self._retrying is None or self._retrying.done():
            self._retrying = contextvars.Context().run(self.loop.create_task, self._retry(_RETRY))

    async def _retry(self, delay: float) -> None:
        """Tell the log what it has not been told, until it has been."""
        while True:
            await asyncio.sleep(delay)
            for run_id, cancelled in self._book.unsent.items():
                with suppress(LogUnavailable):
                    await (self.intend(run_id, runs_here=True) if cancelled else self.drop(run_id))
            if not self._book.unsent:
                return
            delay = _RETRY

    def _turn(self, run_id: str) -> asyncio.Lock:
        """What is written for one run is written in the order asked for."""
        turn = self._turns.get(run_id)
        if turn is None:
            turn = self._turns[run_id] = asyncio.Lock()
        return turn

    # ---------------------------------------------------------------- the watcher

    async def _watch(self) -> None:
        version = -1
        while True:
            try:
                log = await self.log()
                number = self._book.reading()
                found = await log.intents(version, timeout=_REFRESH, limit=_LIMIT)
            except LogClosed:
                return  # the next use of the manager begins anew
            except ResumableError as error:
                if not self._silent:
                    logger.warning(
                        "the log does not tell of cancelled runs", extra={"error_type": type(error).__name__}
                    )
                self._silent = True
                await asyncio.sleep(_RETRY)
                continue
            self._silent = False
            new, again = self._book.read(number, found.run_ids)
            if len(found.run_ids) >= _LIMIT:
                logger.warning("there are too many cancelled runs to know them all", extra={"limit": _LIMIT})
            version = -1 if again else found.version
            if new:
                self._seen(new)

    async def stop(self) -> None:
        """End the watcher, and let what is being written come to its end, within reason."""
        for task in (self._watcher, self._retrying):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=5.0)
