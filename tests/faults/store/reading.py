"""The reader of the workload: it follows a run to its end, and comes back with its cursor whenever the log was away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

import anyio

from agno_resumable.errors import LogClosed, LogUnavailable, RunNotFound
from agno_resumable.log.protocol import EventLog
from agno_resumable.model import Batch
from agno_resumable.reader import End, Gap, Paused, follow

from .records import Broke, Delivered, Ended, Missed, Opened, Record, Rested, frames_of

__all__ = ["read_to_end"]


async def read_to_end(
    log: EventLog,
    worker: str,
    record: Callable[[Record], None],
    *,
    run: str,
    line: str,
    after: int,
    limit: int = 2048,
    lag: float = 0.0,
) -> None:
    """Follow the run until its end is told.

    Args:
        line: The name of the client, which may have begun elsewhere.
        after: Its cursor.
        limit: The largest page, in events.
        lag: Seconds that it takes for each page: a slow client.
    """
    while True:
        record(Opened(worker, run, line, after))
        try:
            async with aclosing(follow(log, run, after, limit=limit)) as items:
                async for item in items:
                    if isinstance(item, Batch):
                        record(Delivered(worker, run, line, frames_of(item.frames)))
                        after = item.last
                        await anyio.sleep(lag)
                    elif isinstance(item, Gap):
                        record(Missed(worker, run, line, item.requested, item.first_available, item.reason))
                        after = item.first_available - 1
                    elif isinstance(item, Paused):
                        record(Rested(worker, run, line, item.run.last_index))
                    elif isinstance(item, End):
                        record(Ended(worker, run, line, item.run.status.value, item.run.last_index))
                        return
            return  # the run is gone, as its gap has said
        except LogClosed:
            raise
        except (LogUnavailable, RunNotFound) as error:
            record(Broke(worker, run, line, type(error).__name__))
            await anyio.sleep(0.02)
