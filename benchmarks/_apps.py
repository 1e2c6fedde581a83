"""The apps under measurement, each under uvicorn in a process of its own: ``python -m benchmarks._apps APP CONFIG``.

What a run does is said by its message, the same for every side: ``{"events": 3000, "size": 4}``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from agno.models.base import Model
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.run.agent import RunContentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from agno.agent import Agent

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Any, Any], Any]

AGENT = "bench"


class BenchModel(Model):
    """A model without a network. It yields ``events`` deltas of ``size`` characters, each after a trip to the loop.

    With ``rate`` it holds that many deltas per second, catching up after every pause of the timer; with ``delay`` it
    thinks that many seconds before the first.
    """

    def __init__(self) -> None:
        super().__init__(id="bench", name="Bench", provider="bench")

    async def ainvoke_stream(self, messages: list[Message], *_: object, **__: object) -> AsyncIterator[ModelResponse]:
        async for text in paced_texts(str(messages[-1].content)):
            yield ModelResponse(content=text)

    def invoke(self, *_: object, **__: object) -> ModelResponse:
        raise RuntimeError("the benchmarks stream on the event loop")

    ainvoke = invoke_stream = invoke  # type: ignore[assignment]  # never called

    def _parse_provider_response(self, response: Any, **_: object) -> ModelResponse:
        raise RuntimeError("the benchmarks have no provider")

    def _parse_provider_response_delta(self, response: Any) -> ModelResponse:
        raise RuntimeError("the benchmarks have no provider")


async def paced_texts(message: str) -> AsyncIterator[str]:
    """The texts that ``message`` asks for: as fast as the loop turns, or at ``rate`` per second."""
    wanted = json.loads(message)
    count, size, rate = int(wanted["events"]), int(wanted.get("size", 4)), float(wanted.get("rate", 0))
    await asyncio.sleep(float(wanted.get("delay", 0)))
    start = time.perf_counter()
    for number in range(count):
        if rate:
            early = start + number / rate - time.perf_counter()
            await asyncio.sleep(early if early > 0.001 else 0)
        else:
            await asyncio.sleep(0)
        yield f"{number % 1000:03d} ".ljust(size, "x")[:size]


def content_event(content: str) -> RunContentEvent:
    """A RunContent event with the identity that agno gives it."""
    return RunContentEvent(
        content=content,
        run_id="6f0e6ac0-9a53-4f4c-8f0c-1d1d1b3f9f0e",
        session_id="e1b6f0cb-9f2e-4c38-8a66-2a0a8f3c7f11",
        agent_id=AGENT,
        agent_name=AGENT,
    )


async def ready_events(message: str, **_: object) -> AsyncIterator[RunContentEvent]:
    """Events that are all there already: nothing is awaited between two of them."""
    wanted = json.loads(message)
    size = int(wanted.get("size", 4))
    ready = [content_event(f"{number:03d} ".ljust(size, "x")[:size]) for number in range(256)]
    for number in range(int(wanted["events"])):
        yield ready[number & 255]


async def ticks(message: str, **_: object) -> AsyncIterator[RunContentEvent]:
    """One event every ``every`` seconds, whose content is the moment of its yield on the machine's monotonic clock."""
    wanted = json.loads(message)
    start = time.perf_counter()
    for number in range(int(wanted["events"])):
        await asyncio.sleep(max(0.0, start + number * float(wanted["every"]) - time.perf_counter()))
        yield content_event(f"at={time.monotonic_ns()};")


async def paced(message: str, **_: object) -> AsyncIterator[RunContentEvent]:
    """What ``paced_texts`` says, as events."""
    async for text in paced_texts(message):
        yield content_event(text)


async def held(message: str, **_: object) -> AsyncIterator[RunContentEvent]:
    """A few events, then silence for as long as the server lives: a run whose readers idle."""
    async for event in ready_events(message):
        yield event
    await asyncio.Event().wait()


SOURCES: dict[str, Callable[..., AsyncIterator[RunContentEvent]]] = {
    "ready": ready_events,
    "ticks": ticks,
    "paced": paced,
    "held": held,
}


def make_agent() -> Agent:
    """The agent that every side runs. agno's background stream wants a database; in memory it costs nobody anything."""
    from agno.agent import Agent
    from agno.db.in_memory import InMemoryDb

    return Agent(id=AGENT, name=AGENT, model=BenchModel(), telemetry=False, db=InMemoryDb())  # type: ignore[no-untyped-call]


def agentos(config: dict[str, Any]) -> Asgi:
    """agno's own server; also a bare ``arun`` that nobody reads, and two doors to its event stream without an agent.

    Its events are in memory, or with ``redis``, a URL, on a server of that kind; redis-py parses with
    ``hiredis`` or without.
    """
    from agno.os import AgentOS

    agent = make_agent()

    async def arun(request: Request) -> Response:
        events = [1 async for _ in agent.arun((await request.body()).decode(), stream=True, stream_events=True)]
        return JSONResponse({"events": len(events)})

    stream = redis_event_stream(config["redis"], hiredis=config["hiredis"]) if "redis" in config else None
    app = AgentOS(agents=[agent], telemetry=False, event_stream=stream).get_app()
    app.router.routes.append(Route("/_bench/arun", arun, methods=["POST"]))
    app.router.routes.append(Route("/_bench/feed", _feed_agno, methods=["POST"]))
    app.router.routes.append(Route("/_bench/hold", _hold_agno, methods=["POST"]))
    return app


