"""The clients of AgentOS: those that were there before see what they saw, and EventSource is one more."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agno_resumable.demo.app import _event_types

from ..faults.checker import check_history, check_run
from ..faults.proxy import CuttingProxy
from ..faults.support import long_form, request
from .apps import COOKIE, FAMILIES, Settings, say, token
from .support import TERMINAL, Client, Frame, Run, Server, bearer, poll, post, start

pytestmark = pytest.mark.anyio

SECRET = "a secret that only the tests and their server know"
CUTS = 30 if long_form() else 10
families = pytest.mark.parametrize("family", list(FAMILIES))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _serving(settings: Settings) -> Iterator[Server]:
    server = Server(settings)
    try:
        asyncio.run(server.ready())
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """AgentOS as it comes."""
    yield from _serving(Settings(str(tmp_path_factory.mktemp("plain")), resumable=False))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same with the one line."""
    yield from _serving(Settings(str(tmp_path_factory.mktemp("resumable")), options={"retry_ms": 100}))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the one line, JWT and user isolation."""
    yield from _serving(Settings(str(tmp_path_factory.mktemp("guarded")), secret=SECRET, options={"retry_ms": 100}))


# ---------------------------------------------------------------- clients that were there before

_CHANGING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|call_[0-9a-f]{12}|20\d\d-\d\d-\d\dT[\d:.+]+|\d+\.\d+s"
)


def _comparable(value: Any) -> Any:
    """What is the same for two runs of the same script."""
    if isinstance(value, dict):
        return {name: _comparable(each) if name != "metrics" else bool(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_comparable(each) for each in value]
    if isinstance(value, str):
        return _CHANGING.sub("…", value)
    if isinstance(value, float) or (isinstance(value, int) and value > 1_000_000_000):
        return type(value).__name__  # moments and durations
    return value


def _seen(frames: list[Frame]) -> list[tuple[str, Any]]:
    """What an AgentOS client looks at: names and JSON, no ids, comments and ``retry:``."""
    return [(frame.event, _comparable(frame.data)) for frame in frames]


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Where two of those differ, in words: pytest cuts the middle out of anything this long."""
    if isinstance(before, dict) and isinstance(now, dict) and set(before) == set(now):
        return [each for name in before for each in _differences(before[name], now[name], f"{where}.{name}")]
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [each for number, (old, new) in pairs for each in _differences(old, new, f"{where}[{number}]")]
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        return [f"{where}: {sorted({*before} ^ {*now})} came or went"]
    return [f"{where}: {str(before)[:300]} became {str(now)[:300]}"]


@families
@pytest.mark.parametrize("background", [True, None, False], ids=["background", "unsaid", "inline"])
async def test_a_start_stream_is_what_it_was(
    plain: Server, server: Server, family: str, background: bool | None
) -> None:
    told = []
    for each in (plain, server):
        # Where the client does not say, the run is AgentOS's own background run; agno's inline ones lack the indices
        asked = True if each is plain and background is None else background
        session_id = f"same-{family}-{background}"
        _, stream = await start(each.port, family, say(12, adding=(1, 2)), session_id=session_id, background=asked)
        await stream.read()
        assert stream.clean
        assert stream.rest == b""
        told.append(_seen(stream.frames))
    assert _differences(told[0], told[1]) == []


@families
async def test_a_resume_is_what_it_was_live_and_after_the_end(
    plain: Server, server: Server, family: str, tmp_path: Path
) -> None:
    told: list[list[list[tuple[str, Any]]]] = []
    gate = tmp_path / "gate"
    for each in (plain, server):
        run, stream = await start(each.port, family, say(12, gate=gate), session_id=f"resumed-{family}")
        # At the gate all is still, so that what is missed is the same for both
        await stream.having("word-11 ")
        await stream.leave()
        waiting = len(stream.events)
        live = Client.of(run, after=4)
        resumed = await live.resume(each.port)
        await resumed.until("subscribed")
        caught_up = Client.of(run, after=waiting - 1)
        behind = await caught_up.resume(each.port)
        await behind.until("subscribed")
        gate.touch()
        streams = [await resumed.read(), await behind.read()]
        gate.unlink()
        said = [[("status", stream.status), *_seen(stream.frames)] for stream in streams]
        for after in (-1, 6, live.history.cursor):
            finished = await (await Client.of(run, after=after).resume(each.port)).read()
            # agno gives its event objects again, as they have become since; here it is what was sent
            if each is server:
                events = {frame.index: frame.raw for stream in (*streams, finished) for frame in stream.events}
                assert all(frame.raw == events[frame.index] for stream in streams for frame in stream.events)
            said.append(
                [
                    (frame.event, _comparable(frame.data) if frame.index is None else frame.index)
                    for frame in finished.frames
                ]
            )
            assert finished.clean
        unknown = await (await Client.of(Run("no-such-run", run.session_id, family)).resume(each.port)).read()
        said.append([("status", unknown.status), *_seen(unknown.frames)])
        assert all(stream.clean and stream.rest == b"" for stream in (*streams, unknown))
        told.append(said)
    assert _differences(told[0], told[1]) == []


