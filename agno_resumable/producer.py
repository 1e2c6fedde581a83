"""One run being produced: events in from its source, batches out to the log, exactly one end."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel

from .ending import Ending
from .errors import EventTooLarge, LogClosed, LogUnavailable, RunFinished, RunNotFound, StaleGeneration
from .log.protocol import Claim, EventLog
from .model import EncodedEvent, Run, RunStatus
from .source import Source
from .sse import Identity, cancelled_event, completed_event, encode_event, error_event
from .transcript import Transcript

__all__ = ["Producer"]

logger: logging.Logger = logging.getLogger("agno_resumable.producer")

# What may be waiting for the commit in flight. One event more, and the source has to wait. Not quite a reader's page
# (262,144 bytes), so that what is stored together is also sent together, the same bytes to all.
_MAX_EVENTS = 1024
_MAX_BYTES = 229_376
# A source that never waits would keep the event loop to itself; after this long it has to let others have a turn.
_TURN = 0.005
# Between two commits of one run events are gathered for this long, and for as long as the readers of the last commit
# took: a log in memory has no commit in flight to gather them in, and a hundred readers keep the event loop longer than
# any commit. Whoever comes after a pause, however short, is stored at once.
_PACE = 0.002
_LONGEST_PACE = 0.1
# The turns of the event loop in which readers that were woken read, send, and wait again.
_READER_TURNS = 3
# agno's yield_run_output=True ends a stream with the run's output, which is no event.
_RUN_OUTPUTS = frozenset({"RunOutput", "TeamRunOutput", "WorkflowRunOutput"})


class Producer:
    """Runs the source of one run, under its generation, and ends the run.

    Args:
        events: Makes the iterator of events; called once, inside the run's task.
        outage: How long, in seconds, a store that is away is tried again before the run is given up.
        cancel_grace: How long, in seconds, a run that was asked to cancel itself may take before it is cancelled hard.
    """

    def __init__(
        self,
        log: EventLog,
        source: Source,
        run: Run,
        events: Callable[[], AsyncIterator[Any]],
        *,
        cancel_grace: float = 5.0,
        outage: float = 30.0,
    ) -> None:
        self.run = run
        self.claim: Claim = (run.run_id, run.generation)
        self._log = log
        self._source = source
        self._events = events
        self._cancel_grace = cancel_grace
        self._outage = outage
        self._identity = Identity(
            run_id=run.run_id,
            session_id=run.session_id,
            component_id=source.component_id,
            component_name=source.component_name,
        )
        self.transcript: Transcript = Transcript(run.run_id)
        self._ending = Ending(run.run_id, source.family)
        self._next = run.next_index
        self._buffer: list[EncodedEvent] = []
        self._size = 0
        self._more = anyio.Event()
        self._room = anyio.Event()
        self._urgent = anyio.Event()
        self._end: RunStatus | None = None  # set together with the last event; nothing is taken after it
        self._work = anyio.CancelScope()
        self._reason: str | None = None  # why the work was cancelled, if it was
        self._lost = False
        self._committing = False
        self.done: anyio.Event = anyio.Event()
        """Set when the run has its end, or has been lost."""

    def __repr__(self) -> str:
        return f"Producer({self.run.run_id!r}, generation={self.run.generation})"

    async def produce(self) -> None:
        """Run it to its end. Raises nothing but cancellation; a run that is cancelled from outside is ended first."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._obey)
                tasks.start_soon(self._commit)
                try:
                    await self._pump()
                finally:
                    await self._settle()
                    tasks.cancel_scope.cancel()
        finally:
            self.done.set()

    async def abandon(self) -> None:
        """End a run whose ``produce`` was cancelled before its first step, so that nothing of it ran."""
        self._finish_cancelled("The process stopped.")
        await self._settle()

    async def _settle(self) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._outage + 1):
            await self._commit()  # if it was cancelled before its first step
            await self.done.wait()

    def lose(self) -> None:
        """Another producer has the run, or it is gone: stop, and store nothing more."""
        self._lost = True
        self._stop("lost")

    async def cancel(self, reason: str, grace: float | None = None) -> None:
        """Ask the run to cancel itself, and cancel it hard if it has not ended after ``grace`` seconds."""
        if self.done.is_set():
            return  # agno would keep the intent for a run that never comes
        grace = self._cancel_grace if grace is None else grace
        asked = False
        with anyio.move_on_after(grace):
            try:
                asked = await self._source.cancel(self.run.run_id)
            except Exception:  # somebody's cancel failed: the hard way is still there
                logger.warning("the component refused to cancel", extra={"run_id": self.run.run_id}, exc_info=True)
            if asked:
                await self.done.wait()
        if not self.done.is_set():
            self._stop(reason)

    # ---------------------------------------------------------------- the source

    async def _pump(self) -> None:
        try:
            with self._work:
                await self._consume()
            if self._work.cancelled_caught and not self._lost:
                self._finish_cancelled(self._reason or "The run was cancelled.")
        except (Exception, SystemExit) as error:  # a tool that calls sys.exit() ends its run and not the server
            if type(error).__name__ == "RunCancelledException":  # agno's, where it comes out of the iterator
                self._finish_cancelled(str(error) or "The run was cancelled.")
            else:
                logger.warning("the run failed", extra={"run_id": self.run.run_id, "error_type": type(error).__name__})
                self._finish(
                    RunStatus.ERROR,
                    error_event(
                        self._source.family, str(error), error_type=_error_type(error), identity=self._identity
                    ),
                )
        except BaseException:  # cancelled from outside: by the loop's end, or by code inside the run
            self._finish_cancelled(self._reason or "The process stopped.")
            raise

    async def _consume(self) -> None:
        family, run_id, ending = self._source.family, self.run.run_id, self._ending
        turn = time.perf_counter()
        stream = self._events()
        try:
            async for event in stream:
                if self._end is not None:
                    continue  # the run has ended; its source may still save its row
                if type(event).__name__ in _RUN_OUTPUTS:
                    continue
                encoded = encode_event(event, family=family, run_id=run_id)
                status = ending.of(encoded.type, event)
                if status is not None:
                    self._finish(status, encoded)
                    continue
                if not self._buffer:
                    self._more.set()
                self._buffer.append(encoded)
                self._size += len(encoded.data)
                if self._size >= _MAX_BYTES or len(self._buffer) >= _MAX_EVENTS:
                    self._urgent.set()
                    self._room = anyio.Event()
                    await self._room.wait()
                    turn = time.perf_counter()
                elif (now := time.perf_counter()) - turn > _TURN:
                    await anyio.lowlevel.checkpoint()
                    turn = now
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(self._cancel_grace):
                    await close()
        if self._end is None:
            status = self._ending.at_exhaustion
            last = None
            if status is RunStatus.PAUSED and not self._source.speaks_agno:
                status = RunStatus.COMPLETED  # nobody could continue it here, and its readers must not wait for ever
            if status is RunStatus.COMPLETED and self._source.speaks_agno:
                # agno says so itself, unless it was asked for content only (stream_events=False)
                last = completed_event(self._source.family, identity=self._identity)
            self._finish(status, last)

    def _finish_cancelled(self, reason: str) -> None:
        self._finish(RunStatus.CANCELLED, cancelled_event(self._source.family, reason, identity=self._identity))

    def _finish(self, status: RunStatus, last: EncodedEvent | None) -> None:
        """The first that says how the run ended is right; who comes later is not heard."""
        if self._end is None:
            if last is not None:
                self._buffer.append(last)
            self._end = status
            self._more.set()
            self._urgent.set()

    def _stop(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        self._work.cancel()
        self._more.set()
        self._urgent.set()

    # ---------------------------------------------------------------- the log

    async def _commit(self) -> None:
        """Store what has gathered, as long as anything comes; the end goes with the last events."""
        if self._committing:
            return
        self._committing = True
        with anyio.CancelScope(shield=True):  # ends by itself: at the end, or when the run is lost
            gather_until = 0.0
            try:
                while not self._lost:
                    if not self._buffer and self._end is None:
                        self._more = anyio.Event()
                        with suppress(anyio.get_cancelled_exc_class()):  # see _store
                            await self._more.wait()
                        continue
                    await self._gather(gather_until)
                    events, self._buffer, self._size = self._buffer, [], 0
                    self._room.set()
                    end = self._end
                    self.transcript.fold(events)
                    await self._store(events, end)
                    if end is not None:
                        return
                    gather_until = await self._serve()
            except (StaleGeneration, RunNotFound, RunFinished) as error:
                logger.warning(
                    "the run is lost to another producer",
                    extra={"run_id": self.run.run_id, "error_type": type(error).__name__},
                )
                self.lose()
            except LogUnavailable as error:
                logger.error(
                    "the log did not take the run's events; it will be ended when its lease runs out",
                    extra={"run_id": self.run.run_id, "error_type": type(error.__cause__ or error).__name__},
                )
                self.lose()
            finally:
                self._room.set()
                self.done.set()

    async def _serve(self) -> float:
        """Let the readers have what was just stored; return until when to gather what comes next."""
        stored = time.perf_counter()
        for _ in range(_READER_TURNS):
            with suppress(anyio.get_cancelled_exc_class()):
                await anyio.lowlevel.checkpoint()
        served = time.perf_counter()
        return served + min(max(served - stored, _PACE), _LONGEST_PACE)

    async def _gather(self, until: float) -> None:
        """Let more events come until then, unless the buffer is full or the run has its end."""
        rest = until - time.perf_counter()
        if rest > 0 and self._end is None and len(self._buffer) < _MAX_EVENTS and self._size < _MAX_BYTES:
            self._urgent = anyio.Event()
            with suppress(anyio.get_cancelled_exc_class()), anyio.move_on_after(rest):
                await self._urgent.wait()

    async def _store(self, events: Sequence[EncodedEvent], end: RunStatus | None) -> None:
        transcript = self.transcript.dump(end) if end is not None else None
        run_id, generation = self.claim
        deadline = anyio.current_time() + self._outage
        delay = 0.0
        unknown = False
        while True:
            try:
                if delay:
                    await anyio.sleep(delay)
                # What may have been stored must not be stored again
                if unknown and await self._is_stored(end):
                    self._next += len(events)
                    return
                unknown = False
                self._next = await self._log.append(run_id, generation, events, status=end, transcript=transcript)
                return
            except EventTooLarge as error:
                events = [fitting for event in events if (fitting := self._fit(event, error)) is not None]
            except LogClosed:
                raise
            except LogUnavailable as error:
                delay = min(delay * 2, 2.0) or 0.05
                if anyio.current_time() + delay > deadline:
                    raise
                unknown = unknown or error.outcome_unknown
            except anyio.get_cancelled_exc_class():
                # Not from a scope, for this is shielded: a server without a lifespan has left its loop, and
                # asyncio.run cancels each task there is, shielded or not. The run has to have its end all the same.
                unknown = True

    async def _is_stored(self, end: RunStatus | None) -> bool:
        """Whether the append in doubt was stored: only this producer moves the run's index, so the index tells."""
        try:
            # Not a read: an append stands behind the one in doubt, wherever that is queued
            return await self._log.append(self.run.run_id, self.run.generation, ()) != self._next
        except RunFinished as error:
            if end is not None and error.status == end.value:
                return True
            raise

    def _fit(self, event: EncodedEvent, error: EventTooLarge) -> EncodedEvent | None:
        """The event if the log takes it, else an error frame, or nothing where the log takes not even that."""
        if len(event.data) <= error.limit:
            return event
        logger.warning(
            "an event was too large for the log",
            extra={"run_id": self.run.run_id, "event_type": event.type, "size": len(event.data)},
        )
        frame = error_event(
            self._source.family,
            f"An event of type {event.type} has {len(event.data)} bytes of JSON; the log takes {error.limit}.",
            error_type="event_too_large",
            identity=self._identity,
        )
        return frame if len(frame.data) <= error.limit else None

    async def _obey(self) -> None:
        """Wait for a cancel that any process may ask for."""
        while not self.done.is_set():
            try:
                if await self._log.wait_cancel(self.run.run_id, timeout=3600.0):
                    await self.cancel("The run was cancelled.")
                    return
            except LogClosed:
                return
            except LogUnavailable:
                await anyio.sleep(1.0)


def _error_type(error: BaseException) -> str:
    own = getattr(error, "type", None)  # agno's errors name their type
    return own if isinstance(own, str) else type(error).__name__
