"""The contract suite on every backend, and the suite itself on logs that are broken on purpose."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from agno_resumable.log.memory import MemoryEventLog
from agno_resumable.log.protocol import EventLog
from agno_resumable.log.sqlite import SQLiteEventLog
from agno_resumable.model import Intents
from agno_resumable.testing import Check, check_event_log, event_log_checks

from . import broken_logs as broken

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class SQLiteStore:
    """Files of their own for the logs of one test."""

    def __init__(self, directory: Path, hot_bytes: int = 67_108_864) -> None:
        self.directory = directory
        self.hot_bytes = hot_bytes
        self.made = 0

    def open(self, *, max_run_bytes: int = 67_108_864, max_event_bytes: int = 8_388_608) -> SQLiteEventLog:
        self.made += 1
        path = self.directory / f"runs-{self.made}.db"
        return SQLiteEventLog(
            path, max_run_bytes=max_run_bytes, max_event_bytes=max_event_bytes, hot_bytes=self.hot_bytes
        )

    @staticmethod
    def reopen(log: EventLog) -> SQLiteEventLog:
        assert isinstance(log, SQLiteEventLog)
        return SQLiteEventLog(log.path)


def named(check: Check) -> str:
    return check.name


@pytest.mark.parametrize("check", [check for check in event_log_checks() if check.needs != "reopen"], ids=named)
async def test_memory_log_keeps(check: Check) -> None:
    await check.run(MemoryEventLog, limited=MemoryEventLog)


@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_sqlite_log_keeps(check: Check, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_sqlite_log_with_nothing_in_memory_keeps(check: Check, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path, hot_bytes=0)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


async def test_the_suite_runs_every_check_it_has_the_factories_for() -> None:
    names = [check.name for check in event_log_checks() if check.needs is None]
    assert len(set(names)) == len(names)
    assert list(await check_event_log(MemoryEventLog)) == names


async def test_a_check_says_which_factory_it_lacks() -> None:
    for check in event_log_checks():
        if check.needs is not None:
            with pytest.raises(ValueError, match=check.needs):
                await check.run(MemoryEventLog)


MUTANTS: dict[type[broken.Wrapped], str] = {
    broken.DropsAnEvent: "indices_are_dense_from_zero",
    broken.ReusesAnIndex: "a_trimmed_run_begins_at_its_first_index",
    broken.IgnoresTheFence: "a_stale_generation_stores_nothing",
    broken.ChecksTheFenceTooEarly: "a_takeover_cuts_cleanly",
    broken.LosesWakeups: "no_wakeup_is_lost",
    broken.WakesOnEventsOnly: "every_change_ends_a_wait",
    broken.ReadsAnotherRun: "runs_do_not_mix",
    broken.TrimsSilently: "a_trimmed_run_begins_at_its_first_index",
    broken.OverfillsPages: "a_page_stops_before_max_bytes_but_never_before_its_first",
    broken.CancelLosesANeighbour: "a_cancelled_append_costs_nobody_else",
    broken.HalfABatchWhenCancelled: "a_cancelled_append_costs_nobody_else",
    broken.LeavesNothingToOthers: "what_may_be_run_again_is_left_to_those_who_can",
    broken.ExpiresTwice: "a_lease_that_ran_out_is_claimed_once",
    broken.SharesKeysBetweenOwners: "an_idempotency_key_is_used_once_per_owner",
    broken.ForgetsTheCancelRequest: "no_cancel_request_is_lost",
    broken.LeaksWaiters: "an_abandoned_waiter_leaves_nothing",
    broken.TakesTheFloorForTheIndex: "a_floor_never_lowers_anything",
    broken.KeepsEventsUnderTheFloor: "a_claim_with_a_floor_raises_the_next_index",
    broken.KeepsIntentsForEver: "an_intent_ends_with_its_time",
    broken.DropsIntentsSilently: "every_change_of_the_intents_raises_their_version",
    broken.LosesIntents: "no_change_of_the_intents_is_lost",
    broken.TellsNoDurability: "a_new_run_is_pending_at_generation_one",
}


def mutant_name(mutant: type[broken.Wrapped]) -> str:
    return mutant.__name__


async def test_a_log_that_only_hands_on_passes() -> None:
    await check_event_log(broken.Wrapped)


class WakesEarly(SQLiteEventLog):
    """Makes use of what ``wait`` and ``intents`` may do: every other call returns early, and nothing has changed."""

    calls = 0

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        self.calls += 1
        await super().wait(run_id, version, timeout=0.0 if self.calls % 2 else timeout)

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        self.calls += 1
        return await super().intents(version, timeout=0.0 if self.calls % 2 else timeout, limit=limit)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_log_that_wakes_early_passes(tmp_path: Path) -> None:
    numbers = count()

    def fresh(*, max_run_bytes: int = 67_108_864, max_event_bytes: int = 8_388_608) -> WakesEarly:
        path = tmp_path / f"{next(numbers)}.db"
        return WakesEarly(path, max_run_bytes=max_run_bytes, max_event_bytes=max_event_bytes)

    def reopen(log: EventLog) -> WakesEarly:
        assert isinstance(log, WakesEarly)
        return WakesEarly(log.path)

    await check_event_log(fresh, reopen=reopen, limited=fresh)


@pytest.mark.parametrize("mutant", MUTANTS, ids=mutant_name)
async def test_the_suite_catches_a_log_that(mutant: type[broken.Wrapped]) -> None:
    (check,) = [check for check in event_log_checks() if check.name == MUTANTS[mutant]]
    with pytest.raises(AssertionError) as caught:
        await check.run(mutant, patience=1.0)
    message = str(caught.value)
    assert message.startswith(f"{check.name}: {check.clause}\n  seen: "), message


async def test_the_suite_as_a_whole_fails_a_broken_log() -> None:
    with pytest.raises(AssertionError, match="an_empty_append_only_checks_the_fence"):
        await check_event_log(broken.IgnoresTheFence)
