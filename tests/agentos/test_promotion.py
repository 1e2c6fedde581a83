"""A stream becomes a background run, before a real AgentOS under a real uvicorn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from agno.agent import Agent, AgentFactory, RemoteAgent
from agno.db.sqlite import SqliteDb
from agno.os import AgentOS
from agno.registry import Registry
from agno.workflow import Workflow

from agno_resumable import Family
from agno_resumable.agentos.paths import Action, Target
from agno_resumable.agentos.promotion import promotable
from agno_resumable.agentos.versions import agno_version
from agno_resumable.demo.scripted import ScriptedModel

from ..support import PATIENCE, eventually
from .apps import FAMILIES, say
from .before import Served, indices, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"  # as agno needs it


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(directory=tmp_path_factory.mktemp("promotion")) as served:
        yield served


def posted(client: httpx.AsyncClient, url: str, form: dict[str, str], how: str) -> httpx.Request:
    """The form as a client of each kind posts it."""
    if how == "urlencoded":
        return client.build_request("POST", url, data=form)
    if how == "file":
        files: Any = {"files": ("a.txt", b"text \r\n" * 40_000, "text/plain")}
        return client.build_request("POST", url, data=form, files=files)
    request = client.build_request("POST", url, files={name: (None, value) for name, value in form.items()})
    if how == "multipart":
        return request
    body = request.read()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    return client.build_request(
        "POST", url, content=pieces(), headers={"content-type": request.headers["content-type"]}
    )


@pytest.mark.parametrize("how", ["urlencoded", "multipart", "file", "chunked"])
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_promoted_start_is_a_background_run_that_can_be_resumed(family: str, how: str, served: Served) -> None:
    path = FAMILIES[family]
    async with served.client() as client:
        response = await client.send(posted(client, f"{path}/runs", {"message": say(4), "session_id": "s"}, how))
        assert response.status_code == 200, response.text
        assert served.promoted
        if family == "workflow" and how == "file":
            return  # agno fails there with a file, in the background and without it
        seen = indices(response.text)
        assert len(seen) > 4
        run_id = json.loads(response.text.split("data: ")[1].split("\n")[0])["run_id"]
        resumed = await client.post(f"{path}/runs/{run_id}/resume", data={"session_id": "s"})
        if family == "workflow" and agno_version() < (3, 0, 0):  # where the events of steps are counted apart
            assert indices(resumed.text)
        else:
            assert seen == list(range(len(seen)))
            assert indices(resumed.text) == seen


@pytest.mark.parametrize(
    ("form", "status", "kind"),
    [
        ({"stream": "false"}, 200, "application/json"),
        ({"background": "false"}, 200, "text/event-stream"),
        ({"background": "true", "stream": "false"}, 202, "application/json"),
        ({"stream": "maybe"}, 422, "application/json"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
async def test_what_is_not_to_be_promoted_is_answered_as_always(
    family: str, form: dict[str, str], status: int, kind: str, served: Served
) -> None:
    async with served.client() as client:
        response = await client.post(f"{FAMILIES[family]}/runs", data={"message": say(1), **form})
        assert response.status_code == status
        assert response.headers["content-type"].startswith(kind)
        assert not served.promoted


async def test_a_json_body_is_what_it_is_to_agno(served: Served) -> None:
    async with served.client() as client:
        response = await client.post(f"{FAMILIES['agent']}/runs", json={"message": say(1), "run_id": "a b"})
        assert response.status_code == 422
        assert not served.promoted


async def test_a_promoted_run_goes_on_when_its_client_leaves(served: Served) -> None:
    path = f"{FAMILIES['agent']}/runs"
    async with served.client() as client:
        form = {"message": say(8, 0.05), "session_id": "left", "run_id": "left-1"}
        async with client.stream("POST", path, data=form) as response:
            async for _ in response.aiter_raw():
                break

        async def completed() -> bool:
            row = await client.get(f"{path}/left-1", params={"session_id": "left"})
            return row.status_code == 200 and row.json()["status"] == "COMPLETED"

        await eventually(completed, timeout=PATIENCE)


@pytest.mark.parametrize(("family", "promoted"), [("agent", True), ("team", True), ("workflow", False)])
async def test_a_continue_is_promoted_where_agno_takes_it_in_the_background(
    family: str, promoted: bool, served: Served
) -> None:
    path, run_id = FAMILIES[family], f"continued-{family}"
    async with served.client() as client:
        form = {"message": say(1), "run_id": run_id, "session_id": run_id, "background": "false"}
        assert (await client.post(f"{path}/runs", data=form)).status_code == 200
        form = {"input": say(2), "session_id": run_id}
        response = await client.post(f"{path}/runs/{run_id}/continue", data=form)
        assert served.promoted is promoted
        if promoted:
            assert response.status_code == 200
            assert indices(response.text)
        else:
            assert response.status_code == 409
            assert "paused" in response.text or "completed" in response.text
            plain = await client.post(f"{path}/runs/{run_id}/continue", data={**form, "background": "false"})
            assert plain.text == response.text


async def test_only_what_surely_runs_in_the_background_is_promotable(tmp_path: Path) -> None:
    db = SqliteDb(db_file=str(tmp_path / "agentos.db"))
    model = ScriptedModel(script=["hi"])
    Agent(id="kept", model=model, db=db, telemetry=False).save(db=db)

    def build(context: Any) -> Agent:
        return Agent(id="made", model=model, db=db)

    agent_os = AgentOS(
        db=db,
        agents=[
            Agent(id="with", model=model, db=db, telemetry=False),
            AgentFactory(id="made", db=db, factory=build),
            RemoteAgent(base_url="http://127.0.0.1:1", agent_id="far"),
        ],
        workflows=[Workflow(id="flow", db=db, steps=[], telemetry=False)],
        telemetry=False,
    )

    async def promoted(component_id: str, family: Family = Family.AGENT, action: Action = Action.START) -> bool:
        return await promotable(agent_os, Target(action, family, component_id, None))

    assert await promoted("with")
    assert await promoted("with", action=Action.CONTINUE)
    assert await promoted("kept")
    assert await promoted("flow", Family.WORKFLOW)
    assert not await promoted("flow", Family.WORKFLOW, Action.CONTINUE)
    assert not await promoted("kept", Family.TEAM)
    assert not await promoted("with", Family.TEAM)
    assert not await promoted("made")
    assert not await promoted("far")
    assert not await promoted("nobody")
    assert not await promoted("with", action=Action.RESUME)
    assert not await promotable(None, Target(Action.START, Family.AGENT, "with", None))


async def test_nothing_is_promoted_before_a_durable_queue(tmp_path: Path) -> None:
    queues = pytest.importorskip("agno.job_queue", reason="agno 2 has no queue")
    db = SqliteDb(db_file=str(tmp_path / "agentos.db"))
    agent = Agent(id="with", model=ScriptedModel(script=["hi"]), db=db, telemetry=False)
    target = Target(Action.START, Family.AGENT, "with", None)
    for durable in (False, True):
        agent_os = AgentOS(db=db, agents=[agent], queue=queues.QueueConfig(durable=durable), telemetry=False)
        assert await promotable(agent_os, target) is not durable


async def test_a_component_without_a_database_streams_as_always() -> None:
    agent = Agent(id="talker", model=ScriptedModel(script=["hi"]), telemetry=False)
    with serving(AgentOS(agents=[agent], telemetry=False)) as served:
        async with served.client() as client:
            response = await client.post("/agents/talker/runs", data={"message": "hi"})
            assert response.status_code == 200
            assert "RunCompleted" in response.text
            assert not served.promoted


async def test_an_agent_that_agentos_keeps_in_its_database_is_promoted(tmp_path: Path) -> None:
    db = SqliteDb(db_file=str(tmp_path / "agentos.db"))
    model = ScriptedModel(script=["hi"])
    Agent(id="kept", model=model, db=db, telemetry=False).save(db=db)
    agent_os = AgentOS(
        db=db,
        agents=[Agent(id="other", model=model, db=db, telemetry=False)],
        registry=Registry(models=[model], dbs=[db]),
        telemetry=False,
    )
    with serving(agent_os) as served:
        async with served.client() as client:
            response = await client.post("/agents/kept/runs", data={"message": "hi"})
            assert served.promoted
            assert response.status_code == 200, response.text
            assert indices(response.text)
