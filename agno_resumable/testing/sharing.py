"""Checks on storage that is opened more than once: after a restart, and by several processes at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from ..errors import LogClosed, RunExists, RunNotFound, StaleGeneration
from ..log.protocol import EventLog
from ..model import EncodedEvent, Event, Intents, NewRun, Run, RunStatus
from .contract import (
    FOREVER,
    LEASE,
    Bench,
    clause,
    collect,
    crowd,
    event,
    expect,
    read_all,
    refusal,
    same,
    start,
    turns,
)
from .intents import changed_intents
from .waiting import changes_of, check_wakeups, passes

__all__: list[str] = []


def shows(log: EventLog, run_id: str, wanted: list[EncodedEvent], first: int = 0) -> Callable[[], Awaitable[bool]]:
    """A condition: a read of the run gives these events."""

    async def shown() -> bool:
        _, events = await read_all(log, run_id)
        return events == [Event(index, *one) for index, one in enumerate(wanted, first)]

    return shown


@clause("reopen")
async def a_closed_log_opens_with_everything(bench: Bench) -> None:
    """A log that outlives its process gives everything back that was stored, and goes on from there."""
    kept: list[tuple[Run, list[Event]]] = []
    reopen = bench.reopen
    async with bench.fresh() as first:
        await first.create(NewRun("run", user_id="ann", idempotency_key="key", input=b"{}"), lease=LEASE)
        await first.append("run", 1, [event(number) for number in range(2_000)])
        await first.claim("run", lease=LEASE, generation=5)
        await first.request_cancel("run")
        await first.trim("run", before=700)
        await start(first, "ended", event(0))
        await first.append("ended", 1, [event(1)], status=RunStatus.ERROR, transcript=b'{"t":1}')
        await start(first, "gone", event(0))
        await first.delete("gone")
        for name in ("run", "ended"):
            kept.append((await first.get(name), (await read_all(first, name))[1]))
    await refusal("read of a closed log", first.read("run"), LogClosed)
    async with reopen(first) as second:
        for run, events in kept:
            same("a run after reopening", await second.get(run.run_id), run)
            same("its events", (await read_all(second, run.run_id))[1], events)
        same("the runs after reopening", sorted(run.run_id for run in await second.list()), ["ended", "run"])
        await refusal("append of an old generation", second.append("run", 4, [event("old")]), StaleGeneration)
        again = second.create(NewRun("new", user_id="ann", idempotency_key="key"), lease=LEASE)
        same("the owner of the key", (await refusal("create with a used key", again, RunExists)).run_id, "run")
        same("the next index", await second.append("run", 5, [event(2_000)]), 2_001)
    async with reopen(first) as third:
        same("next_index", (await third.get("run")).next_index, 2_001)


@clause("reopen")
async def two_openings_see_each_other(bench: Bench) -> None:
    """Another process sees an append at once, or within its polling interval where it has read the run before."""
    async with bench.again() as other:
        logs = (bench.log, other)
        await start(bench.log)
        wanted: list[EncodedEvent] = []
        for turn in range(20):
            added = [event(f"{turn}-{number}") for number in range(turn % 3 + 1)]
            wanted += added
            same("the next index", await logs[turn % 2].append("run", 1, added), len(wanted))
            same("a read by the one that appended", await shows(logs[turn % 2], "run", wanted)(), True)
            await bench.until("the other to see the append", shows(logs[1 - turn % 2], "run", wanted))
        await other.append("run", 1, [], status=RunStatus.COMPLETED)
        await bench.until("the end to be seen", partial(_has, bench.log, "run", RunStatus.COMPLETED))


@clause("reopen")
async def the_state_alone_is_the_newest_anywhere(bench: Bench) -> None:
    """Reading only a run (``limit=0``) that another process appends to gives what that has committed, however fresh.

    A client that was told the end by one process, and asks another one for more, is told that there is nothing left.
    """
    async with bench.again() as other:
        for turn in range(20):
            name = f"run-{turn}"
            await bench.log.create(NewRun(name), lease=LEASE)
            await bench.log.append(name, 1, [event("first")])
            run, _ = await read_all(other, name)  # from here on it may know the run by heart
            await other.wait(name, run.version, timeout=0.001 * (turn % 4))
            if turn % 3 == 0:
                await other.request_cancel(name)  # and is told by itself that the run has not ended
            await bench.log.append(name, 1, [event("last")])
            if turn % 2:
                await bench.log.append(name, 1, [], status=RunStatus.COMPLETED)
            seen = (await other.read(name, limit=0)).run
            same("the state that the other reads", seen, (await bench.log.read(name, limit=0)).run)
            same("the status", seen.status, RunStatus.COMPLETED if turn % 2 else RunStatus.RUNNING)


async def _has(log: EventLog, run_id: str, status: RunStatus) -> bool:
    return (await log.read(run_id, limit=0)).run.status is status


@clause("reopen")
async def a_change_elsewhere_ends_a_wait(bench: Bench) -> None:
    """wait: a change of another process ends it within the log's polling interval, whatever the change."""
    async with bench.again() as other:
        for what, change in changes_of(other).items():
            await start(bench.log, "run", event(0))
            run, _ = await read_all(bench.log)
            with bench.soon(f"wait to end by {what} of another process"):
                async with crowd() as group:
                    collect(group, *[partial(passes, bench.log, "run", run.version)] * 3)
                    await bench.waiters(3)
                    await change()
            await other.delete("run")
            await bench.until("the deletion to be seen", partial(_gone, bench.log))


