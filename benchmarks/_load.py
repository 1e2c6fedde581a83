"""The server process of the load benchmark: many paced runs at once, and their readers over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from agno.run.agent import RunContentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agno_resumable import ResumableStream, open_log
from benchmarks._apps import content_event

__all__ = ["Load", "load"]

CREATED_AT_ONCE = 64


class Load:
    """Runs that wait for a start signal, and then say something at a steady rate.

    Each event's content is the moment of its yield on the machine's monotonic clock, in nanoseconds. A source that is
    held up catches up, so that what was offered does not depend on how the log fares.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.log = open_log(config["log"])
        self.stream = ResumableStream(self.source, log=self.log, component_id="load")
        self.go = asyncio.Event()
        self.plan: Mapping[str, Any] = {}
        self.stopped = False
        self.started = 0
        self.samples: list[dict[str, float]] = []
        self.late = 0.0

    async def source(self, message: str, **_: object) -> AsyncIterator[RunContentEvent]:
        """One run."""
        phase = float(message)  # where in the interval between two events this run's come
        await self.go.wait()
        rate, events = float(self.plan["rate"]), int(self.plan["events"])
        start = self.plan["begin_ns"] / 1e9 + phase / rate
        for number in range(events):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.stopped:
                return
            now = time.monotonic_ns()
            self.late = max(self.late, now / 1e9 - due)
            yield content_event(f"at={now};")

    async def create(self, request: Request) -> Response:
        """Start ``runs`` runs, whose events begin with ``begin``; tell their ids."""
        runs = int((await request.json())["runs"])
        self.go, self.stopped, self.late = asyncio.Event(), False, 0.0
        ids: list[str] = []
        for first in range(0, runs, CREATED_AT_ONCE):
            some = range(first, min(first + CREATED_AT_ONCE, runs))
            ids += [run.run_id for run in await asyncio.gather(*[self.stream.start(str(n / runs)) for n in some])]
        return JSONResponse({"run_ids": ids, "durability": self.log.durability.value})

    async def begin(self, request: Request) -> Response:
        """Let the events begin at ``begin_ns``, and look at CPU and counters at the times ``samples_ns``."""
        self.plan = await request.json()
        self.samples = []
        loop = asyncio.get_running_loop()
        for moment in self.plan["samples_ns"]:
            loop.call_later((moment - time.monotonic_ns()) / 1e9, self.sample)
        self.go.set()
        return JSONResponse({})

    def sample(self) -> None:
        """Note what has been used up to now."""
        used = {name: float(value) for name, value in self.log.stats().items()}
        self.samples.append({**used, "cpu_ns": time.process_time_ns(), "late": self.late})
        self.late = 0.0  # of what comes now

    async def end(self, request: Request) -> Response:
        """End the runs that are still there, forget them all, and tell what was noted."""
        self.stopped = True
        self.go.set()
        for _ in range(600):
            if not self.stream.stats()["active"]:
                break
            await asyncio.sleep(0.05)
        await self.log.prune(finished_before=await self.log.now() + 60.0)
        return JSONResponse({"samples": self.samples})

    async def events(self, request: Request) -> Response:
        """The stream of one run, wherever it is produced."""
        return await self.stream.response(request, request.path_params["run_id"])


def load(config: dict[str, Any]) -> Starlette:
    """The app."""
    it = Load(config)
    return Starlette(
        routes=[
            Route("/runs", it.create, methods=["POST"]),
            Route("/begin", it.begin, methods=["POST"]),
            Route("/end", it.end, methods=["POST"]),
            Route("/runs/{run_id}/events", it.events),
        ]
    )
