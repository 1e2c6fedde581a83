"""``EventStreamResponse`` over sockets: silence, cycling, gaps, pauses, drain, outages, stalled clients."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agno_resumable import (
    EncodedEvent,
    EventStreamResponse,
    Family,
    LogUnavailable,
    MemoryEventLog,
    NewRun,
    Page,
    ResumableStream,
    RunStatus,
    drain,
)

from .support import HOST, PATIENCE, eventually, http, open_stream, receive, server_process, server_thread

pytestmark = pytest.mark.anyio

RUN = "run"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class App:
    """One run in a memory log, written to by requests, and read with the options of a test."""

    def __init__(self, log: MemoryEventLog | None = None, **options: Any) -> None:
        self.log = log or MemoryEventLog()
        self.options = options
        self.ended = threading.Event()
        self.app = Starlette(
            routes=[
                Route("/events", self.events, methods=["GET", "POST"]),
                Route("/write", self.write, methods=["POST"]),
                Route("/drain", self.drain, methods=["POST"]),
            ],
            lifespan=self.lifespan,
        )

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        async with self.log:
            await self.log.create(NewRun(RUN), lease=600)
            yield

    async def events(self, request: Request) -> Response:
        response = EventStreamResponse(
            self.log,
            RUN,
            int(request.query_params.get("after", "-1")),
            persistent=request.method == "GET",
            **self.options,
        )
        ended = self.ended

        class Watched(Response):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                try:
                    await response(scope, receive, send)
                finally:
                    ended.set()

        return Watched()

    async def write(self, request: Request) -> Response:
        asked = await request.json()
        run = (await self.log.read(RUN, limit=0)).run
        generation = run.generation
        if asked.get("claim"):
            generation = (await self.log.claim(RUN, lease=600)).generation
        size = asked.get("size", 1)
        events = [EncodedEvent("RunContent", b'{"content":"%b"}' % (b"x" * size))] * asked.get("events", 0)
        status = RunStatus(asked["status"]) if asked.get("status") else None
        index = await self.log.append(RUN, generation, events, status=status)
        if asked.get("trim"):
            await self.log.trim(RUN, before=asked["trim"])
        return JSONResponse(index)

    async def drain(self, request: Request) -> Response:
        drain()
        return JSONResponse(None)


@asynccontextmanager
async def served(app: App) -> AsyncIterator[httpx.AsyncClient]:
    with server_thread(app.app) as address:
        async with http(address) as client:
            with anyio.fail_after(PATIENCE):
                yield client


async def test_silence_is_broken_by_a_comment_of_one_line_and_no_blank_one() -> None:
    async with served(App(heartbeat=0.05)) as client:
        await client.post("/write", json={"events": 1})
        async with client.stream("GET", "/events") as response:
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if body.count(b": hb\n") == 3:
                    break
    assert body.endswith(b"id: run:0\n\n: hb\n: hb\n: hb\n")


async def test_each_connection_is_told_another_time_to_come_back_after() -> None:
    async with served(App(retry_ms=3000)) as client:
        await client.post("/write", json={"events": 1, "status": "COMPLETED"})
        told = []
        for _ in range(12):
            body = (await client.get("/events")).content
            first = body.split(b"\n\n")[0]
            assert first.startswith(b"retry: ")
            told.append(int(first.removeprefix(b"retry: ")))
    assert len(set(told)) > 3
    assert all(1000 <= time <= 3000 for time in told)


async def test_a_get_connection_is_cycled_with_a_clean_end_and_a_post_is_not() -> None:
    async with served(App(max_age=0.1, heartbeat=0.05)) as client:
        await client.post("/write", json={"events": 2})
        cycled = await receive(client, "GET", "/events")
        assert [frame.event for frame in cycled.frames] == ["RunContent", "RunContent", "disconnecting"]
        goodbye = json.loads(cycled.frames[-1].data)
        assert goodbye["reason"] == "cycle"
        assert 1000 <= goodbye["retry_ms"] <= 3000
        assert cycled.complete
        async with open_stream(client, "POST", "/events") as posted:
            await posted.__anext__()
            await posted.__anext__()
            await anyio.sleep(0.4)
            await client.post("/write", json={"events": 1, "status": "COMPLETED"})
            rest = [frame.event async for frame in posted]
    assert rest == ["RunContent", "end"]
    assert posted.complete


async def test_a_gap_comes_first_and_the_end_last_and_neither_moves_the_cursor() -> None:
    async with served(App()) as client:
        for _ in range(5):
            await client.post("/write", json={"events": 1})
        await client.post("/write", json={"events": 1, "trim": 3, "status": "COMPLETED"})
        stream = await receive(client, "GET", "/events")
        names = [frame.event for frame in stream.frames]
        assert names == ["gap", *["RunContent"] * 3, "end"]
        assert json.loads(stream.frames[0].data) == {
            "requested": 0,
            "first_available": 3,
            "missed": 3,
            "reason": "trimmed",
        }
        assert json.loads(stream.frames[-1].data) == {"status": "COMPLETED", "last_event_index": 5}
        assert stream.last_event_id == "run:5"
        assert b"event: gap\ndata:{" in stream.body
        ahead = await receive(client, "GET", "/events?after=99")
    assert json.loads(ahead.frames[0].data)["reason"] == "ahead"
    assert len(ahead.events) == 3


async def test_a_paused_run_ends_a_post_and_keeps_a_get_for_its_next_leg() -> None:
    async with served(App(heartbeat=0.05)) as client:
        await client.post("/write", json={"events": 1, "status": "PAUSED"})
        posted = await receive(client, "POST", "/events")
        assert [frame.event for frame in posted.frames] == ["RunContent", "paused"]
        assert posted.complete
        async with open_stream(client, "GET", "/events") as stream:
            paused = await stream.until("paused")
            assert json.loads(paused.data) == {"status": "PAUSED", "last_event_index": 0}
            await client.post("/write", json={"events": 1, "claim": True, "status": "COMPLETED"})
            rest = [frame.event async for frame in stream]
    assert rest == ["RunContent", "end"]


async def test_at_the_drain_a_get_ends_cleanly_and_a_post_is_broken_off() -> None:
    async with served(App()) as client:
        await client.post("/write", json={"events": 1})
        async with open_stream(client, "GET", "/events") as get, open_stream(client, "POST", "/events") as post:
            await get.until("RunContent")
            await post.until("RunContent")
            await client.post("/drain")
            for stream in (get, post):
                goodbye = [frame async for frame in stream]
                assert [frame.event for frame in goodbye] == ["disconnecting"]
                assert json.loads(goodbye[0].data)["reason"] == "drain"
        assert (get.complete, get.broken) == (True, False)
        assert (post.complete, post.broken) == (False, True)
        late = await receive(client, "GET", "/events")
        assert [frame.event for frame in late.frames] == ["disconnecting"]


class Failing(MemoryEventLog):
    """The memory log, whose reads fail while ``away`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        if self.away:
            raise LogUnavailable("away")
        return await super().read(run_id, after, limit=limit, max_bytes=max_bytes)


async def test_a_store_that_goes_away_ends_a_get_and_breaks_a_post_and_both_are_told() -> None:
    log = Failing()
    async with served(App(log, heartbeat=0.05)) as client:
        await client.post("/write", json={"events": 1})
        async with open_stream(client, "GET", "/events") as get, open_stream(client, "POST", "/events") as post:
            await get.until("RunContent")
            await post.until("RunContent")
            log.away = True
            for stream in (get, post):
                assert [frame.event async for frame in stream] == ["disconnecting"]
        late_get = await receive(client, "GET", "/events")
        late_post = await receive(client, "POST", "/events")
    assert (get.complete, post.broken) == (True, True)
    for stream in (late_get, late_post):
        assert stream.status == 200
        assert [frame.event for frame in stream.frames] == ["disconnecting"]
        assert json.loads(stream.frames[0].data)["reason"] == "unavailable"
    assert late_get.complete
    assert late_post.broken


async def test_a_store_that_is_away_at_the_request_makes_eventsource_come_again() -> None:
    log = Failing()
    stream = ResumableStream(_ready, log=log, component_id="c", family=Family.AGENT)
    async with log, stream:
        run = await stream.wait((await stream.start("Go.")).run_id)
        log.away = True
        scope = {"type": "http", "method": "GET", "headers": [], "query_string": b"", "path": "/"}
        answer = await stream.response(Request(scope), run.run_id)
        assert answer.status_code == 200
        assert bytes(answer.body).startswith(b"retry: 2000\n\nevent: disconnecting\n")
        answer = await stream.response(Request({**scope, "method": "POST"}), run.run_id)
        assert answer.status_code == 503


async def _ready(input: str) -> AsyncIterator[str]:
    yield "a"


# ---------------------------------------------------------------- clients that do not read, and that go


def connect(address: str) -> socket.socket:
    """A client that asks for the stream and reads nothing of it."""
    port = int(address.rpartition(":")[2])
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((HOST, port))
    client.sendall(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
    return client


async def test_a_client_that_does_not_read_is_given_up_after_the_send_timeout() -> None:
    app = App(send_timeout=0.2)
    with server_thread(app.app) as address:
        async with http(address) as client:
            for _ in range(24):
                await client.post("/write", json={"events": 1, "size": 1_000_000})
            stalled = connect(address)
            try:
                await anyio.to_thread.run_sync(app.ended.wait, PATIENCE)
                assert app.ended.is_set()
            finally:
                stalled.close()


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read() -> None:
    app = App(send_timeout=600)
    with server_thread(app.app) as address:
        async with http(address) as client:
            for _ in range(24):
                await client.post("/write", json={"events": 1, "size": 1_000_000})
            stalled = connect(address)
            try:
                assert not await anyio.to_thread.run_sync(app.ended.wait, 0.5)
                await client.post("/drain")
                assert await anyio.to_thread.run_sync(app.ended.wait, PATIENCE)
            finally:
                stalled.close()


async def test_nothing_is_left_after_two_thousand_connects_and_disconnects(tmp_path: Path, short: bool) -> None:
    rounds = 200 if short else 2000
    env = {"TEST_LOG": f"sqlite:///{tmp_path}/runs.db", "TEST_DELAY": "0.5", "TEST_WORDS": "600"}
    with server_process("tests.apps:make", env=env, factory=True) as server:
        async with http(server.address) as client:
            first = await receive(client, "POST", "/agents/agent/runs", data={"message": "Go."}, leave_after=2)
            where = first.headers["location"]

            async def visit(count: int) -> None:
                for _ in range(count):
                    async with open_stream(client, "GET", where) as stream:
                        await stream.__anext__()

            async def crowd(count: int) -> None:
                with anyio.fail_after(4 * PATIENCE):
                    async with anyio.create_task_group() as tasks:
                        for _ in range(20):
                            tasks.start_soon(visit, count // 20)

            async def held() -> dict[str, int]:
                found: dict[str, int] = (await client.get("/-/resources")).json()
                return found

            await crowd(100)

            async def settled(most: dict[str, int]) -> None:
                async def small() -> bool:
                    now = await held()
                    return all(now[name] <= limit for name, limit in most.items())

                await eventually(small)

            await settled({"tasks": 15})
            before = await held()
            await crowd(rounds)
            # The log's pool of threads and connections that read may still have grown to its size meanwhile
            await settled({"tasks": before["tasks"], "threads": before["threads"] + 4, "fds": before["fds"] + 8})
            assert (await client.post(where.replace("/events", "/cancel"))).status_code == 200
