"""``LogEventStream``: agno's event stream on a log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import anyio
from typing_extensions import Self

from ..attachment import Attachment
from ..dialects.native import Native
from ..errors import (
    AgnoUnsupported,
    LogUnavailable,
    RunExists,
    RunFinished,
    RunNotFound,
    StaleGeneration,
)
from ..log.protocol import EventLog
from ..model import Batch, EncodedEvent, Family, NewRun, Run, RunStatus, render_frames
from ..reader import Gap, follow
from ..supervisor import Policy, Supervisor
from ..transcript import Transcript
from .leg import FENCE, Leg, fence_of
from .ownership import request_owner
from .versions import require_agno

try:
    from agno.os.event_streams.base import BaseEventStream
    from agno.run.base import RunStatus as AgnoStatus
except ImportError:
    require_agno((3, 0), "LogEventStream")
    raise AgnoUnsupported("agno's event streams could not be imported: pip install 'agno[os]'.") from None

__all__ = ["LogEventStream", "last_encoded"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

# By the id of the event: what was encoded last of each run, for the formatter of the primary client, which agno asks
# next about the same event. A leg takes its own out again, so there are never more than legs.
_encoded: dict[int, tuple[object, int, EncodedEvent]] = {}


def last_encoded(event: object, index: int | None) -> EncodedEvent | None:
    """What the log stores for this very event, if ``add_event`` has encoded it last of its run, under this index."""
    known = _encoded.get(id(event))
    if known is None or known[0] is not event or known[1] != index:
        return None
    return known[2]


class LogEventStream(BaseEventStream):
    """Keeps the events of AgentOS's background runs in a log: ``AgentOS(event_stream=LogEventStream("sqlite:///…"))``.

    ``add_event`` encodes an event, gives it its index, and returns; the commit follows in the background, and all
    other calls see what was added before them. A run whose process dies is ended with its family's error frame.

    Alone, it leaves what AgentOS itself does: its clients resume by ``POST …/resume`` only, frames have no ``id:``,
    and the client that started the run may have seen events that a crash takes back. ``AgentOSBridge`` mends these.

    Args:
        log: A log, or the URL of one (see ``open_log``). A log that is not open yet is opened and closed here.
        lease: Seconds that a producer is believed alive without renewing.
        sweep_interval: Seconds between two looks for runs whose producer has died.
        retention: Seconds that finished runs are kept; ``None`` keeps them.
        outage: Seconds that a store which is away is tried again, before the events of a run are given up.

    Raises:
        AgnoUnsupported: agno is older than 3.0.
    """

    def __init__(
        self,
        log: EventLog | str,
        *,
        lease: float = 15.0,
        sweep_interval: float = 5.0,
        retention: float | None = 86_400.0,
        outage: float = 30.0,
    ) -> None:
        self.attachment: Attachment = Attachment(log, Policy(lease, sweep_interval, retention))
        self._outage = outage
        self._mourners: list[Callable[[Run], Awaitable[None]]] = []
        self._mourned: Supervisor | None = None  # who calls them
        self._withdrawals: list[Callable[[], None]] = []
        self._legs: dict[str, Leg] = {}
        self._entering: dict[str, anyio.Lock] = {}

    # ---------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        await self.attachment.attend()
        await self._supervisor()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def on_lost(self, callback: Callable[[Run], Awaitable[None]]) -> None:
        """Have ``callback`` called with each run that is ended from here because its process was lost."""
        self._mourners.append(callback)

    async def _supervisor(self) -> Supervisor:
        supervisor = await self.attachment.supervisor()
        if self._mourned is not supervisor:
            self._mourned = supervisor
            self._withdrawals = [supervisor.mourn(mourner) for mourner in self._mourners]
        return supervisor

    async def aclose(self) -> None:
        """Store what was added, end what is left of this process's runs as cancelled, and let go of the log.

        A run that was only registered here keeps its place: agno's queue may have it begun by another process.
        """
        with anyio.CancelScope(shield=True):
            legs, self._legs = list(self._legs.values()), {}
            for leg in legs:
                leg.stop()  # of no effect where the run has its end
            for leg in legs:
                with anyio.move_on_after(self._outage + 1):
                    await leg.done.wait()
            for withdraw in self._withdrawals:
                withdraw()
            self._mourned, self._withdrawals = None, []
            await self.attachment.detach()

    async def log(self) -> EventLog:
        """The log, open.

        Raises:
            LogUnavailable: It could not be opened.
        """
        return (await self._supervisor()).log

    async def stored(self, run_id: str, index: int) -> bool:
        """Wait until the log has the event with this index, if this process produces the run.

        Returns False if it will not have it from here: the run is unknown to this process, or was lost.
        """
        leg = self._legs.get(run_id)
        if leg is None:
            with suppress(RunNotFound):
                return (await (await self.log()).read(run_id, limit=0)).run.next_index > index
            return False
        return await leg.outbox.stored(index)

    # ---------------------------------------------------------------- the life of a run

    async def register_run(self, run_id: str, status: AgnoStatus = AgnoStatus.pending) -> None:
        """Create the run, if there is none; its owner is the request's."""
        leg = self._legs.get(run_id)
        if leg is not None:
            if leg.producing:
                return
            del self._legs[run_id]  # a new leg begins
        async with self._enters(run_id):
            supervisor = await self._supervisor()
            try:
                await supervisor.log.read(run_id, limit=0)
            except RunNotFound:
                with suppress(RunExists):  # on another replica at the same time
                    run = await self._create(supervisor.log, run_id)
                    # From now on: it may wait for its turn for longer than a lease
                    self._legs[run_id] = leg = await self._begin(supervisor, run)
                    leg.begun = False

    async def set_run_status(self, run_id: str, status: AgnoStatus, generation: int | None = None) -> None:
        """RUNNING makes this process the producer of the run; an ending is ``complete_run``'s."""
        if RunStatus(status.value) is RunStatus.RUNNING:
            leg = await self._leg(run_id, generation, begins=True)
            if leg is not None:
                await (await self.log()).append(*leg.claim, (), status=RunStatus.RUNNING)
        elif RunStatus(status.value) is not RunStatus.PENDING:
            await self.complete_run(run_id, status, generation)

    async def get_run_status(self, run_id: str) -> AgnoStatus | None:
        """The status as the log has it, ``None`` where it has no such run."""
        run = await self._read(run_id)
        return None if run is None else AgnoStatus(run.status.value)

    async def complete_run(self, run_id: str, status: AgnoStatus, generation: int | None = None) -> None:
        """End the leg. Without a terminal event of its own, the run gets the family's of this status."""
        leg = self._legs.get(run_id)
        if leg is None:
            run = await self._read(run_id)
            if run is None or run.status.finished or run.status.value == status.value:
                return
        if leg is None or (generation is not None and generation != leg.fence):
            leg = await self._leg(run_id, generation, begins=False)
            if leg is None:
                return
        ends = RunStatus(status.value)
        if ends.active:
            # agno takes a status that is no ending for COMPLETED; the run's own last word is nearer to the truth
            ends = leg.over or RunStatus.ERROR
        leg.finish(ends)
        await leg.done.wait()
        if self._legs.get(run_id) is leg:
            del self._legs[run_id]

    async def reopen_run(self, run_id: str, include_error: bool = False, floor: int | None = None) -> bool:
        """Begin another leg of a run that rests, at an index above ``floor``; False where it does not rest."""
        run = await self._read(run_id)
        rests = (RunStatus.PAUSED, RunStatus.PENDING, *((RunStatus.ERROR,) if include_error else ()))
        if run is not None and run.status not in rests:
            return False
        return await self._leg(run_id, None, begins=True, floor=None if floor is None else floor + 1) is not None

    async def begin_attempt(self, run_id: str, generation: int) -> None:
        """Take the run over for this attempt; what an older one still adds is refused."""
        await self._leg(run_id, generation, begins=True)

    async def reset_run_events(self, run_id: str, generation: int | None = None) -> None:
        """Drop the events so far; indices go on, and readers behind get a gap."""
        leg = await self._leg(run_id, generation, begins=False)
        if leg is not None:
            await self._flush(leg)
            await (await self.log()).trim(run_id, before=leg.outbox.next_index)

    async def cleanup_run(self, run_id: str) -> None:
        """Delete the run."""
        leg = self._legs.pop(run_id, None)
        if leg is not None:
            leg.lose()
            await leg.done.wait()
        await (await self.log()).delete(run_id)

    # ---------------------------------------------------------------- events

    async def add_event(self, run_id: str, event: Any, generation: int | None = None) -> int:
        """Take an event of the run, stamp its ``event_index`` and return it; -1 where it is refused.

        Refused is what an attempt adds that another has taken the run from, and what follows the run's own terminal
        event: agno says Completed after Cancelled.

        Raises:
            LogUnavailable: The store has been away for longer than ``outage`` seconds.
        """
        leg = self._legs.get(run_id)
        if leg is None or (generation is not None and generation != leg.fence):
            leg = await self._leg(run_id, generation, begins=leg is None)
            if leg is None:
                return -1
        if leg.outbox.lost:
            return self._lost(leg)
        if leg.over is not None or leg.outbox.end is not None:
            return -1
        encoded = leg.encode(event)
        index = leg.take(event, encoded)
        with suppress(Exception):  # a frozen event of somebody else's, say
            event.event_index = index
        _encoded.pop(leg.encoded, None)
        leg.encoded = id(event)
        _encoded[leg.encoded] = (event, index, encoded)
        await leg.breathe()
        return self._lost(leg) if leg.outbox.lost else index

    async def replay(self, run_id: str, last_event_index: int | None = None) -> list[tuple[int, Any]]:
        """The frames behind the cursor, each with its index; first a ``gap`` frame, where what is asked for is gone."""
        run = await self._read(run_id)
        if run is None:
            return []
        log, after, frames = await self.log(), -1 if last_event_index is None else last_event_index, []
        gap: Gap | None = None
        if after > run.last_index:
            gap, after = Gap(after + 1, run.first_index, "ahead"), run.first_index - 1
        elif after + 1 < run.first_index:
            gap, after = Gap(after + 1, run.first_index, "trimmed"), run.first_index - 1
        if gap is not None:
            frames.append((after, Native().gap(gap).decode()))
        while after < run.last_index:
            page = await log.read(run_id, after)
            if not page.batches:
                break
            for batch in page.batches:
                frames.extend(_frames(batch))
                after = batch.last
        return frames

    async def get_last_index(self, run_id: str) -> int:
        """The index of the run's last event, -1 before the first."""
        run = await self._read(run_id)
        return -1 if run is None else run.last_index

    async def get_event_count(self, run_id: str) -> int:
        """How many events the log still has."""
        run = await self._read(run_id)
        return 0 if run is None else run.next_index - run.first_index

    async def tail(self, run_id: str, last_event_index: int | None = None) -> AsyncIterator[tuple[int, str]]:
        """Yield the frames behind the cursor with their indices, until the run ends or pauses."""
        after = -1 if last_event_index is None else last_event_index
        leg = self._legs.get(run_id)
        if leg is not None:
            await self._flush(leg)  # the client may have seen what is not stored yet
        with suppress(RunNotFound):
            async for item in follow(await self.log(), run_id, after, stop_when_paused=True):
                if isinstance(item, Batch):
                    for frame in _frames(item):
                        yield frame
                elif isinstance(item, Gap):
                    yield item.first_available - 1, Native().gap(item).decode()

    # ---------------------------------------------------------------- legs

    async def _read(self, run_id: str) -> Run | None:
        """The run as it is with all that was added to it here."""
        leg = self._legs.get(run_id)
        if leg is not None:
            await self._flush(leg)
        try:
            return (await (await self.log()).read(run_id, limit=0)).run
        except RunNotFound:
            return None

    async def _flush(self, leg: Leg) -> None:
        if leg.outbox.stored_index < leg.outbox.next_index:
            leg.outbox.hurry()
            await leg.outbox.stored(leg.outbox.next_index - 1)

    async def _leg(self, run_id: str, generation: int | None, *, begins: bool, floor: int | None = None) -> Leg | None:
        """The leg of the run in this process, begun if need be; ``None`` where another's is newer, or it has ended.

        ``begins`` says that agno begins a leg here; otherwise a leg of this process that was lost stays lost.
        """
        async with self._enters(run_id):
            leg = self._legs.get(run_id)
            if leg is not None:
                if not begins and not leg.producing:
                    return leg if generation is None or generation >= leg.fence else None
                if leg.producing and floor is None and generation in (None, leg.fence):
                    leg.begun = leg.begun or begins
                    return leg
                if generation is not None and generation < leg.fence:
                    self._refuse(run_id, generation, leg.fence)
                    return None
                await self._flush(leg)
                leg.lose()  # its attempt is over: the next one takes the run from it
                await leg.done.wait()
                del self._legs[run_id]
            supervisor = await self._supervisor()
            run = await self._take(supervisor.log, run_id, generation, floor)
            if run is None:
                return None
            leg = await self._begin(supervisor, run)
            self._legs[run_id] = leg
            return leg

    async def _take(self, log: EventLog, run_id: str, generation: int | None, floor: int | None) -> Run | None:
        """Hold the run, created or claimed."""
        lease = self.attachment.policy.lease
        try:
            run = (await log.read(run_id, limit=0)).run
        except RunNotFound:
            try:
                run = await self._create(log, run_id)
            except RunExists:  # on another replica at the same time
                run = (await log.read(run_id, limit=0)).run
            else:
                if not generation and not floor:
                    return run
        if run.status is RunStatus.COMPLETED or run.status is RunStatus.CANCELLED:
            raise RunFinished(run_id, run.status.value)
        claimed: int | None = None
        if generation is not None:
            if generation < fence_of(run):
                self._refuse(run_id, generation, fence_of(run))
                return None
            if generation > fence_of(run):
                claimed = generation * FENCE
        try:
            return await log.claim(run_id, lease=lease, generation=claimed, floor=floor, reopen=True)
        except StaleGeneration:
            return None  # another attempt was quicker

    async def _create(self, log: EventLog, run_id: str) -> Run:
        owner = request_owner.get()
        new = NewRun(run_id)
        if owner is not None:
            new = NewRun(
                run_id,
                family=owner.family,
                component_id=owner.component_id,
                session_id=owner.session_id,
                user_id=owner.user_id,
            )
        return await log.create(new, lease=self.attachment.policy.lease)

    async def _begin(self, supervisor: Supervisor, run: Run) -> Leg:
        owner = request_owner.get()
        family: Family | None = run.family
        if run.component_id is None and owner is None:
            family = None  # nobody has said; the first event knows
        so_far = await Transcript.of_log(supervisor.log, run) if run.next_index > run.first_index else None
        leg = Leg(supervisor.log, run, outage=self._outage, family=family, transcript=so_far)
        let_go = supervisor.hold(leg)

        def release() -> None:
            let_go()
            _encoded.pop(leg.encoded, None)
            if not leg.begun and self._legs.get(run.run_id) is leg:
                del self._legs[run.run_id]  # registered here, and run elsewhere: nobody will say its end here

        leg.release = release
        supervisor.watch(leg.write)
        return leg

    @asynccontextmanager
    async def _enters(self, run_id: str) -> AsyncIterator[None]:
        """One at a time begins a leg of a run."""
        lock = self._entering.setdefault(run_id, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._entering.pop(run_id, None)

    def _lost(self, leg: Leg) -> int:
        run_id = leg.claim[0]
        if leg.outbox.failure is not None:
            raise LogUnavailable(
                f"The events of run {run_id!r} are no longer stored: the log has been away for too long.",
                run_id=run_id,
            ) from leg.outbox.failure
        return -1

    def _refuse(self, run_id: str, generation: int, current: int) -> None:
        logger.warning(
            "an older attempt of the run was refused",
            extra={"run_id": run_id, "generation": generation, "current": current},
        )


def _frames(batch: Batch) -> list[tuple[int, str]]:
    return [
        (index, render_frames(batch.run_id, index, (event,)).decode())
        for index, event in enumerate(batch.events, batch.first)
    ]
