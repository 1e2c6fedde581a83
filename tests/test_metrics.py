"""``MeteredEventLog``: a log like the one inside, and an observer that can do it no harm."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from agno_resumable import (
    EncodedEvent,
    EventLog,
    EventTooLarge,
    LogCall,
    LogClosed,
    LogUnavailable,
    MemoryEventLog,
    MeteredEventLog,
    NewRun,
    Page,
    ResumableStream,
    RunNotFound,
    RunStatus,
    SQLiteEventLog,
    open_log,
)
from agno_resumable.testing import Check, event_log_checks

from .broken_logs import Wrapped
from .postgres_server import PostgresServer
from .redis_server import RedisServer
from .support import Gate, scripted_agent
from .test_log_contract import SQLiteStore, named

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def event(text: str) -> EncodedEvent:
    return EncodedEvent("RunContent", b'{"content":"%b"}' % text.encode())


def ignore(call: LogCall) -> None:
    """An observer that does nothing."""


def told(calls: Sequence[LogCall]) -> list[tuple[str, int, int]]:
    return [(call.operation, call.events, call.size) for call in calls]


# ---------------------------------------------------------------- it is a log


class Metered:
    """Metered logs, with an observer that fails: nothing of what is checked may depend on it."""

    @staticmethod
    def observe(call: LogCall) -> None:
        raise RuntimeError("no metrics today")

    @classmethod
    def memory(cls, *, max_run_bytes: int = 67_108_864, max_event_bytes: int = 8_388_608) -> MeteredEventLog:
        inner = MemoryEventLog(max_run_bytes=max_run_bytes, max_event_bytes=max_event_bytes)
        return MeteredEventLog(inner, cls.observe)

    def __init__(self, directory: Path) -> None:
        self.files = SQLiteStore(directory)

    def sqlite(self, *, max_run_bytes: int = 67_108_864, max_event_bytes: int = 8_388_608) -> MeteredEventLog:
        inner = self.files.open(max_run_bytes=max_run_bytes, max_event_bytes=max_event_bytes)
        return MeteredEventLog(inner, self.observe)

    def reopen(self, log: EventLog) -> MeteredEventLog:
        assert isinstance(log, MeteredEventLog)
        return MeteredEventLog(self.files.reopen(log.inner), self.observe)


@pytest.mark.parametrize("check", [check for check in event_log_checks() if check.needs != "reopen"], ids=named)
async def test_a_metered_log_in_memory_keeps(check: Check) -> None:
    await check.run(Metered.memory, limited=Metered.memory)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_a_metered_sqlite_log_keeps(check: Check, tmp_path: Path) -> None:
    store = Metered(tmp_path)
    await check.run(store.sqlite, reopen=store.reopen, limited=store.sqlite)


async def test_it_is_open_and_durable_as_the_log_inside_and_has_its_counters(tmp_path: Path) -> None:
    inner = SQLiteEventLog(tmp_path / "runs.db")
    log = MeteredEventLog(inner, ignore)
    async with log as entered:
        assert entered is log
        assert isinstance(log, EventLog)
        assert [log.is_open, inner.is_open] == [True, True]
        assert log.durability is inner.durability
        await log.create(NewRun("run"), lease=60.0)
        assert log.stats() == inner.stats()
        assert log.stats()["commits"] == 1
    assert [log.is_open, inner.is_open] == [False, False]
    assert repr(inner) in repr(log)


async def test_whoever_has_opened_the_log_closes_it() -> None:
    """A supervisor enters what is not open, and leaves alone what is."""
    inner = MemoryEventLog()
    async with inner:
        log = MeteredEventLog(inner, ignore)
        stream = ResumableStream(scripted_agent("a"), log=log)
        async with stream:
            await stream.wait((await stream.start("hello")).run_id)
        assert inner.is_open
    async with ResumableStream(scripted_agent("a"), log=log):
        assert inner.is_open
    assert not inner.is_open


async def check_counters(log: EventLog) -> None:
    """Those of one opening begin at 0, also where the log has been open before."""
    for number in range(2):
        async with log:
            assert [log.stats()[name] for name in ("commits", "appends", "events")] == [0, 0, 0]
            await log.create(NewRun(f"run-{number}"), lease=60.0)
            await log.append(f"run-{number}", 1, [event("one"), event("two")])
            assert [log.stats()[name] for name in ("commits", "appends", "events")] == [2, 1, 2]


@pytest.mark.parametrize("url", ["memory:", "sqlite:///{}"])
async def test_counters_begin_anew_with_each_opening(url: str, tmp_path: Path) -> None:
    await check_counters(open_log(url.format(tmp_path / "runs.db")))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_counters_of_postgres_begin_anew_with_each_opening(postgres: PostgresServer) -> None:
    await check_counters(postgres.open())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_counters_of_redis_begin_anew_with_each_opening(redis_server: RedisServer, tmp_path: Path) -> None:
    await check_counters(open_log(f"{redis_server.url}?prefix={tmp_path.name}"))


# ---------------------------------------------------------------- what is told


async def test_an_observer_is_told_of_each_call_with_its_events_and_bytes() -> None:
    calls: list[LogCall] = []
    async with MeteredEventLog(MemoryEventLog(), calls.append) as log:
        await log.create(NewRun("run"), lease=60.0)
        await log.append("run", 1, [event("one"), event("three")])
        await log.append("run", 1, [event("five")], status=RunStatus.COMPLETED)
        await log.read("run", 0)
        await log.read("run", 2)
        await log.prune(finished_before=0.0)
    sizes = [len(event(text).data) for text in ("one", "three", "five")]
    assert told(calls) == [
        ("open", 0, 0),
        ("create", 0, 0),
        ("append", 2, sizes[0] + sizes[1]),
        ("append", 1, sizes[2]),
        ("read", 2, sizes[1] + sizes[2]),
        ("read", 0, 0),
        ("prune", 0, 0),
        ("close", 0, 0),
    ]
    assert all(call.error is None and 0 <= call.seconds < 10 for call in calls)


async def test_every_operation_of_a_log_is_told_by_its_name() -> None:
    calls: list[LogCall] = []
    async with MeteredEventLog(MemoryEventLog(), calls.append) as log:
        await log.create(NewRun("run"), lease=60.0)
        await log.get("run")
        await log.claim("run", lease=60.0)
        await log.append("run", 2, [event("one")])
        await log.read("run")
        await log.wait("run", 0, timeout=0.0)
        await log.wait_cancel("run", timeout=0.0)
        await log.renew([("run", 2)], lease=60.0)
        await log.request_cancel("run")
        await log.intend_cancel("other", ttl=60.0)
        await log.intents()
        await log.drop_intent("other")
        await log.list()
        await log.trim("run", before=1)
        await log.expire(lease=60.0)
        await log.now()
        await log.prune(finished_before=0.0)
        await log.delete("run")
    names = {name for name in dir(EventLog) if not name.startswith("_")} - {"durability", "is_open", "stats"}
    assert {call.operation for call in calls} == {"open", "close", *names}
    assert len(calls) == len(names) + 2


async def test_a_call_that_fails_is_told_with_its_error_and_raises_it() -> None:
    calls: list[LogCall] = []
    inner = MemoryEventLog(max_event_bytes=20)
    async with MeteredEventLog(inner, calls.append) as log:
        await log.create(NewRun("run"), lease=60.0)
        with pytest.raises(EventTooLarge):
            await log.append("run", 1, [event("x" * 20)])
        with pytest.raises(RunNotFound):
            await log.read("no-such-run")
        with pytest.raises(RunNotFound):
            await log.get("no-such-run")
    with pytest.raises(LogClosed):
        await log.read("run")
    failed = [(call.operation, call.events, call.size, call.error) for call in calls if call.error]
    assert failed == [
        ("append", 0, 0, EventTooLarge),
        ("read", 0, 0, RunNotFound),
        ("get", 0, 0, RunNotFound),
        ("read", 0, 0, LogClosed),
    ]


async def test_a_log_that_cannot_be_opened_is_told_and_is_not_open(tmp_path: Path) -> None:
    calls: list[LogCall] = []
    log = MeteredEventLog(SQLiteEventLog(tmp_path / "no" / "such" / "directory.db"), calls.append)
    with pytest.raises(LogUnavailable):
        await log.__aenter__()
    assert [(call.operation, call.error) for call in calls] == [("open", LogUnavailable)]
    assert not log.is_open


class Slow(Wrapped):
    """Stops before it stores, and before it reads, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = anyio.Event()

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        await self.go_on.wait()
        return await super().append(run_id, generation, events, status=status, transcript=transcript)

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        await self.go_on.wait()
        return await super().read(run_id, after, limit=limit, max_bytes=max_bytes)


