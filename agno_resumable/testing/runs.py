"""Checks on the life of a run: create, get, list, delete, prune, and the log's own opening and closing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from ..errors import LogClosed, RunExists, RunFinished, RunIdInvalid, RunNotFound
from ..log.protocol import EventLog
from ..model import Family, NewRun, Run, RunStatus
from .contract import FOREVER, LEASE, Bench, clause, collect, crowd, event, expect, read_all, refusal, same, start
from .waiting import passes

__all__: list[str] = []

BAD_IDS = ("", ".", "..", "a b", "a/b", "a:0", "a\n", "a\r", "a\x00", "a{b", "run?", "ä", "x" * 52)
GOOD_IDS = ("a", "x" * 51, "0", "-", "A.b_c~d@e+f=g-h", "...", "0b9c1f4e-6c1d-4c55-9d57-1e0a2f3b4c5d")


def calls_on(log: EventLog, run_id: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every method of the protocol, with arguments that fit a run at generation 1."""
    return {
        "create": lambda: log.create(NewRun(run_id), lease=LEASE),
        "get": lambda: log.get(run_id),
        "claim": lambda: log.claim(run_id, lease=LEASE),
        "append": lambda: log.append(run_id, 1, [event(0)]),
        "read": lambda: log.read(run_id),
        "wait": lambda: log.wait(run_id, 0, timeout=0.01),
        "wait_cancel": lambda: log.wait_cancel(run_id, timeout=0.01),
        "renew": lambda: log.renew([(run_id, 1)], lease=LEASE),
        "request_cancel": lambda: log.request_cancel(run_id),
        "intend_cancel": lambda: log.intend_cancel(run_id or "any", ttl=LEASE),
        "drop_intent": lambda: log.drop_intent(run_id),
        "intents": lambda: log.intents(timeout=0.01),
        "list": lambda: log.list(),
        "trim": lambda: log.trim(run_id, before=0),
        "delete": lambda: log.delete(run_id),
        "prune": lambda: log.prune(finished_before=0.0),
        "expire": lambda: log.expire(lease=LEASE),
        "now": lambda: log.now(),
    }


@clause()
async def a_new_run_is_pending_at_generation_one(bench: Bench) -> None:
    """create: a PENDING run at generation 1, held by the caller for `lease` seconds, with all that it was given."""
    new = NewRun(
        "run", Family.TEAM, "component", "session", "user", "key", b'{"input":"\xc3\xa9\xe2\x80\xa8"}', b'{"m":[1,2]}'
    )
    began = await bench.log.now()
    created = await bench.log.create(new, lease=LEASE)
    ended = await bench.log.now()
    for run in (created, await bench.log.get("run")):
        for name in vars(new):
            same(f"{name} of the new run", getattr(run, name), getattr(new, name))
        for name, wanted in {
            "status": RunStatus.PENDING,
            "generation": 1,
            "attempts": 1,
            "first_index": 0,
            "next_index": 0,
            "finished_at": None,
            "cancel_requested_at": None,
            "transcript": None,
        }.items():
            same(f"{name} of the new run", getattr(run, name), wanted)
        expect(began - 0.01 <= run.created_at <= ended + 0.01, f"created_at {run.created_at}, now {began} to {ended}")
        expect(
            run.lease_expires_at is not None and began + LEASE - 0.01 <= run.lease_expires_at <= ended + LEASE + 0.01,
            f"lease_expires_at {run.lease_expires_at}, now {began} to {ended} plus {LEASE}",
        )
    run, events = await read_all(bench.log)
    same("the events of a new run", events, [])
    same("last_index of a new run", run.last_index, -1)


@clause()
async def what_is_not_given_stays_none(bench: Bench) -> None:
    """create: a run that was given nothing but its id carries nothing else."""
    await bench.log.create(NewRun("run"), lease=LEASE)
    run = await bench.log.get("run")
    for name in ("component_id", "session_id", "user_id", "idempotency_key", "input", "metadata", "transcript"):
        same(name, getattr(run, name), None)


@clause()
async def a_run_id_is_taken_once(bench: Bench) -> None:
    """create: RunExists if the run id is taken; the run that exists is left alone."""
    before = await start(bench.log, "run", event(0))
    error = await refusal("create", bench.log.create(NewRun("run", session_id="other"), lease=LEASE), RunExists)
    same("RunExists.run_id", error.run_id, "run")
    same("RunExists.idempotency_key", error.idempotency_key, None)
    same("the run that exists", await bench.log.get("run"), before)


