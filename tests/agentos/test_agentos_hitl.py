"""Human in the loop: a run that waits for a confirmation waits through a restart, and goes on under its own indices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ..faults.checker import History, check_run
from ..faults.support import long_form
from .apps import Settings, say
from .support import TERMINAL, Client, Run, Server, Stream, poll, row_of, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _confirmed(requirement: dict[str, Any]) -> dict[str, Any]:
    tool = {**requirement["tool_execution"], "confirmed": True}
    return {**requirement, "confirmation": True, "tool_execution": tool}


async def _approval(port: int, run: Run) -> dict[str, str]:
    """The form fields with which a page, that reads the paused run from AgentOS, says yes."""
    row = json.loads((await row_of(port, run)).body)
    if run.family == "agent":
        return {"tools": json.dumps([_confirmed(each)["tool_execution"] for each in row["requirements"]])}
    if run.family == "team":
        return {"requirements": json.dumps([_confirmed(each) for each in row["requirements"]])}
    steps = [
        {**step, "executor_requirements": [_confirmed(each) for each in step["executor_requirements"]]}
        for step in row["step_requirements"]
    ]
    return {"step_requirements": json.dumps(steps)}


_WAYS: Sequence[tuple[str, bool | None]] = (
    ("agent", True),
    ("agent", None),
    ("agent", False),
    ("team", True),
    ("team", None),
    ("team", False),
    # agno refuses to continue a workflow in the background unless it came from its durable queue
    ("workflow", None),
    ("workflow", False),
)


@pytest.mark.parametrize(("family", "background"), _WAYS if long_form() else [_WAYS[0], _WAYS[5], _WAYS[6]])
async def test_a_paused_run_survives_a_restart_and_goes_on_with_its_indices(
    tmp_path: Path, family: str, background: bool | None
) -> None:
    settings = Settings(str(tmp_path))
    async with Server(settings) as server:
        run, first = await start(server.port, family, say(5, confirm=True), background=True)
        await first.read()
        assert first.clean
        assert first.names[-1] in ("RunPaused", "TeamRunPaused", "StepExecutorPaused", "WorkflowPaused")
        await poll(server.port, run, "PAUSED")
        reader = Client.of(run)
        got = await reader.get(server.port)
        await got.some(len(first.events))
        await got.leave()
        paused_at = reader.history.cursor
        assert paused_at == len(first.events) - 1

    async with Server(settings) as server:
        assert await poll(server.port, run, "PAUSED")
        # Back with the old cursor before it goes on: it is not over
        waiting = await reader.get(server.port)
        assert waiting.status == 200
        fields = {"session_id": run.session_id, "background": background, **await _approval(server.port, run)}
        history = History(run.run_id, paused_at)
        leg = await Stream.open(server.port, "POST", f"{run.path}/continue", fields=fields, history=history)
        await leg.read()
        assert (leg.status, leg.clean) == (200, True), leg.rest
        assert leg.names[-1] == TERMINAL[family]["COMPLETED"], leg.names
        if leg.events:  # an inline leg has a stream that readers follow, and no indices of its own
            assert [frame.index for frame in leg.events] == list(range(paused_at + 1, paused_at + 1 + len(leg.events)))
        await poll(server.port, run, "COMPLETED")
        # The connection of before may have ended, so that EventSource asks again, or have stayed
        if not waiting.ended and "end" not in waiting.names:
            await waiting.until("end")
        await waiting.leave()
        if not reader.history.ended:
            await (await reader.get(server.port)).read()
        resumed = Client.of(run, after=paused_at)
        await (await resumed.resume(server.port)).read()
        replay = Client.of(run)
        await (await replay.get(server.port)).read()
        assert leg.events or background is False or family == "workflow"
        histories = [reader.history, resumed.history, *([history] if leg.events else [])]
        assert check_run(replay.history, histories, family=family, status="COMPLETED") == []
        assert replay.history.cursor > paused_at
        assert any("launched" in str(seen.data) for seen in replay.history.events)
        assert (await (await reader.get(server.port)).read()).status == 204


@pytest.mark.parametrize("family", ["agent", "team"] if long_form() else ["team"])
async def test_the_client_of_a_continued_run_may_leave_it(tmp_path: Path, family: str) -> None:
    async with Server(Settings(str(tmp_path))) as server:
        run, first = await start(server.port, family, say(40, 0.02, confirm=True), background=None)
        client = Client.going_on(run, await first.leave(after=5))
        await poll(server.port, run, "PAUSED")
        fields = {"session_id": run.session_id, "background": True, **await _approval(server.port, run)}
        leg = await Stream.open(server.port, "POST", f"{run.path}/continue", fields=fields)
        await leg.leave(after=1)
        await poll(server.port, run, "COMPLETED")
        stream = await (await client.get(server.port)).read()
        assert stream.names[-1] == "end"
        replay = Client.of(run)
        await (await replay.get(server.port)).read()
        assert check_run(replay.history, [client.history], family=family, status="COMPLETED") == []
