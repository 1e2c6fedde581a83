"""A killed AgentOS takes nothing back, and what it ran has its end; a stopped one says so itself."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..faults.checker import check_history, check_run
from ..faults.support import integrity, long_form
from .apps import FAMILIES, Settings, say
from .support import TERMINAL, Client, Run, Server, Stream, poll, start

KILLS = 50 if long_form() else 1
LEASE, SWEEP = 1.0, 0.25

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _settings(directory: Path) -> Settings:
    return Settings(str(directory), options={"lease": LEASE, "sweep_interval": SWEEP})


@dataclass
class _Interrupted:
    run: Run
    primary: Stream
    clients: list[Client]


@dataclass
class _Report:
    violations: list[str] = field(default_factory=list)
    runs: int = 0
    acknowledged: int = 0


async def _interrupt(server: Server, chosen: random.Random) -> list[_Interrupted]:
    """Start a run of each family, let clients read it in the three ways, and kill the server in the middle."""
    interrupted = []
    pace = chosen.choice((0, 0.002, 0.01))
    for family in FAMILIES:
        run, primary = await start(server.port, family, say(3000, pace, 60.0))
        by_get, by_post = Client.of(run), Client.of(run)
        await by_get.get(server.port)
        await by_post.resume(server.port)
        interrupted.append(_Interrupted(run, primary, [by_get, by_post]))
    watched = chosen.choice(interrupted)
    await watched.primary.some(chosen.randrange(20, 300))
    await asyncio.sleep(chosen.random() * 0.02)  # somewhere within the commits and sends of the next moment
    server.kill()
    for each in interrupted:
        for stream in (each.primary, *(client.streams[-1] for client in each.clients)):
            await stream.read()
            assert not stream.clean
    return interrupted


async def _settle(server: Server, left: _Interrupted, report: _Report) -> None:
    run = left.run
    clients = [Client.going_on(run, left.primary), *left.clients]
    report.runs += 1
    report.acknowledged += len(left.primary.events)
    found = []
    # The primary client goes on as EventSource does, one by GET and one as AgentOS documents it
    gets = [await client.get(server.port) for client in clients[:2]]
    resumed = await clients[2].resume(server.port)
    for stream in (*gets, resumed):
        await stream.read()
        if (stream.status, stream.clean) != (200, True):
            found.append(f"a client that came back got {stream.status}, clean {stream.clean}: {stream.names[-3:]}")
    replay = Client.of(run)
    await (await replay.get(server.port)).read()
    found += check_run(replay.history, [client.history for client in clients], family=run.family, status="ERROR")
    last = replay.history.events[-1]
    if last.type != TERMINAL[run.family]["ERROR"] or last.data.get("error_type") != "producer_lost":
        found.append(f"its last event is {last.frame!r}")
    whole = Client.of(run)
    again = await (await whole.resume(server.port)).read()
    found += [f"/resume: {violation}" for violation in check_history(whole.history)]
    if [frame.raw for frame in again.events] != [seen.frame for seen in replay.history.events]:
        found.append("/resume replays something else")
    over = await (await clients[0].get(server.port)).read()
    if over.status != 204:
        found.append(f"at the end a client got {over.status}")
    try:
        await poll(server.port, run, "ERROR", timeout=10.0)
    except TimeoutError as error:
        found.append(f"its row: {error}")
    report.violations += [f"{run}: {violation}" for violation in found]


async def test_kill_9_takes_nothing_back_and_ends_what_was_running(tmp_path: Path) -> None:
    chosen = random.Random(21)
    settings = _settings(tmp_path)
    report = _Report()
    interrupted: list[_Interrupted] = []
    for number in range(KILLS + 1):
        async with Server(settings) as server:
            for left in interrupted:
                await _settle(server, left, report)
            interrupted = []
            if number < KILLS:
                interrupted = await _interrupt(server, chosen)
        assert integrity(settings.log_path) == "ok"
    print(f"{KILLS} kills, {report.runs} runs, {report.acknowledged} events that primary clients had")
    assert report.violations == []
    assert report.runs == 3 * KILLS
    assert report.acknowledged > 10 * report.runs


async def test_a_surviving_process_ends_the_runs_of_a_killed_one(tmp_path: Path) -> None:
    report = _Report()
    async with Server(_settings(tmp_path)) as survivor:
        async with Server(_settings(tmp_path)) as victim:
            interrupted = await _interrupt(victim, random.Random(4))
        for left in interrupted:
            await _settle(survivor, left, report)
    assert report.violations == []


async def test_a_run_that_is_longer_than_the_grace_is_cancelled_in_row_and_stream(tmp_path: Path) -> None:
    # AgentOS gives its background runs 30 s, which is no option of it
    settings = Settings(str(tmp_path), grace=None if long_form() else 2.0)
    runs = []
    async with Server(settings) as server:
        for family in FAMILIES:
            run, stream = await start(server.port, family, say(5000, 0.05))
            runs.append((run, stream, await Client.of(run).get(server.port)))
        await asyncio.gather(*(stream.some(5) for _, *streams in runs for stream in streams))
        server.process.send_signal(signal.SIGTERM)
        for _, primary, got in runs:
            await primary.read()
            await got.read()
            assert primary.names[-1] == got.names[-1] == "disconnecting"
        assert await server.exited(45.0) is not None, server.said()
    async with Server(settings) as server:
        for run, primary, _ in runs:
            replay = Client.of(run)
            await (await replay.get(server.port)).read()
            assert primary.history is not None
            assert check_run(replay.history, [primary.history], family=run.family, status="CANCELLED") == []
            assert replay.history.events[-1].type == TERMINAL[run.family]["CANCELLED"]
            assert await poll(server.port, run, "CANCELLED", timeout=5.0)
