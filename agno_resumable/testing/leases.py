"""Checks on ``claim``, ``renew``, ``expire`` and ``now``: who may produce a run, and until when."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

import anyio

from ..errors import RunFinished, StaleGeneration
from ..log.protocol import EventLog
from ..model import Family, NewRun, Run, RunStatus
from .contract import LEASE, Bench, clause, collect, crowd, event, expect, read_all, refusal, same, start

__all__: list[str] = []


def lease_of(run: Run) -> float:
    """When the run's lease ends; a check fails where there is none."""
    expect(run.lease_expires_at is not None, f"{run.run_id} has no lease")
    return run.lease_expires_at or 0.0


def past(log: EventLog, moment: float) -> Callable[[], Awaitable[bool]]:
    """A condition: the store's clock has passed ``moment``."""

    async def passed() -> bool:
        return await log.now() > moment

    return passed


@clause()
async def a_claim_raises_the_generation(bench: Bench) -> None:
    """claim: raises the generation by one, holds the run for `lease` seconds, counts an attempt, fences the others."""
    log = bench.log
    await start(log, "run", event(0), lease=5.0)
    for generation in (2, 3, 4):
        began = await log.now()
        claimed = await log.claim("run", lease=LEASE)
        ended = await log.now()
        for run in (claimed, await log.get("run")):
            same(
                "generation, attempts, status",
                (run.generation, run.attempts, run.status),
                (generation, generation, RunStatus.RUNNING),
            )
            expires = lease_of(run)
            expect(began + LEASE - 0.01 <= expires <= ended + LEASE + 0.01, f"lease to {expires}, now {began}-{ended}")
        await refusal("append of the old producer", log.append("run", generation - 1, [event("old")]), StaleGeneration)
        await log.append("run", generation, [event(generation)])
    same("how many events there are", len((await read_all(log))[1]), 4)


@clause()
async def a_claim_with_a_generation_sets_exactly_that(bench: Bench) -> None:
    """claim: with `generation` the run gets exactly that one; StaleGeneration if it is not above the current one."""
    log = bench.log
    await start(log)
    same("the generation", (await log.claim("run", lease=LEASE, generation=2)).generation, 2)
    run = await log.claim("run", lease=LEASE, generation=9)
    same("generation and attempts", (run.generation, run.attempts), (9, 3))
    before = await log.get("run")
    for generation in (-1, 0, 1, 2, 8, 9):
        error = await refusal("claim", log.claim("run", lease=1.0, generation=generation), StaleGeneration)
        same("StaleGeneration given and current", (error.given, error.current), (generation, 9))
    same("the run after refused claims", await log.get("run"), before)
    same("the next generation", (await log.claim("run", lease=LEASE)).generation, 10)


@clause()
async def of_equal_claims_one_succeeds(bench: Bench) -> None:
    """claim: of those that claim with the same generation only the first succeeds; without, all do, one by one."""
    log = bench.log
    await start(log)
    for generation in range(2, 12):
        async with crowd() as group:
            results = collect(group, *[partial(log.claim, "run", lease=LEASE, generation=generation)] * 6)
        same("how many claims succeeded", sum(isinstance(result, Run) for result in results), 1)
        for result in results:
            expect(isinstance(result, (Run, StaleGeneration)), f"a claim gave {result!r}")
    async with crowd() as group:
        results = collect(group, *[partial(log.claim, "run", lease=LEASE)] * 6)
    generations = sorted(result.generation for result in results if isinstance(result, Run))
    same("the generations of concurrent claims", generations, list(range(12, 18)))


@clause()
async def a_claim_keeps_what_the_run_is(bench: Bench) -> None:
    """claim: RUNNING if it was PAUSED, else the status stays; a pending cancel request, events and input stay."""
    log = bench.log
    for status in (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.PAUSED):
        await log.create(NewRun(status.value, input=b'{"i":1}', idempotency_key=status.value), lease=LEASE)
        if status is not RunStatus.PENDING:
            await log.append(status.value, 1, [event(0)], status=status)
        asked = await log.request_cancel(status.value)
        await log.claim(status.value, lease=LEASE)
        run = await log.get(status.value)
        wanted = RunStatus.RUNNING if status is RunStatus.PAUSED else status
        same(f"the status of a claimed {status.value} run", run.status, wanted)
        same("cancel_requested_at", run.cancel_requested_at, asked.cancel_requested_at)
        same(
            "input, key and next_index",
            (run.input, run.idempotency_key, run.next_index),
            (b'{"i":1}', status.value, 0 if status is RunStatus.PENDING else 1),
        )
        same("wait_cancel of the new producer", await log.wait_cancel(status.value, timeout=0.0), True)


