"""The stop signal, with streams of every kind open, under every server that AgentOS may run under."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..faults.checker import check_run
from ..faults.support import long_form, wait_for
from .apps import FAMILIES, Settings, say
from .support import TERMINAL, Client, Server, Stream, poll, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


_KINDS = [
    "uvicorn",
    "uvicorn-workers-2",
    "uvicorn-reload",
    "uvicorn-graceful",
    "granian",
    "gunicorn",
]


def _need(kind: str) -> None:
    package = kind.partition("-")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; 'pip install {package}' adds this test")


@pytest.mark.parametrize("number", [signal.SIGTERM, *([signal.SIGINT] if long_form() else [])], ids=lambda n: n.name)
@pytest.mark.parametrize("kind", _KINDS if long_form() else ["uvicorn", "gunicorn"])
async def test_every_stream_is_told_and_background_runs_go_on(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    _need(kind)
    if kind == "gunicorn" and number is signal.SIGINT:
        pytest.skip("gunicorn takes SIGINT as: now")
    settings = Settings(str(tmp_path))
    gate = tmp_path / "gate"
    async with Server(settings, kind=kind) as server:
        if kind == "uvicorn-workers-2":

            async def both_answer() -> bool:
                return len(await server.workers()) == 2

            await wait_for(both_answer, 60.0, lambda: "both workers to answer")
        runs, posts, gets = [], [], []
        for family, background in zip(FAMILIES, (True, None, True), strict=True):
            run, primary = await start(server.port, family, say(20, 0.01, gate=gate), background=background)
            runs.append((run, primary))
            posts += [primary, await Client.of(run).resume(server.port)]
            gets.append(await Client.of(run).get(server.port))
        inline_run, inline = await start(server.port, "agent", say(20, 0.01, gate=gate), background=False)
        for stream in (*posts, *gets, inline):
            await stream.having("word-19 ")
        os.kill(server.process.pid, number)
        for stream in (*posts, *gets):
            await stream.read(timeout=20.0)
        assert not inline.ended
        gate.touch()
        await inline.read(timeout=20.0)
        assert await server.exited(45.0) is not None, server.said()

    for stream in (*posts, *gets):
        assert stream.names[-1] == "disconnecting", stream.names[-3:]
        assert stream.frames[-1].data["reason"] == "drain"
        assert stream.rest == b""
    assert [stream.clean for stream in gets] == [True] * 3
    assert [stream.clean for stream in posts] == [False] * 6
    # An inline run dies with its stream, so its stream is not ended: it may finish
    assert inline.clean
    assert inline.names[-1] == TERMINAL["agent"]["COMPLETED"]

    async with Server(settings) as server:
        for run, primary in runs:
            replay = Client.of(run)
            await (await replay.get(server.port)).read()
            assert primary.history is not None
            found = check_run(replay.history, [primary.history], family=run.family, status="COMPLETED")
            assert found == []
            assert await poll(server.port, run, "COMPLETED")
        assert await poll(server.port, inline_run, "COMPLETED")


async def test_a_paused_run_and_a_run_that_nobody_reads_do_not_hold_the_server_up(tmp_path: Path) -> None:
    async with Server(Settings(str(tmp_path), grace=2.0)) as server:
        paused, first = await start(server.port, "team", say(3, confirm=True))
        await first.read()
        reader = await Client.of(paused).get(server.port)
        await reader.some(len(first.events))
        unread, second = await start(server.port, "workflow", say(3000, 0.05))
        await second.leave(after=3)
        server.process.send_signal(signal.SIGTERM)
        await reader.read(timeout=20.0)
        assert reader.clean
        assert await server.exited(20.0) is not None, server.said()
    async with Server(Settings(str(tmp_path))) as server:
        assert await poll(server.port, paused, "PAUSED")
        assert await poll(server.port, unread, "CANCELLED")
        replay = await (await Client.of(unread).get(server.port)).read()
        assert replay.events[-1].event == TERMINAL["workflow"]["CANCELLED"]


async def test_a_request_during_the_drain_is_sent_elsewhere(tmp_path: Path) -> None:
    """A client that comes to a process that stops is told so at once, and does not hold it up."""
    gate = tmp_path / "gate"
    async with Server(Settings(str(tmp_path))) as server:
        _, stream = await start(server.port, "agent", say(5, gate=gate), background=False)
        await stream.having("word-4 ")
        other, background = await start(server.port, "agent", say(5, gate=gate))
        await background.having("word-4 ")
        await background.leave()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        got: Stream | None = None
        with contextlib.suppress(OSError):  # it accepts nobody any more, which says it as well
            got = await Client.of(other).get(server.port)
        if got is not None:
            await got.read(timeout=10.0)
            assert got.names[-1:] in (["disconnecting"], [])
        gate.touch()
        await stream.read(timeout=20.0)
        assert stream.names[-1] == "RunCompleted"
        assert await server.exited(45.0) is not None
