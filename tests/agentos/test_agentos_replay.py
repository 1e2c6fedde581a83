"""A long run is there after a restart, and where retention has taken its beginning the client is told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from agno_resumable import open_log

from ..faults.support import long_form
from .apps import FAMILIES, Settings, say
from .support import Client, Server, start

EVENTS = 20_000 if long_form() else 3_000
KEPT = EVENTS // 2

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("family", list(FAMILIES) if long_form() else ["agent"])
async def test_a_long_run_is_resumed_after_a_restart_and_after_retention(tmp_path: Path, family: str) -> None:
    settings = Settings(str(tmp_path))
    async with Server(settings) as server:
        run, primary = await start(server.port, family, say(EVENTS, size=4))
        await primary.read(timeout=300.0)
        last = len(primary.events) - 1
        assert last >= EVENTS
    async with Server(settings) as server:
        for connect in (Client.resume, Client.get):
            client = Client.of(run, after=99)
            stream = await (await connect(client, server.port)).read()
            assert [frame.index for frame in stream.events] == list(range(100, last + 1))
            assert [frame.raw for frame in stream.events] == [frame.raw for frame in primary.events[100:]]
            assert "gap" not in stream.names
    async with open_log(f"sqlite:///{settings.log_path}") as log:
        await log.trim(run.run_id, before=last + 1 - KEPT)
    async with Server(settings) as server:
        for connect in (Client.resume, Client.get):
            stream = await (await connect(Client.of(run, after=99), server.port)).read()
            told = [frame for frame in stream.frames if frame.index is None]
            # On AgentOS's wire its meta frame opens every answer
            assert stream.names.index("gap") == (1 if connect is Client.resume else 0)
            gap = next(frame for frame in told if frame.event == "gap").data
            first = gap["first_available"]
            assert (gap["requested"], gap["reason"]) == (100, "trimmed")
            assert last + 1 - KEPT >= first > 100
            assert gap["missed"] == first - 100
            assert [frame.index for frame in stream.events] == list(range(first, last + 1))
