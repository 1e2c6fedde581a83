"""Two replicas of one application behind a balancer, while one or the other is being killed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from types import TracebackType

import anyio
import pytest

from agno_resumable import MemoryEventLog, ResumableStream, RunStatus, open_log

from .postgres_server import PostgresServer
from .support import PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def postgres_url(server: PostgresServer) -> str:
    """The URL of a log that nobody has used."""
    return f"{server.url}{'&' if '?' in server.url else '?'}schema={server.schema()}"


# ---------------------------------------------------------------- a process that stops


async def speak(input: str) -> AsyncIterator[str]:
    yield input


async def test_a_process_with_its_log_in_postgresql_stops_when_it_is_asked_to(postgres: PostgresServer) -> None:
    with anyio.fail_after(PATIENCE):
        async with ResumableStream(speak, log=postgres_url(postgres)) as stream:
            run = await stream.start("word")
            assert (await stream.wait(run.run_id)).status is RunStatus.COMPLETED


async def test_a_log_in_postgresql_can_be_closed_within_any_scope_and_by_any_task(postgres: PostgresServer) -> None:
    log = open_log(postgres_url(postgres))
    with anyio.fail_after(PATIENCE):
        await log.__aenter__()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.__aexit__, None, None, None)
        await log.__aenter__()
        with anyio.CancelScope(shield=True):
            await log.__aexit__(None, None, None)
    assert not log.is_open


async def test_a_log_that_cannot_be_closed_keeps_no_process_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    class Jammed(MemoryEventLog):
        async def __aexit__(
            self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
        ) -> None:
            await super().__aexit__(exc_type, exc, tb)
            raise ConnectionError("jammed")

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(speak, log=Jammed()) as stream:
            await stream.wait((await stream.start("word")).run_id)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "the log could not be closed"
    ]
