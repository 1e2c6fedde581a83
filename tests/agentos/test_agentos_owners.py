"""With JWT and user isolation a run is its owner's, by every route, and cannot be told from one that is not there."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import anyio
import pytest

from ..faults.support import Answer, Connection, request, runs_of
from .apps import COOKIE, FAMILIES, Settings, say, token
from .support import Client, Run, Server, Stream, bearer, poll, post, row_of, start

SECRET = "a secret that only the tests and their server know"

pytestmark = pytest.mark.anyio
families = pytest.mark.parametrize("family", list(FAMILIES))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """AgentOS with the one line, JWT and user isolation."""
    started = Server(Settings(str(tmp_path_factory.mktemp("owners")), secret=SECRET))
    try:
        asyncio.run(started.ready())
        yield started
    finally:
        started.kill()


@pytest.fixture(scope="module")
def alice() -> dict[str, str]:
    return bearer(token(SECRET, "alice"))


@pytest.fixture(scope="module")
def bob() -> dict[str, str]:
    return bearer(token(SECRET, "bob"))


async def _asked(
    port: int, method: str, path: str, headers: dict[str, str], **fields: str
) -> tuple[int, str | None, bytes]:
    """Status, type and what came first of the body, with ids made alike."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"} if fields else {}
    connection = await Connection.open(
        port, method, path, headers={**headers, **kind}, body=urlencode(fields).encode() if fields else b""
    )
    body = b""
    if method != "HEAD":
        with anyio.fail_after(20):
            async for chunk in connection.body():
                body += chunk
                if b"event_index" in body:
                    break
    connection.close()
    return connection.answer.status, connection.answer.headers.get("content-type"), body


_IDS = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


async def _every_way(port: int, run: Run, session_id: str | None, headers: dict[str, str]) -> dict[str, object]:
    """What each route answers about a run, in words that do not depend on its id."""
    session = {"session_id": session_id} if session_id is not None else {}
    query = f"?{urlencode(session)}" if session else ""
    base = run.path
    cursor = {**headers, "Last-Event-ID": f"{run.run_id}:0"}
    approve = {"tools": "[]", "requirements": "[]", "step_requirements": "[]"}
    asked = {
        "GET events": _asked(port, "GET", f"{base}/events{query}", headers),
        "GET events with a cursor": _asked(port, "GET", f"{base}/events{query}", cursor),
        "GET resume": _asked(port, "GET", f"{base}/resume{query}", headers),
        "HEAD events": _asked(port, "HEAD", f"{base}/events{query}", headers),
        "POST resume": _asked(port, "POST", f"{base}/resume", headers, **session, last_event_index="0"),
        "POST cancel": _asked(port, "POST", f"{base}/cancel{query}", headers, x="y"),
        "POST continue": _asked(port, "POST", f"{base}/continue", headers, **session, **approve),
        "POST continue in the background": _asked(
            port, "POST", f"{base}/continue", headers, **session, **approve, background="true"
        ),
        "GET the run": _asked(port, "GET", f"{base}{query}", headers),
    }
    answers: dict[str, object] = {}
    for name, asking in asked.items():
        status, kind, body = await asking
        body = _IDS.sub(b"ID", body.replace(run.run_id.encode(), b"RUN"))
        answers[name] = (status, kind, body)
    return answers


