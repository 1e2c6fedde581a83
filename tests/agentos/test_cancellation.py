"""``LogCancellationManager``: a cancel stops agno's run wherever it executes, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agno.agent import Agent
from agno.db.sqlite import SqliteDb
from agno.exceptions import RunCancelledException
from agno.run.agent import RunCancelledEvent, RunContentEvent
from agno.run.cancel import get_cancellation_manager, set_cancellation_manager

from agno_resumable import Family, LogUnavailable, MemoryEventLog, NewRun, RunStatus, SQLiteEventLog
from agno_resumable.agentos import LogCancellationManager, LogEventStream
from agno_resumable.agentos.intents import IntentBook
from agno_resumable.agentos.ownership import RUN_OF_REQUEST, RequestOwner, request_owner
from agno_resumable.demo.scripted import ScriptedModel
from agno_resumable.model import Intents

from ..support import PATIENCE, Gate, eventually
from .cancelling import FAMILIES, KINDS, Case, row_status, until_idle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # agno's own


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = get_cancellation_manager()
    yield
    set_cancellation_manager(before)


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[SQLiteEventLog]:
    """The same log as another process has it."""
    async with SQLiteEventLog(tmp_path / "runs.db") as log:
        yield log


@pytest.fixture
async def manager(tmp_path: Path, elsewhere: SQLiteEventLog) -> AsyncIterator[LogCancellationManager]:
    async with LogCancellationManager(f"sqlite:///{tmp_path}/runs.db", grace=0.3) as manager:
        set_cancellation_manager(manager)
        yield manager


@pytest.fixture
def db(tmp_path: Path) -> SqliteDb:
    return SqliteDb(db_file=str(tmp_path / "agno.db"))


async def live(log: SQLiteEventLog | MemoryEventLog) -> list[str]:
    return list((await log.intents()).run_ids)


async def ended(task: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait({task}, timeout=PATIENCE)
    assert done, "the run goes on"
    if not task.cancelled():
        assert task.exception() is None


async def stopped(case: Case, task: asyncio.Task[None], manager: LogCancellationManager, db: SqliteDb) -> None:
    """The run is over for its caller, in its row, in memory and in the log."""
    await ended(task)
    await until_idle(manager)
    assert await row_status(db, case) == "CANCELLED"
    assert manager.was_cancelled(case.run_id)
    assert not manager.is_cancelled(case.run_id)


def silences(family: str) -> list[str]:
    return ["talking", "silent", "tool", *(["function"] if family == "workflow" else [])]


@pytest.mark.parametrize(
    ("family", "kind", "what"),
    [(family, kind, what) for family in FAMILIES for kind in KINDS for what in silences(family)],
)
async def test_a_cancel_of_another_process_stops(
    family: str, kind: str, what: str, manager: LogCancellationManager, elsewhere: SQLiteEventLog, db: SqliteDb
) -> None:
    case = Case(family, kind, what, db=db, run_id="run")
    task = asyncio.create_task(case.play())
    await asyncio.wait_for(case.reached.wait(), PATIENCE)
    if kind == "detached":
        await ended(task)
    async with LogCancellationManager(elsewhere) as other:
        await other.acancel_run(case.run_id)
        await stopped(case, task, manager, db)
        await until_idle(other)
    assert await live(elsewhere) == []


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_cancel_in_this_process_stops(family: str, manager: LogCancellationManager, db: SqliteDb) -> None:
    case = Case(family, "background", "silent", db=db, run_id="run")
    task = asyncio.create_task(case.play())
    await asyncio.wait_for(case.reached.wait(), PATIENCE)
    assert await case.component.acancel_run(case.run_id)
    await stopped(case, task, manager, db)


async def test_a_run_in_a_thread_of_its_own_tool_is_over_before_the_thread(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog, db: SqliteDb
) -> None:
    case = Case("agent", "whole", "thread", db=db, run_id="run")
    task = asyncio.create_task(case.play())
    await asyncio.wait_for(case.reached.wait(), PATIENCE)
    await elsewhere.intend_cancel("run", ttl=60.0)
    await stopped(case, task, manager, db)
    case.released.set()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["stream", "whole", "background"])
async def test_a_run_that_was_cancelled_before_it_began_says_nothing(
    family: str, kind: str, manager: LogCancellationManager, elsewhere: SQLiteEventLog, db: SqliteDb
) -> None:
    await elsewhere.intend_cancel("run", ttl=60.0)
    await eventually(lambda: manager.is_cancelled("run"))
    case = Case(family, kind, "talking", db=db, run_id="run")
    task = asyncio.create_task(case.play())
    await stopped(case, task, manager, db)
    assert not case.reached.is_set()
    assert await live(elsewhere) == []


async def test_a_member_alone_can_be_cancelled(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog, db: SqliteDb
) -> None:
    case = Case("team", "stream", "talking", db=db, run_id="run")
    task = asyncio.create_task(case.play())
    await asyncio.wait_for(case.reached.wait(), PATIENCE)
    (member,) = manager.get_member_run_ids("run")
    await elsewhere.intend_cancel(member, ttl=60.0)
    await ended(task)
    await until_idle(manager)
    assert manager.was_cancelled(member)
    assert await live(elsewhere) == []


async def test_members_are_cancelled_with_their_team(manager: LogCancellationManager) -> None:
    for run_id in ("team", "member", "nested"):
        manager.register_run(run_id)
    manager.register_member_run("team", "member")
    manager.register_member_run("member", "nested")
    await manager.acancel_run("team")
    assert all(map(manager.is_cancelled, ("team", "member", "nested")))
    manager.register_member_run("team", "late")
    assert manager.is_cancelled("late")
    assert manager.get_member_run_ids("team") == {"member", "late"}
    for run_id in ("nested", "member", "team"):
        await manager.acleanup_run(run_id)
    manager.cleanup_member_runs("team")
    assert manager.get_member_run_ids("team") == set()
    assert not any(map(manager.is_cancelled, ("team", "member", "nested", "late")))


async def test_a_run_goes_on_under_its_id_after_it_was_cancelled(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog, db: SqliteDb
) -> None:
    for _ in range(3):
        case = Case("agent", "stream", "talking", db=db, run_id="run")
        task = asyncio.create_task(case.play())
        await asyncio.wait_for(case.reached.wait(), PATIENCE)
        assert not manager.was_cancelled("run")
        await elsewhere.intend_cancel("run", ttl=60.0)
        await ended(task)
    assert await live(elsewhere) == []


async def test_who_cancelled_forgets_it_when_the_run_has_ended_elsewhere(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    async with LogCancellationManager(elsewhere) as other:
        manager.register_run("run")
        await other.acancel_run("run")
        assert other.is_cancelled("run")
        await eventually(lambda: manager.is_cancelled("run"))
        await manager.acleanup_run("run")
        await eventually(lambda: not other.is_cancelled("run"))
        manager.register_run("run")
        manager.raise_if_cancelled("run")


async def test_what_the_log_says_of_a_run_is_what_a_cancel_returns(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    assert not await manager.acancel_run("unknown")
    manager.register_run("here")
    assert await manager.acancel_run("here")
    await elsewhere.create(NewRun("stored"), lease=60.0)
    assert await manager.acancel_run("stored")
    assert (await elsewhere.get("stored")).cancel_requested_at is not None
    assert sorted(await live(elsewhere)) == ["here", "stored", "unknown"]


async def test_a_run_that_has_ended_in_the_log_gets_no_intent(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    await elsewhere.create(NewRun("run"), lease=60.0)
    await elsewhere.append("run", 1, [], status=RunStatus.COMPLETED)
    assert not await manager.acancel_run("run")
    assert not manager.is_cancelled("run")
    assert await live(elsewhere) == []


async def test_an_intent_runs_out(tmp_path: Path, elsewhere: SQLiteEventLog) -> None:
    async with LogCancellationManager(elsewhere, ttl=0.05) as manager:
        await manager.acancel_run("run")

        async def gone() -> bool:
            await manager.acancel_run("other")  # an intent leaves without a word: this has the intents read
            return not manager.is_cancelled("run")

        await eventually(gone)


async def test_an_id_that_no_run_can_have_is_no_error(manager: LogCancellationManager) -> None:
    for run_id in ("", "x" * 300, "\ud800"):
        assert not await manager.acancel_run(run_id)
        assert not manager.is_cancelled(run_id)


async def test_the_state_of_a_request_names_its_outermost_run(manager: LogCancellationManager) -> None:
    state: dict[str, Any] = {}
    token = request_owner.set(RequestOwner(Family.TEAM, "team", None, state))
    try:
        await manager.aregister_run("team")
        await manager.aregister_run("member")
    finally:
        request_owner.reset(token)
    await manager.aregister_run("other")
    assert state == {RUN_OF_REQUEST: "team"}


async def test_active_runs_are_those_of_this_process_and_the_cancelled_ones(manager: LogCancellationManager) -> None:
    await manager.aregister_run("running")
    await manager.aregister_run("stopping")
    await manager.acancel_run("stopping")
    await manager.acancel_run("unstarted")
    assert await manager.aget_active_runs() == {"running": False, "stopping": True, "unstarted": True}
    with pytest.raises(RunCancelledException, match="stopping"):
        await manager.araise_if_cancelled("stopping")
    await manager.araise_if_cancelled("running")
    assert await manager.ais_cancelled("unstarted")


# ---------------------------------------------------------------- what must not be cancelled hard


async def test_a_consumer_that_is_busy_with_something_else_is_left_alone(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    agent = Agent(model=ScriptedModel(script=["word "] * 100), telemetry=False)
    busy = Gate()
    seen: list[Any] = []

    async def consume() -> None:
        async for event in agent.arun("Go.", run_id="run", stream=True, stream_events=True):
            seen.append(event)
            if isinstance(event, RunContentEvent) and not busy.reached.is_set():
                await busy.pass_()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(busy.reached.wait(), PATIENCE)
    await elsewhere.intend_cancel("run", ttl=60.0)
    await eventually(lambda: manager.is_cancelled("run"))
    await asyncio.sleep(1.0)  # longer than three graces
    assert not task.done()
    busy.open()
    await asyncio.wait_for(task, PATIENCE)
    assert any(isinstance(event, RunCancelledEvent) for event in seen)
    await until_idle(manager)


async def test_a_task_that_has_left_the_run_is_left_alone(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    agent = Agent(model=ScriptedModel(script=["word "] * 100), telemetry=False)
    going_on = Gate()
    generators: list[Any] = []

    async def consume() -> None:
        generator = agent.arun("Go.", run_id="run", stream=True)
        generators.append(generator)
        async for _ in generator:
            break  # the generator is not closed: the run hangs in the air
        await going_on.pass_()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(going_on.reached.wait(), PATIENCE)
    await elsewhere.intend_cancel("run", ttl=60.0)
    await asyncio.sleep(1.0)  # longer than three graces
    assert manager.is_cancelled("run")
    assert not task.done()
    going_on.open()
    await task
    await generators[0].aclose()
    await until_idle(manager)


@pytest.mark.parametrize("family", FAMILIES)
async def test_what_takes_its_time_to_end_is_not_cancelled_twice(
    family: str, manager: LogCancellationManager, elsewhere: SQLiteEventLog, db: SqliteDb
) -> None:
    case = Case(family, "stream", "slow", db=db, run_id="run")
    task = asyncio.create_task(case.play())
    await asyncio.wait_for(case.reached.wait(), PATIENCE)
    await elsewhere.intend_cancel("run", ttl=60.0)
    await stopped(case, task, manager, db)
    assert case.cancellations == 1


async def test_each_leg_of_a_run_has_a_grace_of_its_own(elsewhere: SQLiteEventLog, db: SqliteDb) -> None:
    async with LogCancellationManager(elsewhere, grace=1.0) as manager:
        set_cancellation_manager(manager)
        manager.register_run("run")
        await manager.acancel_run("run")
        await asyncio.sleep(0.6)
        await manager.acleanup_run("run")
        case = Case("agent", "stream", "silent", db=db, run_id="run")
        task = asyncio.create_task(case.play())
        await asyncio.wait_for(case.reached.wait(), PATIENCE)
        began = asyncio.get_running_loop().time()
        await manager.acancel_run("run")
        await stopped(case, task, manager, db)
        assert asyncio.get_running_loop().time() - began >= 0.99  # never sooner; how much later is no test's business


async def test_without_a_grace_nothing_is_cancelled_hard(elsewhere: SQLiteEventLog, db: SqliteDb) -> None:
    async with LogCancellationManager(elsewhere, grace=None) as manager:
        set_cancellation_manager(manager)
        case = Case("agent", "stream", "silent", db=db, run_id="run")
        task = asyncio.create_task(case.play())
        await asyncio.wait_for(case.reached.wait(), PATIENCE)
        await manager.acancel_run("run")
        await asyncio.sleep(0.3)
        assert not task.done()
        case._gate.open()
        await ended(task)
        assert await row_status(db, case) == "CANCELLED"


# ---------------------------------------------------------------- threads, loops, lifetime


async def test_a_synchronous_run_in_a_thread_is_cancelled_from_elsewhere(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    agent = Agent(model=ScriptedModel(script=["word "] * 3_000, delay=0.005), telemetry=False)
    talking = threading.Event()
    seen: list[Any] = []

    def run() -> None:
        for event in agent.run("Go.", run_id="run", stream=True, stream_events=True):
            seen.append(event)
            if isinstance(event, RunContentEvent):
                talking.set()

    task = asyncio.create_task(asyncio.to_thread(run))
    assert await asyncio.to_thread(talking.wait, PATIENCE)
    await elsewhere.intend_cancel("run", ttl=60.0)
    await asyncio.wait_for(task, PATIENCE)
    assert any(isinstance(event, RunCancelledEvent) for event in seen)
    await until_idle(manager)

    async def clean() -> bool:
        return await live(elsewhere) == []

    await eventually(clean)


async def test_a_cancel_from_a_thread_has_reached_the_log_when_it_returns(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    await elsewhere.create(NewRun("stored"), lease=60.0)
    assert await asyncio.to_thread(manager.cancel_run, "stored")
    assert not await asyncio.to_thread(manager.cancel_run, "unknown")
    assert sorted(await live(elsewhere)) == ["stored", "unknown"]


async def test_a_synchronous_cancel_in_the_loops_own_thread_reaches_the_log(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    assert not manager.cancel_run("run")
    assert manager.is_cancelled("run")

    async def stored() -> bool:
        return await live(elsewhere) == ["run"]

    await eventually(stored)


async def test_another_event_loop_uses_the_link_of_the_first(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog
) -> None:
    async def cancel() -> None:
        manager.register_run("run")
        assert await manager.acancel_run("run")
        with pytest.raises(RunCancelledException):
            await manager.araise_if_cancelled("run")

    async def cleanup() -> None:
        await manager.acleanup_run("run")

    await asyncio.to_thread(asyncio.run, cancel())
    assert await live(elsewhere) == ["run"]
    await asyncio.to_thread(asyncio.run, cleanup())

    async def clean() -> bool:
        return await live(elsewhere) == []

    await eventually(clean)


async def test_a_silent_run_in_another_event_loop_is_cancelled_hard(
    manager: LogCancellationManager, elsewhere: SQLiteEventLog, db: SqliteDb
) -> None:
    silent = threading.Event()

    async def play() -> None:
        case = Case("agent", "stream", "silent", db=db, run_id="run")
        task = asyncio.create_task(case.play())
        await case.reached.wait()
        silent.set()
        await stopped(case, task, manager, db)

    thread = asyncio.create_task(asyncio.to_thread(asyncio.run, play()))
    assert await asyncio.to_thread(silent.wait, PATIENCE)
    await elsewhere.intend_cancel("run", ttl=60.0)
    await asyncio.wait_for(thread, PATIENCE)


def test_it_begins_by_itself_in_each_event_loop(tmp_path: Path) -> None:
    manager = LogCancellationManager(f"sqlite:///{tmp_path}/runs.db")

    async def use(run_id: str) -> list[str]:
        manager.register_run(run_id)
        await manager.acancel_run(run_id)
        async with SQLiteEventLog(tmp_path / "runs.db") as log:
            return await live(log)

    assert asyncio.run(use("first")) == ["first"]
    assert sorted(asyncio.run(use("second"))) == ["first", "second"]

    async def close() -> None:
        await manager.acleanup_run("first")
        await manager.aclose()
        async with SQLiteEventLog(tmp_path / "runs.db") as log:
            assert await live(log) == ["second"]

    asyncio.run(close())


def test_where_no_loop_runs_a_cancel_is_remembered_and_stored_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = LogCancellationManager(f"sqlite:///{tmp_path}/runs.db")
    manager.register_run("run")
    assert manager.cancel_run("run")
    assert not manager.cancel_run("ended")
    manager.cleanup_run("ended")
    assert "only known to this process" in caplog.text
    with pytest.raises(RunCancelledException):
        manager.raise_if_cancelled("run")

    async def later() -> None:
        async with manager, SQLiteEventLog(tmp_path / "runs.db") as log:

            async def stored() -> bool:
                return await live(log) == ["run"]

            await eventually(stored)

    asyncio.run(later())


async def test_nothing_is_left_when_it_closes(tmp_path: Path) -> None:
    tasks = asyncio.all_tasks()
    threads = threading.active_count()
    manager = LogCancellationManager(f"sqlite:///{tmp_path}/runs.db")
    async with manager:
        manager.register_run("run")
        await manager.acancel_run("run")
        with pytest.raises(RunCancelledException):
            manager.raise_if_cancelled("run")
    assert asyncio.all_tasks() == tasks
    assert threading.active_count() == threads
    assert manager.is_cancelled("run")  # what is known still answers, and begins nothing anew
    assert not await manager.acancel_run("late")
    assert manager.is_cancelled("late")
    await manager.acleanup_run("run")
    manager.cleanup_run("late")
    assert asyncio.all_tasks() == tasks
    assert "runs=0" in repr(manager)


async def test_it_uses_the_log_of_an_event_stream_and_leaves_it_open() -> None:
    async with LogEventStream(MemoryEventLog()) as stream:
        log = await stream.log()
        async with LogCancellationManager(stream) as manager:
            await manager.acancel_run("run")
            assert list((await log.intents()).run_ids) == ["run"]
        assert log.is_open
    lazy = LogCancellationManager(stream)
    lazy.register_run("run")  # opens the stream's log again, as any use of the stream does
    await lazy.acancel_run("run")
    await lazy.aclose()
    await stream.aclose()


async def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable):
        await LogCancellationManager(f"sqlite:///{tmp_path}/missing/runs.db").__aenter__()
    lazy = LogCancellationManager(f"sqlite:///{tmp_path}/missing/runs.db")
    lazy.register_run("run")
    with pytest.raises(LogUnavailable, match="'run' was cancelled in this process"):
        await lazy.acancel_run("run")
    assert lazy.is_cancelled("run")
    await lazy.aclose()


class Away(MemoryEventLog):
    """A log whose store is away at times."""

    away = False

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        self._check()
        await super().intend_cancel(run_id, ttl=ttl)

    async def drop_intent(self, run_id: str) -> None:
        self._check()
        await super().drop_intent(run_id)

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        self._check()
        return await super().intents(version, timeout=timeout, limit=limit)

    def _check(self) -> None:
        if self.away:
            raise LogUnavailable("The store is away.")


async def test_while_the_store_is_away_a_cancel_counts_here_and_is_told_later() -> None:
    async with Away() as log, LogCancellationManager(log) as manager:
        manager.register_run("run")
        await manager.acancel_run("ended")
        log.away = True
        with pytest.raises(LogUnavailable, match="when the log answers again"):
            await manager.acancel_run("run")
        with pytest.raises(LogUnavailable):
            await asyncio.to_thread(manager.cancel_run, "run")
        await manager.acleanup_run("ended")
        with pytest.raises(RunCancelledException):
            manager.raise_if_cancelled("run")
        assert not manager.is_cancelled("ended")
        log.away = False

        async def told() -> bool:
            return await live(log) == ["run"]

        await eventually(told)
        assert manager.is_cancelled("run")
        assert not manager.is_cancelled("ended")


# ---------------------------------------------------------------- the book


def test_a_read_that_began_before_a_write_was_confirmed_says_nothing_of_its_run() -> None:
    book = IntentBook(60.0)
    book.mark("run")
    early = book.reading()
    book.stored("run")
    assert book.read(early, []) == ([], True)
    assert book.live == {"run"}
    assert book.read(book.reading(), ["run"]) == ([], False)
    assert book.forget("run")
    assert book.read(book.reading(), ["run"]) == ([], False)  # the drop is on its way
    assert not book.live
    early = book.reading()
    book.dropped("run")
    assert book.read(early, ["run"]) == ([], True)
    assert not book.live
    assert book.read(book.reading(), ["run"]) == (["run"], False)  # cancelled anew by another
    assert book.live == {"run"}


def test_what_was_dropped_elsewhere_is_cancelled_here_no_more() -> None:
    book = IntentBook(60.0)
    book.mark("run")
    book.stored("run")
    assert book.read(book.reading(), []) == ([], False)
    assert not book.live
    assert not book.forget("run")


def test_an_intent_that_the_log_never_took_runs_out() -> None:
    book = IntentBook(0.0)
    book.mark("run")
    book.failed("run")
    book.mark("other")
    assert book.live == {"other"}