async def _gone(log: EventLog) -> bool:
    try:
        await log.read("run")
    except RunNotFound:
        return True
    return False


@clause("reopen")
async def a_cancel_request_elsewhere_is_seen(bench: Bench) -> None:
    """wait_cancel: True as soon as any process has requested it, or has deleted the run."""
    async with bench.again() as other:
        for name, change in (("asked", other.request_cancel), ("deleted", other.delete)):
            await start(bench.log, name, event(0))
            with bench.soon(f"wait_cancel of a run that another process has {name}"):
                async with crowd() as group:
                    results = collect(group, partial(bench.log.wait_cancel, name, timeout=FOREVER))
                    await bench.waiters(1)
                    await change(name)
            same("what wait_cancel gives", results, [True])


@clause("reopen")
async def no_wakeup_is_lost_between_openings(bench: Bench) -> None:
    """wait: a reader in another process that reads and waits in turns sees everything, in order and once."""
    async with bench.again() as other:
        await check_wakeups(bench, [bench.log, other], [bench.log, other] * 3, 60)


@clause("reopen")
async def appends_from_two_openings_are_dense(bench: Bench) -> None:
    """append: what several processes append at the same time is stored once each, dense, each one's in its order."""
    await start(bench.log)
    async with bench.again() as other:

        async def producer(log: EventLog, name: int) -> None:
            for number in range(25):
                await log.append("run", 1, [event(f"{name}-{number}")])
                await log.read("run", limit=10)

        async with crowd() as group:
            for name in range(6):
                group.start_soon(producer, (bench.log, other)[name % 2], name)
        for log in (bench.log, other):
            await bench.until("all events to be seen", partial(_reached, log, 150))
            labels = [stored.data for stored in (await read_all(log))[1]]
            for name in range(6):
                mine = [event(f"{name}-{number}").data for number in range(25)]
                same(f"the events of producer {name}", [data for data in labels if data in mine], mine)


async def _reached(log: EventLog, next_index: int) -> bool:
    return (await log.read("run", limit=0)).run.next_index == next_index


@clause("reopen")
async def the_fence_holds_between_openings(bench: Bench) -> None:
    """claim, append: a takeover by another process fences the old producer out at once."""
    log = bench.log
    await start(log, "run", event(0))
    async with bench.again() as other:
        wanted = [event(0)]
        for generation in range(2, 12):
            holder, loser = (other, log) if generation % 2 == 0 else (log, other)
            await holder.claim("run", lease=LEASE, generation=generation)
            for events in ([], [event("old")]):
                await refusal(
                    "append of the old producer", loser.append("run", generation - 1, events), StaleGeneration
                )
            same("renew of the old producer", list(await loser.renew([("run", generation - 1)], lease=LEASE)), ["run"])
            wanted.append(event(generation))
            await holder.append("run", generation, [event(generation)])
            same("a read by the one that appended", await shows(holder, "run", wanted)(), True)
            await bench.until("the other to see the append", shows(loser, "run", wanted))


@clause("reopen")
async def a_floor_given_elsewhere_is_seen(bench: Bench) -> None:
    """claim: what another process dropped for the sake of a floor is not read from memory here."""
    log = bench.log
    await start(log, "run", *[event(f"old-{number}") for number in range(10)])
    await read_all(log)
    async with bench.again() as other:
        await other.claim("run", lease=LEASE, floor=30)
        await bench.until("the floor to be seen", shows(log, "run", [], 30))
        await refusal("append of the old producer", log.append("run", 1, [event("late")]), StaleGeneration)
        same("the next index", await other.append("run", 2, [event("new")]), 31)
        await bench.until("the event to be seen", shows(log, "run", [event("new")], 30))
        await log.claim("run", lease=LEASE, floor=31)
        same("the next index", await log.append("run", 3, [event("newer")]), 32)
        same("a read by the one that appended", await shows(log, "run", [event("new"), event("newer")], 30)(), True)


@clause("reopen")
async def intents_are_shared_and_kept(bench: Bench) -> None:
    """intents: what one process intends or takes back another sees, and the next one that opens the log."""
    async with bench.again() as other:
        await bench.log.intend_cancel("run", ttl=LEASE)
        await bench.log.intend_cancel("short", ttl=0.02)
        await bench.until("the intent to be seen", partial(_intended, other, ["run"]))
        await other.drop_intent("run")
        await bench.until("its end to be seen", partial(_intended, bench.log, []))
        await other.intend_cancel("kept", ttl=LEASE)
    version = (await bench.log.intents()).version
    async with bench.again() as third:
        kept = await third.intents()
        same("the intents after reopening", (kept.version, list(kept.run_ids)), (version, ["kept"]))