@families
@pytest.mark.parametrize("state", ["running", "finished", "paused"])
async def test_bob_cannot_tell_alices_run_from_a_missing_one(
    server: Server, alice: dict[str, str], bob: dict[str, str], family: str, state: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    message = {"running": say(5, gate=gate), "finished": say(5), "paused": say(5, confirm=True)}[state]
    run, primary = await start(server.port, family, message, headers=alice)
    own, mine = await start(server.port, family, say(2), headers=bob)
    await mine.read()
    await (primary.having("word-4 ") if state == "running" else primary.read())
    row_before = (await row_of(server.port, run, headers=alice)).body
    before = runs_of(server.settings.log_path)[run.run_id]

    missing = Run(str(uuid.uuid4()), run.session_id, family)
    for session_id in (run.session_id, own.session_id, None, "no-such-session"):
        foreign = await _every_way(server.port, run, session_id, bob)
        absent = await _every_way(server.port, missing, session_id, bob)
        assert foreign == absent, session_id
        for name, answer in foreign.items():
            assert isinstance(answer, tuple)
            assert answer[0] in (400, 404, 409, 422), (name, answer)
            assert b"word-" not in answer[2], name

    # Nothing of it has moved
    after = runs_of(server.settings.log_path)[run.run_id]
    changing = ("lease_expires_at",)
    assert {n: v for n, v in after.items() if n not in changing} == {
        n: v for n, v in before.items() if n not in changing
    }
    assert (await row_of(server.port, run, headers=alice)).body == row_before
    gate.touch()
    await primary.read()
    if state == "running":
        await poll(server.port, run, "COMPLETED", headers=alice)


@families
async def test_a_posted_run_id_that_exists_touches_nothing(
    server: Server, alice: dict[str, str], bob: dict[str, str], family: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    run, primary = await start(server.port, family, say(5, gate=gate), headers=alice)
    await primary.having("word-4 ")
    path = f"{FAMILIES[family]}/runs"

    async def posting(headers: dict[str, str], **fields: object) -> Answer:
        return await post(server.port, path, headers=headers, message=say(50), run_id=run.run_id, **fields)

    async def refused() -> None:
        for session_id in (run.session_id, "bobs-session", None):
            for background in (True, False, None):
                for stream in (True, False):
                    fields = {"session_id": session_id, "background": background, "stream": stream}
                    assert (await posting(bob, **fields)).status == 404, fields
                    assert (await posting(alice, **fields)).status == 409, fields
        # By another family's route as well
        for other in FAMILIES.values():
            answer = await post(server.port, f"{other}/runs", headers=bob, message=say(1), run_id=run.run_id)
            assert answer.status == 404

    row = (await row_of(server.port, run, headers=alice)).body
    await refused()
    assert (await row_of(server.port, run, headers=alice)).body == row
    gate.touch()
    await primary.read()
    assert "That was all." in json.dumps(primary.frames[-1].data)
    await poll(server.port, run, "COMPLETED", headers=alice)
    row = (await row_of(server.port, run, headers=alice)).body
    await refused()
    assert (await row_of(server.port, run, headers=alice)).body == row
    whole = await (await Client.of(run, headers=alice).get(server.port)).read()
    assert [frame.raw for frame in whole.events] == [frame.raw for frame in primary.events]
    assert whole.names[-1] == "end"


@families
async def test_the_owner_comes_in_by_header_and_by_cookie_and_nobody_without_a_token(
    server: Server, alice: dict[str, str], family: str
) -> None:
    run, primary = await start(server.port, family, say(5), headers=alice)
    await primary.read()
    by_cookie = {"Cookie": f"{COOKIE}={token(SECRET, 'alice')}"}
    for headers in (alice, by_cookie):
        stream = await (await Client.of(run, headers=headers).get(server.port)).read()
        assert stream.status == 200
        assert [frame.raw for frame in stream.events] == [frame.raw for frame in primary.events]
    expired = bearer(token(SECRET, "alice", hours=-1))
    forged = bearer(token("another secret, which the server does not know", "alice"))
    for refused in ({}, expired, forged):
        assert (await (await Client.of(run, headers=refused).get(server.port)).read()).status == 401
        assert (await (await Client.of(run, headers=refused).resume(server.port)).read()).status == 401
    admin = bearer(token(SECRET, "root", admin=True))
    assert (await (await Client.of(run, headers=admin).get(server.port)).read()).status == 200
    # The session is needed, as in AgentOS: it is what ownership hangs on
    assert (await request(server.port, "GET", f"{run.path}/events", headers=alice)).status == 400


async def test_the_log_knows_whose_run_it_is(server: Server, alice: dict[str, str]) -> None:
    for family in FAMILIES:
        for background in (True, None):
            run, primary = await start(server.port, family, say(2), headers=alice, background=background)
            await primary.read()
            row = runs_of(server.settings.log_path)[run.run_id]
            assert (row["user_id"], row["session_id"], row["family"]) == ("alice", run.session_id, family)
            assert row["component_id"] == FAMILIES[family].rpartition("/")[2]


async def test_a_stolen_cursor_opens_nothing(server: Server, alice: dict[str, str], bob: dict[str, str]) -> None:
    run, primary = await start(server.port, "agent", say(5), headers=alice)
    await primary.read()
    own, mine = await start(server.port, "agent", say(5), headers=bob)
    await mine.read()
    path = f"{own.path}/events?session_id={own.session_id}"
    stream = await Stream.open(server.port, "GET", path, headers={**bob, "Last-Event-ID": f"{run.run_id}:0"})
    assert (await stream.read()).status == 400
    # A repeated POST with a foreign cursor starts no run and reads none of hers
    posted = await Stream.open(
        server.port,
        "POST",
        f"{FAMILIES['agent']}/runs",
        headers={**bob, "Last-Event-ID": f"{run.run_id}:0"},
        fields={"message": say(1), "session_id": own.session_id},
    )
    await posted.read()
    assert all(frame.data.get("run_id") != run.run_id for frame in posted.events)
