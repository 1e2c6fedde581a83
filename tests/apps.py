"""Applications that tests start in processes of their own: ``server_process("tests.apps:make", factory=True)``."""

from __future__ import annotations

import asyncio
import json
import os
import threading

import psutil
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agno_resumable import resumable_routes

from .support import scripted_agent, scripted_team, scripted_workflow


def make() -> Starlette:
    """An agent, a team and a workflow with ids of these names, of about 50 events each.

    From the environment: ``TEST_LOG``, the URL of the log (``memory:``); ``TEST_DELAY``, seconds between two deltas
    (0.0); ``TEST_WORDS``, how many deltas; ``TEST_OPTIONS``, arguments for each ``ResumableStream`` as JSON.
    ``GET /-/resources`` tells what the process holds.
    """
    delay = float(os.environ.get("TEST_DELAY", "0"))
    words = int(os.environ.get("TEST_WORDS", "36"))
    routes = resumable_routes(
        log=os.environ.get("TEST_LOG", "memory:"),
        agents=[scripted_agent(words=words, delay=delay)],
        teams=[scripted_team(words=words // 2, delay=delay)],
        workflows=[scripted_workflow(words=words, delay=delay)],
        **json.loads(os.environ.get("TEST_OPTIONS", "{}")),
    )
    return Starlette(routes=[*routes, Route("/-/resources", resources)], lifespan=routes.lifespan)


async def resources(request: Request) -> JSONResponse:
    """Descriptors, threads, tasks and memory of this process."""
    process = psutil.Process()
    return JSONResponse(
        {
            "pid": process.pid,
            "fds": process.num_fds(),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "rss": process.memory_info().rss,
        }
    )
