"""What the bridge opens lies around the application's own lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.types import Message
from typing_extensions import Self

from agno_resumable import MemoryEventLog
from agno_resumable.agentos import AgentOSBridge, LogEventStream
from agno_resumable.agentos.lifespan import serve_lifespan
from agno_resumable.errors import LogUnavailable

from ..support import server_thread

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Resource:
    def __init__(self, told: list[str], name: str, error: Exception | None = None) -> None:
        self._told = told
        self._name = name
        self._error = error

    async def __aenter__(self) -> Self:
        if self._error is not None:
            raise self._error
        self._told.append(f"{self._name} opens")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._told.append(f"{self._name} closes")


def application(told: list[str], error: Exception | None = None) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        told.append("application starts")
        if error is not None:
            raise error
        yield
        told.append("application ends")

    return Starlette(lifespan=lifespan)


async def lived(app: Any, resources: list[Any], told: list[str]) -> None:
    """A server that starts and stops the application at once."""

    async def receive() -> Message:
        return {"type": "lifespan.shutdown" if told and told[-1].endswith("complete") else "lifespan.startup"}

    async def send(message: Message) -> None:
        told.append(message["type"])

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    with anyio.fail_after(10):
        await serve_lifespan(app, scope, receive, send, resources)


async def test_resources_are_open_around_the_applications_own_start_and_end() -> None:
    told: list[str] = []
    await lived(application(told), [Resource(told, "stream"), Resource(told, "cancellation")], told)
    assert told == [
        "stream opens",
        "cancellation opens",
        "application starts",
        "lifespan.startup.complete",
        "application ends",
        "cancellation closes",
        "stream closes",
        "lifespan.shutdown.complete",
    ]


async def test_a_store_that_is_away_fails_the_start() -> None:
    told: list[str] = []
    resources = [Resource(told, "stream"), Resource(told, "cancellation", LogUnavailable("The store is away."))]
    await lived(application(told), resources, told)
    assert told == ["stream opens", "stream closes", "lifespan.startup.failed"]


async def test_a_start_of_the_applications_that_fails_leaves_nothing_open() -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError, match="on purpose"):
        await lived(application(told, RuntimeError("on purpose")), [Resource(told, "stream")], told)
    assert told == ["stream opens", "application starts", "stream closes", "lifespan.startup.failed"]


async def test_the_log_is_open_while_the_server_runs_and_closed_behind_it() -> None:
    log = MemoryEventLog()
    opened: list[bool] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        opened.append(log.is_open)
        yield
        opened.append(log.is_open)

    with server_thread(AgentOSBridge(Starlette(lifespan=lifespan), stream=LogEventStream(log))):
        assert log.is_open
    assert opened == [True, True]
    assert not log.is_open
