"""Event logs that are broken on purpose: what tests of a log have to notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

import anyio
import anyio.lowlevel
from typing_extensions import Self

from agno_resumable.errors import ResumableError, StaleGeneration
from agno_resumable.log.memory import MemoryEventLog
from agno_resumable.log.protocol import Claim
from agno_resumable.model import Batch, Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus


class Wrapped:
    """A log that hands every call on; what breaks overrides one."""

    def __init__(self) -> None:
        self.inner = MemoryEventLog()

    @property
    def durability(self) -> Durability:
        return self.inner.durability

    @property
    def is_open(self) -> bool:
        return self.inner.is_open

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.inner.__aexit__(exc_type, exc, tb)

    async def create(self, run: NewRun, *, lease: float) -> Run:
        return await self.inner.create(run, lease=lease)

    async def get(self, run_id: str) -> Run:
        return await self.inner.get(run_id)

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        return await self.inner.claim(run_id, lease=lease, generation=generation, floor=floor, reopen=reopen)

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        return await self.inner.append(run_id, generation, events, status=status, transcript=transcript)

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        return await self.inner.read(run_id, after, limit=limit, max_bytes=max_bytes)

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        await self.inner.wait(run_id, version, timeout=timeout)

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        return await self.inner.wait_cancel(run_id, timeout=timeout)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        return await self.inner.renew(claims, lease=lease)

    async def request_cancel(self, run_id: str) -> Run:
        return await self.inner.request_cancel(run_id)

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        await self.inner.intend_cancel(run_id, ttl=ttl)

    async def drop_intent(self, run_id: str) -> None:
        await self.inner.drop_intent(run_id)

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        return await self.inner.intents(version, timeout=timeout, limit=limit)

    async def list(
        self,
        *,
        component_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
        before: float | None = None,
    ) -> Sequence[Run]:
        return await self.inner.list(
            component_id=component_id, session_id=session_id, user_id=user_id, status=status, limit=limit, before=before
        )

    async def trim(self, run_id: str, *, before: int) -> None:
        await self.inner.trim(run_id, before=before)

    async def delete(self, run_id: str) -> None:
        await self.inner.delete(run_id)

    async def prune(self, *, finished_before: float) -> int:
        return await self.inner.prune(finished_before=finished_before)

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        return await self.inner.expire(lease=lease, serves=serves, patience=patience)

    async def now(self) -> float:
        return await self.inner.now()

    def stats(self) -> dict[str, int]:
        return dict(self.inner.stats())


class DropsAnEvent(Wrapped):
    """Loses the last of a large batch, and says that it is there."""

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        kept = events[:-1] if len(events) > 50 else events
        after = await super().append(run_id, generation, kept, status=status, transcript=transcript)
        return after + len(events) - len(kept)


class ReusesAnIndex(Wrapped):
    """Begins again at 0 when all events have been trimmed."""

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        page = await super().read(run_id, after, limit=limit, max_bytes=max_bytes)
        if not page.batches or not page.run.first_index:
            return page
        shift = page.run.first_index
        run = replace(page.run, first_index=0, next_index=page.run.next_index - shift)
        return Page(run, [Batch(run_id, batch.first - shift, batch.events) for batch in page.batches])


class IgnoresTheFence(Wrapped):
    """Lets a producer of an old generation write."""

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        current = (await self.inner.get(run_id)).generation
        return await super().append(run_id, current, events, status=status, transcript=transcript)


class ChecksTheFenceTooEarly(Wrapped):
    """Checks the generation in one step and stores in another."""

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        current = (await self.inner.get(run_id)).generation
        if generation != current:
            raise StaleGeneration(run_id, generation, current)
        await anyio.lowlevel.checkpoint()
        current = (await self.inner.get(run_id)).generation
        return await super().append(run_id, current, events, status=status, transcript=transcript)


class LosesWakeups(Wrapped):
    """Looks at the version, and begins to wait only a moment later."""

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        try:
            current = (await self.inner.read(run_id, limit=0)).run.version
        except ResumableError:
            return
        if current > version:
            return
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        try:
            current = (await self.inner.read(run_id, limit=0)).run.version
        except ResumableError:
            return
        await self.inner.wait(run_id, current, timeout=timeout)


class WakesOnEventsOnly(Wrapped):
    """Ends a wait for new events, and for nothing else."""

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        with anyio.move_on_after(timeout):
            seen = (await self.inner.read(run_id, limit=0)).run
            if seen.version > version:
                return
            while (run := (await self.inner.read(run_id, limit=0)).run).next_index == seen.next_index:
                await self.inner.wait(run_id, run.version, timeout=timeout)


class ReadsAnotherRun(Wrapped):
    """Answers under load with the page of the run that was read last."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = ""

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        self.asked = run_id
        await anyio.lowlevel.checkpoint()
        return await super().read(self.asked, after, limit=limit, max_bytes=max_bytes)


class TrimsSilently(Wrapped):
    """Drops old events without moving ``first_index``."""

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        page = await super().read(run_id, after, limit=limit, max_bytes=max_bytes)
        return Page(replace(page.run, first_index=0), page.batches)


