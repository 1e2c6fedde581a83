"""``AgentOSBridge`` in front of a real AgentOS under a real uvicorn: with a log, and over agno's own event stream."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from agno.db.sqlite import SqliteDb
from agno.os import AgentOS
from agno.os.event_streams import get_event_stream, set_event_stream
from agno.os.event_streams.in_memory import InMemoryEventStream
from agno.os.managers import EventsBuffer, SSESubscriberManager
from agno.tools import tool
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agno_resumable import Family, MemoryEventLog, SQLiteEventLog
from agno_resumable.agentos import AgentOSBridge, LogEventStream
from agno_resumable.demo.scripted import ScriptItem, ToolCall
from agno_resumable.errors import LogUnavailable
from agno_resumable.model import EncodedEvent, Page, RunStatus

from ..broken_logs import Wrapped
from ..support import KINDS, EventStream, eventually, http, open_stream, receive, scripted, server_thread, speech

pytestmark = pytest.mark.anyio

FAMILIES = list(Family)
TERMINAL = {Family.AGENT: "Run", Family.TEAM: "TeamRun", Family.WORKFLOW: "Workflow"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gate:
    """A place in a script where a run in another thread waits until the test opens it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    async def pass_(self) -> None:
        self.reached.set()
        while not self._open.is_set():  # noqa: ASYNC110  # set in another thread
            await asyncio.sleep(0.005)

    def open(self) -> None:
        self._open.set()


class Served:
    """An AgentOS behind a bridge."""

    def __init__(self, client: httpx.AsyncClient, family: Family, memory: EventsBuffer) -> None:
        self.client = client
        self.family = family
        self.memory = memory
        self.runs = f"/{KINDS[family]}/{family.value}/runs"

    async def post(self, leave_after: int | None = None, **fields: str) -> EventStream:
        data = {"message": "Hello", "stream": "true", "session_id": "session", **fields}
        return await receive(self.client, "POST", self.runs, data=data, leave_after=leave_after)

    @asynccontextmanager
    async def posting(self, **fields: str) -> AsyncIterator[EventStream]:
        data = {"message": "Hello", "stream": "true", "session_id": "session", **fields}
        async with open_stream(self.client, "POST", self.runs, data=data) as stream:
            yield stream

    async def get(
        self, run_id: str, after: int | None = None, *, leave_after: int | None = None, **query: str
    ) -> EventStream:
        headers = {} if after is None else {"Last-Event-ID": f"{run_id}:{after}"}
        url = f"{self.runs}/{run_id}/events"
        params = {"session_id": "session", **query}
        return await receive(self.client, "GET", url, params=params, headers=headers, leave_after=leave_after)

    async def resume(self, run_id: str, after: int | None = None) -> EventStream:
        data = {"session_id": "session", **({} if after is None else {"last_event_index": str(after)})}
        return await receive(self.client, "POST", f"{self.runs}/{run_id}/resume", data=data)

    async def status(self, run_id: str) -> str:
        answer = await self.client.get(f"{self.runs}/{run_id}", params={"session_id": "session"})
        return str(answer.json().get("status"))

    def forget(self, run_id: str) -> None:
        """agno's event stream has never heard of the run; its database has."""
        self.memory.cleanup_run(run_id)


@asynccontextmanager
async def serving(
    family: Family,
    *script: ScriptItem,
    log: Any = None,
    inside: Callable[[ASGIApp], ASGIApp] | None = None,
    outside: Callable[[ASGIApp], ASGIApp] | None = None,
    arguments: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """An AgentOS of one component with a database, and the bridge around it, in a thread of its own."""
    before = get_event_stream()
    memory = EventsBuffer()
    stream = None if log is None else LogEventStream(log)
    component = scripted(family, *script, db=SqliteDb(db_file=_database()), **(arguments or {}))
    try:
        components: dict[str, Any] = {KINDS[family]: [component]}
        agent_os = AgentOS(telemetry=False, **components)
        set_event_stream(stream or InMemoryEventStream(memory, SSESubscriberManager()))
        app: ASGIApp = agent_os.get_app()
        app = inside(app) if inside else app
        app = AgentOSBridge(app, agent_os=agent_os, stream=stream, **options)
        app = outside(app) if outside else app
        with server_thread(app, **(config or {})) as address:
            async with http(address) as client:
                yield Served(client, family, memory)
    finally:
        set_event_stream(before)


_directory: list[Path] = []


def _database() -> str:
    return str(_directory[-1] / "agno.db")


@pytest.fixture(autouse=True)
def _directories(tmp_path: Path) -> Iterator[None]:
    _directory.append(tmp_path)
    yield
    _directory.pop()


def a_log(kind: str) -> Any:
    return SQLiteEventLog(str(_directory[-1] / "runs.db")) if kind == "log" else None


def indices(stream: EventStream) -> list[int]:
    return [int(frame.id.rpartition(":")[2]) for frame in stream.frames if frame.id and '"event_index"' in frame.data]


def names(stream: EventStream) -> list[str]:
    return [frame.event for frame in stream.frames]


with_and_without_log = pytest.mark.parametrize("kind", ["log", "memory"])
mixed = pytest.mark.parametrize(
    ("family", "kind"), [(Family.AGENT, "memory"), (Family.TEAM, "log"), (Family.WORKFLOW, "log")]
)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=[family.value for family in FAMILIES])


