"""Other processes on the PostgreSQL log of a test: ``python -m tests.postgres_workers WHAT URL SCHEMA …``.

Each says what it has done on its standard output, line by line, and takes a line on its standard input for its cue.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from agno_resumable import Batch, follow
from agno_resumable.errors import RunExists
from agno_resumable.log.postgres import PostgresEventLog
from agno_resumable.model import EncodedEvent, NewRun


def say(*words: object) -> None:
    print(*words, flush=True)


def event(label: str, pad: int = 0) -> EncodedEvent:
    return EncodedEvent("Type", f'{{"label":"{label}","pad":"{"x" * pad}"}}'.encode())


async def append(url: str, schema: str, name: str, count: str) -> None:
    """Append to the run that all share and to one of this process, both made here if nobody else was quicker."""
    say("ready")
    sys.stdin.readline()
    async with PostgresEventLog(url, schema=schema) as log:
        for run_id in ("shared", name):
            with suppress(RunExists):
                await log.create(NewRun(run_id), lease=600.0)

        async def producer(run_id: str) -> None:
            for number in range(int(count)):
                events = [event(f"{name}-{number}-{part}") for part in range(number % 3 + 1)]
                say(run_id, number, await log.append(run_id, 1, events))

        async with anyio.create_task_group() as group:
            group.start_soon(producer, "shared")
            group.start_soon(producer, name)


async def read(url: str, schema: str, run_id: str) -> None:
    """Say every event of the run, until its end."""
    async with PostgresEventLog(url, schema=schema) as log:
        say("ready")
        async for item in follow(log, run_id):
            if isinstance(item, Batch):
                for one in item:
                    say(one.index, one.data.decode())


WORKERS: dict[str, Callable[..., Awaitable[None]]] = {"append": append, "read": read}

if __name__ == "__main__":
    anyio.run(WORKERS[sys.argv[1]], *sys.argv[2:])
