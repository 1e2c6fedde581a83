"""``follow``: the only reader there is. Everything that serves a run to anybody goes through it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Union

import anyio

from .errors import RunNotFound
from .log.protocol import EventLog
from .model import Batch, Run, RunStatus

__all__ = ["End", "FollowItem", "Gap", "Idle", "Paused", "follow"]

GapReason = Literal["trimmed", "ahead", "deleted"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that the reader asked for are not there.

    Attributes:
        requested: The first index that was asked for.
        first_available: The first index that will be delivered instead.
        reason: ``"trimmed"``: retention has removed them. ``"ahead"``: the cursor is past the end of the log, which
            has lost what the reader saw, or never had it; delivery begins anew. ``"deleted"``: the run is gone while
            it was being read, and nothing follows.
    """

    requested: int
    first_available: int
    reason: GapReason

    @property
    def missed(self) -> int:
        """How many of the asked-for events will not come."""
        return max(0, self.first_available - self.requested)


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing has come for as long as the reader wanted to be told: time for a heartbeat."""


@dataclass(frozen=True, slots=True)
class Paused:
    """The reader has everything, and the run rests: a later leg may continue it."""

    run: Run


@dataclass(frozen=True, slots=True)
class End:
    """The reader has everything, and the run has finished. It is the last item."""

    run: Run


FollowItem = Union[Batch, Gap, Idle, Paused, End]


async def follow(
    log: EventLog,
    run_id: str,
    after: int = -1,
    *,
    stop_when_paused: bool = False,
    idle_after: float = 15.0,
    limit: int = 2048,
    max_bytes: int = 262_144,
) -> AsyncGenerator[FollowItem, None]:
    """Yield what comes behind the cursor ``after``: every event once and in order, and what else a reader must know.

    It reads the log and waits for it, in turns, and holds no more than one page: a slow reader falls back to reading
    what it missed, and keeps nobody waiting. It ends with ``End``, after ``Paused`` if ``stop_when_paused``, or with
    a ``Gap`` of reason ``"deleted"``.

    Args:
        after: The last index that the reader has; -1 for the beginning.
        stop_when_paused: End after ``Paused`` instead of staying for the next leg.
        idle_after: Yield ``Idle`` after this many seconds without anything else.
        limit: The largest page, in events.
        max_bytes: The largest page, in bytes of JSON.

    Raises:
        RunNotFound: There is no such run, at the beginning.
        LogUnavailable: The log does not answer; what was yielded so far stands.
    """
    page = await log.read(run_id, after, limit=limit, max_bytes=max_bytes)
    if after > page.run.last_index:
        yield Gap(after + 1, page.run.first_index, "ahead")
        after = page.run.first_index - 1
        page = await log.read(run_id, after, limit=limit, max_bytes=max_bytes)
    paused_at = -1  # the version of the pause that was told, so that each pause is told once
    while True:
        run = page.run
        if after + 1 < run.first_index:
            yield Gap(after + 1, run.first_index, "trimmed")
            after = run.first_index - 1
        if page.batches:
            batch = Batch.join(page.batches)  # what came in many small commits goes out in one send
            yield batch
            after = batch.last
        if after >= run.last_index:
            if run.status.finished:
                yield End(run)
                return
            if run.status is RunStatus.PAUSED and run.version != paused_at:
                yield Paused(run)
                if stop_when_paused:
                    return
                paused_at = run.version
            started = anyio.current_time()
            await log.wait(run_id, run.version, timeout=idle_after)
            idle = anyio.current_time() - started >= idle_after
        else:
            idle = False
        try:
            page = await log.read(run_id, after, limit=limit, max_bytes=max_bytes)
        except RunNotFound:
            yield Gap(after + 1, after + 1, "deleted")
            return
        if idle and not page.batches and page.run.version == run.version:
            yield Idle()
