"""Between whoever makes events and the log: events are gathered, stored in batches, and the end goes with the last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import anyio
import anyio.lowlevel

from .errors import EventTooLarge, LogClosed, LogUnavailable, RunFinished, RunNotFound, StaleGeneration
from .log.protocol import Claim, EventLog
from .model import EncodedEvent, Family, Run, RunStatus
from .sse import Identity, error_event
from .transcript import Transcript

__all__ = ["MAX_BATCH_BYTES", "MAX_BATCH_EVENTS", "Outbox"]

logger: logging.Logger = logging.getLogger("agno_resumable.outbox")

# What goes in one append. Not quite a reader's page (262,144 bytes), so that what is stored together is also sent
# together, the same bytes to all.
MAX_BATCH_EVENTS = 1024
MAX_BATCH_BYTES = 229_376
# Between two commits of one run events are gathered for this long, and for as long as the readers of the last commit
# took: a log in memory has no commit in flight to gather them in, and a hundred readers keep the event loop longer than
# any commit. Whoever comes after a pause, however short, is stored at once.
_PACE = 0.002
_LONGEST_PACE = 0.1
# The turns of the event loop in which readers that were woken read, send, and wait again.
_READER_TURNS = 3


class Outbox:
    """The events of one run on their way to the log, under its generation.

    ``put`` never waits; who puts more than ``is_full`` allows has to wait for ``room`` first. ``write`` has to run
    beside, in a task that outlives whoever puts.

    Args:
        family: Of the error frame that stands for an event which is too large for the log.
        identity: Of the same.
        transcript: The legs before this one.
        outage: How long, in seconds, a store that is away is tried again before the run is given up.
        max_events: What may be waiting for the commit in flight.
        max_bytes: The same, in bytes of JSON.
        on_lost: Called when nothing can be stored any more: the run is another producer's, or the store is away.
    """

    def __init__(
        self,
        log: EventLog,
        run: Run,
        *,
        family: Family,
        identity: Identity,
        transcript: Transcript | None = None,
        outage: float = 30.0,
        max_events: int = MAX_BATCH_EVENTS,
        max_bytes: int = MAX_BATCH_BYTES,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.claim: Claim = (run.run_id, run.generation)
        self.family: Family = family
        self.identity: Identity = identity
        self._transcript = transcript or Transcript(run.run_id)
        self._unfolded: list[EncodedEvent] = []
        self._missing = 0
        self.next_index: int = run.next_index
        """The index of the event that is put next."""
        self.stored_index: int = run.next_index
        """The index behind the last event that the log has."""
        self.end: RunStatus | None = None
        """How the run ends; set together with its last event, and nothing is put after it."""
        self.lost: bool = False
        """Whether nothing more can be stored."""
        self.left: bool = False
        """Whether the run is left as it is, without an end, for another to take over; for good when ``done``."""
        self.failure: LogUnavailable | None = None
        """Why, if the store was away for too long."""
        self.done: anyio.Event = anyio.Event()
        """Set when the run has its end, or has been lost."""
        self._log = log
        self._outage = outage
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._on_lost = on_lost
        self._buffer: list[EncodedEvent] = []
        self._size = 0
        self._more = anyio.Event()
        self._room = anyio.Event()
        self._urgent = anyio.Event()
        self._stored = anyio.Event()
        self._writing = False

    def __repr__(self) -> str:
        return f"Outbox({self.claim[0]!r}, generation={self.claim[1]})"

    @property
    def transcript(self) -> Transcript:
        """The transcript so far, with all that was handed to the log."""
        self._fold()
        return self._transcript

    def _fold(self) -> None:
        unfolded, self._unfolded = self._unfolded, []
        self._transcript.fold(unfolded)

    # ---------------------------------------------------------------- in

    def put(self, event: EncodedEvent) -> None:
        """Take an event; it gets ``next_index``."""
        if not self._buffer:
            self._more.set()
        self._buffer.append(event)
        self._size += len(event.data)
        self.next_index += 1
        if self._size >= MAX_BATCH_BYTES or len(self._buffer) >= MAX_BATCH_EVENTS:
            self._urgent.set()

    @property
    def is_full(self) -> bool:
        """Whether who puts has to wait for ``room``."""
        return self._size >= self._max_bytes or len(self._buffer) >= self._max_events

    async def room(self) -> None:
        """Wait until there is room again, or the run is lost."""
        while self.is_full and not self.done.is_set():
            if self._room.is_set():  # else others wait for it already
                self._room = anyio.Event()
            await self._room.wait()

    def finish(self, status: RunStatus, last: EncodedEvent | None) -> None:
        """The first that says how the run ended is right; who comes later is not heard."""
        if self.end is None:
            if last is not None:
                self._buffer.append(last)
                self.next_index += 1
            self.end = status
            self.hurry()

    def hurry(self) -> None:
        """Store what is there, without gathering more."""
        self._more.set()
        self._urgent.set()

    def leave(self) -> None:
        """Store what is there, and be done without an end: another shall take the run over."""
        if self.end is None:
            self.left = True
        self.hurry()

    def lose(self) -> None:
        """Another producer has the run, or it is gone: store nothing more."""
        self.lost = True
        self.hurry()

    # ---------------------------------------------------------------- out

    async def stored(self, index: int) -> bool:
        """Wait until the log has the event with this index; False if it will not have it from here."""
        while self.stored_index + self._missing <= index:
            if self.done.is_set():
                return False
            await self._stored.wait()
        return True

    async def write(self) -> None:
        """Store what has gathered, as long as anything comes; the end goes with the last events. Once is enough."""
        if self._writing:
            return
        self._writing = True
        with anyio.CancelScope(shield=True):  # ends by itself: at the end, or when the run is lost
            gather_until = 0.0
            try:
                while not self.lost:
                    if not self._buffer and self.end is None:
                        if self.left:
                            return
                        self._more = anyio.Event()
                        with suppress(anyio.get_cancelled_exc_class()):  # see _store
                            await self._more.wait()
                        continue
                    await self._gather(gather_until)
                    events, end = self._take()
                    self._unfolded += events
                    await self._store(events, end)
                    if end is not None:
                        self.left = False  # it was quicker
                        return
                    gather_until = await self._serve()
                    self._fold()  # now that nobody waits for the events any more
            except (StaleGeneration, RunNotFound, RunFinished) as error:
                logger.warning(
                    "the run is lost to another producer",
                    extra={"run_id": self.claim[0], "error_type": type(error).__name__},
                )
                self.lose()
            except LogUnavailable as error:
                logger.error(
                    "the log did not take the run's events; it will be ended when its lease runs out",
                    extra={"run_id": self.claim[0], "error_type": type(error.__cause__ or error).__name__},
                )
                self.failure = error
                self.lose()
            finally:
                self.done.set()
                self._room.set()
                self._stored.set()
                if self.lost and self._on_lost is not None:
                    self._on_lost()

    def _take(self) -> tuple[list[EncodedEvent], RunStatus | None]:
        """What goes in the next append, and the run's end, if that is all of it."""
        if len(self._buffer) <= MAX_BATCH_EVENTS and self._size <= 2 * MAX_BATCH_BYTES:
            events, self._buffer, self._size = self._buffer, [], 0
            self._room.set()
            return events, self.end
        # More than a page has spilled while the store was slow
        count = size = 0
        for event in self._buffer[:MAX_BATCH_EVENTS]:
            if size >= MAX_BATCH_BYTES:
                break
            size += len(event.data)
            count += 1
        events, self._buffer, self._size = self._buffer[:count], self._buffer[count:], self._size - size
        self._room.set()
        return events, self.end if not self._buffer else None

    async def _serve(self) -> float:
        """Let the readers have what was just stored; return until when to gather what comes next."""
        stored = time.perf_counter()
        for _ in range(_READER_TURNS):
            with suppress(anyio.get_cancelled_exc_class()):
                await anyio.lowlevel.checkpoint()
        served = time.perf_counter()
        return served + min(max(served - stored, _PACE), _LONGEST_PACE)

    async def _gather(self, until: float) -> None:
        """Let more events come until then, unless a batch is full or the run has its end."""
        rest = until - time.perf_counter()
        if (
            rest > 0
            and self.end is None
            and len(self._buffer) < MAX_BATCH_EVENTS
            and self._size < MAX_BATCH_BYTES
            and not self._urgent.is_set()
        ):
            with suppress(anyio.get_cancelled_exc_class()), anyio.move_on_after(rest):
                await self._urgent.wait()
        if self._urgent.is_set():
            self._urgent = anyio.Event()

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
                    self._note(self.stored_index + len(events))
                    return
                unknown = False
                self._note(await self._log.append(run_id, generation, events, status=end, transcript=transcript))
                return
            except EventTooLarge as error:
                events = [fitting for event in events if (fitting := self.fit(event, error.limit)) is not None]
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

    def _note(self, stored: int) -> None:
        self.stored_index = stored
        # By so much the log is behind what was counted here, where the store has failed over and lost events: nobody
        # may wait for what never comes
        self._missing = max(0, self.next_index - len(self._buffer) - stored)
        waiting, self._stored = self._stored, anyio.Event()
        waiting.set()

    async def _is_stored(self, end: RunStatus | None) -> bool:
        """Whether the append in doubt was stored: only this producer moves the run's index, so the index tells.

        A lower one is that of a store that has failed over and lost more than this.
        """
        try:
            # Not a read: an append stands behind the one in doubt, wherever that is queued
            return await self._log.append(*self.claim, ()) > self.stored_index
        except RunFinished as error:
            if end is not None and error.status == end.value:
                return True
            raise

    def fit(self, event: EncodedEvent, limit: int) -> EncodedEvent | None:
        """The event if the log takes it, else an error frame, or nothing where the log takes not even that."""
        if len(event.data) <= limit:
            return event
        logger.warning(
            "an event was too large for the log",
            extra={"run_id": self.claim[0], "event_type": event.type, "size": len(event.data)},
        )
        frame = error_event(
            self.family,
            f"An event of type {event.type} has {len(event.data)} bytes of JSON; the log takes {limit}.",
            error_type="event_too_large",
            identity=self.identity,
        )
        return frame if len(frame.data) <= limit else None