@clause()
async def a_claim_with_a_floor_raises_the_next_index(bench: Bench) -> None:
    """claim: with a `floor` above next_index what is stored is dropped, and the run goes on at the floor."""
    log = bench.log
    for status in (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.PAUSED):
        name = status.value
        before = await start(log, name)
        if status is not RunStatus.PENDING:
            await log.append(name, 1, [event(number) for number in range(5)], status=status)
            before = (await read_all(log, name))[0]
        claimed = await log.claim(name, lease=LEASE, floor=40)
        page = await log.read(name)
        for run in (claimed, await log.get(name), page.run):
            same("first_index and next_index", (run.first_index, run.next_index), (40, 40))
            wanted = RunStatus.RUNNING if status is RunStatus.PAUSED else status
            same("generation, attempts and status", (run.generation, run.attempts, run.status), (2, 2, wanted))
        expect(page.run.version > before.version, "the version was not raised")
        same("what is left", page.events, [])
        await refusal("append of the old producer", log.append(name, 1, [event("old")]), StaleGeneration)
        same("the next index", await log.append(name, 2, [event(40), event(41)]), 42)
        for after in (-1, 3, 4, 39):
            _, events = await read_all(log, name, after)
            same(f"the indices behind {after}", [stored.index for stored in events], [40, 41])
        same("what is behind 40", [stored.data for stored in (await read_all(log, name, 40))[1]], [event(41).data])


@clause()
async def a_claim_may_take_up_a_run_that_ended_in_error(bench: Bench) -> None:
    """claim: with `reopen` a run that ended in ERROR goes on with its next index; COMPLETED and CANCELLED do not."""
    log = bench.log
    await start(log, "run", event(0))
    await log.request_cancel("run")
    await log.append("run", 1, [event(1)], status=RunStatus.ERROR, transcript=b'{"content":null}')
    await refusal("claim without reopen", log.claim("run", lease=LEASE), RunFinished)
    claimed = await log.claim("run", lease=LEASE, reopen=True)
    for run in (claimed, await log.get("run")):
        same(
            "status, generation, next index, end, cancel, transcript",
            (run.status, run.generation, run.next_index, run.finished_at, run.cancel_requested_at, run.transcript),
            (RunStatus.RUNNING, 2, 2, None, None, None),
        )
        expect(run.lease_expires_at is not None, "a run that was taken up again has no lease")
    same("how many were pruned", await log.prune(finished_before=await log.now() + 60), 0)
    await log.append("run", 2, [event(2)], status=RunStatus.COMPLETED)
    same("how many events there are", len((await read_all(log))[1]), 3)
    for number, status in enumerate((RunStatus.COMPLETED, RunStatus.CANCELLED)):
        await start(log, f"run{number}", event(0))
        await log.append(f"run{number}", 1, (), status=status)
        await refusal("claim with reopen", log.claim(f"run{number}", lease=LEASE, reopen=True), RunFinished)


@clause()
async def a_floor_never_lowers_anything(bench: Bench) -> None:
    """claim: a next_index that is as high as the `floor`, or higher, stays, with all that is stored."""
    log = bench.log
    await start(log, "run", *[event(number) for number in range(6)])
    await log.trim("run", before=2)
    for generation, floor in enumerate((-1, 0, 1, 3, 5, 6), 2):
        run = await log.claim("run", lease=LEASE, floor=floor)
        same("first_index and next_index", (run.first_index, run.next_index, run.generation), (2, 6, generation))
        same("what is stored", [stored.index for stored in (await read_all(log))[1]], [2, 3, 4, 5])
    before = await log.get("run")
    await refusal("claim", log.claim("run", lease=LEASE, generation=7, floor=50), StaleGeneration)
    same("the run after a refused claim", await log.get("run"), before)
    await log.append("run", 7, [], status=RunStatus.COMPLETED)
    before = await log.get("run")
    await refusal("claim", log.claim("run", lease=LEASE, floor=50), RunFinished)
    same("the run after a refused claim", await log.get("run"), before)
    same("what is stored", [stored.index for stored in (await read_all(log))[1]], [2, 3, 4, 5])


