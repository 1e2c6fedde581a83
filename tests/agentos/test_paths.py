"""What a request asks for, by its path."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agno_resumable import Family
from agno_resumable.agentos.paths import Action, Target, has_own_route, target_of

from ..support import http, server_thread
from .apps import Settings, make_agent_os

pytestmark = pytest.mark.anyio


def scope(path: str, method: str = "POST", **more: str) -> Scope:
    return {"type": "http", "method": method, "path": path, "root_path": "", **more}


@pytest.mark.parametrize(
    ("method", "path", "action", "run_id"),
    [
        ("POST", "/agents/a/runs", Action.START, None),
        ("POST", "/agents/a/runs/", Action.START, None),
        ("POST", "/agents/a/runs///", Action.START, None),
        ("POST", "/agents/a/runs/r/continue", Action.CONTINUE, "r"),
        ("POST", "/agents/a/runs/r/resume", Action.RESUME, "r"),
        ("POST", "/agents/a/runs/r/cancel/", Action.CANCEL, "r"),
        ("GET", "/agents/a/runs/r/events", Action.EVENTS, "r"),
        ("HEAD", "/agents/a/runs/r/events", Action.EVENTS, "r"),
        ("GET", "/agents/a/runs/r/resume", Action.EVENTS, "r"),
        ("GET", "/agents/a/runs", Action.OTHER, None),
        ("GET", "/agents/a/runs/events", Action.OTHER, "events"),
        ("GET", "/agents/a/runs/r/continue", Action.OTHER, "r"),
        ("POST", "/agents/a/runs/r/events", Action.OTHER, "r"),
        ("OPTIONS", "/agents/a/runs/r/events", Action.OTHER, "r"),
        ("DELETE", "/agents/a/runs/r", Action.OTHER, "r"),
        ("GET", "/agents/a/runs/r/checkpoints", Action.OTHER, "r"),
    ],
)
def test_method_and_path_tell_what_is_wanted(method: str, path: str, action: Action, run_id: str | None) -> None:
    assert target_of(scope(path, method)) == Target(action, Family.AGENT, "a", run_id)


@pytest.mark.parametrize(
    ("segment", "family"), [("agents", Family.AGENT), ("teams", Family.TEAM), ("workflows", Family.WORKFLOW)]
)
def test_the_first_segment_is_the_family(segment: str, family: Family) -> None:
    target = target_of(scope(f"/{segment}/x/runs"))
    assert target is not None
    assert target.family is family


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/agents",
        "/agents/a",
        "/agents//runs",
        "//agents/a/runs",
        "/agents/a/run",
        "/agents/a/runs/r/continue/more",
        "/api/agents/a/runs",
        "/agents/a/b/runs",  # agents/a%2Fb/runs, decoded
        "/agents/a/runsx",
        "/sessions/a/runs",
        "",
    ],
)
def test_other_paths_are_nobodys(path: str) -> None:
    assert target_of(scope(path)) is None


def test_a_websocket_is_nobodys() -> None:
    assert target_of({"type": "websocket", "path": "/agents/a/runs", "root_path": ""}) is None


@pytest.mark.parametrize(
    ("path", "root"),
    [("/api/agents/a/runs", "/api"), ("/agents/a/runs", "/api"), ("/api/agents/a/runs", "/api/")],
)
def test_a_root_path_is_taken_off_whether_the_server_gives_it_with_the_path_or_not(path: str, root: str) -> None:
    assert target_of(scope(path, root_path=root)) is not None


def test_a_root_path_ends_at_a_segment() -> None:
    assert target_of(scope("/apiagents/a/runs", root_path="/api")) is None


def test_a_prefix_says_where_a_wrapped_application_mounts_agentos() -> None:
    assert target_of(scope("/api/agents/a/runs"), "/api") == Target(Action.START, Family.AGENT, "a", None)
    assert target_of(scope("/agents/a/runs"), "/api") is None


class Seeing:
    """Remembers what ``target_of`` makes of each request, as a bridge at its place would see it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[Target | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.seen.append(target_of(scope))
        await self.app(scope, receive, send)


async def test_ids_are_what_the_router_behind_sees_mounted_or_not() -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse(dict(request.path_params))

    paths = ["/agents/{component_id}/runs", "/agents/{component_id}/runs/{run_id}/continue"]
    seeing = Seeing(Starlette(routes=[Route(path, answer, methods=["POST"]) for path in paths]))
    outer = Starlette(routes=[Mount("/api/v1", seeing), Mount("/", seeing)])
    ids = ["plain", "with%20space", "%61gent", "%C3%BC", "a%25b", "a+b", "q%3Fx", "h%23x", "a%2Fb"]
    with server_thread(outer) as address:
        async with http(address) as client:
            for prefix in ("", "/api/v1"):
                for id in ids:
                    response = await client.post(f"{prefix}/agents/{id}/runs/{id}/continue")
                    target = seeing.seen.pop()
                    if response.status_code == 404:
                        assert target is None, id
                        continue
                    assert target is not None, id
                    assert {"component_id": target.component_id, "run_id": target.run_id} == response.json()


async def test_a_route_of_the_application_itself_is_told_from_agnos(tmp_path: Path) -> None:
    async def own() -> None: ...

    base = FastAPI()
    base.add_api_route("/agents/{agent_id}/runs/{run_id}/events", own, methods=["GET"])
    base.add_api_route("/teams/special/runs", own, methods=["POST"])
    base.add_api_route("/{path:path}", own, methods=["GET"])  # as a single-page application has it
    app = make_agent_os(Settings(str(tmp_path)), base).get_app()
    assert has_own_route(app, scope("/agents/talker/runs/r/events", "GET"))
    assert has_own_route(app, scope("/teams/special/runs"))
    for method, path in (
        ("POST", "/agents/talker/runs"),
        ("POST", "/teams/crew/runs"),
        ("GET", "/teams/crew/runs/r/events"),
        ("GET", "/agents/talker/runs/r"),
        ("POST", "/agents/talker/runs/r/resume"),
    ):
        assert not has_own_route(app, scope(path, method)), path
    assert not has_own_route(Seeing(app), scope("/agents/talker/runs/r/events", "GET"))
    assert has_own_route(base, scope("/agents/x/runs/r/events", "GET"))
