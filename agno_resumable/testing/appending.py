"""Checks on ``append``: indices, order, the fence, atomicity, limits, and what an event may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from ..errors import EventTooLarge, RunFinished, StaleGeneration
from ..log.protocol import EventLog
from ..model import EncodedEvent, Event, Run, RunStatus
from .contract import LEASE, Bench, clause, collect, crowd, event, expect, read_all, refusal, same, start, turns

__all__: list[str] = []


async def state(log: EventLog, run_id: str = "run") -> tuple[Run, list[Event]]:
    """All there is to see of a run."""
    return await log.get(run_id), (await read_all(log, run_id))[1]


@clause()
async def indices_are_dense_from_zero(bench: Bench) -> None:
    """append: events get the next dense indices in the order given, and the next index is returned."""
    log = bench.log
    await start(log)
    wanted: list[EncodedEvent] = []
    for size in (1, 2, 1, 17, 0, 3, 100, 1):
        added = [event(f"{size}-{number}", type=f"Type{number}") for number in range(size)]
        wanted += added
        same("what append returns", await log.append("run", 1, added), len(wanted))
    run, events = await read_all(log)
    same("the stored events", events, [Event(index, *given) for index, given in enumerate(wanted)])
    same("first_index and next_index", (run.first_index, run.next_index), (0, len(wanted)))


@clause()
async def an_append_is_in_the_next_read(bench: Bench) -> None:
    """append: what was returned from is in the next read, with its status."""
    log = bench.log
    await start(log)
    for number in range(200):
        await log.append("run", 1, [event(number)])
        page = await log.read("run", number - 1)
        same("the events behind the previous one", page.events, [Event(number, *event(number))])
        same("next_index", page.run.next_index, number + 1)
    await log.append("run", 1, [], status=RunStatus.PAUSED)
    same("status after append", (await log.read("run", limit=0)).run.status, RunStatus.PAUSED)


@clause()
async def the_first_events_make_a_run_running(bench: Bench) -> None:
    """append: a PENDING run that gets events becomes RUNNING, unless they come with a status of their own."""
    log = bench.log
    await start(log)
    await log.append("run", 1, [])
    same("status after an empty append", (await log.get("run")).status, RunStatus.PENDING)
    await log.append("run", 1, [event(0)])
    same("status after the first event", (await log.get("run")).status, RunStatus.RUNNING)
    await start(log, "told")
    await log.append("told", 1, [], status=RunStatus.RUNNING)
    same("status after an append of RUNNING", (await log.get("told")).status, RunStatus.RUNNING)
    for status in (RunStatus.PAUSED, RunStatus.COMPLETED):
        await start(log, status.value)
        await log.append(status.value, 1, [event(0)], status=status)
        same("status after first events with a status", (await log.get(status.value)).status, status)


@clause()
async def paused_ends_the_lease(bench: Bench) -> None:
    """append: PAUSED ends the lease and is not the end of the run; a later leg goes on with the same indices."""
    log = bench.log
    await start(log, "run", event(0))
    await log.append("run", 1, [event(1)], status=RunStatus.PAUSED)
    run = await log.get("run")
    same(
        "status, lease and finished_at",
        (run.status, run.lease_expires_at, run.finished_at),
        (RunStatus.PAUSED, None, None),
    )
    leg = await log.claim("run", lease=LEASE)
    same("the next index of the next leg", await log.append("run", leg.generation, [event(2)]), 3)
    same(
        "the events of both legs",
        [stored.data for stored in (await read_all(log))[1]],
        [event(number).data for number in range(3)],
    )


@clause()
async def a_status_and_its_events_are_one_step(bench: Bench) -> None:
    """append: no reader sees the last events without their status, or the status without the events."""
    log = bench.log
    for number in range(30):
        name = f"run-{number}"
        await start(log, name, event(0))
        async with crowd() as group:
            collect(group, partial(log.append, name, 1, [event(1)] * 3, status=RunStatus.COMPLETED))
            while True:
                page = await log.read(name)
                seen = (page.run.status, page.run.next_index, len(page.events))
                if page.run.status.finished:
                    break
                same("status, next_index and events of one read", seen, (RunStatus.RUNNING, 1, 1))
                await turns(1)
        same("status, next_index and events of one read", seen, (RunStatus.COMPLETED, 4, 4))


@clause()
async def a_transcript_is_kept(bench: Bench) -> None:
    """append: the transcript is stored with the events, stays where none is given, and get returns it."""
    log = bench.log
    await start(log)
    await log.append("run", 1, [event(0)], transcript=b'{"t":1}')
    await log.append("run", 1, [event(1)])
    same("the transcript", (await log.get("run")).transcript, b'{"t":1}')
    await log.append("run", 1, [event(2)], status=RunStatus.COMPLETED, transcript=b'{"t":"\xc3\xa9"}')
    same("the transcript", (await log.get("run")).transcript, b'{"t":"\xc3\xa9"}')


@clause()
async def an_empty_append_only_checks_the_fence(bench: Bench) -> None:
    """append: without events or status it changes nothing, and is refused like any other."""
    log = bench.log
    await start(log, "run", event(0))
    before = await state(log)
    same("what an empty append returns", await log.append("run", 1, []), 1)
    same("the run after an empty append", await state(log), before)
    await log.claim("run", lease=LEASE)
    await refusal("an empty append of an old generation", log.append("run", 1, []), StaleGeneration)


@clause()
async def a_stale_generation_stores_nothing(bench: Bench) -> None:
    """append: the fence, the events, the status and the transcript are one step; a stale producer changes nothing."""
    log = bench.log
    await start(log, "run", event(0))
    await log.claim("run", lease=LEASE)
    await log.claim("run", lease=LEASE)
    await log.append("run", 3, [event(1)], transcript=b'{"mine":1}')
    before = await state(log)
    for generation in (0, 1, 2):
        for events in ([], [event("stale")], [event("stale")] * 9):
            for status in (None, RunStatus.PAUSED, RunStatus.COMPLETED):
                call = log.append("run", generation, events, status=status, transcript=b'{"stale":1}')
                error = await refusal(f"append of generation {generation}", call, StaleGeneration)
                same(
                    "StaleGeneration given, current, run_id",
                    (error.given, error.current, error.run_id),
                    (generation, 3, "run"),
                )
    same("the run after stale appends", await state(log), before)
    same("the next index", await log.append("run", 3, [event(2)]), 3)


@clause()
async def a_takeover_cuts_cleanly(bench: Bench) -> None:
    """append, claim: after a takeover no event of the old generation appears, however the calls interleave."""
    log = bench.log
    run = await start(log)
    for leg in range(15):
        old = run.generation
        async with crowd() as group:
            results = collect(group, *[partial(log.append, "run", old, [event(f"g{old}")])] * 10)
            await turns(bench.random.randrange(4))
            run = await log.claim("run", lease=LEASE)
            _, at_claim = await read_all(log)
        acknowledged = sum(isinstance(result, int) for result in results)
        for result in results:
            expect(isinstance(result, (int, StaleGeneration)), f"an append around a claim gave {result!r}")
        _, events = await read_all(log)
        same("the events after the claim", events, at_claim)
        stored = sum(stored.data == event(f"g{old}").data for stored in events)
        same(f"the events of generation {old} in leg {leg}", stored, acknowledged)


@clause()
async def one_callers_appends_keep_their_order(bench: Bench) -> None:
    """append: of two appends by one caller the first to be called is stored first, awaited singly or all at once."""
    log = bench.log
    await start(log)
    called: list[str] = []

    async def producer(name: int) -> None:
        for number in range(20):
            called.append(f"{name}-{number}")
            await log.append("run", 1, [event(called[-1])])

    async with crowd() as group:
        for name in range(12):
            group.start_soon(producer, name)
    _, events = await read_all(log)
    same("the order of the events", [stored.data for stored in events], [event(label).data for label in called])


@clause()
async def events_become_visible_in_order(bench: Bench) -> None:
    """read: under concurrent appends every page is dense, and no reader sees n+1 before n or anything change."""
    log = bench.log
    await start(log)
    total = 12 * 15

    async def producer(name: int) -> None:
        for number in range(15):
            await log.append("run", 1, [event(f"{name}-{number}")])

    async def reader() -> list[Event]:
        seen: list[Event] = []
        while len(seen) < total:
            seen += (await read_all(log, after=len(seen) - 1, limit=bench.random.choice((1, 5, 1024))))[1]
            await anyio.sleep(0.001)  # a loop that never sleeps would starve the store's threads
        return seen

    with bench.soon("every reader to see every event"):
        async with crowd() as group:
            readers = collect(group, *[reader] * 4)
            for name in range(12):
                group.start_soon(producer, name)
    _, stored = await read_all(log)
    for seen in readers:
        same("what a reader saw along the way", seen, stored)


@clause()
async def runs_do_not_mix(bench: Bench) -> None:
    """append, read: concurrent appends to many runs land in their own run, densely."""
    log = bench.log
    names = [f"run-{number}" for number in range(20)]

    async def life(name: str) -> None:
        await start(log, name)
        for number in range(10):
            await log.append(name, 1, [event(f"{name}-{number}-{part}") for part in range(number % 3 + 1)])
            await read_all(log, name, bench.random.randrange(-1, 5))

    async with crowd() as group:
        for name in names:
            group.start_soon(life, name)
    for name in names:
        wanted = [event(f"{name}-{number}-{part}").data for number in range(10) for part in range(number % 3 + 1)]
        same(f"the events of {name}", [stored.data for stored in (await read_all(log, name))[1]], wanted)


@clause()
async def bytes_are_kept_exactly(bench: Bench) -> None:
    """append: what is stored is what was given, byte for byte, whatever its characters and its size."""
    log = bench.log
    given = [
        EncodedEvent("données 事件 🙂", '{"text":"é\u2028\u0085 🙂 \\u0000 \\ud800 %s %b \'; --"}'.encode()),
        EncodedEvent("a b: c", b'{  "spaces" : [1e400,-0.0,12345678901234567890] }'),
        EncodedEvent("Raw", b'{"tab":"\\t","not utf-8":"\xff\xfe","nul":"\x00"}'),
        EncodedEvent("Least", b'{"":0}'),
        event("megabyte", pad=1_048_576),
        event("after"),
    ]
    await start(log, "run", *given)
    for limit in (1024, 1):
        _, events = await read_all(log, limit=limit)
        for stored, wanted in zip(events, given, strict=True):
            same("a stored event", (stored.type, stored.data), tuple(wanted))
    frames = b"".join([batch.frames for batch in (await log.read("run", 4)).batches])
    same(
        "the frame of the last event",
        frames,
        b'event: RunContent\ndata: {"label":"after","pad":"","event_index":5}\nid: run:5\n\n',
    )


@clause()
async def a_large_batch_is_one_append(bench: Bench) -> None:
    """append: twenty thousand events in one call are stored in one step and read in pages."""
    given = [event(number) for number in range(20_000)]
    await start(bench.log)
    same("what append returns", await bench.log.append("run", 1, given), 20_000)
    for limit in (1024, 333):
        _, events = await read_all(bench.log, limit=limit)
        same("the large batch", [stored.data for stored in events], [one.data for one in given])


@clause()
async def a_forged_frame_is_refused(bench: Bench) -> None:
    """append: ValueError for a type or data that could not stand in a frame, and nothing of the batch is stored."""
    log = bench.log
    await start(log, "run", event(0))
    before = await state(log)
    good = b'{"a":1}'
    bad = [EncodedEvent(type, good) for type in ("", "a\nb", "a\r", "\n", "a\x00", "a\x1b", "a\x85", "a\u2028b")]
    bad += [
        EncodedEvent("Type", data)
        for data in (
            b"",
            b"[]",
            b'"text"',
            b"null",
            b"{}",
            b'{"a":1}\n',
            b'{"a":\n1}',
            b'{"a":\r1}',
            b'{"a":1',
            b"a:1}",
        )
    ]
    for one in bad:
        for events in ([one], [event("before"), one], [one, event("after")]):
            call = log.append("run", 1, events, status=RunStatus.COMPLETED)
            await refusal(f"append of {one!r}", call, ValueError)
    same("the run after refused events", await state(log), before)
    same("the next index", await log.append("run", 1, [event(1)]), 2)


@clause()
async def a_refused_append_spares_its_neighbours(bench: Bench) -> None:
    """append: an append that is refused neither loses nor delays what others append at the same time."""
    log = bench.log
    for name in ("run", "done"):
        await start(log, name)
    await log.append("done", 1, [], status=RunStatus.COMPLETED)
    calls: list[Callable[[], Awaitable[int]]] = []
    for number in range(20):
        calls += [
            partial(log.append, "run", 1, [event(number)]),
            partial(log.append, "run", 0, [event("stale")]),
            partial(log.append, "done", 1, [event("late")]),
            partial(log.append, "run", 1, [EncodedEvent("", b"")]),
        ]
    async with crowd() as group:
        results = collect(group, *calls)
    kinds = {kind: sum(isinstance(result, kind) for result in results) for kind in (int, StaleGeneration, RunFinished)}
    same("the outcomes", kinds, {int: 20, StaleGeneration: 20, RunFinished: 20})
    labels = sorted(stored.data for stored in (await read_all(log))[1])
    same("the events of the good neighbours", labels, sorted(event(number).data for number in range(20)))


@clause("limited")
async def an_event_over_the_limit_is_refused(bench: Bench) -> None:
    """append: EventTooLarge for one event over `max_event_bytes`, and nothing of the batch is stored."""
    async with bench.limited(max_event_bytes=1000) as log:
        await start(log)
        exact = event("exact", pad=1000 - len(event("exact").data))
        over = event("exact", pad=1001 - len(event("exact").data))
        same("next index after an event at the limit", await log.append("run", 1, [exact]), 1)
        before = await state(log)
        for events in ([over], [event(1), over], [over, event(1)]):
            call = log.append("run", 1, events, status=RunStatus.COMPLETED)
            error = await refusal("append of an event over the limit", call, EventTooLarge)
            same("EventTooLarge size, limit, run_id", (error.size, error.limit, error.run_id), (1001, 1000, "run"))
        same("the run after refused events", await state(log), before)
        same("next index", await log.append("run", 1, [exact] * 5), 6)


@clause("limited")
async def a_run_over_its_limit_loses_its_oldest_events(bench: Bench) -> None:
    """append: a run that grew past `max_run_bytes` loses its oldest events: first_index moves, indices go on."""
    async with bench.limited(max_run_bytes=10_000) as log:
        await start(log)
        await start(log, "other", event("other"))
        added = largest = 0
        for size in (*[1] * 30, *[7] * 10, 60, 1, 200, 1):  # 100 bytes each
            given = [event(f"{number:06}", pad=73) for number in range(added, added + size)]
            same("what append returns", await log.append("run", 1, given), added + size)
            added += size
            run, events = await read_all(log)
            held = sum(len(stored.data) for stored in events)
            largest = max(largest, size * 100)
            same("next_index", run.next_index, added)
            # The newest append stays, whatever its size, or nobody could ever read it; what goes, goes by the append.
            expect(held <= max(10_000, size * 100), f"the run holds {held} bytes; max_run_bytes is 10000")
            least = max(min(added * 100, 10_000 - largest), 100)
            expect(held >= least, f"the run holds {held} of {added * 100} bytes; max_run_bytes is 10000")
            same(
                "what is left",
                [stored.data for stored in events],
                [event(f"{number:06}", pad=73).data for number in range(run.first_index, added)],
            )
        same("the events of another run", len((await read_all(log, "other"))[1]), 1)
