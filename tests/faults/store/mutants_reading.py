"""Logs that break a promise when they are read, and the violation that has to show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import anyio

from agno_resumable.model import Batch, EncodedEvent, Event, Page

from .judging import Kind
from .mutant import Mutant

__all__ = ["READING"]


class LeavesAHole(Mutant):
    """Counts one index that no event has."""

    shows = Kind.HOLE

    def show(self, page: Page, after: int) -> Page:
        if not page.run.status.finished:
            return page
        moved = [
            Batch(page.run.run_id, batch.first + 1, batch.events) if batch.last == page.run.last_index else batch
            for batch in page.batches
        ]
        return Page(replace(page.run, next_index=page.run.next_index + 1), moved)


class TrimsSilently(Mutant):
    """Drops old events, and says that the run begins where it always did."""

    shows = Kind.SILENT_GAP
    fault = "retention"

    def show(self, page: Page, after: int) -> Page:
        return Page(replace(page.run, first_index=0), page.batches)


class TellsNeedlessGaps(Mutant):
    """Says of every run that its first events are gone."""

    shows = Kind.NEEDLESS_GAP

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        page = await super().read(run_id, max(after, 2), limit=limit, max_bytes=max_bytes)
        return Page(replace(page.run, first_index=min(3, page.run.next_index)), page.batches)


class ShowsDifferentBytes(Mutant):
    """Renders what it has stored in another way for every other read."""

    shows = Kind.DIFFERENT_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def show(self, page: Page, after: int) -> Page:
        self.reads += 1
        if self.reads % 2:
            return page
        return Page(page.run, [_rewritten(batch) for batch in page.batches])


def _rewritten(batch: Batch) -> Batch:
    def rewrite(event: Event) -> EncodedEvent:
        return EncodedEvent(event.type, event.data.replace(b'","run_id"', b'", "run_id"'))

    return Batch(batch.run_id, batch.first, [rewrite(event) for event in batch])


class DeliversAgain(Mutant):
    """Begins a page one event too early, as by a window between replay and live."""

    shows = Kind.REPEATED_INDEX

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        again = after - 1 if after % 7 == 3 and limit else after
        page = await super().read(run_id, again, limit=limit, max_bytes=max_bytes)
        # Only with something new, or the reader would never come to the end
        return page if page.last is not None and page.last > after else Page(page.run, [])


class DeliversBeforeItIsStored(Mutant):
    """Shows readers what it then refuses to keep."""

    shows = Kind.NOT_STORED

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()

    def show(self, page: Page, after: int) -> Page:
        run = page.run
        if not run.status.finished or run.run_id in self.shown or page.last != run.last_index:
            return page
        self.shown.add(run.run_id)
        ghost = Batch(run.run_id, run.next_index, [EncodedEvent("RunContent", b'{"content":"ghost"}')])
        return Page(replace(run, next_index=run.next_index + 1), [*page.batches, ghost])


class TellsTheEndEarly(Mutant):
    """Says that a run has ended to readers that have not got all of it."""

    shows = Kind.EARLY_END

    def show(self, page: Page, after: int) -> Page:
        if page.run.status.finished and page.last is not None and page.last == page.run.last_index > 20 and after > 10:
            whole = page.batches[-1]
            return Page(
                replace(page.run, next_index=page.run.next_index - 1),
                [*page.batches[:-1], whole.slice(whole.first - 1, len(whole) - 1)] if len(whole) > 1 else [],
            )
        return page


class WakesNobody(Mutant):
    """Lets who waits for more wait for as long as that takes at most."""

    shows = Kind.STUCK
    patience = 2.0

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        await anyio.sleep(timeout)


READING: Sequence[type[Mutant]] = (
    LeavesAHole,
    TrimsSilently,
    TellsNeedlessGaps,
    ShowsDifferentBytes,
    DeliversAgain,
    DeliversBeforeItIsStored,
    TellsTheEndEarly,
    WakesNobody,
)
