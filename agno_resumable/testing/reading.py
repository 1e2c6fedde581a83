"""Checks on ``read`` and ``trim``: pages, cursors, gaps, one consistent moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from ..model import Event, NewRun, RunStatus
from .contract import LEASE, Bench, check_page, clause, crowd, event, expect, read_all, same, start

__all__: list[str] = []


@clause()
async def a_page_stops_at_its_limit(bench: Bench) -> None:
    """read: up to `limit` events behind the cursor, dense; page by page everything is there once."""
    await start(bench.log, "run", *[event(number) for number in range(10)])
    for number in range(10, 50):
        await bench.log.append("run", 1, [event(number)])
    for limit in (1, 2, 7, 49, 50, 51):
        for after in (-1, 0, 8, 9, 10, 30, 48, 49):
            _, events = await read_all(bench.log, after=after, limit=limit)
            same(
                f"what is behind {after} with limit={limit}",
                events,
                [Event(index, *event(index)) for index in range(after + 1, 50)],
            )


@clause()
async def a_page_stops_before_max_bytes_but_never_before_its_first(bench: Bench) -> None:
    """read: a page stops before the event with which it would pass `max_bytes`, but never before its first."""
    sizes = [100, 5_000, 30, 30, 900, 100, 100, 20_000, 40]
    given = [event(number, pad=size) for number, size in enumerate(sizes)]
    await start(bench.log, "run", *given[:4])
    for one in given[4:]:
        await bench.log.append("run", 1, [one])
    for max_bytes in (0, 1, 200, 1_000, 6_000, 25_000, 100_000):
        for after in range(-1, len(given)):
            _, events = await read_all(bench.log, after=after, max_bytes=max_bytes)
            same(
                f"what is behind {after} with max_bytes={max_bytes}",
                [stored.data for stored in events],
                [one.data for one in given[after + 1 :]],
            )


@clause()
async def limit_zero_reads_only_the_run(bench: Bench) -> None:
    """read: `limit=0` reads only the run, without its input, metadata and transcript."""
    log = bench.log
    await log.create(NewRun("run", input=b"{}", metadata=b"{}", session_id="session"), lease=LEASE)
    await log.append("run", 1, [event(0)], transcript=b"{}")
    page = await log.read("run", limit=0)
    check_page(page, "run", -1, limit=0)
    same("the events of a page with limit=0", page.events, [])
    same("next_index and session_id", (page.run.next_index, page.run.session_id), (1, "session"))


@clause()
async def behind_the_end_is_an_empty_page(bench: Bench) -> None:
    """read: a page is empty when there is nothing behind the cursor, also where the cursor is ahead of the log."""
    run = await start(bench.log, "run", event(0), event(1))
    for after in (1, 2, 3, 1_000_000, 999_999_999_999):
        page = await bench.log.read("run", after)
        same(f"the events behind {after}", page.events, [])
        same("the run of an empty page", (page.run.next_index, page.run.version), (2, run.version))


@clause()
async def a_page_is_one_consistent_moment(bench: Bench) -> None:
    """read: the run and the events of a page are of one moment, while others append and trim."""
    log = bench.log
    await start(log)
    versions: list[int] = []
    done = anyio.Event()

    async def write() -> None:
        for number in range(120):
            await log.append("run", 1, [event(number)] * 3)
            if number % 4 == 3:
                await log.trim("run", before=number)
        done.set()

    async def watch() -> None:
        while not done.is_set():
            after = bench.random.choice((-1, 5, 50, 200))
            page = await log.read("run", after)
            check_page(page, "run", after)
            if page.events:
                same("the end of a page that holds all", page.last, page.run.last_index)
            versions.append(page.run.version)
            await anyio.sleep(0.001)  # a loop that never sleeps would starve the store's threads

    with bench.soon("writer and reader to end"):
        async with crowd() as group:
            group.start_soon(write)
            group.start_soon(watch)
    same("the versions one reader saw", versions, sorted(versions))


@clause()
async def a_trimmed_run_begins_at_its_first_index(bench: Bench) -> None:
    """trim: events under `before` are gone and their indices never reused; a page begins at the first that is left."""
    log = bench.log
    await start(log, "run", *[event(number) for number in range(10)])
    await start(log, "other", event("other"))
    for before, first in ((0, 0), (4, 4), (2, 4), (4, 4), (-3, 4), (7, 7)):
        await log.trim("run", before=before)
        run, events = await read_all(log)
        same(f"first_index and next_index after trim before {before}", (run.first_index, run.next_index), (first, 10))
        same("what is left", events, [Event(index, *event(index)) for index in range(first, 10)])
        for after in (0, 3, 6, 8):
            behind = (await log.read("run", after)).events
            same(f"what is behind {after}", behind, [one for one in events if one.index > after])
    same("the next index", await log.append("run", 1, [event(10)]), 11)
    same("what is left", [stored.index for stored in (await read_all(log))[1]], [7, 8, 9, 10])
    same("the events of another run", len((await read_all(log, "other"))[1]), 1)


@clause()
async def trim_past_the_end_drops_all(bench: Bench) -> None:
    """trim: `before` past the end drops all; the next event gets the index it would have had."""
    log = bench.log
    await start(log, "run", *[event(number) for number in range(5)])
    await log.trim("run", before=1_000)
    run, events = await read_all(log)
    same("first_index, next_index and events", (run.first_index, run.next_index, events), (5, 5, []))
    await log.append("run", 1, [event(5)])
    same("the events", (await read_all(log))[1], [Event(5, *event(5))])
    await log.append("run", 1, [], status=RunStatus.COMPLETED)
    await log.trim("run", before=6)
    run = await log.get("run")
    same("a finished run after trim", (run.status, run.first_index, run.next_index), (RunStatus.COMPLETED, 6, 6))


@clause()
async def every_change_raises_the_version(bench: Bench) -> None:
    """Run.version is raised by every committed change but the renewal of a lease."""
    log = bench.log
    version = (await start(log)).version
    changes: dict[str, Callable[[], Awaitable[object]]] = {
        "an append of events": lambda: log.append("run", 1, [event(0)]),
        "an append of a status": lambda: log.append("run", 1, [], status=RunStatus.PAUSED),
        "a claim": lambda: log.claim("run", lease=LEASE),
        "a cancel request": lambda: log.request_cancel("run"),
        "a trim": lambda: log.trim("run", before=1),
        "the end": lambda: log.append("run", 2, [event(1)], status=RunStatus.COMPLETED),
    }
    for what, change in changes.items():
        await change()
        for source in ("get", "read"):
            run = await log.get("run") if source == "get" else (await log.read("run")).run
            expect(run.version > version, f"{what} left the version of {source} at {run.version}; it was {version}")
            expect(run.updated_at >= run.created_at, f"updated_at {run.updated_at}, created_at {run.created_at}")
        version = (await log.get("run")).version
    await start(log, "other", event(0))
    before = await log.get("other")
    await log.renew([("other", 1)], lease=LEASE * 2)
    same("the version after a renewal", (await log.get("other")).version, before.version)
    await log.trim("other", before=0)
    same("the version after a trim of nothing", (await log.get("other")).version, before.version)