async def test_a_call_that_is_cancelled_is_told_as_that_and_stays_cancelled() -> None:
    calls: list[LogCall] = []
    async with MeteredEventLog(Slow(), calls.append) as log:
        await log.create(NewRun("run"), lease=60.0)
        endless: list[Callable[[], Awaitable[object]]] = [
            lambda: log.append("run", 1, [event("lost")]),
            lambda: log.read("run"),
            lambda: log.wait("run", 1, timeout=60.0),
        ]
        for work in endless:
            with anyio.move_on_after(0.01) as scope:
                await work()
            assert scope.cancelled_caught
        assert log.stats()["waiters"] == 0
    cancelled = [call for call in calls if call.error is not None]
    assert [call.operation for call in cancelled] == ["append", "read", "wait"]
    for call in cancelled:
        assert call.error is not None
        assert issubclass(call.error, anyio.get_cancelled_exc_class())
        assert not issubclass(call.error, Exception)
        assert call.seconds > 0


async def test_what_a_call_took_is_what_its_caller_has_waited() -> None:
    calls: list[LogCall] = []
    inner = Slow()
    async with MeteredEventLog(inner, calls.append) as log:
        await log.create(NewRun("run"), lease=60.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, "run", 1, [event("one")])
            await anyio.sleep(0.05)
            assert [call.operation for call in calls] == ["open", "create"]  # not before it is over
            inner.go_on.set()
    (append,) = [call for call in calls if call.operation == "append"]
    assert 0.04 < append.seconds < 10
    assert append.events == 1


