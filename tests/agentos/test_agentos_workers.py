"""Two processes of AgentOS on one SQLite file, or one PostgreSQL: any resumes and cancels what any other runs."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ..faults.checker import History, check_run
from ..faults.support import long_form, wait_for
from .apps import FAMILIES, Settings, in_member, say
from .support import TERMINAL, Client, Run, Server, Stream, poll, post, start

RESUMES, CANCELS = (200, 60) if long_form() else (20, 15)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["two-ports", "one-port", "postgres"])
async def ports(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sequence[int]]:
    """Two processes: each with a port of its own, or two workers of one uvicorn."""
    settings = Settings(str(tmp_path))
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").database()
        settings = Settings(str(tmp_path), database=url.replace("postgresql:", "postgresql+psycopg:", 1))
    async with AsyncExitStack() as stack:
        if request.param != "one-port":
            servers = [Server(settings) for _ in range(2)]  # both begin to start
            for server in servers:
                await stack.enter_async_context(server)
            yield [server.port for server in servers]
        else:
            server = await stack.enter_async_context(Server(settings, kind="uvicorn-workers-2"))

            async def both_answer() -> bool:
                return len(await server.workers()) == 2

            await wait_for(both_answer, 60.0, lambda: "both workers to answer")
            yield [server.port]


@dataclass
class _Outcome:
    violations: list[str] = field(default_factory=list)
    done: int = 0


async def _resumes(ports: Sequence[int], count: int, seed: int) -> _Outcome:
    """Clients leave runs of about 100 events and come back to any of ``ports``, by GET and by POST."""
    outcome = _Outcome()
    chosen = random.Random(seed)
    each = 10

    async def client(run: Run, history: History) -> None:
        reader = Client(run, history)
        for left in reversed(range(each)):
            connect = reader.get if chosen.random() < 0.5 or not left else reader.resume
            stream = await connect(chosen.choice(ports))
            outcome.done += 1
            if stream.status != 200:
                outcome.violations.append(f"{run}: a resume got {stream.status}")
            elif "error" in stream.names:
                outcome.violations.append(f"{run}: a resume was told {stream.frames[0].data}")
            elif left:
                await stream.leave(after=chosen.randrange(1, 10))
            else:
                await stream.read()
        if not (reader.streams[-1].clean and history.ended):
            outcome.violations.append(f"{run}: a client was not told the end: {reader.streams[-1].names[-3:]}")
        over = await (await reader.get(chosen.choice(ports))).read()
        if over.status != 204:
            outcome.violations.append(f"{run}: at the end a client got {over.status}")

    async def run_with_two_clients(number: int) -> None:
        family = list(FAMILIES)[number % 3]
        run, primary = await start(chosen.choice(ports), family, say(100, 0.02))
        await primary.leave(after=chosen.randrange(1, 10))
        first = primary.history
        assert first is not None
        second = History(run.run_id)
        await asyncio.gather(client(run, first), client(run, second))
        replay = Client.of(run)
        await (await replay.get(chosen.choice(ports))).read()
        found = check_run(replay.history, [first, second], family=family, status="COMPLETED")
        outcome.violations += [f"{run}: {violation}" for violation in found]

    for begin in range(0, count // (2 * each), 3):
        await asyncio.gather(*map(run_with_two_clients, range(begin, min(begin + 3, count // (2 * each)))))
    return outcome


async def test_any_worker_resumes_the_runs_of_any_other(ports: Sequence[int]) -> None:
    outcome = await _resumes(ports, RESUMES, seed=11)
    assert outcome.violations == []
    assert outcome.done == RESUMES


def _said(family: str, kind: str) -> str:
    """A run that lasts longer than anyone waits: many deltas, or one call in which nothing comes."""
    message = say(2, silence=30.0) if "silent" in kind else say(3000, 0.02)
    return in_member(message) if "member" in kind else message


_KINDS = (
    ("agent", "background"),
    ("team", "background"),
    ("workflow", "background"),
    ("agent", "silent background"),
    ("team", "silent background"),
    ("workflow", "silent background"),
    ("agent", "inline"),
    ("team", "inline"),
    ("workflow", "inline"),
    ("agent", "silent inline"),
    ("team", "member background"),
    ("team", "silent member background"),
    ("agent", "whole"),
    ("agent", "silent whole"),
    ("workflow", "silent inline"),
)


async def _cancelled_stream(at: int, by: int, family: str, kind: str) -> list[str]:
    run, stream = await start(at, family, _said(family, kind), background="inline" not in kind)
    await stream.having("word-1 ")
    answer = await Client.of(run).cancel(by)
    violations = [] if answer.status == 200 else [f"the cancel got {answer.status}: {answer.body!r}"]
    await stream.read(timeout=20.0)
    if not stream.clean:
        violations.append("the stream of the client that started it was broken off")
    own = [frame.event for frame in stream.frames if frame.data.get("run_id") == run.run_id]
    ends = [name for name in own if name in TERMINAL[family].values()]
    if ends[:1] != [TERMINAL[family]["CANCELLED"]]:
        violations.append(f"its end was {stream.names[-3:]}")
    await poll(by, run, "CANCELLED", timeout=20.0)
    if "background" in kind:
        replay = Client.of(run)
        await (await replay.get(by)).read(timeout=20.0)
        assert stream.history is not None
        violations += check_run(replay.history, [stream.history], family=family, status="CANCELLED")
    return violations


async def _cancelled_answer(at: int, by: int, family: str, kind: str) -> list[str]:
    """A run with ``stream=false``: its client knows the id because it has chosen it."""
    run = Run(str(uuid.uuid4()), f"s-{uuid.uuid4().hex[:8]}", family)
    fields: dict[str, Any] = {
        "message": _said(family, kind),
        "stream": False,
        "session_id": run.session_id,
        "run_id": run.run_id,
    }
    asked = asyncio.create_task(post(at, f"{FAMILIES[family]}/runs", **fields))
    await asyncio.sleep(1.0)  # nothing tells that it runs: agno stores an inline run when it has ended
    answer = await Client.of(run).cancel(by)
    violations = [] if answer.status == 200 else [f"the cancel got {answer.status}: {answer.body!r}"]
    whole = await asyncio.wait_for(asked, 20.0)
    status = json.loads(whole.body).get("status") if whole.status == 200 else None
    if status != "CANCELLED":
        violations.append(f"its answer is {whole.status} {status}")
    await poll(by, run, "CANCELLED", timeout=20.0)
    return violations


async def test_any_worker_cancels_the_runs_of_any_other(ports: Sequence[int]) -> None:
    chosen = random.Random(5)
    violations: list[str] = []
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        family, kind = _KINDS[number % len(_KINDS)]
        # With two ports the cancel goes to the one that does not run it; with one, to whoever accepts it
        at, by = chosen.sample(list(ports), 2) if len(ports) > 1 else (ports[0], ports[0])
        cancel = _cancelled_answer if "whole" in kind else _cancelled_stream
        try:
            found = await cancel(at, by, family, kind)
        except TimeoutError as error:
            found = [f"{error or 'it did not end'}"]
        violations.extend(f"{number}: {kind} {family}: {violation}" for violation in found)
        done += 1

    for begin in range(0, CANCELS, 5):
        await asyncio.gather(*map(one, range(begin, min(begin + 5, CANCELS))))
    assert violations == []
    assert done == CANCELS


async def test_a_run_that_is_cancelled_before_it_starts_does_not_start(tmp_path: Path) -> None:
    async with Server(Settings(str(tmp_path))) as first, Server(Settings(str(tmp_path))) as second:
        run = Run(str(uuid.uuid4()), "early", "agent")
        assert (await Client.of(run).cancel(second.port)).status == 200
        stream = await Stream.open(
            first.port,
            "POST",
            f"{FAMILIES['agent']}/runs",
            fields={"message": say(3000, 0.02), "session_id": "early", "run_id": run.run_id, "background": True},
        )
        await stream.read(timeout=20.0)
        assert stream.names[-1] == "RunCancelled"
        await poll(second.port, run, "CANCELLED", timeout=20.0)
