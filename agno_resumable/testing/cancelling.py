"""Checks on cancellation: whoever is cancelled, nobody else loses anything, and nothing is half done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..log.protocol import EventLog
from ..model import EncodedEvent, RunStatus
from .contract import LEASE, Bench, clause, crowd, event, expect, read_all, same, start, turns
from .runs import calls_on

__all__: list[str] = []


async def cut_short(ticks: int, call: Callable[[], Awaitable[object]]) -> bool:
    """Start ``call`` and cancel it after ``ticks`` turns of the event loop; return whether it ended before that."""
    ended = False

    async def run() -> None:
        nonlocal ended
        await call()
        ended = True

    async with crowd() as group:
        group.start_soon(run)
        await turns(ticks)
        group.cancel_scope.cancel()
    return ended


def batch_of(name: str) -> list[EncodedEvent]:
    """Three events that are told apart from all others."""
    return [event(f"{name}-{part}") for part in range(3)]


async def check_stored(log: EventLog, run_id: str, called: list[str], acknowledged: set[str]) -> None:
    """The run holds whole batches, once each, in the order called, and all those that were acknowledged."""
    _, events = await read_all(log, run_id)
    stored = [one.data for one in events]
    wanted: list[bytes] = []
    for name in called:
        batch = [one.data for one in batch_of(name)]
        if batch[0] in stored:
            wanted += batch
        else:
            expect(name not in acknowledged, f"the acknowledged batch {name} of {run_id} is not there")
    same(f"the events of {run_id}", stored, wanted)


@clause()
async def a_cancelled_append_costs_nobody_else(bench: Bench) -> None:
    """append: a cancelled write is stored wholly or not at all, never loses another's events and keeps the order."""
    log = bench.log
    for round in range(8):
        names = [f"run-{round}-{number}" for number in range(3)]
        called: dict[str, list[str]] = {name: [] for name in names}
        acknowledged: set[str] = set()
        for name in names:
            await start(log, name)

        async def producer(number: int, names: list[str], called: dict[str, list[str]], done: set[str]) -> None:
            for turn in range(5):
                run_id = bench.random.choice(names)
                label = f"{number}-{turn}"

                async def append(run_id: str = run_id, label: str = label) -> None:
                    called[run_id].append(label)
                    await log.append(run_id, 1, batch_of(label))
                    done.add(label)

                if bench.random.random() < 0.5:
                    await cut_short(bench.random.choice((0, 1, 1, 2, 2, 3, 4, 6, 20)), append)
                else:
                    await append()

        with bench.soon("the appends beside cancelled ones"):
            async with crowd() as group:
                for number in range(12):
                    group.start_soon(producer, number, names, called, acknowledged)
        for name in names:
            called[name].append("last")
            await log.append(name, 1, batch_of("last"))  # behind it, everything before it is decided
            await check_stored(log, name, called[name], acknowledged)


@clause()
async def a_cancelled_crowd_leaves_the_log_working(bench: Bench) -> None:
    """append: when all that write are cancelled at once, what comes after is stored as if they had never been."""
    log = bench.log
    await start(log)
    called: list[str] = []
    for round in range(10):

        async def append(number: int, round: int = round) -> None:
            called.append(f"{round}-{number}")
            await log.append("run", 1, batch_of(f"{round}-{number}"))

        with bench.soon("an append after cancelled ones"):
            async with crowd() as group:
                for number in range(30):
                    group.start_soon(append, number)
                await turns(bench.random.randrange(6))
                group.cancel_scope.cancel()
            called.append(f"after-{round}")
            await log.append("run", 1, batch_of(called[-1]))
        await check_stored(log, "run", called, {f"after-{number}" for number in range(round + 1)})


@clause()
async def a_cancelled_end_is_whole_or_absent(bench: Bench) -> None:
    """append: the last events, the status and the transcript of a cancelled append are there together or not at all."""
    log = bench.log
    for number in range(30):
        name = f"run-{number}"
        await start(log, name, event(0))

        async def end(name: str = name) -> None:
            await log.append(name, 1, batch_of("end"), status=RunStatus.COMPLETED, transcript=b'{"t":1}')

        ended = await cut_short(number % 8, end)
        await start(log, f"next-{number}", event(0))  # behind it, the cancelled append is decided
        run = await log.get(name)
        seen = (run.status, run.next_index, run.transcript, run.finished_at is None, run.lease_expires_at is None)
        if ended or run.status is RunStatus.COMPLETED:
            same("the run", seen, (RunStatus.COMPLETED, 4, b'{"t":1}', False, True))
        else:
            same("the run", seen, (RunStatus.RUNNING, 1, None, True, False))


@clause()
async def any_call_may_be_cancelled(bench: Bench) -> None:
    """Cancelling a call, whichever and whenever, never corrupts the log: what comes after works as ever."""
    log = bench.log
    for number, method in enumerate(calls_on(log, "")):
        for ticks in range(7):
            name = f"run-{number}-{ticks}"
            if method != "create":
                await start(log, name, event(0))
            with bench.soon(f"{method}, cancelled after {ticks} turns"):
                await cut_short(ticks, calls_on(log, name)[method])
            fresh = f"fresh-{number}-{ticks}"
            with bench.soon(f"a run's life after a cancelled {method}"):
                await start(log, fresh, event(0))
                await log.claim(fresh, lease=LEASE)
                same("the next index", await log.append(fresh, 2, [event(1)], status=RunStatus.COMPLETED), 2)
                _, events = await read_all(log, fresh)
                same("its events", [one.data for one in events], [event(0).data, event(1).data])
    await bench.waiters(0)
