"""One leg of a run of agno's, as this process produces it: from its start, or its continuation, to its end or pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel

from ..ending import Ending
from ..log.protocol import Claim, EventLog
from ..model import EncodedEvent, Family, Run, RunStatus
from ..outbox import Outbox
from ..sse import Identity, cancelled_event, completed_event, encode_event, error_event
from ..sse.failures import family_of, read
from ..transcript import Transcript

__all__ = ["FENCE", "Leg", "fence_of"]

# agno numbers the attempts of a queued run, and gives the legs of one attempt the same number; the log has one number
# for both: agno's, times this, plus the leg.
FENCE = 1000
# What waits for a store that is slow or away, before the run has to wait too.
_SPILL_EVENTS = 16_384
_SPILL_BYTES = 4_194_304
# A model that never waits would keep the event loop to itself; after this long it has to let others have a turn.
_TURN = 0.005


def fence_of(run: Run) -> int:
    """agno's generation of the attempt that holds the run."""
    return run.generation // FENCE


class Leg:
    """Takes agno's events of one run, gives each its index, and has them stored in the background."""

    def __init__(
        self,
        log: EventLog,
        run: Run,
        *,
        outage: float,
        family: Family | None = None,
        transcript: Transcript | None = None,
    ) -> None:
        self.fence: int = fence_of(run)
        self.over: RunStatus | None = None
        """What the run's own terminal event said, if it came; nothing may follow it."""
        self._run = run
        self._family = family
        self.outbox: Outbox = Outbox(
            log,
            run,
            family=family or run.family,
            identity=Identity(run_id=run.run_id, session_id=run.session_id, component_id=run.component_id),
            transcript=transcript,
            outage=outage,
            max_events=_SPILL_EVENTS,
            max_bytes=_SPILL_BYTES,
        )
        self.claim: Claim = self.outbox.claim
        self.done: anyio.Event = self.outbox.done
        self.release: Callable[[], None] = lambda: None
        """Ends the renewal of the lease."""
        self.encoded: int = 0
        """The ``id`` of the event that was encoded last."""
        self._ending = Ending(run.run_id, family or run.family)
        self.begun: bool = True
        """Whether agno has begun the run here; else it was registered only, and may begin in another process."""
        self._known = False
        self._turn = time.perf_counter()

    def lose(self) -> None:
        """Another has the run, or it is gone."""
        self.outbox.lose()

    def stop(self) -> None:
        """The process stops: a run that has begun here ends as cancelled, one that has not may yet begin elsewhere."""
        if self.begun:
            self.finish(RunStatus.CANCELLED)
        elif self.outbox.end is None:
            self.lose()

    @property
    def producing(self) -> bool:
        """Whether events are still taken and stored."""
        return self.outbox.end is None and not self.outbox.done.is_set() and not self.outbox.lost

    def encode(self, event: Any) -> EncodedEvent:
        """The event as it is stored."""
        if not self._known:
            self._learn(event)
        return encode_event(event, family=self._family, run_id=self._run.run_id)

    def take(self, event: Any, encoded: EncodedEvent) -> int:
        """Take an event, and return its index."""
        status = self._ending.of(encoded.type, event)
        if status is not None:
            self.over = status
        index = self.outbox.next_index
        self.outbox.put(encoded)
        return index

    async def breathe(self) -> None:
        """Wait where the store is too slow, or where others have not had a turn for long."""
        if self.outbox.is_full:
            await self.outbox.room()
            self._turn = time.perf_counter()
        elif time.perf_counter() - self._turn > _TURN:
            await anyio.lowlevel.checkpoint()
            self._turn = time.perf_counter()

    def finish(self, status: RunStatus) -> None:
        """End the leg; where no event of its own has said so, the family's own event of that ending is the last."""
        last: EncodedEvent | None = None
        family, identity = self._family or self._run.family, self.outbox.identity
        if self.over is not status:
            if status is RunStatus.COMPLETED:
                last = completed_event(family, identity=identity)
            elif status is RunStatus.CANCELLED:
                last = cancelled_event(family, "The run was cancelled.", identity=identity)
            elif status is RunStatus.ERROR:
                message = "The run failed without an event that says why."
                last = error_event(family, message, error_type="run_failed", identity=identity)
        self.outbox.finish(status, last)

    async def write(self) -> None:
        """Store what is taken until the leg has its end; see ``stop`` for a process that stops before."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.outbox.write)
                try:
                    await self.outbox.done.wait()
                finally:
                    if not self.outbox.done.is_set():
                        self.stop()
                    with anyio.CancelScope(shield=True):
                        await self.outbox.write()  # if it was cancelled before its first step
                        await self.outbox.done.wait()
        finally:
            self.outbox.done.set()
            self.release()

    def _learn(self, event: Any) -> None:
        """Whose run it is: the first event knows, and nobody has to say it before."""
        self._known = self.begun = True
        if self._family is None:
            self._family = family_of(event, str(read(event, "event")))
            self._ending = Ending(self._run.run_id, self._family)
            self.outbox.family = self._family
        session_id = read(event, "session_id")
        name = read(event, f"{self._family.value}_name")
        component_id = read(event, f"{self._family.value}_id")
        known = self.outbox.identity
        self.outbox.identity = known._replace(
            session_id=known.session_id or (session_id if isinstance(session_id, str) else None),
            component_id=known.component_id or (component_id if isinstance(component_id, str) else None),
            component_name=name if isinstance(name, str) else None,
        )
