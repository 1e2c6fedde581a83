"""The bridge without a log, in front of whichever AgentOS is installed: agno 2 has a place for nothing more."""

from __future__ import annotations

from pathlib import Path

import httpx
import orjson
import pytest
from agno.db.sqlite import SqliteDb
from agno.os import AgentOS

from agno_resumable.agentos import AgentOSBridge
from agno_resumable.sse import Decoder, Frame

from ..support import PATIENCE, scripted_agent, server_thread


def _frames(answer: httpx.Response) -> list[Frame]:
    return [frame for frame in Decoder().feed(answer.content) if frame.data]


@pytest.mark.parametrize("background", ["true", None])
def test_a_run_gets_ids_and_is_resumed_by_get(tmp_path: Path, background: str | None) -> None:
    agent = scripted_agent(words=5, db=SqliteDb(db_file=str(tmp_path / "agno.db")))
    agent_os = AgentOS(agents=[agent], telemetry=False)
    fields = {"message": "hello", "stream": "true", "session_id": "s"}
    if background is not None:
        fields["background"] = background
    with (
        server_thread(AgentOSBridge(agent_os.get_app(), agent_os=agent_os)) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE) as client,
    ):
        whole = _frames(answer := client.post("/agents/agent/runs", data=fields))
        run_id = answer.headers["x-run-id"]
        assert whole[-1].event == "RunCompleted"
        assert [frame.id for frame in whole] == [f"{run_id}:{index}" for index in range(len(whole))]
        events = f"/agents/agent/runs/{run_id}/events?session_id=s"
        resumed = _frames(client.get(events, headers={"Last-Event-ID": f"{run_id}:2"}))
        rest = [frame for frame in resumed if frame.event != "end"]
        assert [frame.id for frame in rest] == [frame.id for frame in whole[3:]]
        assert orjson.loads(rest[-1].data)["event"] == "RunCompleted"
        assert client.get(events, headers={"Last-Event-ID": str(whole[-1].id)}).status_code == 204
        assert client.get("/agents/agent/runs/nobody/events?session_id=s").status_code == 404
