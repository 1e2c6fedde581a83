"""The demo's application: the library's routes for three components, the page, and a way to cut connections."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from enum import Enum
from functools import partial
from importlib.metadata import version
from importlib.resources import files

import anyio
from agno.models.base import Model
from agno.run.agent import RunEvent
from agno.run.team import TeamRunEvent
from agno.run.workflow import WorkflowRunEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..asgi.routes import resumable_routes
from .components import make_agent, make_team, make_workflow

__all__ = ["CuttableConnections", "make_app"]

_CONTROL_TYPES = ("gap", "disconnecting", "paused", "end")


class CuttableConnections:
    """Middleware that can tear open event connections, as a bad network does: in the middle of a frame.

    It ends the response without its last chunk, which makes the server close the socket and the browser's EventSource
    come back by itself with ``Last-Event-ID``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: dict[anyio.Event, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].endswith("/events"):
            await self._app(scope, receive, send)
            return
        cut = anyio.Event()
        self._open[cut] = scope["path"]
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cut_when_asked, cut, tasks.cancel_scope)
                await self._app(scope, receive, partial(self._send, cut, send))
                tasks.cancel_scope.cancel()
        finally:
            del self._open[cut]

    def cut(self, run_id: str | None = None) -> int:
        """Cut every open event connection, or those of one run; return how many."""
        chosen = [cut for cut, path in self._open.items() if run_id is None or f"/{run_id}/" in path]
        for cut in chosen:
            cut.set()
        return len(chosen)

    @staticmethod
    async def _cut_when_asked(cut: anyio.Event, connection: anyio.CancelScope) -> None:
        await cut.wait()
        # long enough for the next event to be torn, short enough for a run that is silent
        await anyio.sleep(0.3)
        connection.cancel()

    @staticmethod
    async def _send(cut: anyio.Event, send: Send, message: Message) -> None:
        body = message.get("body", b"")
        if cut.is_set() and body:
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await anyio.sleep_forever()  # until the connection is cancelled
        await send(message)


def _event_types() -> Iterator[str]:
    """Every SSE event name that may come: an EventSource hears only the names it was told, it has no wildcard."""
    families: tuple[type[Enum], ...] = (RunEvent, TeamRunEvent, WorkflowRunEvent)
    for family in families:
        for event in family:
            yield str(event.value)
    yield "message"
    yield from _CONTROL_TYPES


def make_app(
    log: str, *, model: Model | str | None = None, delay: float = 0.1, restart: str = "agno-resumable demo"
) -> ASGIApp:
    """Build the demo's application.

    Args:
        log: The URL of the event log.
        model: A model or agno's model string for all components; without one they play their scripts.
        delay: Seconds between the deltas of a script.
        restart: The command that starts this server again; the page shows it.
    """
    agent, team, workflow = (make(model, delay=delay) for make in (make_agent, make_team, make_workflow))
    components = [
        {"kind": kind, "id": component.id, "name": component.name}
        for kind, component in (("agents", agent), ("teams", team), ("workflows", workflow))
    ]
    versions = {
        "agno-resumable": __version__,
        "agno": version("agno"),
        "python": platform.python_version(),
    }
    page = files(__package__).joinpath("index.html").read_text(encoding="utf-8")

    async def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers={"Cache-Control": "no-store"})

    async def info(request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "pid": os.getpid(),
                "log": log,
                "model": "scripted, offline" if model is None else model if isinstance(model, str) else model.id,
                "scripted": model is None,
                "restart": restart,
                "versions": versions,
                "components": components,
            }
        )

    async def types(request: Request) -> JSONResponse:
        return JSONResponse(sorted(set(_event_types())))

    async def cut(request: Request) -> JSONResponse:
        return JSONResponse({"cut": connections.cut(request.query_params.get("run_id"))})

    # A short lease, so that after a kill -9 nobody watches a dead run for long, and a short grace, so that nobody waits
    # for the end of a story after Ctrl-C. The lease is still far above what a busy laptop needs to renew it.
    routes = resumable_routes(
        log=log,
        agents=[agent],
        teams=[team],
        workflows=[workflow],
        lease=5.0,
        sweep_interval=1.0,
        cancel_grace=1.0,
        drain_grace=2.0,
    )
    app = Starlette(
        routes=[
            Route("/", index),
            Route("/demo/info", info),
            Route("/demo/types", types),
            Route("/demo/cut", cut, methods=["POST"]),
            *routes,
        ],
        lifespan=routes.lifespan,
    )
    # outermost, so that what it cuts is cut for every layer alike
    connections = CuttableConnections(app)
    return connections