# ---------------------------------------------------------------- starts


@each_family
@with_and_without_log
async def test_a_stream_has_ids_and_can_be_read_again_from_any_cursor_to_the_204(family: Family, kind: str) -> None:
    async with serving(family, log=a_log(kind)) as served:
        first = await served.post()
        assert first.status == 200
        assert list(first.headers)[2] == "content-type"  # behind the server's own date and name
        assert first.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert first.headers["cache-control"] == "no-store, no-transform"
        assert first.headers["x-accel-buffering"] == "no"
        assert "content-length" not in first.headers
        run_id = first.headers["x-run-id"]
        assert first.body.startswith(b"retry: ")
        assert indices(first) == list(range(len(first.frames)))
        assert {frame.id.rpartition(":")[0] for frame in first.frames if frame.id} == {run_id}
        assert all(block.rstrip().splitlines()[-1].startswith(b"id: ") for block in first.blocks)
        assert names(first)[-1] == TERMINAL[family] + "Completed"
        assert first.complete

        for after in (None, 0, 5, len(first.frames) - 2):
            again = await served.get(run_id, after)
            assert again.status == 200
            assert again.headers["x-run-id"] == run_id
            assert indices(again) == indices(first)[(-1 if after is None else after) + 1 :]
            assert names(again)[-1] == "end"
            assert again.complete
        at_end = await served.get(run_id, len(first.frames) - 1)
        assert at_end.status == 204
        assert at_end.headers["x-run-id"] == run_id

        resumed = await served.resume(run_id, 5)
        assert names(resumed)[0] == "replay"
        assert indices(resumed) == indices(first)[6:]
        assert resumed.headers["x-run-id"] == run_id


@with_and_without_log
async def test_what_asks_for_no_stream_is_answered_as_ever(kind: str) -> None:
    async with serving(Family.AGENT, log=a_log(kind)) as served:
        answer = await served.client.post(served.runs, data={"message": "Hello", "stream": "false"})
        assert answer.status_code == 200
        assert answer.json()["status"] == "COMPLETED"
        assert int(answer.headers["content-length"]) == len(answer.content)
        answer = await served.client.post(
            served.runs, data={"message": "Hello", "stream": "false", "background": "true"}
        )
        assert answer.status_code == 202
        assert (await served.client.post(served.runs, data={})).status_code == 422
        assert (await served.client.post("/agents/nobody/runs", data={"message": "Hello"})).status_code == 404
        assert (await served.client.get("/agents")).status_code == 200
        inline = await served.post(background="false")
        assert inline.status == 200
        assert "x-run-id" in inline.headers
        assert indices(inline) == []
        assert b"retry:" not in inline.body


# ---------------------------------------------------------------- coming back


@each_family
@with_and_without_log
async def test_a_reader_goes_on_where_it_was_cut_while_the_run_goes_on(family: Family, kind: str) -> None:
    gate = Gate()
    async with serving(family, *speech(3), gate.pass_, *speech(9), log=a_log(kind)) as served:
        first = await served.post(leave_after=3)
        run_id = first.headers["x-run-id"]
        seen = indices(first)[:3]
        second = await served.get(run_id, seen[-1], leave_after=1)
        seen += indices(second)[:1]
        gate.open()
        third = await served.get(run_id, seen[-1])
        seen += indices(third)
        assert seen == list(range(len(seen)))
        assert names(third)[-2:] == [TERMINAL[family] + "Completed", "end"]
        assert (await served.get(run_id, seen[-1])).status == 204
        assert await served.status(run_id) == "COMPLETED"