async def test_a_metered_log_adds_no_turn_of_the_event_loop() -> None:
    """What a log in memory does in one step stays one step: nobody else runs between the call and its return."""
    async with MeteredEventLog(MemoryEventLog(), ignore) as log:
        coroutine = log.create(NewRun("run"), lease=60.0)
        with pytest.raises(StopIteration) as done:
            coroutine.send(None)
        assert done.value.value.run_id == "run"
        with pytest.raises(StopIteration) as done:
            log.append("run", 1, [event("one")]).send(None)
        assert done.value.value == 1


# ---------------------------------------------------------------- an observer that fails


async def test_what_an_observer_raises_is_logged_once_and_costs_nobody_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []

    def observe(call: LogCall) -> None:
        seen.append(call.operation)
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "agno_resumable"):
        async with MeteredEventLog(MemoryEventLog(), observe) as log:
            await log.create(NewRun("run"), lease=60.0)
            assert await log.append("run", 1, [event("one")]) == 1
            assert len((await log.read("run")).events) == 1
            with pytest.raises(RunNotFound):
                await log.get("no-such-run")
    assert seen == ["open", "create", "append", "read", "get", "close"]
    (record,) = caplog.records
    assert record.name == "agno_resumable.log"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


# ---------------------------------------------------------------- runs and readers


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stream_tells_how_many_runs_it_produces_and_who_reads_them() -> None:
    gate = Gate()
    stream = ResumableStream(scripted_agent("a", gate.pass_, "b"), log=MeteredEventLog(MemoryEventLog(), ignore))
    assert stream.stats() == {"active": 0, "readers": 0}
    async with stream:
        assert stream.stats() == {"active": 0, "readers": 0}
        run = await stream.start("hello")
        await gate.reached.wait()
        assert stream.stats() == {"active": 1, "readers": 0}

        read: list[str] = []

        async def reader(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async for found in stream.events(run.run_id):
                if not read:
                    task_status.started()
                read.append(found.type)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                read.clear()
                await tasks.start(reader)
            assert stream.stats() == {"active": 1, "readers": 2}
            gate.open()
        await stream.wait(run.run_id)
        while stream.stats()["active"]:  # the producer's task ends a moment behind its run
            await anyio.lowlevel.checkpoint()
        assert stream.stats() == {"active": 0, "readers": 0}