async def test_agnos_own_client_reads_typed_events(server: Server) -> None:
    from agno.client import AgentOSClient

    client = AgentOSClient(base_url=f"http://127.0.0.1:{server.port}")
    agent = [event async for event in client.run_agent_stream("talker", say(5, adding=(1, 2)), session_id="typed-a")]
    assert type(agent[0]).__name__ == "RunStartedEvent"
    assert type(agent[-1]).__name__ == "RunCompletedEvent"
    team = [event async for event in client.run_team_stream("crew", say(5), session_id="typed-t")]
    assert type(team[-1]).__name__ == "RunCompletedEvent"
    workflow = [event async for event in client.run_workflow_stream("chain", say(5), session_id="typed-w")]
    assert type(workflow[-1]).__name__ == "WorkflowCompletedEvent"
    answer = await client.run_agent("talker", say(5), session_id="typed-a2")
    assert str(answer.content).endswith("That was all.")


@families
@pytest.mark.parametrize("background", [True, None], ids=["background", "unsaid"])
async def test_a_client_that_was_cut_gets_the_rest_by_either_way(
    server: Server, family: str, background: bool | None
) -> None:
    run, stream = await start(server.port, family, say(60, 0.01, adding=(1, 2)), background=background)
    await stream.leave(after=7)
    by_get, by_post = Client.going_on(run, stream), Client.of(run, after=stream.events[-1].index or 0)
    got, resumed = await by_get.get(server.port), await by_post.resume(server.port)
    await asyncio.gather(got.read(), resumed.read())
    assert (got.status, got.clean, resumed.status, resumed.clean) == (200, True, 200, True)
    assert got.headers["x-run-id"] == run.run_id
    assert got.headers["content-type"].startswith("text/event-stream")
    assert got.headers["x-accel-buffering"] == "no"
    assert "no-transform" in got.headers["cache-control"]
    assert got.retry is not None
    replay = Client.of(run)
    await (await replay.get(server.port)).read()
    histories = [by_get.history, by_post.history]
    assert check_run(replay.history, histories, family=family, status="COMPLETED") == []
    over = await (await by_get.get(server.port)).read()
    assert (over.status, over.clean) == (204, True)
    assert await poll(server.port, run, "COMPLETED")


# ---------------------------------------------------------------- what a GET answers


@families
async def test_a_paused_run_is_no_204_and_its_reader_loses_nothing(server: Server, family: str) -> None:
    run, stream = await start(server.port, family, say(3, confirm=True))
    await stream.read()
    assert stream.clean
    assert stream.names[-1] in ("RunPaused", "TeamRunPaused", "StepExecutorPaused", "WorkflowPaused")
    client = Client.going_on(run, stream)
    waiting = await client.get(server.port)
    assert waiting.status == 200
    await waiting.leave()
    assert waiting.events == []
    again = Client.of(run)
    got = await again.get(server.port)
    await got.some(len(stream.events))
    await got.leave()
    assert [frame.raw for frame in got.events] == [frame.raw for frame in stream.events]
    assert check_history(again.history) == []


@families
async def test_a_cursor_ahead_of_the_log_gets_a_gap_and_the_whole_run(server: Server, family: str) -> None:
    run, stream = await start(server.port, family, say(5))
    await stream.read()
    last = stream.events[-1].index
    assert last is not None
    ahead = Client.of(run, after=last + 1000)
    got = await (await ahead.get(server.port)).read()
    assert got.names[0] == "gap"
    assert got.frames[0].data["reason"] == "ahead"
    assert [frame.index for frame in got.events] == list(range(last + 1))
    resumed = await (await Client.of(run, after=last + 1000).resume(server.port)).read()
    assert "gap" in resumed.names[:2]
    assert [frame.index for frame in resumed.events] == list(range(last + 1))