@clause()
async def an_idempotency_key_is_used_once_per_owner(bench: Bench) -> None:
    """create: RunExists if the owner has used the key, with the id of the run that exists; nobody is an owner too."""
    log = bench.log
    for owner in ("ann", "ben", None):
        await log.create(NewRun(f"first-of-{owner}", user_id=owner, idempotency_key="key"), lease=LEASE)
    for owner in ("ann", "ben", None):
        again = log.create(NewRun(f"second-of-{owner}", user_id=owner, idempotency_key="key"), lease=LEASE)
        error = await refusal(f"a second create of owner {owner} with the same key", again, RunExists)
        same("RunExists.run_id", error.run_id, f"first-of-{owner}")
        same("RunExists.idempotency_key", error.idempotency_key, "key")
        await refusal("get of the refused run", log.get(f"second-of-{owner}"), RunNotFound)
    for number in range(3):
        await log.create(NewRun(f"keyless-{number}", user_id="ann"), lease=LEASE)
    same("how many runs there are", len(await log.list()), 6)


@clause()
async def of_concurrent_creates_one_wins(bench: Bench) -> None:
    """create: of concurrent calls with one id, or with one owner's key, one succeeds and all others are told of it."""
    log = bench.log
    async with crowd() as group:
        by_id = collect(group, *[lambda: log.create(NewRun("run"), lease=LEASE)] * 8)
        by_key = collect(
            group,
            *[
                partial(log.create, NewRun(f"keyed-{n}", user_id="ann", idempotency_key="key"), lease=LEASE)
                for n in range(8)
            ],
        )
    for results in (by_id, by_key):
        winners = [result for result in results if isinstance(result, Run)]
        same("how many creates succeeded", len(winners), 1)
        for result in results:
            if result is not winners[0]:
                expect(isinstance(result, RunExists), f"a losing create gave {result!r}")
                same("the run a loser is told of", getattr(result, "run_id", None), winners[0].run_id)
    same("how many runs there are", len(await log.list()), 2)


@clause()
async def a_run_id_fits_a_url_and_an_sse_field(bench: Bench) -> None:
    """create: RunIdInvalid for a run id that could not stand in a URL or an SSE field, and nothing is created."""
    for run_id in BAD_IDS:
        await refusal(f"create({run_id!r})", bench.log.create(NewRun(run_id), lease=LEASE), RunIdInvalid)
    same("the runs after refused creates", list(await bench.log.list()), [])
    for run_id in GOOD_IDS:
        await start(bench.log, run_id, event(run_id))
        _, events = await read_all(bench.log, run_id)
        same(f"the events of {run_id!r}", [stored.data for stored in events], [event(run_id).data])


@clause()
async def a_missing_run_is_not_found(bench: Bench) -> None:
    """get, claim, append, read, request_cancel, trim: RunNotFound, with its id, if there is no such run."""
    await start(bench.log, "other")
    for name in ("get", "claim", "append", "read", "request_cancel", "trim"):
        error = await refusal(name, calls_on(bench.log, "missing")[name](), RunNotFound)
        same(f"RunNotFound.run_id of {name}", error.run_id, "missing")


@clause()
async def list_fits_every_filter_given(bench: Bench) -> None:
    """list: the runs that fit every filter given."""
    log = bench.log
    for number in range(16):
        await log.create(
            NewRun(
                f"run-{number}",
                component_id=f"component-{number & 1}",
                session_id=f"session-{number >> 1 & 1}" if number != 3 else None,
                user_id=f"user-{number >> 2 & 1}",
                input=b"{}",
                metadata=b"{}",
            ),
            lease=LEASE,
        )
        if number >> 3 & 1:
            await log.append(f"run-{number}", 1, [event(0)], status=RunStatus.COMPLETED, transcript=b"{}")
    runs = [await log.get(f"run-{number}") for number in range(16)]
    for component in (None, "component-1"):
        for session in (None, "session-1"):
            for user in (None, "user-0"):
                for status in (None, RunStatus.PENDING, RunStatus.COMPLETED, RunStatus.ERROR):
                    found = await log.list(component_id=component, session_id=session, user_id=user, status=status)
                    wanted = {
                        run.run_id: replace(run, input=None, metadata=None, transcript=None)
                        for run in runs
                        if component in (None, run.component_id)
                        and session in (None, run.session_id)
                        and user in (None, run.user_id)
                        and status in (None, run.status)
                    }
                    same(
                        f"list of {component}, {session}, {user}, {status}", {run.run_id: run for run in found}, wanted
                    )


