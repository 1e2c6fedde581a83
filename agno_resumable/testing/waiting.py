"""Checks on ``wait``, ``wait_cancel`` and ``request_cancel``: prompt, never missing, leaving nothing behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ..errors import RunNotFound
from ..log.protocol import EventLog
from ..model import Event, RunStatus
from .contract import FOREVER, LEASE, Bench, clause, collect, crowd, event, expect, same, start, turns

__all__: list[str] = []


def changes_of(log: EventLog) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every kind of change to a run at generation 1 with one event, that must end a wait."""
    return {
        "an append": lambda: log.append("run", 1, [event(1)]),
        "an append of a status only": lambda: log.append("run", 1, [], status=RunStatus.PAUSED),
        "the end of the run": lambda: log.append("run", 1, [event(1)], status=RunStatus.COMPLETED),
        "a claim": lambda: log.claim("run", lease=LEASE),
        "a claim with a floor": lambda: log.claim("run", lease=LEASE, floor=7),
        "a cancel request": lambda: log.request_cancel("run"),
        "a trim": lambda: log.trim("run", before=1),
        "a delete": lambda: log.delete("run"),
    }


async def passes(log: EventLog, run_id: str, version: int) -> None:
    """Wait until the run has another version than ``version``, or is gone; a ``wait`` may return early."""
    while True:
        await log.wait(run_id, version, timeout=FOREVER)
        await turns(1)  # a log that never waits fails its check, and does not stop the event loop
        try:
            if (await log.read(run_id, limit=0)).run.version != version:
                return
        except RunNotFound:
            return


@clause()
async def every_change_ends_a_wait(bench: Bench) -> None:
    """wait: returns when the run's version may have passed `version`, or when the run is gone."""
    log = bench.log
    for what, change in changes_of(log).items():
        run = await start(log, "run", event(0))
        with bench.soon(f"wait to end by {what}"):
            async with crowd() as group:
                results = collect(group, *[partial(passes, log, "run", run.version)] * 5)
                await bench.waiters(5)
                await change()
        same("what waits gave", results, [None] * 5)
        await log.delete("run")


@clause()
async def a_change_before_the_wait_counts(bench: Bench) -> None:
    """wait: a change committed at any time after the version was read ends the wait at once."""
    log = bench.log
    for what, change in changes_of(log).items():
        run = await start(log, "run", event(0))
        await change()
        with bench.soon(f"wait to end after {what} that came before it"):
            await log.wait("run", run.version, timeout=FOREVER)
        await log.delete("run")
    old = await start(log, "run", event(0))
    await log.delete("run")
    await start(log, "run")
    with bench.soon("wait to end after the run was deleted and made anew"):
        await log.wait("run", old.version, timeout=FOREVER)
    with bench.soon("wait for a run that never was to end"):
        await log.wait("never", 0, timeout=FOREVER)


@clause()
async def a_prune_ends_a_wait(bench: Bench) -> None:
    """wait: returns when the run is gone, by prune too."""
    log = bench.log
    await start(log, "run", event(0))
    await log.append("run", 1, [], status=RunStatus.COMPLETED)
    run = await log.get("run")
    with bench.soon("wait to end by prune"):
        async with crowd() as group:
            collect(group, partial(passes, log, "run", run.version))
            await bench.waiters(1)
            same("prune", await log.prune(finished_before=await log.now() + 1.0), 1)


@clause()
async def an_expiry_ends_a_wait(bench: Bench) -> None:
    """wait: returns when the run's version has passed by expiry too."""
    log = bench.log
    run = await start(log, "run", event(0), lease=0.05)
    with bench.soon("wait to end by expire"):
        async with crowd() as group:
            collect(group, partial(passes, log, "run", run.version))
            await bench.waiters(1)
            await bench.until("the lease to run out", _expires(log))


def _expires(log: EventLog) -> Callable[[], Awaitable[bool]]:
    async def expired() -> bool:
        return bool(await log.expire(lease=LEASE))

    return expired


@clause()
async def a_wait_ends_by_its_timeout(bench: Bench) -> None:
    """wait: returns after `timeout` seconds when nothing happens, without an error."""
    run = await start(bench.log, "run", event(0))
    for timeout in (0.0, 0.001, 0.05):
        with bench.soon(f"wait to end by its timeout of {timeout} s"):
            await bench.log.wait("run", run.version, timeout=timeout)
    await bench.waiters(0)


async def check_wakeups(bench: Bench, writers: Sequence[EventLog], readers: Sequence[EventLog], rounds: int) -> None:
    """Readers that read and wait in turns see every event, though nothing comes behind a round's last to wake them.

    The first event of a round wakes the readers; the second falls somewhere between their read and their next wait.
    """
    await start(writers[0])
    seen: list[list[Event]] = [[] for _ in readers]

    async def reader(log: EventLog, mine: list[Event]) -> None:
        while True:
            page = await log.read("run", len(mine) - 1)
            mine += page.events
            if page.run.status.finished and len(mine) == page.run.next_index:
                return
            if not page.events:
                await turns(bench.random.choice((0, 0, 1, 2, 5)))
                await log.wait("run", page.run.version, timeout=FOREVER)

    def all_saw(count: int) -> Callable[[], Awaitable[bool]]:
        async def saw() -> bool:
            return all(len(mine) >= count for mine in seen)

        return saw

    async with crowd() as group:
        for log, mine in zip(readers, seen, strict=True):
            group.start_soon(reader, log, mine)
        for number in range(0, rounds * 2, 2):
            await bench.random.choice(writers).append("run", 1, [event(number)])
            await turns(bench.random.randrange(12))
            await bench.random.choice(writers).append("run", 1, [event(number + 1)])
            await bench.until(f"every reader to see event {number + 1}; a wait was not woken", all_saw(number + 2))
        with bench.soon("every reader to see the end; a wait was not woken"):
            await writers[0].append("run", 1, [], status=RunStatus.COMPLETED)
            await bench.waiters(0, writers[0])
    wanted = [Event(index, *event(index)) for index in range(rounds * 2)]
    for mine in seen:
        same("what a reader saw", mine, wanted)


