"""One run being produced: events in from its source, batches out to the log, exactly one end."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel

from .ending import Ending
from .errors import LogClosed, LogUnavailable, ResumableError
from .log.protocol import Claim, EventLog
from .model import EncodedEvent, Run, RunStatus
from .outbox import Outbox
from .restart import restarted_event
from .source import Source
from .sse import Identity, cancelled_event, completed_event, encode_event, error_event
from .transcript import Transcript

__all__ = ["Producer"]

logger: logging.Logger = logging.getLogger("agno_resumable.producer")

# A source that never waits would keep the event loop to itself; after this long it has to let others have a turn.
_TURN = 0.005
# agno's yield_run_output=True ends a stream with the run's output, which is no event.
_RUN_OUTPUTS = frozenset({"RunOutput", "TeamRunOutput", "WorkflowRunOutput"})


class Producer:
    """Runs the source of one run, under its generation, and ends the run.

    Args:
        events: Makes the iterator of events; called once, inside the run's task.
        transcript: The legs before this one.
        outage: How long, in seconds, a store that is away is tried again before the run is given up.
        cancel_grace: How long, in seconds, a run that was asked to cancel itself may take before it is cancelled hard.
        places: One of them is taken while the source runs; until one is free the run waits as PENDING.
        anew: The run was taken over from a producer that was lost, and begins from its beginning.
    """

    def __init__(
        self,
        log: EventLog,
        source: Source,
        run: Run,
        events: Callable[[], AsyncIterator[Any]],
        *,
        transcript: Transcript | None = None,
        cancel_grace: float = 5.0,
        outage: float = 30.0,
        places: anyio.Semaphore | None = None,
        anew: bool = False,
    ) -> None:
        self.run = run
        self._log = log
        self._source = source
        self._events = events
        self._cancel_grace = cancel_grace
        self._outage = outage
        self._places = places
        self._waits = places is not None
        self._anew = anew
        self._identity = Identity(
            run_id=run.run_id,
            session_id=run.session_id,
            component_id=source.component_id,
            component_name=source.component_name,
        )
        self._ending = Ending(run.run_id, source.family)
        self._work = anyio.CancelScope()
        self._reason: str | None = None  # why the work was cancelled, if it was
        self._outbox = Outbox(
            log,
            run,
            family=source.family,
            identity=self._identity,
            transcript=transcript,
            outage=outage,
            on_lost=lambda: self._stop("lost"),
        )
        self.claim: Claim = self._outbox.claim
        self.done: anyio.Event = self._outbox.done
        """Set when the run has its end, or has been lost."""

    def __repr__(self) -> str:
        return f"Producer({self.run.run_id!r}, generation={self.run.generation})"

    @property
    def transcript(self) -> Transcript:
        """What it has said so far."""
        return self._outbox.transcript

    async def produce(self) -> None:
        """Run it to its end. Raises nothing but cancellation; a run that is cancelled from outside is ended first."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._obey)
                tasks.start_soon(self._outbox.write)
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
            await self._outbox.write()  # if it was cancelled before its first step
            await self.done.wait()

    @property
    def can_be_left(self) -> bool:
        """Whether another process may run it again from its beginning."""
        return self.run.attempts < self.run.max_attempts

    @property
    def waits(self) -> bool:
        """Whether it has not begun, because no place is free."""
        return self._waits

    async def leave(self) -> None:
        """Stop the run without an end, and let whoever notices first run it again."""
        self._outbox.leave()
        self._stop("left")
        with anyio.move_on_after(self._outage + 1):
            await self.done.wait()
        if self.done.is_set() and self._outbox.left and not self._outbox.lost:
            with suppress(ResumableError):  # else its lease runs out by itself
                await self._log.renew([self.claim], lease=0.0)

    def lose(self) -> None:
        """Another producer has the run, or it is gone: stop, and store nothing more."""
        self._outbox.lose()
        self._stop("lost")

    async def cancel(self, reason: str, grace: float | None = None) -> None:
        """Ask the run to cancel itself, and cancel it hard if it has not ended after ``grace`` seconds."""
        if self.done.is_set():
            return  # agno would keep the intent for a run that never comes
        if self._waits:  # there is nothing yet that could cancel itself
            self._stop(reason)
            return
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
                if self._places is None:
                    await self._consume()
                else:
                    async with self._places:
                        self._waits = False
                        await self._consume()
            if self._work.cancelled_caught and not self._outbox.lost:
                self._finish_cancelled(self._reason or "The run was cancelled.")
            self._waits = False
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
        family, run_id, ending, outbox = self._source.family, self.run.run_id, self._ending, self._outbox
        turn = time.perf_counter()
        if self._anew and self.run.next_index:  # else nobody has seen anything of it
            outbox.put(restarted_event(self.run))
        stream = self._events()
        try:
            async for event in stream:
                if outbox.end is not None:
                    continue  # the run has ended; its source may still save its row
                if type(event).__name__ in _RUN_OUTPUTS:
                    continue
                encoded = encode_event(event, family=family, run_id=run_id)
                status = ending.of(encoded.type, event)
                if status is not None:
                    self._finish(status, encoded)
                    continue
                outbox.put(encoded)
                if outbox.is_full:
                    await outbox.room()
                    turn = time.perf_counter()
                elif (now := time.perf_counter()) - turn > _TURN:
                    await anyio.lowlevel.checkpoint()
                    turn = now
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(self._cancel_grace):
                    await close()
        if self._outbox.end is None:
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
        if self._outbox.left and status not in (RunStatus.COMPLETED, RunStatus.PAUSED):
            return  # what it says of being stopped is no end: it will be run again
        self._outbox.finish(status, last)

    def _stop(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        self._work.cancel()
        self._outbox.hurry()

    # ---------------------------------------------------------------- the log

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
