"""Other processes on the SQLite log of a test: ``python -m tests.sqlite_workers WHAT PATH …``.

Each says what it has done on its standard output, line by line, and takes a line on its standard input for its cue.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress

import anyio

from agno_resumable.errors import LogUnavailable, ResumableError, RunExists
from agno_resumable.log.sqlite import SQLiteEventLog
from agno_resumable.model import EncodedEvent, NewRun, RunStatus


def say(*words: object) -> None:
    print(*words, flush=True)


def event(label: str, pad: int = 0) -> EncodedEvent:
    return EncodedEvent("Type", f'{{"label":"{label}","pad":"{"x" * pad}"}}'.encode())


async def append(path: str, name: str, count: str) -> None:
    """Append to the run that all share and to one of this process, both made here if nobody else was quicker."""
    say("ready")
    sys.stdin.readline()
    async with SQLiteEventLog(path) as log:
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


async def write_until_killed(path: str, synchronous: str) -> None:
    """Append to several runs at once, and say after each acknowledgement how far the run has come."""
    async with SQLiteEventLog(path, synchronous=synchronous) as log:

        async def producer(run_id: str) -> None:
            try:
                run = await log.create(NewRun(run_id), lease=600.0)
            except RunExists:
                run = await log.claim(run_id, lease=600.0)
            index = run.next_index
            while True:
                events = [event(f"{run_id}-{index + part}", pad=200) for part in range(index % 4 + 1)]
                index = await log.append(run_id, run.generation, events)
                say(run_id, index)

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(producer, f"run-{number}")


async def change(path: str, run_id: str) -> None:
    """One change a cue, until the input ends: a line of the input says which."""
    async with SQLiteEventLog(path) as log:
        say("ready")
        while what := (await anyio.to_thread.run_sync(sys.stdin.readline)).strip():
            generation = (await log.get(run_id)).generation
            if what == "append":
                await log.append(run_id, generation, [event("from-elsewhere")])
            elif what == "finish":
                await log.append(run_id, generation, [], status=RunStatus.COMPLETED)
            elif what == "cancel":
                await log.request_cancel(run_id)
            elif what == "claim":
                await log.claim(run_id, lease=600.0)
            say("done", what)


async def hold(path: str) -> None:
    """Be another program's transaction: hold the file's write lock until there is a cue."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    say("holding")
    sys.stdin.readline()
    db.execute("COMMIT")
    db.close()


async def fill_the_disk(path: str) -> None:
    """Write until a file may grow no more, then go on when it may again."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=600.0)
        stored = 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            while stored < 1_000:
                stored = await log.append("run", 1, [event(str(stored), pad=20_000)])
        except LogUnavailable as error:
            say("full", stored, type(error.__cause__).__name__, error.outcome_unknown)
        readable = len((await log.read("run", max_bytes=100_000_000)).events)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        known = (await log.get("run")).next_index
        say("readable", readable, known)
        for number in range(known, known + 10):
            assert await log.append("run", 1, [event(str(number), pad=20_000)]) == number + 1
        say("went on", known + 10)


async def just_open(path: str) -> None:
    """Say which error opening gives, to a user for whom read-only means something."""
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        async with SQLiteEventLog(path):
            say("opened")
    except ResumableError as error:
        say(type(error).__name__, str(error))


WORKERS: dict[str, Callable[..., object]] = {
    "append": append,
    "write-until-killed": write_until_killed,
    "change": change,
    "hold": hold,
    "fill-the-disk": fill_the_disk,
    "just-open": just_open,
}

if __name__ == "__main__":
    anyio.run(WORKERS[sys.argv[1]], *sys.argv[2:])  # type: ignore[arg-type]  # each takes its own words