@clause()
async def list_is_newest_first_and_limited(bench: Bench) -> None:
    """list: newest first, created before `before`, at most `limit`, without input, metadata and transcript."""
    log = bench.log
    for number in range(12):
        await log.create(NewRun(f"run-{number}", input=b"{}", metadata=b"{}"), lease=LEASE)
        await bench.until("the store's clock to move", _clock_passes((await log.get(f"run-{number}")).created_at, log))
    newest = await log.list()
    same("the order of list", [run.run_id for run in newest], [f"run-{number}" for number in reversed(range(12))])
    same("what a listed run carries", [(run.input, run.metadata) for run in newest], [(None, None)] * 12)
    for limit in (0, 1, 5, 12, 100):
        same(f"list(limit={limit})", await _ids(log.list(limit=limit)), [run.run_id for run in newest[:limit]])
    for position in (0, 4, 11):
        before = newest[position].created_at
        same(
            f"list(before=created_at of {newest[position].run_id})",
            await _ids(log.list(before=before, limit=4)),
            [run.run_id for run in newest[position + 1 : position + 5]],
        )


async def _ids(listing: Awaitable[Sequence[Run]]) -> list[str]:
    return [run.run_id for run in await listing]


def _clock_passes(moment: float, log: EventLog) -> Callable[[], Awaitable[bool]]:
    async def passed() -> bool:
        return await log.now() > moment

    return passed


@clause()
async def a_deleted_run_is_gone(bench: Bench) -> None:
    """delete: the run and its events are gone, its producer gets RunNotFound, and deleting it again is no error."""
    log = bench.log
    await log.create(NewRun("run", user_id="ann", idempotency_key="key"), lease=LEASE)
    await log.append("run", 1, [event(number) for number in range(5)])
    await start(log, "other", event("other"))
    await log.delete("run")
    for name in ("get", "claim", "append", "read", "request_cancel", "trim"):
        await refusal(f"{name} after delete", calls_on(log, "run")[name](), RunNotFound)
    await log.delete("run")
    await log.delete("never-there")
    same("renew after delete", list(await log.renew([("run", 1), ("other", 1)], lease=LEASE)), ["run"])
    same("list after delete", await _ids(log.list()), ["other"])
    _, events = await read_all(log, "other")
    same("the events of another run", [stored.data for stored in events], [event("other").data])


@clause()
async def a_deleted_id_and_key_are_free(bench: Bench) -> None:
    """delete: the id and the key can be used again, and nothing of the old run shows in the new one."""
    log = bench.log
    for leg in range(3):
        run = await log.create(NewRun("run", user_id="ann", idempotency_key="key"), lease=LEASE)
        same("generation and next_index of the new run", (run.generation, run.next_index), (1, 0))
        same("its events", (await read_all(log))[1], [])
        await log.append("run", 1, [event(f"{leg}-{number}") for number in range(3 - leg)])
        _, events = await read_all(log)
        same("its events", [stored.data for stored in events], [event(f"{leg}-{n}").data for n in range(3 - leg)])
        await log.delete("run")


@clause()
async def prune_takes_only_what_finished_before(bench: Bench) -> None:
    """prune: deletes the finished runs with `finished_at` before that time, and returns how many."""
    log = bench.log
    for status in RunStatus:
        for leg in (1, 2):
            await start(log, f"{status.value}-{leg}", event(0))
    finished: list[Run] = []
    for leg in (1, 2):
        for status in RunStatus:
            await log.append(f"{status.value}-{leg}", 1, [event(1)], status=status)
            if status.finished:
                finished.append(await log.get(f"{status.value}-{leg}"))
        await bench.until("the store's clock to move", _clock_passes(finished[-1].finished_at or 0.0, log))
    middle = finished[3].finished_at or 0.0
    same("prune before everything", await log.prune(finished_before=0.0), 0)
    same("how many runs there are", len(await log.list()), 12)
    same("prune of the first leg", await log.prune(finished_before=middle), 3)
    left = set(await _ids(log.list()))
    same(
        "what prune took",
        {f"{status.value}-{leg}" for status in RunStatus for leg in (1, 2)} - left,
        {run.run_id for run in finished[:3]},
    )
    for run in finished[:3]:
        await refusal("read after prune", log.read(run.run_id), RunNotFound)
    same("prune of all that finished", await log.prune(finished_before=await log.now() + 1.0), 3)
    same("prune when nothing is left", await log.prune(finished_before=await log.now() + 1.0), 0)
    same("what is left", len(await log.list()), 6)