class OverfillsPages(Wrapped):
    """Takes ``max_bytes`` for the place behind which a page may stop."""

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        return await super().read(run_id, after, limit=limit, max_bytes=max_bytes + 50)


class CancelLosesANeighbour(Wrapped):
    """Lets the first of a group write for all: when it is cancelled, the others' events are gone with it."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered: list[Callable[[], None]] = []
        self.leading = False

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        if not self.leading:
            self.leading = True
            try:
                await anyio.lowlevel.checkpoint()
                index = await super().append(run_id, generation, events, status=status, transcript=transcript)
            finally:
                self.leading = False
                waiting, self.gathered = self.gathered, []
                for wake in waiting:
                    wake()
            return index
        led = anyio.Event()
        self.gathered.append(led.set)
        await led.wait()
        if bool(self.leading):  # a new leader was quicker: this one believes itself written
            return (await self.inner.get(run_id)).next_index
        return await super().append(run_id, generation, events, status=status, transcript=transcript)


class HalfABatchWhenCancelled(Wrapped):
    """Stores a batch event by event."""

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        for one in events[:-1] if len(events) < 10 else ():
            await super().append(run_id, generation, [one])
            await anyio.lowlevel.checkpoint()
        rest = events[-1:] if len(events) < 10 else events
        return await super().append(run_id, generation, rest, status=status, transcript=transcript)


class ExpiresTwice(Wrapped):
    """Finds what has run out in one step and claims it in another."""

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        now = await self.now()
        dead = [run for run in await self.inner.list() if run.lease_expires_at and run.lease_expires_at <= now]
        await anyio.lowlevel.checkpoint()
        claimed = [await self.inner.claim(run.run_id, lease=lease) for run in dead if not run.status.finished]
        return [replace(run, input=None, metadata=None, options=None, transcript=None) for run in claimed]


class LeavesNothingToOthers(Wrapped):
    """Claims what has run out, whoever could run it again."""

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        return await self.inner.expire(lease=lease)


class TakesTheFloorForTheIndex(Wrapped):
    """Sets the next index to the floor, also where that is lower."""

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        run = await super().claim(run_id, lease=lease, generation=generation, floor=floor, reopen=reopen)
        if floor is None or floor == run.next_index:
            return run
        await self.inner.trim(run_id, before=floor)
        return await self.inner.get(run_id)


class KeepsEventsUnderTheFloor(Wrapped):
    """Moves the indices to the floor, and shows what was stored before it under them."""

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        before = await self.inner.read(run_id)
        run = await super().claim(run_id, lease=lease, generation=generation, floor=floor, reopen=reopen)
        if floor is None or run.next_index != floor or not before.batches:
            return run
        return replace(run, first_index=before.run.first_index)


class KeepsIntentsForEver(Wrapped):
    """Returns an intent whose time has run out."""

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        await super().intend_cancel(run_id, ttl=max(ttl, 3600.0))


class DropsIntentsSilently(Wrapped):
    """Raises the version for new intents only."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 0

    async def drop_intent(self, run_id: str) -> None:
        before = (await self.inner.intents()).version
        await super().drop_intent(run_id)
        self.hidden += (await self.inner.intents()).version - before

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        found = await super().intents(version + self.hidden, timeout=timeout, limit=limit)
        return Intents(found.version - self.hidden, found.run_ids)


class LosesIntents(Wrapped):
    """Looks at the version of the intents, and begins to wait for the next one only a moment later."""

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        found = await super().intents(limit=limit)
        if found.version != version:
            return found
        await anyio.lowlevel.checkpoint()
        current = (await super().intents(limit=limit)).version
        return await super().intents(current, timeout=timeout, limit=limit)


class SharesKeysBetweenOwners(Wrapped):
    """Takes an idempotency key for unique in the whole log."""

    async def create(self, run: NewRun, *, lease: float) -> Run:
        if run.idempotency_key is not None:
            for other in await self.inner.list():
                if other.idempotency_key == run.idempotency_key:
                    owned = replace(run, user_id=other.user_id)
                    return await self.inner.create(owned, lease=lease)
        return await self.inner.create(run, lease=lease)


class ForgetsTheCancelRequest(Wrapped):
    """Sees a cancel request only while it waits."""

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        await anyio.lowlevel.checkpoint()
        run = (await self.inner.read(run_id, limit=0)).run
        with anyio.move_on_after(timeout):
            await self.inner.wait(run_id, run.version, timeout=timeout)
        now = (await self.inner.read(run_id, limit=0)).run
        return run.cancel_requested_at is None and now.cancel_requested_at is not None


class LeaksWaiters(Wrapped):
    """Counts a waiter that was cancelled for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.leaked = 0

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        self.leaked += 1
        await super().wait(run_id, version, timeout=timeout)
        self.leaked -= 1

    def stats(self) -> dict[str, int]:
        counted = super().stats()
        return {**counted, "waiters": max(counted["waiters"], self.leaked)}


class TellsNoDurability(Wrapped):
    """Names its durability in a word of its own."""

    @property
    def durability(self) -> Durability:
        return "forever"  # type: ignore[return-value]  # the very thing the suite has to notice