@mixed
async def test_requests_that_will_never_work_are_4xx(family: Family, kind: str) -> None:
    async with serving(family, log=a_log(kind)) as served:
        run_id = (await served.post()).headers["x-run-id"]
        for cursor in ("x", "-2", "other:3", "1e3"):
            answer = await served.client.get(f"{served.runs}/{run_id}/events", params={"last_event_id": cursor})
            assert answer.status_code == 400
            assert answer.json()["error_type"] == "CursorInvalid"
        for unknown in ("nobody", "a%0Ab", "a" * 60, "%7B%7D"):
            answer = await served.client.get(f"{served.runs}/{unknown}/events", params={"session_id": "session"})
            assert answer.status_code == 404
            assert answer.json() == {"detail": "Run not found", "error_type": "RunNotFound"}
        answer = await served.client.get(f"/{KINDS[family]}/nobody/runs/{run_id}/events")
        assert answer.status_code == 404
        answer = await served.client.post(f"{served.runs}/{run_id}/resume", data={"last_event_index": "x"})
        assert answer.status_code == 422


@with_and_without_log
async def test_a_head_is_answered_with_the_head_alone(kind: str) -> None:
    async with serving(Family.AGENT, log=a_log(kind)) as served:
        first = await served.post()
        run_id = first.headers["x-run-id"]
        url = f"{served.runs}/{run_id}/events"
        params = {"session_id": "session"}
        answer = await served.client.head(url, params=params)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-run-id"] == run_id
        answer = await served.client.head(url, params={**params, "since_id": str(len(first.frames) - 1)})
        assert answer.status_code == 204
        assert (await served.client.head(f"{served.runs}/nobody/events", params=params)).status_code == 404


@with_and_without_log
async def test_a_cursor_ahead_of_the_run_gets_a_gap_and_all_there_is(kind: str) -> None:
    async with serving(Family.AGENT, log=a_log(kind)) as served:
        first = await served.post()
        run_id = first.headers["x-run-id"]
        ahead = await served.get(run_id, 5000)
        assert ahead.frames[0].event == "gap"
        assert json.loads(ahead.frames[0].data)["reason"] == "ahead"
        assert indices(ahead) == indices(first)
        last = json.loads(ahead.frames[-1].data)
        assert last == {"status": "COMPLETED", "last_event_index": len(first.frames) - 1}


@with_and_without_log
async def test_filters_leave_events_out_and_still_end_in_a_204(kind: str) -> None:
    async with serving(Family.AGENT, log=a_log(kind)) as served:
        run_id = (await served.post()).headers["x-run-id"]
        content = await served.get(run_id, types="RunContent")
        assert set(names(content)) == {"RunContent", "end"}
        assert (await served.get(run_id, indices(content)[-1], types="RunContent")).status == 204
        without = await served.get(run_id, exclude="RunContent,RunCompleted")
        assert not {"RunContent", "RunCompleted"} & set(names(without))
        assert (await served.get(run_id, indices(without)[-1], exclude="RunContent,RunCompleted")).status == 204


# ---------------------------------------------------------------- runs that only agno's database has


@each_family
async def test_a_run_that_only_the_database_has_is_followed_to_the_204(family: Family) -> None:
    async with serving(family, arguments={"store_events": True}) as served:
        run_id = (await served.post()).headers["x-run-id"]
        served.forget(run_id)
        cursor: int | None = None
        told: list[str] = []
        for _ in range(50):
            stream = await served.get(run_id, cursor, leave_after=4)
            if stream.status == 204:
                break
            assert stream.status == 200
            fresh = indices(stream)[:4]
            assert cursor is None or fresh[0] > cursor
            assert fresh == sorted(fresh)
            told += [frame.event for frame in stream.frames if frame.id and frame.event != "end"][: len(fresh)]
            cursor = fresh[-1]
        else:
            raise AssertionError("the reader was never told to stop")
        assert told.count(TERMINAL[family] + "Completed") == 1
        assert told[-1] == TERMINAL[family] + "Completed"
        assert (await served.get("nobody")).status == 404


async def test_a_hole_in_what_the_database_has_is_told() -> None:
    async with serving(Family.AGENT, arguments={"store_events": True}) as served:
        first = await served.post()
        run_id = first.headers["x-run-id"]
        served.forget(run_id)
        cursor = indices(first)[names(first).index("RunContent")]
        stream = await served.get(run_id, cursor)
        gap = json.loads(stream.frames[0].data)
        assert stream.frames[0].event == "gap"
        assert gap["requested"] == cursor + 1
        assert gap["first_available"] == indices(stream)[0]