@clause()
async def renew_extends_what_is_held(bench: Bench) -> None:
    """renew: every claim is extended to `lease` seconds from now, one that ran out but was not taken over included."""
    log = bench.log
    runs = [await start(log, f"run-{number}", lease=0.02) for number in range(3)]
    await bench.until("leases to run out", past(log, max(lease_of(run) for run in runs)))
    began = await log.now()
    same("what renew lost", list(await log.renew([(run.run_id, 1) for run in runs], lease=LEASE)), [])
    ended = await log.now()
    for run in runs:
        expires = lease_of(await log.get(run.run_id))
        expect(began + LEASE - 0.01 <= expires <= ended + LEASE + 0.01, f"lease to {expires}, now {began} to {ended}")
    same("what expired after renewal", list(await log.expire(lease=LEASE)), [])
    same("renew of nothing", list(await log.renew([], lease=LEASE)), [])


@clause()
async def renew_tells_what_is_lost(bench: Bench) -> None:
    """renew: returns the runs that are gone, finished, resting or taken over, and leaves them alone."""
    log = bench.log
    for name in ("kept", "taken", "ended", "resting", "deleted"):
        await start(log, name, event(0))
    await log.claim("taken", lease=LEASE)
    await log.append("ended", 1, [], status=RunStatus.ERROR)
    await log.append("resting", 1, [], status=RunStatus.PAUSED)
    await log.delete("deleted")
    before = {name: await log.get(name) for name in ("taken", "ended", "resting")}
    claims = [(name, 1) for name in ("never", "taken", "kept", "ended", "resting", "deleted")]
    lost = await log.renew(claims, lease=LEASE * 2)
    same("what renew lost", sorted(lost), ["deleted", "ended", "never", "resting", "taken"])
    for name, run in before.items():
        same(f"the {name} run after renew", await log.get(name), run)
    same("renew of the new producer", list(await log.renew([("taken", 2), ("kept", 1)], lease=LEASE)), [])


@clause()
async def a_lease_that_ran_out_is_claimed_once(bench: Bench) -> None:
    """expire: claims every active run whose lease ran out, each for one caller only; the old producer is fenced out."""
    log = bench.log
    await start(log, "held", event(0))
    names = [f"run-{number}" for number in range(12)]
    for number, name in enumerate(names):
        await log.create(NewRun(name, input=b"{}", metadata=b"{}"), lease=0.02)
        if number % 2:
            await log.append(name, 1, [event(0)])
    await bench.until("leases to run out", past(log, max([lease_of(await log.get(name)) for name in names])))
    began = await log.now()
    async with crowd() as group:
        results = collect(group, *[partial(log.expire, lease=LEASE)] * 6)
    found: list[Run] = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        found += result
    same("what concurrent callers got together", sorted(run.run_id for run in found), sorted(names))
    for run in found:
        stored = await log.get(run.run_id)
        same("generation, attempts and version", (run.generation, run.attempts, run.version), (2, 2, stored.version))
        same("the status of an expired run", run.status, RunStatus.RUNNING if run.next_index else RunStatus.PENDING)
        same("input, metadata and options", (run.input, run.metadata, run.options), (None, None, None))
        expect(lease_of(run) >= began + LEASE - 0.01, f"held until {run.lease_expires_at}, expired at {began}")
        await refusal("append of the old producer", log.append(run.run_id, 1, [event("old")]), StaleGeneration)
        await log.append(run.run_id, 2, [event("error")], status=RunStatus.ERROR)
    same("what expires later", list(await log.expire(lease=LEASE)), [])


