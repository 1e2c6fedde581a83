"""Checks on ``intend_cancel``, ``drop_intent`` and ``intents``: runs that shall be cancelled wherever they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from ..errors import RunIdInvalid
from ..log.protocol import EventLog
from ..model import Intents
from .contract import FOREVER, LEASE, Bench, clause, collect, crowd, event, expect, refusal, same, start, turns

__all__: list[str] = []


async def live(log: EventLog) -> list[str]:
    """The runs with an intent, sorted."""
    return sorted((await log.intents()).run_ids)


@clause()
async def an_intent_lives_until_it_is_dropped(bench: Bench) -> None:
    """intend_cancel: for any id, known to the log or not; drop_intent takes it back, and what is not there silently."""
    log = bench.log
    await start(log, "known", event(0))
    names = ["known", "never-seen", "with:colon/and space", "ünïcode-\U0001f600", "x" * 256]
    same("the intents of a fresh log", await live(log), [])
    for count, name in enumerate(names, 1):
        await log.intend_cancel(name, ttl=LEASE)
        same("the intents", await live(log), sorted(names[:count]))
    same("wait_cancel of a run with an intent", await log.wait_cancel("known", timeout=0.0), False)
    same("cancel_requested_at of it", (await log.get("known")).cancel_requested_at, None)
    await log.request_cancel("known")
    await log.delete("known")
    same("the intents after the run was deleted", await live(log), sorted(names))
    for count, name in enumerate(names, 1):
        for _ in range(2):
            await log.drop_intent(name)
        same("the intents", await live(log), sorted(names[count:]))
    await log.drop_intent("never-there")


@clause()
async def every_change_of_the_intents_raises_their_version(bench: Bench) -> None:
    """intents: the version is raised by every intend_cancel and every drop_intent that removed one, by nothing else."""
    log = bench.log
    version = (await log.intents()).version
    for change, raises in (
        (partial(log.intend_cancel, "run", ttl=LEASE), True),
        (partial(log.intend_cancel, "run", ttl=LEASE), True),
        (partial(log.drop_intent, "other"), False),
        (partial(start, log), False),
        (partial(log.request_cancel, "run"), False),
        (partial(log.drop_intent, "run"), True),
        (partial(log.drop_intent, "run"), False),
    ):
        await change()
        seen = (await log.intents()).version
        expect(seen > version if raises else seen == version, f"the version went from {version} to {seen}")
        version = seen


@clause()
async def an_intent_ends_with_its_time(bench: Bench) -> None:
    """intend_cancel: for `ttl` seconds; a later one makes it longer, never shorter; its end is no change."""
    log = bench.log
    await log.intend_cancel("short", ttl=0.03)
    await log.intend_cancel("longer", ttl=0.03)
    await log.intend_cancel("longer", ttl=LEASE)
    await log.intend_cancel("shorter", ttl=LEASE)
    await log.intend_cancel("shorter", ttl=0.03)
    version = (await log.intents()).version
    await bench.until("the short one to end", _is(log, ["longer", "shorter"]))
    same("the version", (await log.intents()).version, version)
    same("prune", await log.prune(finished_before=await log.now() + LEASE), 0)
    same("the intents after prune", await live(log), ["longer", "shorter"])
    await log.intend_cancel("short", ttl=LEASE)
    same("the intents", await live(log), ["longer", "short", "shorter"])
    await log.intend_cancel("none", ttl=0.0)
    same("the intents", await live(log), ["longer", "short", "shorter"])


def _is(log: EventLog, wanted: list[str]) -> Callable[[], Awaitable[bool]]:
    async def found() -> bool:
        return await live(log) == wanted

    return found


@clause()
async def of_many_intents_those_that_live_longest_are_read(bench: Bench) -> None:
    """intents: at most `limit`, those that live longest, in that order."""
    for number in (3, 1, 4, 0, 2):
        await bench.log.intend_cancel(f"run-{number}", ttl=LEASE + 60.0 * number)
    wanted = [f"run-{number}" for number in (4, 3, 2, 1, 0)]
    for limit in (0, 1, 3, 5, 1_000):
        same(f"the intents with limit={limit}", list((await bench.log.intents(limit=limit)).run_ids), wanted[:limit])


@clause()
async def an_id_that_no_store_could_keep_gets_no_intent(bench: Bench) -> None:
    """intend_cancel: RunIdInvalid if the id is empty, too long, or holds NUL or what is no Unicode."""
    for name in ("", "x" * 257, "a\0b", "lone \ud800"):
        await refusal(f"intend_cancel({name[:10]!r})", bench.log.intend_cancel(name, ttl=LEASE), RunIdInvalid)
    same("the intents", await live(bench.log), [])


@clause()
async def a_change_of_the_intents_ends_a_wait(bench: Bench) -> None:
    """intents: returns at once if the version is another, else when it changes, or at the timeout."""
    log = bench.log
    first = await log.intents()
    for timeout in (-1.0, 0.0, 0.001, 0.03):
        with bench.soon(f"intents to end by its timeout of {timeout} s"):
            found = await log.intents(first.version, timeout=timeout)
        same("the intents", (found.version, list(found.run_ids)), (first.version, []))
    for change, wanted in (
        (partial(log.intend_cancel, "run", ttl=LEASE), ["run"]),
        (partial(log.drop_intent, "run"), []),
    ):
        before = await log.intents()
        with bench.soon("intents to end by a change"):
            async with crowd() as group:
                seen = collect(group, *[partial(changed_intents, log, before.version)] * 3)
                await bench.waiters(3)
                await change()
        same("what intents gave", [list(one.run_ids) for one in seen if isinstance(one, Intents)], [wanted] * 3)
        with bench.soon("intents to return at once after the change"):
            same("the intents", list((await log.intents(before.version, timeout=FOREVER)).run_ids), wanted)
            same("the intents", list((await log.intents(timeout=FOREVER)).run_ids), wanted)


async def changed_intents(log: EventLog, version: int) -> Intents:
    """The intents once their version is another than ``version``; a call may return early."""
    while True:
        found = await log.intents(version, timeout=FOREVER)
        if found.version != version:
            return found


@clause()
async def no_change_of_the_intents_is_lost(bench: Bench) -> None:
    """intents: a caller that asks again and again sees every intent, however it falls around the wait's beginning."""
    log = bench.log
    for number in range(60):
        name = f"run-{number}"

        async def watch(name: str = name) -> bool:
            found = await log.intents()
            while name not in found.run_ids:
                await turns(bench.random.randrange(3))
                found = await log.intents(found.version, timeout=FOREVER)
            return True

        with bench.soon("every watcher to see the intent"):
            async with crowd() as group:
                seen = collect(group, watch, watch)
                await turns(number % 11)
                await log.intend_cancel(name, ttl=LEASE)
        same("what the watchers saw", seen, [True, True])
        await log.drop_intent(name)


@clause()
async def an_abandoned_watcher_of_intents_leaves_nothing(bench: Bench) -> None:
    """intents: a waiter that is cancelled or timed out is forgotten: stats()['waiters'] goes back to 0."""
    log = bench.log
    version = (await log.intents()).version
    for _ in range(3):
        async with crowd() as group:
            collect(group, *[partial(changed_intents, log, version)] * 10)
            collect(group, partial(log.intents, version, timeout=0.01))
            await bench.waiters(10)
            group.cancel_scope.cancel()
        await bench.waiters(0)
    await log.intend_cancel("run", ttl=LEASE)
    with bench.soon("intents after abandoned waits"):
        same("the intents", list((await log.intents(version, timeout=FOREVER)).run_ids), ["run"])