async def test_a_run_without_stored_events_ends_an_event_source_when_it_has_finished() -> None:
    gate = Gate()
    async with serving(Family.AGENT, "a", gate.pass_, "b") as served:
        answer = await served.client.post(
            served.runs,
            data={"message": "Hello", "stream": "false", "background": "true", "session_id": "session"},
        )
        run_id = answer.json()["run_id"]
        await eventually(gate.reached.is_set)
        running = await served.get(run_id)
        assert running.status == 200  # it has no stream; only a 200 has EventSource ask again
        assert b"retry: " in running.body
        assert names(running) == ["disconnecting"]
        gate.open()

        async def ended() -> bool:
            return (await served.get(run_id)).status == 204

        await eventually(ended)


# ---------------------------------------------------------------- silence, cuts, compression


@with_and_without_log
async def test_silence_is_broken_by_heartbeats_on_every_kind_of_stream(kind: str) -> None:
    gate = Gate()
    async with serving(Family.AGENT, "a", gate.pass_, "b", log=a_log(kind), heartbeat=0.05) as served:

        async def read(method: str, url: str, **request: Any) -> bytes:
            async with served.client.stream(method, url, **request) as response:
                body = b""
                async for chunk in response.aiter_raw():
                    body += chunk
                    if body.count(b": hb\n") + body.count(b": heartbeat\n") >= 3:
                        return body
            raise AssertionError(body)

        async with served.posting() as stream:
            frame = await stream.__anext__()
            assert frame.id is not None
            url = f"{served.runs}/{frame.id.rpartition(':')[0]}"
            await eventually(gate.reached.is_set)
            bodies = [
                await read("GET", f"{url}/events", params={"session_id": "session"}),
                await read("POST", f"{url}/resume", data={"session_id": "session"}),
            ]
            gate.open()
            await stream.until("RunCompleted")
        for body in [stream.body, *bodies]:
            assert b"hb\n" in body or b"heartbeat\n" in body
            assert b"hb\n\n" not in body
            assert b"heartbeat\n\n" not in body
            assert b"keepalive" not in body


def chopped(app: ASGIApp) -> ASGIApp:
    """A middleware of the application's that sends bodies in pieces of 7 bytes, and sometimes more than one frame."""

    async def chopping(scope: Scope, receive: Receive, send: Send) -> None:
        held = b""

        async def cut(message: Message) -> None:
            nonlocal held
            if message["type"] != "http.response.body":
                await send(message)
                return
            held += message.get("body", b"")
            more = message.get("more_body", False)
            while len(held) > 700 or (held and not more):
                piece, held = held[:7], held[7:]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if not more:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await app(scope, receive, cut if scope["type"] == "http" else send)

    return chopping


@with_and_without_log
async def test_frames_that_come_in_pieces_are_whole_again(kind: str) -> None:
    async with serving(Family.TEAM, log=a_log(kind), inside=chopped) as served:
        first = await served.post()
        assert indices(first) == list(range(len(first.frames)))
        again = await served.get(first.headers["x-run-id"], 3)
        assert indices(again) == indices(first)[4:]


@with_and_without_log
async def test_a_middleware_that_compresses_sees_no_stream_to_compress(kind: str) -> None:
    async with serving(Family.AGENT, log=a_log(kind), inside=lambda app: GZipMiddleware(app, minimum_size=1)) as served:
        first = await served.post()
        assert "content-encoding" not in first.headers
        assert indices(first)
        assert indices(await served.get(first.headers["x-run-id"])) == indices(first)


# ---------------------------------------------------------------- clients that leave, streams that break


@mixed
async def test_a_run_outlives_the_client_that_started_it(family: Family, kind: str) -> None:
    gate = Gate()
    async with serving(family, *speech(3), gate.pass_, *speech(9), log=a_log(kind)) as served:
        run_id = (await served.post(leave_after=2)).headers["x-run-id"]
        await eventually(gate.reached.is_set)
        gate.open()

        async def completed() -> bool:
            return await served.status(run_id) == "COMPLETED"

        await eventually(completed)


async def test_an_inline_run_still_ends_with_its_client() -> None:
    gate = Gate()
    async with serving(Family.AGENT, *speech(3), gate.pass_, *speech(9)) as served:
        async with served.posting(background="false") as stream:
            await stream.until("RunContent")
            run_id = stream.headers["x-run-id"]
            await eventually(gate.reached.is_set)

        async def cancelled() -> bool:
            return await served.status(run_id) == "CANCELLED"

        await eventually(cancelled)


