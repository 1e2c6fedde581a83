"""The routes over real connections: every cut, every kind of request, and who may do what."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import orjson
import pytest
from agno.client import AgentOSClient
from agno.media import Image
from agno.run.base import RunStatus as AgnoRunStatus
from agno.utils.http import aclose_default_clients
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.routing import Mount

from agno_resumable import Family, ResumableStream, Run, resumable_routes

from .support import (
    KINDS,
    PATIENCE,
    EventStream,
    eventually,
    http,
    open_stream,
    receive,
    scripted_agent,
    scripted_team,
    scripted_workflow,
    server_thread,
)
from .test_stream import cautious_agent

pytestmark = pytest.mark.anyio

FAMILIES = list(Family)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def application(**options: Any) -> Starlette:
    routes = resumable_routes(
        log="memory:",
        agents=[scripted_agent(), scripted_agent(id="slow", delay=0.02, words=200)],
        teams=[scripted_team(delay=0.002)],
        workflows=[scripted_workflow()],
        **options,
    )
    return Starlette(routes=routes, lifespan=routes.lifespan)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server_thread(application(drain_grace=0.2, cancel_grace=0.2)) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with http(address) as client:
        yield client


def base(family: Family) -> str:
    return f"/{KINDS[family]}/{family.value}/runs"


async def finished(client: httpx.AsyncClient, family: Family = Family.AGENT) -> tuple[str, EventStream]:
    """The address of a run that has ended, and its whole stream."""
    whole = await receive(client, "POST", base(family), data={"message": "Go."})
    assert whole.status == 200
    return f"{base(family)}/{whole.headers['x-run-id']}", whole


# ---------------------------------------------------------------- acceptance 2: every cut


@pytest.mark.parametrize("family", FAMILIES)
async def test_whoever_leaves_a_live_run_after_any_event_comes_back_to_the_rest_byte_for_byte(
    client: httpx.AsyncClient, family: Family
) -> None:
    _, sample = await finished(client, family)
    total = len(sample.events)
    assert 40 <= total <= 60
    cursors = ("Last-Event-ID", "last_event_id", "since_id")

    async def cut(k: int) -> None:
        first = await receive(client, "POST", base(family), data={"message": "Go."}, leave_after=k)
        held = first.blocks[:k]
        last = first.events[k - 1].id
        assert last is not None
        where = first.headers["location"]
        name = cursors[k % 3]
        cursor: dict[str, Any] = {"headers": {name: last}} if k % 3 == 0 else {"params": {name: last}}
        rest = await receive(client, "GET", where, **cursor)
        whole = await receive(client, "GET", where)
        if k == total and rest.status == 204:
            rest.frames = whole.frames[-1:]
        else:
            assert rest.status == 200
        assert held + rest.blocks == whole.blocks
        assert len(whole.blocks) == total
        assert [frame.event for frame in rest.frames][-1] == "end"
        again = await receive(client, "GET", where, headers={"Last-Event-ID": whole.events[-1].id or ""})
        assert (again.status, again.body) == (204, b"")

    for start in range(1, total + 1, 10):
        async with anyio.create_task_group() as tasks:
            for k in range(start, min(start + 10, total + 1)):
                tasks.start_soon(cut, k)


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_same_through_agnos_resume(client: httpx.AsyncClient, family: Family) -> None:
    where, whole = await finished(client, family)
    total = len(whole.events)
    for k in range(total + 1):
        form = {"last_event_index": str(k - 1), "session_id": "any"} if k else {}
        rest = await receive(client, "POST", f"{where}/resume", data=form)
        assert rest.frames[0].event == "replay"
        meta = json.loads(rest.frames[0].data)
        assert meta["total_events"] == total - k
        assert meta["last_event_index_requested"] == k - 1
        assert whole.blocks[:k] + rest.blocks == whole.blocks


async def test_agnos_documented_reconnection_recipe_works_on_a_live_team(client: httpx.AsyncClient) -> None:
    teams = (await client.get("/teams")).json()
    team_id = teams[0]["id"]
    run_id = session_id = None
    last_event_index = -1
    seen: list[dict[str, Any]] = []
    form = {"message": "Go.", "stream": "true", "background": "true"}
    async with client.stream("POST", f"/teams/{team_id}/runs", data=form) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data = json.loads(line[6:])
                run_id = run_id or data.get("run_id")
                session_id = session_id or data.get("session_id")
                last_event_index = data["event_index"]
                seen.append(data)
                if len(seen) == 6:
                    break
    await asyncio.sleep(3)  # as the recipe has it
    form = {"last_event_index": str(last_event_index), "session_id": str(session_id)}
    metas = []
    async with client.stream("POST", f"/teams/{team_id}/runs/{run_id}/resume", data=form) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data = json.loads(line[6:])
                if data["event"] in ("catch_up", "replay", "subscribed", "error"):
                    metas.append(data["event"])
                else:
                    seen.append(data)
    assert metas in (["replay"], ["catch_up", "subscribed"])
    assert [event["event_index"] for event in seen] == list(range(len(seen)))
    assert seen[-1]["event"] == "TeamRunCompleted"


async def test_resuming_a_live_run_catches_up_subscribes_and_goes_on(client: httpx.AsyncClient) -> None:
    first = await receive(client, "POST", "/agents/slow/runs", data={"message": "Go."}, leave_after=8)
    where = f"/agents/slow/runs/{first.headers['x-run-id']}"
    with anyio.fail_after(PATIENCE):
        async with open_stream(client, "POST", f"{where}/resume", data={"last_event_index": "2"}) as rest:
            async for frame in rest:
                if json.loads(frame.data).get("event_index") == 14:
                    break
    names = [frame.event for frame in rest.frames]
    assert names[0] == "catch_up"
    assert "subscribed" in names
    assert [json.loads(frame.data)["event_index"] for frame in rest.events] == list(range(3, 15))
    cancelled = await client.post(f"{where}/cancel")
    assert cancelled.status_code == 200


async def test_resuming_an_unknown_run_answers_as_agentos_does(client: httpx.AsyncClient) -> None:
    answer = await receive(client, "POST", f"{base(Family.AGENT)}/unknown/resume", data={})
    assert answer.status == 200
    assert [frame.event for frame in answer.frames] == ["error"]
    assert "not found" in answer.frames[0].data


@pytest.fixture
async def agentos(address: str) -> AsyncIterator[AgentOSClient]:
    """agno's client; its connections are the process's, and would outlive the loop of the test."""
    yield AgentOSClient(base_url=address, timeout=PATIENCE)
    await aclose_default_clients()


@pytest.mark.parametrize("family", FAMILIES)
async def test_agnos_own_client_streams_from_these_routes_unchanged(
    agentos: AgentOSClient, family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    client = agentos
    run: dict[Family, Callable[..., AsyncIterator[Any]]] = {
        Family.AGENT: client.run_agent_stream,
        Family.TEAM: client.run_team_stream,
        Family.WORKFLOW: client.run_workflow_stream,
    }
    agno = logging.getLogger("agno")
    agno.addHandler(caplog.handler)
    try:
        events = [event async for event in run[family](family.value, message="Go.", session_id="s")]
    finally:
        agno.removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert 40 <= len(events) <= 60
    assert events[-1].event.endswith("Completed")


async def test_agnos_own_client_sends_media_along(agentos: AgentOSClient) -> None:
    image = Image(content=b"not really a picture", format="png", mime_type="image/png")
    with anyio.fail_after(PATIENCE):
        run = await agentos.run_agent("agent", "look", images=[image])
    assert run.status is AgnoRunStatus.completed


@pytest.mark.parametrize("images", ["{}", "[1]", "no json", '[{"nothing": "that makes an image"}]'])
async def test_media_that_are_none_start_no_run(address: str, images: str) -> None:
    async with http(address) as client:
        before = len((await client.get("/agents/agent/runs")).json())
        answer = await client.post("/agents/agent/runs", data={"message": "look", "images": images})
        assert answer.status_code == 422
        assert len((await client.get("/agents/agent/runs")).json()) == before


async def test_a_client_cannot_name_a_file_of_the_server_as_its_medium(address: str) -> None:
    async with http(address) as client:
        images = '[{"filepath": "/etc/hostname"}]'
        answer = await client.post("/agents/agent/runs", data={"message": "look", "images": images})
        assert answer.status_code == 422


async def test_agnos_own_client_runs_an_agent_to_its_result_and_cancels(agentos: AgentOSClient) -> None:
    client = agentos
    output = await client.run_agent("agent", message="Go.", session_id="s")
    assert "wörd35" in str(output.content)
    assert output.run_id
    await client.cancel_agent_run("agent", output.run_id)


# ---------------------------------------------------------------- starting


async def test_a_run_is_started_by_a_form_multipart_or_json(client: httpx.AsyncClient) -> None:
    for request in (
        {"data": {"message": "Go.", "session_id": "s"}},
        {"json": {"message": "Go.", "session_id": "s"}},
        {"data": {"message": "Go.", "session_id": "s"}, "files": {"files": ("a.txt", b"words", "text/plain")}},
        {"data": {"message": "Go.", "session_id": "s"}, "files": [("files", ("a.png", b"\x89PNG", "image/png"))]},
    ):
        answer = await receive(client, "POST", base(Family.AGENT), **request)
        assert answer.status == 200
        assert answer.headers["location"] == f"{base(Family.AGENT)}/{answer.headers['x-run-id']}/events"
        assert answer.frames[-1].event == "end"
        assert json.loads(answer.frames[-1].data)["status"] == "COMPLETED"
        assert json.loads(answer.events[0].data)["session_id"] == "s"


async def test_without_streaming_the_answer_is_the_finished_runs_result(client: httpx.AsyncClient) -> None:
    answer = await client.post(base(Family.AGENT), data={"message": "Go.", "stream": "false"})
    assert answer.status_code == 200
    run = answer.json()
    assert run["status"] == "COMPLETED"
    assert "wörd35" in run["content"]
    assert answer.headers["location"].endswith(f"{run['run_id']}/events")


async def test_in_the_background_the_answer_comes_at_once_and_the_run_is_found_again(client: httpx.AsyncClient) -> None:
    form = {"message": "Go.", "stream": "false", "background": "true", "session_id": "reload"}
    answer = await client.post("/agents/slow/runs", data=form)
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted["run_id"] == accepted["job_id"] == answer.headers["x-run-id"]
    assert accepted["session_id"] == "reload"
    listed = (await client.get("/agents/slow/runs", params={"session_id": "reload"})).json()
    assert [run["run_id"] for run in listed] == [accepted["run_id"]]
    where = f"/agents/slow/runs/{accepted['run_id']}"
    assert (await client.post(f"{where}/cancel")).status_code == 200

    async def cancelled() -> bool:
        return bool((await client.get(where)).json()["status"] == "CANCELLED")

    await eventually(cancelled)
    found = (await client.get("/agents/slow/runs", params={"session_id": "reload", "status": "cancelled"})).json()
    assert len(found) == 1
    assert (await client.get("/agents/slow/runs", params={"session_id": "reload", "status": "RUNNING"})).json() == []


async def test_a_repeated_post_starts_nothing_twice(client: httpx.AsyncClient) -> None:
    form = {"message": "Go.", "session_id": "twice"}
    first = await receive(client, "POST", base(Family.AGENT), data=form, leave_after=5)
    last = first.events[4].id or ""
    rest = await receive(client, "POST", base(Family.AGENT), data=form, headers={"Last-Event-ID": last})
    assert rest.headers["x-run-id"] == first.headers["x-run-id"]
    assert json.loads(rest.events[0].data)["event_index"] == 5
    done = await receive(
        client, "POST", base(Family.AGENT), data=form, headers={"Last-Event-ID": rest.events[-1].id or ""}
    )
    assert done.status == 204
    keyed = [
        await receive(client, "POST", base(Family.AGENT), data=form, headers={"Idempotency-Key": "k"}) for _ in range(3)
    ]
    assert len({answer.headers["x-run-id"] for answer in keyed}) == 1
    assert keyed[0].blocks == keyed[2].blocks
    listed = (await client.get(base(Family.AGENT), params={"session_id": "twice"})).json()
    assert len(listed) == 2


async def test_filters_leave_out_events_keep_indices_and_end_in_204(client: httpx.AsyncClient) -> None:
    where, whole = await finished(client)
    only = await receive(client, "GET", f"{where}/events", params={"types": "RunStarted,RunCompleted"})
    assert [frame.event for frame in only.events] == ["RunStarted", "RunCompleted"]
    without = await receive(client, "GET", f"{where}/events", params={"exclude": "RunContent,RunCompleted"})
    assert {"RunContent", "RunCompleted"}.isdisjoint(frame.event for frame in without.events)
    assert all(block in whole.blocks for block in [*only.blocks, *without.blocks])
    last = without.events[-1].id or ""
    again = await client.get(
        f"{where}/events", params={"exclude": "RunContent,RunCompleted"}, headers={"Last-Event-ID": last}
    )
    assert again.status_code == 204


async def test_head_answers_with_the_headers_and_no_stream(client: httpx.AsyncClient) -> None:
    where, _ = await finished(client)
    with anyio.fail_after(PATIENCE):
        answer = await client.head(f"{where}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == b""


# ---------------------------------------------------------------- bad input

BAD: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "a cursor that is no number": ("GET", "/events", {"headers": {"Last-Event-ID": "abc"}}, 400),
    "a cursor of another run": ("GET", "/events", {"params": {"last_event_id": "other:5"}}, 400),
    "a cursor below the beginning": ("GET", "/events", {"params": {"since_id": "-2"}}, 400),
    "a cursor of 300 kB": ("GET", "/events", {"params": {"since_id": "1" * 60_000}}, 400),
    "a cursor with strange digits": ("GET", "/events", {"params": {"since_id": "\u0663"}}, 400),
    "an index that is no number": ("POST", "/resume", {"data": {"last_event_index": "abc"}}, 422),
    "an index of 5,000 digits": ("POST", "/resume", {"data": {"last_event_index": "1" * 5000}}, 422),
    "an index beyond 64 bits": ("POST", "/resume", {"data": {"last_event_index": "9" * 30}}, 422),
    "an index that is a list": ("POST", "/resume", {"json": {"last_event_index": [1]}}, 422),
    "a resume with a broken body": (
        "POST",
        "/resume",
        {"content": b"{", "headers": {"content-type": "application/json"}},
        400,
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_on_a_run_is_a_4xx_with_json(client: httpx.AsyncClient, name: str) -> None:
    where, _ = await finished(client)
    method, path, request, status = BAD[name]
    answer = await client.request(method, where + path, **request)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["detail"]


JSON = {"content-type": "application/json"}
BAD_STARTS: dict[str, tuple[dict[str, Any], int]] = {
    "no message": ({"data": {"stream": "true"}}, 422),
    "an empty message": ({"data": {"message": ""}}, 422),
    "no body": ({}, 422),
    "a wrong flag": ({"data": {"message": "Go.", "stream": "maybe"}}, 422),
    "a session that is no text": ({"json": {"message": "Go.", "session_id": 5}}, 422),
    "a session with control characters": ({"json": {"message": "Go.", "session_id": "a\u0000b"}}, 422),
    "a user with a line feed": ({"data": {"message": "Go.", "user_id": "a\nb"}}, 422),
    "metadata that is no JSON": ({"data": {"message": "Go.", "metadata": "{"}}, 422),
    "metadata that is no object": ({"json": {"message": "Go.", "metadata": [1]}}, 422),
    "a session state that is no object": ({"json": {"message": "Go.", "session_state": 5}}, 422),
    "JSON that is broken": ({"content": b'{"message": ', "headers": JSON}, 400),
    "JSON that is no object": ({"content": b"[1]", "headers": JSON}, 400),
    "JSON that is not UTF-8": ({"content": b'{"message": "\xff"}', "headers": JSON}, 400),
    "JSON that is deep": ({"content": b'{"message":' + b"[" * 100_000, "headers": JSON}, 400),
    "JSON with a lone surrogate": (
        {"content": b'{"message": "\\ud800", "session_id": "\\ud800"}', "headers": JSON},
        422,
    ),
    "a huge number in JSON": ({"content": b'{"message": ' + b"1" * 5000 + b"}", "headers": JSON}, 400),
    "a type of body that is not taken": ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
    "multipart without a boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
    "a cursor that is none": ({"data": {"message": "Go."}, "headers": {"Last-Event-ID": "a b:5"}}, 400),
    "a key that is too long": ({"data": {"message": "Go."}, "headers": {"Idempotency-Key": "k" * 300}}, 400),
    "an empty file": ({"data": {"message": "Go."}, "files": {"files": ("a.txt", b"", "text/plain")}}, 400),
}


@pytest.mark.parametrize("name", BAD_STARTS)
async def test_bad_input_at_the_start_is_a_4xx_with_json_and_creates_nothing(
    client: httpx.AsyncClient, name: str
) -> None:
    before = len((await client.get(base(Family.WORKFLOW), params={"limit": 1000})).json())
    request, status = BAD_STARTS[name]
    answer = await client.post(base(Family.WORKFLOW), **request)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["detail"]
    assert len((await client.get(base(Family.WORKFLOW), params={"limit": 1000})).json()) == before


async def test_a_body_over_the_limit_is_refused_with_and_without_a_declared_length() -> None:
    with server_thread(application(max_body_bytes=1000)) as address:
        async with http(address) as client:
            assert (await client.post(base(Family.AGENT), data={"message": "x" * 2000})).status_code == 413

            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(10):
                    yield b"x" * 500

            for kind in ("application/json", "application/x-www-form-urlencoded"):
                answer = await client.post(base(Family.AGENT), content=chunks(), headers={"content-type": kind})
                assert answer.status_code == 413
                assert answer.json()["detail"]


async def test_a_last_event_id_of_300_kb_is_refused_or_cut_off_and_never_a_500(client: httpx.AsyncClient) -> None:
    where, _ = await finished(client)
    answer = await client.get(f"{where}/events", headers={"Last-Event-ID": "1" * 300_000})
    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize("bad", ["unknown", "a" * 200, "%00", "a%0Ab", "%F0%9F%98%80", "{run}", "a b"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/continue")]
)
async def test_a_run_id_that_is_none_is_a_404(client: httpx.AsyncClient, bad: str, method: str, path: str) -> None:
    answer = await client.request(method, f"{base(Family.AGENT)}/{bad}{path}")
    assert answer.status_code == 404


@pytest.mark.parametrize("query", [{"status": "odd"}, {"limit": "0"}, {"limit": "x"}, {"limit": "99999999999"}])
async def test_a_bad_list_is_a_422(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    assert (await client.get(base(Family.AGENT), params=query)).status_code == 422


# ---------------------------------------------------------------- who may do what


class User(BaseUser):
    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return self.name

    @property
    def identity(self) -> str:
        return self.name


class ByHeader(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.headers.get("x-user")
        return None if name is None else (AuthCredentials(["authenticated"]), User(name))


async def test_a_foreign_run_answers_as_a_missing_one_on_every_route() -> None:
    app = application()
    app.add_middleware(AuthenticationMiddleware, backend=ByHeader())
    alice, bob = {"X-User": "alice"}, {"X-User": "bob"}
    with server_thread(app) as address:
        async with http(address) as client:
            mine = await receive(
                client, "POST", base(Family.AGENT), data={"message": "Go.", "user_id": "bob"}, headers=alice
            )
            run_id = mine.headers["x-run-id"]
            assert (await client.get(f"{base(Family.AGENT)}/{run_id}", headers=alice)).json()["user_id"] == "alice"
            missing = "0" * 8 + run_id[8:]
            for headers in (bob, {}):
                for method, path in (
                    ("GET", ""),
                    ("GET", "/events"),
                    ("HEAD", "/events"),
                    ("POST", "/cancel"),
                    ("POST", "/continue"),
                    ("POST", "/resume"),
                ):
                    foreign = await client.request(method, f"{base(Family.AGENT)}/{run_id}{path}", headers=headers)
                    absent = await client.request(method, f"{base(Family.AGENT)}/{missing}{path}", headers=headers)
                    assert foreign.status_code == absent.status_code
                    assert foreign.status_code == (200 if path == "/resume" else 404)
                    assert foreign.content.replace(run_id.encode(), b"") == absent.content.replace(
                        missing.encode(), b""
                    )
                    left, right = dict(foreign.headers), dict(absent.headers)
                    for varying in ("date", "x-run-id"):
                        left.pop(varying, None)
                        right.pop(varying, None)
                    assert left == right
                repeated = [
                    await client.post(
                        base(Family.AGENT), data={"message": "Go."}, headers={**headers, "Last-Event-ID": f"{id_}:3"}
                    )
                    for id_ in (run_id, missing)
                ]
                assert [answer.status_code for answer in repeated] == [404, 404]
                assert (await client.get(base(Family.AGENT), headers=headers)).json() == []
            assert len((await client.get(base(Family.AGENT), headers=alice)).json()) == 1
            keyed = {"Idempotency-Key": "same"}
            first = await receive(
                client, "POST", base(Family.AGENT), data={"message": "Go."}, headers={**alice, **keyed}
            )
            other = await receive(client, "POST", base(Family.AGENT), data={"message": "Go."}, headers={**bob, **keyed})
            assert first.headers["x-run-id"] != other.headers["x-run-id"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_authorize_hook_decides_instead(asynchronous: bool) -> None:
    def decide(request: Request, run: Run | None) -> bool:
        return request.headers.get("x-key") == "open"

    async def decide_later(request: Request, run: Run | None) -> bool:
        await anyio.lowlevel.checkpoint()
        return decide(request, run)

    with server_thread(application(authorize=decide_later if asynchronous else decide)) as address:
        async with http(address) as client:
            key = {"X-Key": "open"}
            refused = await client.post(base(Family.AGENT), data={"message": "Go."})
            assert refused.status_code == 403
            run = await receive(client, "POST", base(Family.AGENT), data={"message": "Go."}, headers=key)
            where = run.headers["location"]
            assert (await client.get(where)).status_code == 404
            assert (await client.get(where, headers=key)).status_code == 200
            assert (await client.get(base(Family.AGENT))).status_code == 403


async def test_an_owner_hook_names_the_user() -> None:
    with server_thread(application(owner=lambda request: request.headers.get("x-tenant"))) as address:
        async with http(address) as client:
            one, two = {"X-Tenant": "one"}, {"X-Tenant": "two"}
            run = await receive(client, "POST", base(Family.AGENT), data={"message": "Go."}, headers=one)
            assert (await client.get(run.headers["location"], headers=one)).status_code == 200
            assert (await client.get(run.headers["location"], headers=two)).status_code == 404
            assert (await client.get(run.headers["location"])).status_code == 404


# ---------------------------------------------------------------- where the routes are mounted


async def test_a_mounted_application_without_a_lifespan_works_and_its_location_leads_back() -> None:
    inner = Starlette(routes=resumable_routes(log="memory:", agents=[scripted_agent()]))
    with server_thread(Starlette(routes=[Mount("/api/v1", inner)])) as address:
        async with http(address) as client:
            first = await receive(client, "POST", "/api/v1/agents/agent/runs", data={"message": "Go."}, leave_after=9)
            assert first.headers["location"].startswith("/api/v1/agents/agent/runs/")
            rest = await receive(
                client, "GET", first.headers["location"], headers={"Last-Event-ID": first.events[8].id or ""}
            )
            assert json.loads(rest.events[0].data)["event_index"] == 9
            assert rest.frames[-1].event == "end"


async def test_fastapi_with_middleware_that_wraps_and_compresses_streams_all_the_same() -> None:
    app = FastAPI(
        middleware=[Middleware(GZipMiddleware, minimum_size=1), Middleware(BaseHTTPMiddleware, dispatch=_passing)]
    )
    routes = resumable_routes(log="memory:", agents=[scripted_agent(delay=0.005)])
    app.router.routes.extend(routes)
    with server_thread(app) as address:
        async with http(address) as client:
            first = await receive(client, "POST", "/agents/agent/runs", data={"message": "Go."}, leave_after=7)
            assert "content-encoding" not in first.headers
            rest = await receive(
                client, "GET", first.headers["location"], headers={"Last-Event-ID": first.events[6].id or ""}
            )
            whole = await receive(client, "GET", first.headers["location"])
            assert first.blocks[:7] + rest.blocks == whole.blocks


async def _passing(request: Request, call_next: Any) -> Any:
    return await call_next(request)


async def test_a_route_of_ones_own_in_one_line() -> None:
    stream = ResumableStream(scripted_agent(), log="memory:")
    app = FastAPI(lifespan=stream.lifespan)

    @app.post("/chat")
    async def chat(request: Request) -> Any:
        return await stream.start_response(request, orjson.loads(await request.body())["message"])

    @app.get("/chat/{run_id}")
    async def follow(request: Request, run_id: str) -> Any:
        return await stream.response(request, run_id)

    with server_thread(app) as address:
        async with http(address) as client:
            first = await receive(client, "POST", "/chat", json={"message": "Go."}, leave_after=3)
            rest = await receive(
                client,
                "GET",
                f"/chat/{first.headers['x-run-id']}",
                headers={"Last-Event-ID": first.events[2].id or ""},
            )
            assert json.loads(rest.events[0].data)["event_index"] == 3
            assert (await client.get("/chat/unknown")).status_code == 404


@pytest.mark.parametrize("encoding", ["form", "json"])
async def test_a_paused_run_is_continued_over_http_with_the_answers_as_agentos_takes_them(encoding: str) -> None:
    with server_thread(Starlette(routes=resumable_routes(log="memory:", agents=[cautious_agent()]))) as address:
        async with http(address) as client:
            first = await receive(client, "POST", "/agents/cautious/runs", data={"message": "Go."})
            assert [frame.event for frame in first.frames][-2:] == ["RunPaused", "paused"]
            tools = json.loads(first.events[-1].data)["tools"]
            for answer in tools:
                answer["confirmed"] = True
            where = f"/agents/cautious/runs/{first.headers['x-run-id']}"
            body: dict[str, Any] = (
                {"json": {"tools": tools}} if encoding == "json" else {"data": {"tools": json.dumps(tools)}}
            )
            refused = await client.post(f"{where}/continue", data={"tools": "5"})
            assert refused.status_code == 422
            rest = await receive(client, "POST", f"{where}/continue", **body)
            assert rest.status == 200
            assert "ToolCallCompleted" in [frame.event for frame in rest.events]
            assert rest.frames[-1].event == "end"
            whole = await receive(client, "GET", f"{where}/events")
            assert first.blocks + rest.blocks == whole.blocks
            again = await client.post(f"{where}/continue", **body)
            assert again.status_code == 409
