"""A real EventSource behind a network that cuts: every index once and in order, and then it stops."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agno_resumable import EventStreamResponse, MemoryEventLog
from agno_resumable.demo.app import _event_types

from .apps import FAMILIES, Settings, say
from .proxy import CuttingProxy
from .support import Reader, Server, start_run

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

CUTS = 30
_ARGUMENTS = (
    "--no-sandbox",
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# What a page does with a run: it keeps what came, and never closes the EventSource itself.
_PAGE = """
([url, types]) => {
    const seen = window.seen = {events: [], opened: 0, errors: 0, closed: false};
    const source = window.source = new EventSource(url);
    source.onopen = () => { seen.opened += 1; };
    source.onerror = () => { seen.errors += 1; seen.closed = source.readyState === EventSource.CLOSED; };
    for (const type of types)
        source.addEventListener(type, e => {
            if (e.data !== undefined) seen.events.push([type, e.lastEventId, e.data]);
        });
}
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def page(chromium_path: str, tmp_path: Path) -> AsyncIterator[Any]:
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
            yield await context.new_page()
        finally:
            await context.close()


async def _watch(page: Any, proxy: CuttingProxy, url: str) -> Mapping[str, Any]:
    """Have the page follow a run to the end; return what it saw."""
    await page.goto(f"http://127.0.0.1:{proxy.port}/")
    types = sorted(set(_event_types()))
    await page.evaluate(_PAGE, [f"http://127.0.0.1:{proxy.port}{url}", types])
    await page.wait_for_function("window.seen.closed", timeout=60_000, polling=50)
    seen: Mapping[str, Any] = await page.evaluate("window.seen")
    return seen


@pytest.mark.parametrize("family", list(FAMILIES))
async def test_an_event_source_sees_every_index_once_through_30_cuts(page: Any, tmp_path: Path, family: str) -> None:
    settings = replace(Settings(log=f"sqlite:///{tmp_path / 'runs.db'}"), retry_ms=100)
    async with Server(settings, tmp_path) as server, CuttingProxy(server.port, cuts=CUTS, seed=len(family)) as proxy:
        run = await start_run(server.port, family, say(400, 0.005))
        seen = await _watch(page, proxy, f"{run.path}/events")
        assert proxy.cut == CUTS

        replay = Reader.of(run)
        await replay.get(server.port)
        events = [(type_, id_, data) for type_, id_, data in seen["events"] if "event_index" in json.loads(data)]
        assert [(id_, type_) for type_, id_, _ in events] == [
            (f"{run.run_id}:{each.index}", each.type) for each in replay.history.events
        ]
        assert [json.loads(data) for _, _, data in events] == [each.data for each in replay.history.events]
        # Which control frames came depends on where the cuts were; the end did, and no gap
        controls = [type_ for type_, _, data in seen["events"] if "event_index" not in json.loads(data)]
        assert "end" in controls
        assert "gap" not in controls

        # Closed by 204, and quiet from then on
        asked = len(proxy.requests)
        assert f"Last-Event-ID: {run.run_id}:{replay.history.cursor}".encode() in proxy.requests[-1]
        assert asked >= CUTS + 2
        await page.evaluate("new Promise(resolve => setTimeout(resolve, 1000))")
        assert len(proxy.requests) == asked
        assert await page.evaluate("window.source.readyState") == 2


def test_the_head_of_a_stream_says_its_type_before_anything_else_of_ours() -> None:
    # A head that breaks off before it closes an EventSource for good; behind it, the browser comes back
    response = EventStreamResponse(MemoryEventLog(), "run", headers={"Location": "/x", "Cache-Control": "no-store"})
    assert response.raw_headers[0] == (b"content-type", b"text/event-stream; charset=utf-8")
    assert [name for name, _ in response.raw_headers].count(b"content-type") == 1


async def test_a_browser_that_is_not_given_its_cursor_back_does_not_pass(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeded fault: a network that loses Last-Event-ID, so that each connection begins anew."""
    forward = CuttingProxy._upstream

    async def forgetting(self: CuttingProxy, client: Any, server: Any, plan: Any) -> None:
        class Losing:
            async def drain(self) -> None:
                await server.drain()

            def write(self, data: bytes) -> None:
                server.write(data.replace(b"Last-Event-ID", b"Lost-Event-ID"))

        losing: Any = Losing()
        await forward(self, client, losing, plan)

    monkeypatch.setattr(CuttingProxy, "_upstream", forgetting)
    settings = replace(Settings(log=f"sqlite:///{tmp_path / 'runs.db'}"), retry_ms=100)
    async with Server(settings, tmp_path) as server, CuttingProxy(server.port, cuts=5, seed=1) as proxy:
        run = await start_run(server.port, "agent", say(20))
        await page.goto(f"http://127.0.0.1:{proxy.port}/")
        await page.evaluate(_PAGE, [f"http://127.0.0.1:{proxy.port}{run.path}/events", ["RunStarted", "RunContent"]])
        await page.wait_for_function(
            "window.seen.events.length > new Set(window.seen.events.map(e => e[1])).size", timeout=30_000, polling=50
        )