class Breaks:
    """A middleware of the application's that fails in the middle of a stream, or ends it there."""

    def __init__(self, app: ASGIApp, after: int, error: Exception | None) -> None:
        self._app = app
        self._after = after
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/runs"):
            await self._app(scope, receive, send)
            return
        count = 0

        async def failing(message: Message) -> None:
            nonlocal count
            if message["type"] == "http.response.body":
                count += 1
                if count > self._after:
                    if self._error is not None:
                        raise self._error
                    if count == self._after + 1:
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
            await send(message)

        await self._app(scope, receive, failing)


@each_family
@pytest.mark.parametrize("error", [RuntimeError("broken on purpose"), None], ids=["raises", "ends"])
async def test_a_stream_that_breaks_inside_ends_in_its_familys_error(family: Family, error: Exception | None) -> None:
    async with serving(family, inside=lambda app: Breaks(app, 4, error)) as served:
        stream = await served.post(background="false")
        assert stream.complete
        assert len(stream.frames) == 5
        assert names(stream)[-1] == TERMINAL[family] + "Error"
        data = json.loads(stream.frames[-1].data)
        assert data["run_id"] == stream.headers["x-run-id"]
        assert data["error_type"] == "stream_broken"


@each_family
@pytest.mark.parametrize("error", [RuntimeError("broken on purpose"), None], ids=["raises", "ends"])
async def test_a_stream_that_breaks_inside_is_ended_by_the_log(family: Family, error: Exception | None) -> None:
    async with serving(family, log=a_log("log"), inside=lambda app: Breaks(app, 4, error)) as served:
        stream = await served.post()
        assert stream.complete
        assert indices(stream) == list(range(len(stream.frames)))
        assert names(stream)[-1] == TERMINAL[family] + "Completed"


