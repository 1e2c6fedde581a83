"""The logs beside each other: what an append costs, how many there can be, what an event takes on the disk.

Also what it costs to have a log's calls observed. The figures of ``docs/backends.md`` and ``docs/operations.md``.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg

from agno_resumable import (
    EncodedEvent,
    EventLog,
    LogCall,
    MemoryEventLog,
    MeteredEventLog,
    NewRun,
    RunStatus,
    open_log,
)
from benchmarks._stores import BACKENDS, store_of
from benchmarks._support import Report, main, workspace

__all__ = ["run"]

RUNS = 64
LENGTH = 200
"""Events of a run whose place on the disk is measured."""


def delta(number: int) -> EncodedEvent:
    """A delta of one token, as agno sends hundreds of them a run; no two alike, because some stores compress."""
    word = sha256(b"%d" % number).hexdigest()[: 2 + number % 8]
    return EncodedEvent(
        "RunContent",
        b'{"created_at":1763750000,"event":"RunContent","agent_id":"writer","agent_name":"Writer",'
        b'"run_id":"6f0e6ac0-9a53-4f4c-8f0c-1d1d1b3f9f0e","session_id":"e1b6f0cb-9f2e-4c38-8a66-2a0a8f3c7f11",'
        b'"content":"%b ","content_type":"str"}' % word.encode(),
    )


EVENT = delta(0)


def run(quick: bool = False) -> Report:
    """One backend after the other; the disk of a shared machine makes two runs differ by some tenths."""
    report = Report("backends", f"one event of {len(EVENT.data)} bytes of JSON")
    alone, seconds, stored = (50, 0.5, 8) if quick else (300, 3.0, 64)
    for backend in BACKENDS:
        with workspace() as directory, ExitStack() as stack:
            url, _ = store_of(backend, stack, directory)
            asyncio.run(_cost(report, backend, url, alone, seconds))
            if backend != "memory":
                for together in (1, 16):
                    asyncio.run(_size(report, backend, url, directory, stored, together))
    asyncio.run(_observed(report, 2_000 if quick else 20_000))
    return report


async def _cost(report: Report, backend: str, url: str, alone: int, seconds: float) -> None:
    async with open_log(url) as log:
        name = f"{backend} ({log.durability.value})"
        await log.create(NewRun("alone"), lease=600.0)
        taken = []
        for _ in range(alone):
            await asyncio.sleep(0.005)  # a commit behind a pause takes longer than one behind another
            start = time.perf_counter()
            await log.append("alone", 1, [EVENT])
            taken.append((time.perf_counter() - start) * 1e3)
        cuts = statistics.quantiles(taken, n=100)
        report.add(f"{name}: one append, p50", cuts[49], "ms", note=f"p99 {cuts[98]:.2f} ms")
        stored = 0

        async def write(run_id: str, until: float) -> None:
            nonlocal stored
            while time.perf_counter() < until:
                await log.append(run_id, 1, [EVENT])
                stored += 1
                if backend == "memory":  # which returns at once
                    await asyncio.sleep(0)

        for number in range(RUNS):
            await log.create(NewRun(f"run-{number}"), lease=600.0)
        commits, cpu, start = log.stats()["commits"], time.process_time(), time.perf_counter()
        await asyncio.gather(*[write(f"run-{number}", start + seconds) for number in range(RUNS)])
        took, used = time.perf_counter() - start, time.process_time() - cpu
        rate = (log.stats()["commits"] - commits) / took
        note = f"{rate:,.0f} commits/s, CPU here {used / stored * 1e6:.0f} µs each"
        report.add(f"{name}: {RUNS} runs at once", stored / took, "appends/s", note=note)


async def _size(report: Report, backend: str, url: str, directory: Path, runs: int, together: int) -> None:
    """What finished runs take, with the transcript of what they said."""
    before = _sizes(backend, url, directory)
    events = [delta(number) for number in range(LENGTH)]
    said = b'{"content":"%b"}' % b" ".join([event.data.partition(b'"content":')[2][1:8] for event in events])
    async with open_log(url) as log:

        async def fill(name: str) -> None:
            await log.create(NewRun(name, component_id="writer", session_id=f"session of {name}"), lease=600.0)
            for start in range(0, LENGTH, together):
                await log.append(name, 1, events[start : start + together])
            await log.append(name, 1, (), status=RunStatus.COMPLETED, transcript=said)

        await asyncio.gather(*[fill(f"sized-{together}-{number}") for number in range(runs)])
    after = _sizes(backend, url, directory)
    for what in after:
        each = (after[what] - before.get(what, 0)) / (runs * LENGTH)
        report.add(
            f"{backend}: {what}, {together} events an append",
            each,
            "bytes/event",
            note=f"{each * LENGTH / sum([len(event.data) for event in events]):.2f} times its JSON",
        )


def _sizes(backend: str, url: str, directory: Path) -> dict[str, int]:
    if backend == "sqlite":  # closed, so that the write-ahead log is folded into it
        path = directory / "load.db"
        return {"file": path.stat().st_size if path.exists() else 0}
    if backend == "postgres":
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CHECKPOINT")
            ((tables, wal),) = conn.execute(
                "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint, pg_current_wal_lsn() - '0/0' "
                "FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace('agno_resumable')"
            ).fetchall()
        return {"tables and indexes": int(tables), "write-ahead log": int(wal)}
    import redis

    client: Any = redis.Redis(unix_socket_path=url.removeprefix("redis+unix://"))
    with client:
        return {
            "memory": int(client.info("memory")["used_memory"]),
            "append-only file": int(client.info("persistence")["aof_current_size"]),
        }


# -------------------------------------------------------------------- observed


async def _observed(report: Report, count: int) -> None:
    """What an observer that does nothing adds to the fastest log's calls."""
    added: dict[str, list[float]] = {"append": [], "read": []}
    for _ in range(9):
        plain = await _calls(MemoryEventLog(), count)
        metered = await _calls(MeteredEventLog(MemoryEventLog(), _ignore), count)
        for name, values in added.items():
            values.append(metered[name] - plain[name])
    for name, values in added.items():
        report.add(f"MeteredEventLog: added to each {name}", statistics.median(values), "µs", at_most=5.0)


def _ignore(call: LogCall) -> None:
    pass


async def _calls(log: EventLog, count: int) -> dict[str, float]:
    events: Sequence[EncodedEvent] = [EVENT]
    async with log:
        await log.create(NewRun("run"), lease=600.0)
        await log.append("run", 1, events)
        start = time.perf_counter()
        for _ in range(count):
            await log.append("run", 1, ())
        middle = time.perf_counter()
        for _ in range(count):
            await log.read("run", -1)
        end = time.perf_counter()
    return {"append": (middle - start) / count * 1e6, "read": (end - middle) / count * 1e6}


if __name__ == "__main__":
    os.environ.setdefault("AGNO_TELEMETRY", "false")
    main(run)