async def _intended(log: EventLog, wanted: list[str]) -> bool:
    return list((await log.intents()).run_ids) == wanted


@clause("reopen")
async def an_intent_elsewhere_ends_a_wait(bench: Bench) -> None:
    """intents: a change of another process ends the wait, however it falls around the wait's beginning."""
    log = bench.log
    async with bench.again() as other:
        for number in range(30):
            version = (await log.intents()).version
            with bench.soon("intents to return when another process intends or drops"):
                async with crowd() as group:
                    seen = collect(group, *[partial(changed_intents, log, version)] * 2)
                    if number % 3:
                        await turns(number)
                    else:
                        await bench.waiters(2)
                    if number % 2:
                        await other.drop_intent(f"{number - 1}")
                    else:
                        await other.intend_cancel(f"{number}", ttl=LEASE)
            wanted = [] if number % 2 else [f"{number}"]
            same("what they saw", [list(one.run_ids) for one in seen if isinstance(one, Intents)], [wanted] * 2)
        await bench.waiters(0)


@clause("reopen")
async def of_two_openings_one_wins(bench: Bench) -> None:
    """create, claim, expire: between processes too, one id, one key, one generation and one expired run go to one."""
    async with bench.again() as other:
        logs = (bench.log, other) * 3
        for number in range(8):
            name = f"run-{number}"
            async with crowd() as group:
                made = collect(group, *[partial(log.create, NewRun(name), lease=0.02) for log in logs])
                keyed = collect(
                    group,
                    *[
                        partial(log.create, NewRun(f"{name}-{n}", idempotency_key=name), lease=LEASE)
                        for n, log in enumerate(logs)
                    ],
                )
            for results in (made, keyed):
                winners = [result for result in results if isinstance(result, Run)]
                same("how many creates succeeded", len(winners), 1)
                told = {getattr(result, "run_id", None) for result in results}
                same("the run that all are told of", told, {winners[0].run_id})
            async with crowd() as group:
                claims = collect(group, *[partial(log.claim, name, lease=0.02, generation=2) for log in logs])
            same("how many claims succeeded", sum(isinstance(result, Run) for result in claims), 1)
            found: list[str] = []
            with bench.soon("the run to expire"):
                while not found:
                    async with crowd() as group:
                        expired = collect(group, *[partial(log.expire, lease=LEASE) for log in logs])
                    for result in expired:
                        if isinstance(result, Exception):
                            raise result
                        found += [run.run_id for run in result]
            same("what expired", found, [name])


@clause("reopen")
async def a_run_made_anew_elsewhere_shows_nothing_old(bench: Bench) -> None:
    """trim, delete, create: what another process trimmed or deleted is not read from memory here."""
    log = bench.log
    async with bench.again() as other:
        await start(log, "run", *[event(f"old-{number}") for number in range(10)])
        await read_all(log)
        await other.trim("run", before=6)
        left = [event(f"old-{number}") for number in range(6, 10)]
        await bench.until("the trim to be seen", shows(log, "run", left, 6))
        same("the next index", await log.append("run", 1, [event("new")]), 11)
        same("a read by the one that appended", await shows(log, "run", [*left, event("new")], 6)(), True)
        await other.delete("run")
        await bench.until("the deletion to be seen", partial(_gone, log))
        await refusal("append to a run deleted elsewhere", log.append("run", 1, [event("late")]), RunNotFound)
        await start(other, "run", event("fresh"))
        await bench.until("the new run to be seen", partial(_reads, log, [event("fresh")]))
        same("the next index", await log.append("run", 1, [event("second")]), 2)
        same("a read by the one that appended", await shows(log, "run", [event("fresh"), event("second")])(), True)
        for leg in range(5):
            seen, _ = await read_all(log)
            with bench.soon("wait to end when another process makes the run anew"):
                async with crowd() as group:
                    collect(group, partial(passes, log, "run", seen.version))
                    await bench.waiters(1)
                    await other.delete("run")
                    newer = [event(f"leg-{leg}-{number}") for number in range(seen.next_index + 1)]
                    await start(other, "run", *newer)
            await bench.until("the new run to be seen", partial(_reads, log, newer))
            await log.append("run", 1, [event("mine")])
            same("a read by the one that appended", await shows(log, "run", [*newer, event("mine")])(), True)


async def _reads(log: EventLog, wanted: list[EncodedEvent]) -> bool:
    try:
        return await shows(log, "run", wanted)()
    except RunNotFound:
        return False


@clause("reopen")
async def closing_one_opening_leaves_the_other(bench: Bench) -> None:
    """Leaving one log of a storage does not disturb another that is open."""
    await start(bench.log, "run", event(0))
    for number in range(1, 6):
        async with bench.again() as other:
            same("the next index", await other.append("run", 1, [event(number)]), number + 1)
    same("the next index", await bench.log.append("run", 1, [event(6)]), 7)
    await bench.until("all events to be seen", shows(bench.log, "run", [event(number) for number in range(7)]))
    expect(bench.log.stats()["appends"] == 2, f"appends of this opening: {bench.log.stats()['appends']}, not 2")
