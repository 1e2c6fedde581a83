"""Two uvicorn processes behind a balancer, of which one is killed every few seconds and started again."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from agno_resumable import open_log

from ..faults.support import Server, wait_for
from .app import LostPolicy, Settings
from .balancer import Balancer, nginx, quiet_port
from .check import check_all
from .clients import Crowd, Story

__all__ = ["Outcome", "Plan", "Replicas", "balanced", "play"]

_APP = "tests.replicas.app:make_app"
_COMMAND = (sys.executable, "-m", "uvicorn", "--factory", _APP, "--no-access-log", "--log-level", "warning")
# Seconds until what must come is given up: no measure of speed
PATIENCE = 120.0


@dataclass(frozen=True)
class Plan:
    """What is to be tried.

    Attributes:
        log: The URL of the log that the replicas share.
        runs: How many clients there are, each with one run at a time.
        duration: For how many seconds replicas are killed.
        every: Seconds between two kills; longer where a replica takes longer to be back.
        policy: ``on_producer_lost``.
        balancer: ``"tcp"`` for our own, ``"nginx"`` for nginx with the example's configuration.
        seed: Of all that is chosen.
    """

    log: str
    runs: int
    duration: float
    every: float
    policy: LostPolicy = "restart"
    balancer: str = "tcp"
    seed: int = 1


@dataclass
class Outcome:
    """What was wrong, how much was done, and how the runs ended."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    stories: list[Story] = field(default_factory=list)

    def summary(self) -> str:
        """A few lines of figures."""
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        return f"{counts}\n{len(self.stories)} runs: {statuses}"


class Replicas:
    """Two replicas, each on its port for good; one at a time is killed and started again.

    Args:
        settings: For both.
        directory: Where their output goes.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.ports = (quiet_port(), quiet_port())
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._settings = settings
        self._directory = directory
        self._servers: list[Server] = []

    async def __aenter__(self) -> Self:
        try:
            # Both at once, as they come to a new database in a first deployment
            self._servers = [self._start(port) for port in self.ports]
            for server in self._servers:
                await server.ready()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, port: int) -> Server:
        return Server(self._settings, self._directory, command=_COMMAND, port=port)

    def _end(self) -> None:
        for server in self._servers:
            server.kill()

    def said(self) -> str:
        """The end of what the replicas that run now have said."""
        return "\n".join(f"port {server.port}: …{server.said()[-1500:]}" for server in self._servers)

    async def replace(self, number: int, how: signal.Signals) -> None:
        """End one of them as soon as both answer, and start it again."""
        for server in self._servers:
            await server.ready()
        server = self._servers[number]
        if server.process.poll() is not None:
            self.violations.append(f"a replica ended by itself: {server.said()[-1500:]}")
        server.process.send_signal(how)
        if await server.exited(PATIENCE) is None:
            self.violations.append(f"a replica did not end at {how.name}: {server.said()[-1500:]}")
            server.kill()
        self.counts[how.name] += 1
        self._servers[number] = self._start(server.port)

    async def harass(self, duration: float, every: float, seed: int) -> None:
        """End them in turn, by SIGKILL and by SIGTERM in turn, for so many seconds."""
        chosen = random.Random(seed)
        until = time.monotonic() + duration
        number = 0
        # Two at least: whichever replica has the runs, one of the two finds them
        while (begun := time.monotonic()) < until or number < 2:
            # Each gets both signals: 0 KILL, 1 TERM, 0 TERM, 1 KILL
            how = signal.SIGKILL if number % 4 in (0, 3) else signal.SIGTERM
            await self.replace(number % 2, how)
            number += 1
            await asyncio.sleep(max(0.0, begun + every * chosen.uniform(0.8, 1.2) - time.monotonic()))


@asynccontextmanager
async def balanced(settings: Settings, directory: Path, balancer: str = "tcp") -> AsyncIterator[tuple[Replicas, int]]:
    """Two replicas and what stands in front of them: gives both, the latter as its port."""
    async with AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(Replicas(settings, directory))
        if balancer == "nginx":
            yield replicas, stack.enter_context(nginx(replicas.ports))
        else:
            yield replicas, (await stack.enter_async_context(Balancer(replicas.ports))).port


async def play(plan: Plan, directory: Path) -> Outcome:
    """Have clients run and read while replicas are killed, let everything come to its end, and check it."""
    settings = Settings(log=plan.log, on_producer_lost=plan.policy)
    async with balanced(settings, directory, plan.balancer) as (replicas, port):
        crowd = Crowd(port, directory, plan.seed, words=max(10, int(2 * plan.every / 0.1)))
        clients = [asyncio.create_task(crowd.client(number)) for number in range(plan.runs)]
        try:
            # So that the first kill finds a run of every client
            await wait_for(lambda: crowd.reading() == plan.runs, PATIENCE, lambda: f"{plan.runs} readers")
            await replicas.harass(plan.duration, plan.every, plan.seed)
            crowd.finish()
            await asyncio.wait(clients, timeout=PATIENCE)
        finally:
            for client in clients:
                client.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
        outcome = Outcome(
            [*replicas.violations, *crowd.violations],
            replicas.counts + crowd.counts,
            stories=crowd.stories,
        )
        outcome.violations += [f"a client failed: {error!r}" for error in ended if isinstance(error, Exception)]
        async with open_log(plan.log) as log:
            found, outcome.statuses = await check_all(log, crowd.stories, plan.policy, outcome.counts)
        outcome.violations += found
        if outcome.violations:
            outcome.violations.append(replicas.said())
    return outcome