@clause()
async def a_finished_run_is_final(bench: Bench) -> None:
    """append, claim, renew, request_cancel: nothing follows a finished status; the run stays as it is."""
    log = bench.log
    for status in (RunStatus.COMPLETED, RunStatus.ERROR, RunStatus.CANCELLED):
        name = f"run-{status.value}"
        await start(log, name, event(0))
        await log.append(name, 1, [event(1)], status=status, transcript=b'{"said":1}')
        run = await log.get(name)
        same(
            "status, lease and transcript",
            (run.status, run.lease_expires_at, run.transcript),
            (status, None, b'{"said":1}'),
        )
        expect(run.finished_at is not None and run.finished_at >= run.created_at, f"finished_at {run.finished_at}")
        calls: dict[str, Awaitable[object]] = {
            "append": log.append(name, 1, [event(2)]),
            "an empty append": log.append(name, 1, []),
            "append of a status": log.append(name, 1, [], status=RunStatus.RUNNING),
            "claim": log.claim(name, lease=LEASE),
            "claim of a generation": log.claim(name, lease=LEASE, generation=7),
        }
        for what, call in calls.items():
            error = await refusal(f"{what} on a {status.value} run", call, RunFinished)
            same("RunFinished.status and run_id", (error.status, error.run_id), (status.value, name))
        same("renew of a finished run", list(await log.renew([(name, 1)], lease=LEASE)), [name])
        cancelled = await log.request_cancel(name)
        same("what request_cancel gives", (cancelled.status, cancelled.cancel_requested_at), (status, None))
        same("the finished run", await log.get(name), run)
        same("its events", [stored.data for stored in (await read_all(log, name))[1]], [event(0).data, event(1).data])


@clause()
async def a_closed_log_says_so(bench: Bench) -> None:
    """Every method that needs the store raises LogClosed once the log's context has been left."""
    async with bench.fresh() as log:
        await start(log, "run", event(0))
        same("is_open inside the context", log.is_open, True)
    same("is_open outside the context", log.is_open, False)
    for name, call in calls_on(log, "run").items():
        if name != "now":  # where the store's clock is the machine's, it is there without the store
            await refusal(f"{name} on a closed log", call(), LogClosed)


@clause()
async def closing_ends_every_wait(bench: Bench) -> None:
    """wait, wait_cancel: nobody waits for a log that has been closed."""
    with bench.soon("the end of waits on a log that closes"):
        async with crowd() as group, bench.fresh() as log:
            run = await start(log)
            ends: list[Callable[[], Awaitable[object]]] = [
                partial(passes, log, "run", run.version),
                partial(log.wait_cancel, "run", timeout=FOREVER),
            ]
            results = collect(group, *ends)
            await bench.waiters(2, log)
    for result in results:
        expect(not isinstance(result, Exception) or isinstance(result, LogClosed), f"a wait ended with {result!r}")


@clause()
async def counters_count(bench: Bench) -> None:
    """stats: `commits`, `appends`, `events` and `waiters` since opening; an append raises the first three."""
    before = dict(bench.log.stats())
    expect({"commits", "appends", "events", "waiters"} <= before.keys(), f"stats() has only {sorted(before)}")
    await start(bench.log)
    for number in range(3):
        await bench.log.append("run", 1, [event(number), event(number)])
    after = bench.log.stats()
    same("appends and events counted", [after[name] - before[name] for name in ("appends", "events")], [3, 6])
    expect(after["commits"] > before["commits"], f"commits went from {before['commits']} to {after['commits']}")
    same("waiters", after["waiters"], 0)
