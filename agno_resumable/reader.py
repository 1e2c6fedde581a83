"""``follow``: the only reader there is. Everything that serves a run to anybody goes through it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

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


FollowItem = Batch | Gap | Idle | Paused | End


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
    told: tuple[int, int] | None = None  # the leg whose pause was told, so that each pause is told once
    quiet_since = anyio.current_time()
    while True:
        run = page.run
        if after + 1 < run.first_index:
            yield Gap(after + 1, run.first_index, "trimmed")
            after = run.first_index - 1
            quiet_since = anyio.current_time()
        if page.batches:
            batch = Batch.join(page.batches)  # what came in many small commits goes out in one send
            yield batch
            after = batch.last
            quiet_since = anyio.current_time()
        if after >= run.last_index:
            if run.status.finished:
                yield End(run)
                return
            if run.status is RunStatus.PAUSED and told != (run.generation, run.next_index):
                yield Paused(run)
                if stop_when_paused:
                    return
                told = (run.generation, run.next_index)
                quiet_since = anyio.current_time()
            # A wait may return early, and often does where other processes write: the silence is measured here
            silence = anyio.current_time() - quiet_since
            if silence >= idle_after:
                yield Idle()
                quiet_since = anyio.current_time()
                silence = 0.0
            await log.wait(run_id, run.version, timeout=idle_after - silence)
        try:
            page = await log.read(run_id, after, limit=limit, max_bytes=max_bytes)
            gone = page.run.created_at != run.created_at  # another run has its id now
        except RunNotFound:
            gone = True
        if gone:
            yield Gap(after + 1, after + 1, "deleted")
            return