@clause()
async def what_nobody_finished_expires_again(bench: Bench) -> None:
    """expire: if the caller dies too, the runs expire again."""
    log = bench.log
    await start(log, "run", event(0), lease=0.02)
    for generation in (2, 3, 4):
        found: list[Run] = []
        with bench.soon(f"the run to expire into generation {generation}"):
            while not found:
                found = list(await log.expire(lease=0.02))
                await anyio.sleep(0.005)
        same("the expired run", [(run.run_id, run.generation) for run in found], [("run", generation)])


@clause()
async def what_may_be_run_again_is_left_to_those_who_can(bench: Bench) -> None:
    """expire: for `patience` seconds a run with attempts left goes only to a caller that serves its component."""
    log = bench.log
    served = [f"served-{number}" for number in range(300)]  # more than a backend looks at in one step
    for name in served:
        await log.create(NewRun(name, Family.TEAM, "writers", max_attempts=2, options=b'{"o":1}'), lease=0.02)
    await log.create(NewRun("nameless", max_attempts=2), lease=0.02)
    await log.create(NewRun("once", Family.TEAM, "writers"), lease=0.02)
    whole = await log.get("served-0")
    same("max_attempts and options", (whole.max_attempts, whole.options), (2, b'{"o":1}'))
    last = await log.create(NewRun("others", Family.AGENT, "writers", max_attempts=3), lease=0.02)
    await bench.until("the leases to run out", past(log, lease_of(last)))
    for serves in ([], ["team:readers", "agent:", "agent:None", "writers"]):
        found = await log.expire(lease=LEASE, serves=serves, patience=LEASE)
        same(f"what goes to who serves {serves}", [run.run_id for run in found], ["once"] if not serves else [])
    found = await log.expire(lease=0.02, serves=["agent:readers", "team:writers"], patience=LEASE)
    same("what goes to who can run it again", sorted(run.run_id for run in found), sorted(served))
    same("what it carries", {(run.attempts, run.max_attempts, run.options) for run in found}, {(2, 2, None)})
    ends = max(map(lease_of, found))
    await bench.until("the leases to run out", past(log, ends))
    found = await log.expire(lease=LEASE, patience=LEASE)
    same("what has no attempt left", sorted(run.run_id for run in found), sorted(served))
    found = await log.expire(lease=LEASE, patience=0.01)
    same("what nobody has come for", sorted(run.run_id for run in found), ["nameless", "others"])


@clause()
async def only_active_runs_expire(bench: Bench) -> None:
    """expire: neither a held run nor a resting nor a finished one; a renewed one when its new lease is over."""
    log = bench.log
    for name in ("resting", "ended", "renewed", "dead"):
        await start(log, name, event(0), lease=0.02)
    await start(log, "held", event(0))
    await log.append("resting", 1, [], status=RunStatus.PAUSED)
    await log.append("ended", 1, [], status=RunStatus.CANCELLED)
    await log.renew([("renewed", 1)], lease=LEASE)
    await bench.until("the lease to run out", past(log, lease_of(await log.get("dead"))))
    same("what expired", [run.run_id for run in await log.expire(lease=LEASE)], ["dead"])
    await log.renew([("renewed", 1)], lease=0.02)
    await bench.until("the renewed lease to run out", past(log, lease_of(await log.get("renewed"))))
    same("what expired", [run.run_id for run in await log.expire(lease=LEASE)], ["renewed"])


@clause()
async def a_lease_that_ran_out_still_writes_until_it_is_taken(bench: Bench) -> None:
    """append: the fence is the generation, not the clock: a producer that is late but not replaced goes on."""
    log = bench.log
    run = await start(log, "run", event(0), lease=0.02)
    await bench.until("the lease to run out", past(log, lease_of(run)))
    same("the next index", await log.append("run", 1, [event(1)]), 2)


@clause()
async def the_clock_is_the_stores(bench: Bench) -> None:
    """now: seconds since the epoch, never backwards, and what the times of a run are measured by."""
    moments = []
    for number in range(20):
        moments.append(await bench.log.now())
        await start(bench.log, f"run-{number}")
        moments.append((await bench.log.get(f"run-{number}")).created_at)
    expect(moments[0] > 1_600_000_000, f"now() is {moments[0]}")
    for earlier, later in pairwise(moments):
        expect(later >= earlier - 0.01, f"the clock went from {earlier} back to {later}")