async def test_an_unknown_run_is_404_and_a_cursor_of_another_run_400(server: Server) -> None:
    for family in FAMILIES:
        unknown = await Client.of(Run("no-such-run", "no-such-session", family)).get(server.port)
        assert (await unknown.read()).status == 404
    run, stream = await start(server.port, "agent", say(3))
    await stream.read()
    path = f"{run.path}/events?session_id={run.session_id}"
    assert (await request(server.port, "GET", path, headers={"Last-Event-ID": "another:3"})).status == 400
    # Of another component: as if it were not there
    elsewhere = f"{FAMILIES['team']}/runs/{run.run_id}/events?session_id={run.session_id}"
    assert (await request(server.port, "GET", elsewhere)).status == 404
    query = await request(server.port, "GET", f"{path}&last_event_id={stream.events[-1].index}")
    assert query.status == 204
    assert (await request(server.port, "GET", path.replace("/events", "/resume"))).status == 200


async def test_what_is_no_stream_is_left_alone(server: Server) -> None:
    answer = await post(server.port, f"{FAMILIES['agent']}/runs", message=say(4), stream=False, session_id="whole")
    assert answer.status == 200
    assert json.loads(answer.body)["status"] == "COMPLETED"
    accepted = await post(
        server.port, f"{FAMILIES['agent']}/runs", message=say(4), stream=False, background=True, session_id="accepted"
    )
    assert accepted.status == 202
    run = Run(json.loads(accepted.body)["run_id"], "accepted", "agent")
    await poll(server.port, run, "COMPLETED")
    assert (await request(server.port, "GET", "/agents")).status == 200


# ---------------------------------------------------------------- in a browser

_ARGUMENTS = ("--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
_PAGE = """
([url, types]) => {
    const seen = window.seen = {events: [], errors: 0, closed: false};
    const source = window.source = new EventSource(url);
    source.onerror = () => { seen.errors += 1; seen.closed = source.readyState === EventSource.CLOSED; };
    for (const type of types)
        source.addEventListener(type, e => {
            if (e.data !== undefined) seen.events.push([type, e.lastEventId, e.data]);
        });
}
"""


@dataclass
class _Browser:
    context: Any
    page: Any


@pytest.fixture
async def browser(chromium_path: str, tmp_path: Path) -> AsyncIterator[_Browser]:
    """A page of a real Chromium with a profile of its own."""
    try:
        api: Any = importlib.import_module("playwright.async_api")
    except ImportError as error:
        if os.environ.get("AGNO_RESUMABLE_REQUIRE_BROWSER"):
            raise
        pytest.skip(f"no browser: {error}")
    async with api.async_playwright() as started:
        context = await started.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=chromium_path, headless=True, args=list(_ARGUMENTS)
        )
        try:
            yield _Browser(context, await context.new_page())
        finally:
            await context.close()


async def _through_cuts(browser: _Browser, server: Server, family: str, headers: Mapping[str, str]) -> None:
    port = server.port
    async with CuttingProxy(port, cuts=CUTS, seed=len(family)) as proxy:
        run, stream = await start(port, family, say(300, 0.005), headers=headers)
        await stream.leave()
        await browser.page.goto(f"http://127.0.0.1:{proxy.port}/")
        url = f"http://127.0.0.1:{proxy.port}{run.path}/events?session_id={run.session_id}"
        await browser.page.evaluate(_PAGE, [url, sorted(set(_event_types()))])
        await browser.page.wait_for_function("window.seen.closed", timeout=60_000, polling=50)
        seen: Mapping[str, Any] = await browser.page.evaluate("window.seen")
        assert proxy.cut == CUTS
        replay = Client.of(run, headers=headers)
        whole = await (await replay.get(port)).read()
        assert check_run(replay.history, [], family=family, status="COMPLETED") == []
        events = [(type_, id_, json.loads(data)) for type_, id_, data in seen["events"]]
        assert [(type_, id_, data) for type_, id_, data in events if "event_index" in data] == [
            (frame.event, frame.id, frame.data) for frame in whole.events
        ]
        assert "gap" not in [type_ for type_, _, _ in events]
        # Closed by the 204, and quiet from then on
        asked = len(proxy.requests)
        await browser.page.evaluate("new Promise(resolve => setTimeout(resolve, 500))")
        assert len(proxy.requests) == asked
        assert whole.events[-1].event == TERMINAL[family]["COMPLETED"]


@pytest.mark.browser
@families
async def test_an_event_source_sees_every_event_once_through_cuts(
    browser: _Browser, server: Server, family: str
) -> None:
    await _through_cuts(browser, server, family, {})


@pytest.mark.browser
@families
async def test_an_event_source_authenticates_by_cookie(browser: _Browser, guarded: Server, family: str) -> None:
    alice = token(SECRET, "alice")
    cookie = {"name": COOKIE, "value": alice, "domain": "127.0.0.1", "path": "/", "httpOnly": True}
    await browser.context.add_cookies([cookie])
    await _through_cuts(browser, guarded, family, bearer(alice))
