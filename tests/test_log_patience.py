"""How long a server may take to answer: not the time in which nobody could have heard it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agno_resumable.log import patience
from agno_resumable.log.patience import Patience
from agno_resumable.log.protocol import EventLog
from agno_resumable.log.redis import RedisEventLog
from agno_resumable.model import NewRun
from agno_resumable.testing.contract import event, turns

from .postgres_server import PostgresServer
from .redis_server import RedisServer
from .support import eventually

pytestmark = pytest.mark.anyio

LOOPS = {"asyncio": ("asyncio", {"use_uvloop": False}), "uvloop": ("asyncio", {"use_uvloop": True})}


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return LOOPS[request.param]


async def test_what_takes_longer_is_late_and_what_is_over_is_not() -> None:
    late: list[str] = []
    over = Patience(0.02, lambda: late.append("over"))
    with over:
        pass
    longer = Patience(0.02, lambda: late.append("longer"))
    with longer:
        await anyio.sleep(0.2)
    assert (late, longer.lost, over.lost) == (["longer"], True, False)


async def test_a_loop_that_was_blocked_hears_first_what_has_come() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    waiting = Patience(0.1, writer.transport.abort)
    with theirs, waiting:
        reading = asyncio.create_task(reader.readexactly(6))
        await anyio.sleep(0.02)
        theirs.sendall(b"answer")
        time.sleep(0.4)  # noqa: ASYNC251 - this is what is tried
        assert await reading == b"answer"
        assert not waiting.lost
    writer.close()
    await writer.wait_closed()


async def test_a_loop_that_is_always_late_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_BLOCKED", -1.0)
    monkeypatch.setattr(patience, "_MOMENT", 0.001)
    waiting = Patience(0.001, lambda: None)
    with waiting:
        await eventually(lambda: waiting.lost)


async def blocked(open_log: Callable[[], EventLog]) -> None:
    """Nothing of what a log does fails because the loop stood still for longer than the server may take."""
    for turns_before in (1, 3, 8):
        async with open_log() as log:  # with connections that are not made yet
            for result in (
                log.create(NewRun("run"), lease=600),
                log.append("run", 1, [event(0)]),
                log.get("run"),
            ):
                call = asyncio.create_task(result)
                await turns(turns_before)
                time.sleep(0.3)  # noqa: ASYNC251 - this is what is tried
                await call
            assert (await log.read("run")).last == 0


async def test_a_blocked_loop_costs_the_postgres_log_nothing(postgres: PostgresServer) -> None:
    await blocked(lambda: postgres.open(timeout=0.15))


async def test_a_blocked_loop_costs_the_redis_log_nothing(redis_server: RedisServer) -> None:
    await blocked(lambda: RedisEventLog(redis_server.url, prefix=f"patience-{time.monotonic_ns()}", timeout=0.15))
