"""The producers of the workload: one on the bare log, one as the library produces, with ``Outbox`` and ``Supervisor``.

Both write events that no other writer has written, and both do after an append in doubt what a producer has to do:
ask whether it was stored, and only then go on or try again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from agno_resumable.errors import LogClosed, LogUnavailable, RunExists, RunFinished, RunNotFound, StaleGeneration
from agno_resumable.model import EncodedEvent, Family, NewRun, Run, RunStatus
from agno_resumable.outbox import Outbox
from agno_resumable.sse import Identity
from agno_resumable.supervisor import Supervisor

from .recording import Recording
from .records import Began, Finished, Lost

__all__ = ["Pace", "Production", "create"]

_LAST = {RunStatus.COMPLETED: "RunCompleted", RunStatus.PAUSED: "RunPaused"}
_OUTAGE = 300.0  # longer than any fault lasts: a run is given up only when the test is


class Pace:
    """How a producer writes: batches, and pauses around ``pause`` seconds, as a seed chooses them."""

    def __init__(self, seed: int, pause: float) -> None:
        self._random = random.Random(seed)
        self._pause = pause

    @property
    def batch(self) -> int:
        """How many events the next batch has."""
        return self._random.choice((1, 1, 1, 2, 3, 8))

    @property
    def pad(self) -> int:
        """How many bytes the next event has besides."""
        return self._random.choice((0, 10, 100, 100, 1500))

    async def rest(self) -> None:
        """The pause between two batches; sometimes none."""
        await anyio.sleep(self._random.choice((0.0, self._pause, self._pause, 3 * self._pause)))


async def create(log: Recording, run_id: str, lease: float) -> Run:
    """Create a run although the store may be away: what came of a ``create`` in doubt is claimed."""
    while True:
        try:
            return await log.create(NewRun(run_id), lease=lease)
        except RunExists:
            with suppress(LogUnavailable):
                return await log.claim(run_id, lease=lease)
        except LogUnavailable:
            await anyio.sleep(0.02)


class Production:
    """One run that a worker produces, until it is told to finish or loses the run.

    Args:
        run: As it was created or claimed; production goes on at its next index.
        via_outbox: Produce as the library does.
        finishing: Set when the run shall end.
        supervisor: Renews the lease of what goes through an outbox.
    """

    def __init__(
        self,
        log: Recording,
        run: Run,
        pace: Pace,
        *,
        via_outbox: bool,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.run = run
        self.via_outbox = via_outbox
        self._end: RunStatus | None = None
        self._log = log
        self._pace = pace
        self._supervisor = supervisor
        self._numbers = itertools.count()

    def finish(self, status: RunStatus = RunStatus.COMPLETED) -> None:
        """Have the run end after what is on its way, or rest until it is claimed again."""
        self._end = status

    async def produce(self) -> None:
        """Write until there is an end; never raises what a producer has to expect of a log."""
        run_id, generation = self.run.run_id, self.run.generation
        self._log.record(Began(self._log.worker, run_id, generation))
        try:
            lost = await (self._through_outbox() if self.via_outbox else self._by_hand())
        except (StaleGeneration, RunFinished, RunNotFound) as error:
            lost = type(error).__name__
        if lost:
            self._log.record(Lost(self._log.worker, run_id, generation, lost))
            return
        if self._end is RunStatus.PAUSED:
            self._log.record(Finished(self._log.worker, run_id, generation))
            return
        # Nothing may follow the end, and somebody always tries
        with suppress(RunFinished, StaleGeneration, LogUnavailable):
            await self._log.append(run_id, generation, [self._event()])
        self._log.record(Finished(self._log.worker, run_id, generation))

    def _event(self, type_: str = "RunContent") -> EncodedEvent:
        name = f"{self._log.worker}-{self.run.generation}-{next(self._numbers)}"
        data = f'{{"event":"{type_}","run_id":"{self.run.run_id}","content":"{name} é {"x" * self._pace.pad}"}}'
        return EncodedEvent(type_, data.encode())

    # ---------------------------------------------------------------- the bare log

    async def _by_hand(self) -> str:
        index = self.run.next_index
        while True:
            events = [self._event() for _ in range(self._pace.batch)]
            if self._end is not None:
                await self._store(index, [*events, self._event(_LAST[self._end])], self._end)
                return ""
            index = await self._store(index, events, None)
            await self._pace.rest()

    async def _store(self, index: int, events: Sequence[EncodedEvent], status: RunStatus | None) -> int:
        claim = (self.run.run_id, self.run.generation)
        unknown = False
        while True:
            try:
                if unknown and await self._is_stored(index, status):
                    self._log.told(*claim, index, events, status)
                    return index + len(events)
                unknown = False
                return await self._log.append(*claim, events, status=status)
            except LogClosed:
                raise
            except LogUnavailable as error:
                unknown = unknown or error.outcome_unknown
                await anyio.sleep(0.02)

    async def _is_stored(self, index: int, status: RunStatus | None) -> bool:
        try:
            return await self._log.append(self.run.run_id, self.run.generation, ()) != index
        except RunFinished as error:
            if status is not None and error.status == status.value:
                return True
            raise

    # ---------------------------------------------------------------- the library's way

    async def _through_outbox(self) -> str:
        assert self._supervisor is not None
        outbox = Outbox(
            self._log, self.run, family=Family.AGENT, identity=Identity(run_id=self.run.run_id), outage=_OUTAGE
        )
        release = self._supervisor.hold(outbox)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(outbox.write)
                try:
                    await self._fill(outbox, tasks)
                except BaseException:  # cancelled: the outbox, which is shielded, would write on
                    outbox.lose()
                    raise
        finally:
            release()
        if outbox.stored_index == outbox.next_index:
            return ""
        return "outage" if outbox.failure is not None else "lost"

    async def _fill(self, outbox: Outbox, tasks: TaskGroup) -> None:
        while not outbox.done.is_set():
            events = [self._event() for _ in range(self._pace.batch)]
            first = outbox.next_index
            for event in events:
                outbox.put(event)
            tasks.start_soon(self._note, outbox, first, events)
            await outbox.room()
            if self._end is not None:
                last = self._event(_LAST[self._end])
                tasks.start_soon(self._note, outbox, outbox.next_index, [last], self._end)
                outbox.finish(self._end, last)
                return
            await self._pace.rest()

    async def _note(
        self, outbox: Outbox, first: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> None:
        """The outbox's own word that the log has these events, also where it found that out after a doubt."""
        if await outbox.stored(first + len(events) - 1):
            self._log.told(*outbox.claim, first, events, status)