async def test_what_raises_before_its_answer_is_the_servers_to_answer() -> None:
    def failing(app: ASGIApp) -> ASGIApp:
        async def fail(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"].endswith("/resume"):
                raise RuntimeError("broken on purpose")
            await app(scope, receive, send)

        return fail

    async with serving(Family.AGENT, inside=failing) as served:
        answer = await served.client.get(f"{served.runs}/any/events")
        assert answer.status_code == 500


# ---------------------------------------------------------------- a run that pauses


@tool(requires_confirmation=True)
def launch(what: str) -> str:
    """Launch it.

    Args:
        what (str): What.
    """
    return f"{what} launched"


@with_and_without_log
async def test_a_paused_run_closes_its_stream_and_the_next_leg_goes_on_counting(kind: str) -> None:
    script: Sequence[ScriptItem] = [*speech(3), ToolCall("launch", {"what": "rocket"}), *speech(5)]
    async with serving(Family.AGENT, *script, log=a_log(kind), arguments={"tools": [launch]}) as served:
        first = await served.post()
        run_id = first.headers["x-run-id"]
        assert names(first)[-1] == "RunPaused"
        assert first.complete
        last = indices(first)[-1]
        if kind == "memory":
            for after in (None, last):
                waiting = await served.get(run_id, after)
                assert waiting.status == 200  # a 204 would stop EventSource for good
                assert b"retry: " in waiting.body
                assert names(waiting)[-1] == "paused"
                assert waiting.complete
        tools = json.loads(first.frames[-1].data)["tools"]
        for one in tools:
            one["confirmed"] = True
        data = {"tools": json.dumps(tools), "session_id": "session", "stream": "true", "background": "true"}
        leg = await receive(served.client, "POST", f"{served.runs}/{run_id}/continue", data=data)
        assert leg.headers["x-run-id"] == run_id
        assert names(leg)[-1] == "RunCompleted"
        assert indices(leg) == list(range(last + 1, last + 1 + len(leg.frames)))
        again = await served.get(run_id, last)
        assert indices(again) == indices(leg)
        assert (await served.get(run_id, indices(leg)[-1])).status == 204


# ---------------------------------------------------------------- the log


class Away(Wrapped):
    """A log whose store can go away."""

    away = False

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        if self.away:
            raise LogUnavailable("The store is away.")
        return await super().read(run_id, after, limit=limit, max_bytes=max_bytes)


async def test_a_store_that_is_away_has_an_event_source_come_again() -> None:
    log = Away()
    async with serving(Family.AGENT, log=log) as served:
        first = await served.post()
        run_id = first.headers["x-run-id"]
        log.away = True
        stream = await served.get(run_id, 3)
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert b"retry: " in stream.body
        assert names(stream) == ["disconnecting"]
        assert stream.complete
        answer = await served.client.post(f"{served.runs}/{run_id}/resume", data={"session_id": "session"})
        assert answer.status_code == 503
        log.away = False
        assert indices(await served.get(run_id, 3)) == indices(first)[4:]


class Held(Wrapped):
    """A log that stores nothing while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.held = threading.Event()
        self.waits = threading.Event()

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        while events and self.held.is_set():  # set in another thread
            self.waits.set()
            await asyncio.sleep(0.005)
        return await super().append(run_id, generation, events, status=status, transcript=transcript)


async def test_the_client_that_started_a_run_sees_no_event_before_the_log_has_it() -> None:
    log = Held()
    log.held.set()
    async with serving(Family.AGENT, *speech(3), log=log, heartbeat=0.05) as served, served.posting() as stream:
        await eventually(log.waits.is_set)
        task = asyncio.ensure_future(stream.__anext__())
        await eventually(lambda: stream.body.count(b": hb\n") >= 3)
        assert stream.frames == []
        assert b"event:" not in stream.body
        log.held.clear()
        assert (await task).event == "RunStarted"
        await stream.until("RunCompleted")
    assert indices(stream) == list(range(len(stream.frames)))


async def test_without_a_lifespan_everything_opens_by_itself() -> None:
    def mounted(app: ASGIApp) -> ASGIApp:
        return Starlette(routes=[Mount("/os", app)])

    async with serving(Family.AGENT, log=a_log("log"), outside=mounted) as served:
        served.runs = "/os" + served.runs
        first = await served.post()
        run_id = first.headers["x-run-id"]
        assert indices(first) == list(range(len(first.frames)))
        again = await served.get(run_id, 2)
        assert indices(again) == indices(first)[3:]
        assert (await served.get(run_id, indices(first)[-1])).status == 204


def posts(app: ASGIApp, counted: list[str]) -> ASGIApp:
    """A middleware of the application's that counts the starts."""

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/runs"):
            counted.append(scope["path"])
        await app(scope, receive, send)

    return counting


@mixed
async def test_a_start_that_is_repeated_with_an_id_is_the_same_run(family: Family, kind: str) -> None:
    """As ``@microsoft/fetch-event-source`` does when the connection breaks: it must not run the agent twice."""
    counted: list[str] = []
    async with serving(family, log=a_log(kind), inside=lambda app: posts(app, counted)) as served:
        first = await served.post()
        run_id = first.headers["x-run-id"]
        data = {"message": "Hello", "stream": "true", "session_id": "session"}

        async def repeated(last: str) -> EventStream:
            return await receive(served.client, "POST", served.runs, data=data, headers={"Last-Event-ID": last})

        again = await repeated(f"{run_id}:4")
        assert again.status == 200
        assert again.headers["x-run-id"] == run_id
        assert indices(again) == indices(first)[5:]
        assert not {"replay", "catch_up", "subscribed"} & set(names(again))
        unknown = await repeated("nobody:4")
        assert unknown.status == 404
        assert unknown.headers["content-type"].startswith("text/event-stream")
        assert names(unknown) == [TERMINAL[family] + "Error"]
        if kind == "log":
            assert (await repeated(f"{run_id}:{len(first.frames) - 1}")).status == 204
        assert len(counted) == 1
        assert (await repeated("no id of ours")).headers["x-run-id"] != run_id
        assert len(counted) == 2


async def test_a_run_of_another_component_is_not_found() -> None:
    async with serving(Family.AGENT, log=MemoryEventLog()) as served:
        run_id = (await served.post()).headers["x-run-id"]
        for path in (f"/agents/other/runs/{run_id}/events", f"/teams/agent/runs/{run_id}/events"):
            assert (await served.client.get(path, params={"session_id": "session"})).status_code == 404


async def test_a_posted_run_id_that_exists_is_refused() -> None:
    async with serving(Family.AGENT, log=a_log("log")) as served:
        run_id = (await served.post()).headers["x-run-id"]
        answer = await served.client.post(served.runs, data={"message": "Hello", "run_id": run_id})
        assert answer.status_code == 409
        fresh = await served.post(run_id="mine")
        assert fresh.headers["x-run-id"] == "mine"
        assert names(fresh)[-1] == "RunCompleted"