def redis_event_stream(url: str, *, hiredis: bool) -> Any:
    """agno's event stream on Redis, with its defaults; without ``hiredis`` redis-py parses as if that were missing."""
    from agno.os.event_streams.redis import RedisEventStream
    from redis._parsers import _AsyncRESP2Parser
    from redis.asyncio import Redis

    options: dict[str, Any] = {} if hiredis else {"parser_class": _AsyncRESP2Parser}
    return RedisEventStream(Redis.from_url(url, **options))


def agentos_resumable(config: dict[str, Any]) -> Asgi:
    """The same server with the one line."""
    from agno.os import AgentOS

    from agno_resumable.agentos import make_resumable

    app: Asgi = make_resumable(AgentOS(agents=[make_agent()], telemetry=False), log=config["log"])
    return app


async def _feed_agno(request: Request) -> Response:
    """Give agno's event stream paced events, then complete the run."""
    from agno.os.event_streams import get_event_stream
    from agno.run.base import RunStatus

    run_id = request.query_params["run_id"]
    stream = get_event_stream()
    count = 0
    async for event in paced((await request.body()).decode()):
        await stream.add_event(run_id, event)
        count += 1
    await stream.complete_run(run_id, RunStatus.completed)
    return JSONResponse({"events": count})


async def _hold_agno(request: Request) -> Response:
    """Register a run that stays silent, for readers to wait on."""
    from agno.os.event_streams import get_event_stream
    from agno.run.base import RunStatus

    run_id = request.query_params["run_id"]
    stream = get_event_stream()
    await stream.register_run(run_id, RunStatus.pending)
    await stream.set_run_status(run_id, RunStatus.running)
    return JSONResponse({"run_id": run_id})


def bare(config: dict[str, Any]) -> Asgi:
    """The stream that one writes by hand: a StreamingResponse over agno's own formatter, nothing kept."""
    from agno.os.utils import format_sse_event

    async def endpoint(request: Request) -> Response:
        source = SOURCES[request.path_params["source"]]
        message = (await request.body()).decode()

        async def frames() -> AsyncIterator[str]:
            async for event in source(message):
                yield format_sse_event(event)

        return StreamingResponse(frames(), media_type="text/event-stream")

    return Starlette(routes=[Route("/{source}", endpoint, methods=["POST"])])


def ours(config: dict[str, Any]) -> Asgi:
    """The library as the README shows it: routes for real agents on one log."""
    from agno_resumable import resumable_routes

    return Starlette(routes=resumable_routes(log=config["log"], agents=[make_agent()]))


def ours_sources(config: dict[str, Any]) -> Asgi:
    """The library over plain async iterators, no agno run in the way."""
    from agno_resumable import ResumableStream, open_log

    log = open_log(config["log"])
    streams = {name: ResumableStream(source, log=log) for name, source in SOURCES.items()}

    async def start(request: Request) -> Response:
        stream = streams[request.path_params["source"]]
        return await stream.start_response(request, (await request.body()).decode())

    async def events(request: Request) -> Response:
        return await streams[request.path_params["source"]].response(request, request.path_params["run_id"])

    return Starlette(
        routes=[
            Route("/{source}", start, methods=["POST"]),
            Route("/{source}/{run_id}/events", events, methods=["GET"]),
        ]
    )


def load(config: dict[str, Any]) -> Asgi:
    """Many paced runs at once."""
    from benchmarks._load import load

    return load(config)


APPS: dict[str, Callable[[dict[str, Any]], Asgi]] = {
    "agentos": agentos,
    "agentos_resumable": agentos_resumable,
    "bare": bare,
    "load": load,
    "ours": ours,
    "ours_sources": ours_sources,
}


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def with_stats(app: Asgi) -> Asgi:
    """Answer ``/_bench/stats`` before the app; it costs the app one comparison per request."""

    async def stats(_: Request) -> Response:
        return JSONResponse({"cpu_ns": time.process_time_ns(), "rss": resident_bytes()})

    stats_app = Starlette(routes=[Route("/_bench/stats", stats)])

    async def wrapped(scope: Scope, receive: Any, send: Any) -> None:
        inner = stats_app if scope.get("path") == "/_bench/stats" else app
        await inner(scope, receive, send)

    return wrapped


def serve() -> None:
    """The server process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("app", choices=sorted(APPS))
    parser.add_argument("config", type=json.loads)
    parser.add_argument("--fd", type=int, required=True, help="a listening socket")
    options = parser.parse_args()
    logging.getLogger("agno").setLevel(logging.WARNING)
    listener = socket.socket(fileno=options.fd)
    config = uvicorn.Config(
        with_stats(APPS[options.app](options.config)),
        log_level="error",
        access_log=False,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve()
