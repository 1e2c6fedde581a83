"""Logs that break a promise when they are written, and the violation that has to show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agno_resumable.model import Batch, EncodedEvent, Page, Run, RunStatus

from .judging import Kind
from .mutant import Mutant

__all__ = ["WRITING"]

_STARTED = 12
"""Events of a run before anything is broken, so that there is something whole in front of it."""


class _Keeping(Mutant):
    """Stores something else of a batch."""

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        whole = (await self.run(run_id)).next_index < _STARTED or status is not None
        kept = events if whole else self.keep(events)
        after = await super().store(run_id, generation, kept, status)
        return after + self.shift(len(events) - len(kept))

    def keep(self, events: Sequence[EncodedEvent]) -> Sequence[EncodedEvent]:
        """What is stored of these."""
        raise AssertionError("each keeps something else")

    def shift(self, missing: int) -> int:
        """What the answer has to be put right by, so that it looks right."""
        return missing


class DropsAnAcknowledgedEvent(_Keeping):
    """Stores all but the last of a batch, and acknowledges all."""

    shows = Kind.LOST_EVENT

    def keep(self, events: Sequence[EncodedEvent]) -> Sequence[EncodedEvent]:
        return events[:-1]


class SwapsTwo(_Keeping):
    """Stores a batch in another order."""

    shows = Kind.MOVED_EVENT

    def keep(self, events: Sequence[EncodedEvent]) -> Sequence[EncodedEvent]:
        return [*events[1:2], *events[:1], *events[2:]]


class StoresTwice(_Keeping):
    """Stores a batch twice, as whoever sends again what was in doubt."""

    shows = Kind.DUPLICATE_EVENT

    def keep(self, events: Sequence[EncodedEvent]) -> Sequence[EncodedEvent]:
        return [*events, *events]

    def shift(self, missing: int) -> int:
        return 0


class ChangesBytes(_Keeping):
    """Stores something else than it was given."""

    shows = Kind.FOREIGN_EVENT

    def keep(self, events: Sequence[EncodedEvent]) -> Sequence[EncodedEvent]:
        return [event._replace(data=event.data.replace("é".encode(), b"e")) for event in events]


class TellsAnotherIndex(_Keeping):
    """Stores all, and says that it is elsewhere."""

    shows = Kind.MOVED_EVENT

    def keep(self, events: Sequence[EncodedEvent]) -> Sequence[EncodedEvent]:
        return events

    def shift(self, missing: int) -> int:
        return 1


class LetsZombiesThrough(Mutant):
    """Looks at the fence once too late: the first append behind a takeover comes through."""

    shows = Kind.LATE_EVENT
    fault = "producer-stopped"

    def __init__(self) -> None:
        super().__init__()
        self.through: set[str] = set()

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        current = (await self.run(run_id)).generation
        if generation != current and run_id not in self.through:
            self.through.add(run_id)
            generation = current
        return await super().store(run_id, generation, events, status)


class RefusesAndStores(Mutant):
    """Stores what a zombie writes, and tells it that it did not."""

    shows = Kind.REFUSED_EVENT
    fault = "producer-stopped"

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        current = (await self.run(run_id)).generation
        if generation != current:
            await super().store(run_id, current, events)
        return await super().store(run_id, generation, events, status)


class ClaimsTwice(Mutant):
    """Gives a run whose lease has run out to two."""

    shows = Kind.TWO_HOLDERS
    fault = "producer-killed"

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        runs = await super().expire(lease=lease, serves=serves, patience=patience)
        return [*runs, *runs]


class EndsTwice(Mutant):
    """Stores the end and then one more."""

    shows = Kind.TWO_ENDS

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        if status is None or not events:
            return await super().store(run_id, generation, events, status)
        after = await super().store(run_id, generation, events)
        await super().store(run_id, generation, events[-1:], status)
        return after


class GoesOnBehindTheEnd(Mutant):
    """Takes events also when the run has its end."""

    shows = Kind.EVENT_BEHIND_END

    def __init__(self) -> None:
        super().__init__()
        self.behind: dict[str, list[EncodedEvent]] = {}

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        run = await self.run(run_id)
        if not run.status.finished:
            return await super().store(run_id, generation, events, status)
        behind = self.behind.setdefault(run_id, [])
        behind += events
        return run.next_index + len(behind)

    def show(self, page: Page, after: int) -> Page:
        more = Batch(page.run.run_id, page.run.next_index, self.behind.get(page.run.run_id, []))
        run = replace(page.run, next_index=more.last + 1)
        if page.last == page.run.last_index or (page.run.last_index <= after < run.last_index):
            rest = more.slice(after)
            return Page(run, [*page.batches, rest] if len(rest) else page.batches)
        return Page(run, page.batches)


class LeaksTheDriversError(Mutant):
    """Raises once what its driver raised."""

    shows = Kind.WORKER_FAILED

    def __init__(self) -> None:
        super().__init__()
        self.raised = False

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        after = await super().store(run_id, generation, events, status)
        if after > _STARTED and not self.raised:
            self.raised = True
            raise ConnectionResetError("the driver's own")
        return after


class EndsWithoutAnEvent(Mutant):
    """Stores the status of the end without its event."""

    shows = Kind.NO_END

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        if status is None or not events:
            return await super().store(run_id, generation, events, status)
        after = await super().store(run_id, generation, events[:-1], status)
        return after + 1


WRITING: Sequence[type[Mutant]] = (
    DropsAnAcknowledgedEvent,
    SwapsTwo,
    StoresTwice,
    ChangesBytes,
    TellsAnotherIndex,
    LetsZombiesThrough,
    RefusesAndStores,
    ClaimsTwice,
    EndsTwice,
    GoesOnBehindTheEnd,
    LeaksTheDriversError,
    EndsWithoutAnEvent,
)
