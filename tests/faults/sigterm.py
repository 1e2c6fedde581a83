"""The stop signal, with many streams open and many runs active."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from agno_resumable import EncodedEvent, NewRun, RunStatus, SQLiteEventLog

from .apps import FAMILIES, Settings, say
from .checker import check_run
from .support import UVICORN, Reader, Server, Started, start_run, stored

__all__ = ["Outcome", "stop"]

GRACE = 2.0


@dataclass
class Outcome:
    """What was wrong, how the runs ended, and after how many seconds the clients were told and the process was gone."""

    violations: list[str] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    told_after: float = 0.0
    exited_after: float | None = None

    def summary(self) -> str:
        """One line of figures."""
        exited = "never exited" if self.exited_after is None else f"exited after {self.exited_after:.2f} s"
        return f"last client told after {self.told_after:.2f} s, {exited}, runs {dict(self.ended)}"


async def _store_long_run(path: Path) -> None:
    """A run that is longer than what the buffers between a server and its client hold."""
    event = EncodedEvent("RunContent", b'{"event":"RunContent","content":"' + b"x" * 10_000 + b'"}')
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("long", component_id=FAMILIES["agent"].rpartition("/")[2]), lease=60.0)
        for _ in range(8):
            await log.append("long", 1, [event] * 100)
        await log.append("long", 1, [], status=RunStatus.COMPLETED)


async def _stall(port: int) -> socket.socket:
    """A client of that run that reads the head of the answer and nothing else."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, f"GET {FAMILIES['agent']}/runs/long/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await loop.sock_recv(client, 100)
    return client


async def stop(
    directory: Path,
    *,
    streams: int,
    runs: int,
    number: signal.Signals = signal.SIGTERM,
    command: Sequence[str] = UVICORN,
    lifespan: bool = True,
    workers: int = 1,
    stalled: int = 0,
    attended: bool | None = None,
) -> Outcome:
    """Send a server the signal while ``streams`` streams are open and ``runs`` runs are active.

    Half of the runs can end within the grace: what they wait for comes when the clients have been told. A quarter of
    the runs is read by the POST that started it, everything else by GET.

    Args:
        stalled: How many more clients are connected that read nothing of a long replay.
        attended: Whether active runs are to be given their grace, by a lifespan or by the signal that waits for them;
            if not they end at once.
    """
    path = directory / "runs.db"
    gate = directory / "gate"
    settings = replace(
        Settings(log=f"sqlite:///{path}"), drain_grace=GRACE, lease=5.0, sweep_interval=1.0, lifespan=lifespan
    )
    attended = lifespan or number is signal.SIGTERM if attended is None else attended
    outcome = Outcome()
    chosen = random.Random(5)
    await _store_long_run(path)
    async with Server(settings, directory, command=command, workers=workers) as server, AsyncExitStack() as stack:
        for _ in range(stalled):
            stack.callback((await _stall(server.port)).close)
        started: dict[Started, set[str]] = {}
        posts: list[Reader] = []
        families = list(FAMILIES)
        for place in range(runs):
            family = families[place % 3]
            ends = place % 2 == 0
            message = say(20, 0.01, gate=gate) if ends else say(5000, 0.05)
            # Without its grace a run may still be quicker than the end of the process
            expected = {"CANCELLED", "COMPLETED"} if not attended else {"COMPLETED"} if ends else {"CANCELLED"}
            if place % 4 < 1:
                posts.append(await Reader.posting(server.port, family, message))
                started[posts[-1].run] = expected
            else:
                started[await start_run(server.port, family, message)] = expected
        gets = [Reader.of(chosen.choice(list(started))) for _ in range(streams - len(posts))]
        reading: list[asyncio.Task[object]] = [asyncio.create_task(reader.receive()) for reader in posts]
        reading += [asyncio.create_task(reader.get(server.port)) for reader in gets]
        await asyncio.gather(*[reader.reached(3) for reader in (*posts, *gets)])

        begun = time.monotonic()
        server.process.send_signal(number)
        exited = asyncio.create_task(server.exited(GRACE + 4.0))
        done, pending = await asyncio.wait(reading, timeout=GRACE + 4.0)
        outcome.told_after = time.monotonic() - begun
        for task in pending:
            task.cancel()
        outcome.violations += [f"{len(pending)} streams stayed open"] if pending else []
        outcome.violations += [f"a client failed: {error!r}" for task in done if (error := task.exception())]
        gate.touch()
        await exited
        outcome.exited_after = time.monotonic() - begun if exited.result() is not None else None
        if outcome.exited_after is None or outcome.exited_after > GRACE + 1.0:
            outcome.violations.append(f"the process had {GRACE} s, and exited after {outcome.exited_after}")

    for reader in (*posts, *gets):
        told = reader.history.controls[-1:]
        if [(name, data["reason"]) for name, data in told if name == "disconnecting"] != [("disconnecting", "drain")]:
            outcome.violations.append(f"{reader.run}: a client was told {reader.history.controls}")
        if reader.clean is (reader in posts):
            body = "ended cleanly" if reader.clean else "was broken off"
            outcome.violations.append(f"{reader.run}: the body of a {'POST' if reader in posts else 'GET'} {body}")
    for run, expected in started.items():
        status, replay = await stored(path, run.run_id)
        outcome.ended[status] += 1
        if status not in expected:
            outcome.violations.append(f"{run}: it is {status} and not {' or '.join(sorted(expected))}")
        histories = [reader.history for reader in (*posts, *gets) if reader.run == run]
        found = check_run(replay, histories, family=run.family, status=status)
        outcome.violations += [f"{run}: {violation}" for violation in found]
    if outcome.violations:
        outcome.violations.append(f"the server said: …{server.said()[-2000:]}")
    return outcome