@clause()
async def no_wakeup_is_lost(bench: Bench) -> None:
    """wait: read and wait in turns miss nothing, however the appends fall between them."""
    await check_wakeups(bench, [bench.log], [bench.log] * 8, 120)


@clause()
async def no_cancel_request_is_lost(bench: Bench) -> None:
    """wait_cancel: a request is seen, however it falls around the beginning of the wait."""
    log = bench.log
    for number in range(40):
        name = f"run-{number}"
        await start(log, name)
        with bench.soon("wait_cancel to see the request"):
            async with crowd() as group:
                results = collect(group, *[partial(log.wait_cancel, name, timeout=FOREVER)] * 2)
                await turns(number % 7)
                await log.request_cancel(name)
        same("what wait_cancel gives", results, [True, True])


@clause()
async def a_cancel_request_ends_the_wait_for_it(bench: Bench) -> None:
    """wait_cancel: True as soon as a cancel has been requested, also before, also when the run is gone; else False."""
    log = bench.log
    await start(log, "run", event(0))
    for timeout in (0.0, 0.03):
        same("wait_cancel without a request", await log.wait_cancel("run", timeout=timeout), False)
    await log.append("run", 1, [event(1)])
    same("wait_cancel after an append", await log.wait_cancel("run", timeout=0.02), False)
    with bench.soon("wait_cancel to end by request, then at once, and for runs that are gone"):
        async with crowd() as group:
            results = collect(group, lambda: log.wait_cancel("run", timeout=FOREVER))
            await bench.waiters(1)
            await log.append("run", 1, [event(2)])
            await log.request_cancel("run")
        same("wait_cancel when a request comes", results, [True])
        same("wait_cancel after a request", await log.wait_cancel("run", timeout=FOREVER), True)
        same("wait_cancel of a missing run", await log.wait_cancel("missing", timeout=FOREVER), True)
        await start(log, "other")
        async with crowd() as group:
            results = collect(group, lambda: log.wait_cancel("other", timeout=FOREVER))
            await bench.waiters(1)
            await log.delete("other")
        same("wait_cancel when the run goes", results, [True])


@clause()
async def the_first_cancel_request_stays(bench: Bench) -> None:
    """request_cancel: returns the run with `cancel_requested_at`; of several requests the first time stays."""
    log = bench.log
    before = await start(log, "run", event(0))
    began = await log.now()
    first = await log.request_cancel("run")
    ended = await log.now()
    at = first.cancel_requested_at
    expect(at is not None and began - 0.01 <= at <= ended + 0.01, f"cancel_requested_at {at}, now {began} to {ended}")
    same("status and generation after a request", (first.status, first.generation), (before.status, before.generation))
    same("cancel_requested_at of get", (await log.get("run")).cancel_requested_at, at)
    await bench.until("the store's clock to move", _later_than(log, ended))
    same("cancel_requested_at of a second request", (await log.request_cancel("run")).cancel_requested_at, at)
    same("cancel_requested_at of get", (await log.get("run")).cancel_requested_at, at)
    same("the next index of the producer", await log.append("run", 1, [event(1)], status=RunStatus.CANCELLED), 2)


def _later_than(log: EventLog, moment: float) -> Callable[[], Awaitable[bool]]:
    async def later() -> bool:
        return await log.now() > moment

    return later


@clause()
async def an_abandoned_waiter_leaves_nothing(bench: Bench) -> None:
    """wait, wait_cancel: a waiter that is cancelled or timed out is forgotten: stats()['waiters'] goes back to 0."""
    log = bench.log
    await start(log, "run", event(0))
    version = (await log.get("run")).version
    for _ in range(5):
        async with crowd() as group:
            collect(group, *[partial(passes, log, "run", version)] * 20)
            collect(group, *[lambda: log.wait_cancel("run", timeout=FOREVER)] * 20)
            collect(group, lambda: log.wait("run", version, timeout=0.01))
            await bench.waiters(40)
            group.cancel_scope.cancel()
        await bench.waiters(0)
    with bench.soon("an append after abandoned waits"):
        await log.append("run", 1, [event(1)])
        await log.wait("run", version, timeout=FOREVER)


@clause()
async def a_slow_waiter_holds_nobody_up(bench: Bench) -> None:
    """wait: a reader that never comes back slows neither the producer nor another reader."""
    log = bench.log
    await start(log)
    version = (await log.get("run")).version
    async with crowd() as group:
        collect(group, *[lambda: log.wait("run", version + 1_000_000, timeout=FOREVER)] * 20)
        with bench.soon("a hundred appends and reads beside waiters that want nothing"):
            for number in range(100):
                await log.append("run", 1, [event(number)])
                same("the newest event", (await log.read("run", number - 1)).last, number)
        group.cancel_scope.cancel()
    await bench.waiters(0)
