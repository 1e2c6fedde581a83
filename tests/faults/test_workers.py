"""Two processes on one SQLite file serve each other's runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from .apps import Settings
from .checker import Seen
from .support import Reader, Server, long_form, wait_for
from .workers import cancels, resumes, workers_seen

RESUMES, CANCELS = (200, 50) if long_form() else (40, 10)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["two-ports", "one-port"])
async def ports(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sequence[int]]:
    """Two uvicorn processes: each on a port of its own, or two ``--workers`` on one."""
    settings = Settings(log=f"sqlite:///{tmp_path / 'runs.db'}", lease=5.0, sweep_interval=1.0)
    async with AsyncExitStack() as stack:
        if request.param == "two-ports":
            servers = [Server(settings, tmp_path) for _ in range(2)]  # both begin to start
            for server in servers:
                await stack.enter_async_context(server)
            yield [server.port for server in servers]
        else:
            server = await stack.enter_async_context(Server(settings, tmp_path, workers=2))

            async def both_answer() -> bool:
                return len(await workers_seen(server.port)) == 2

            await wait_for(both_answer, 60.0, lambda: "both workers to answer")
            yield [server.port]


async def test_any_worker_resumes_and_cancels_the_runs_of_any_other(ports: Sequence[int], tmp_path: Path) -> None:
    resumed = await resumes(ports, tmp_path / "runs.db", count=RESUMES, seed=11)
    print(resumed.summary())
    assert resumed.violations == []
    assert resumed.counts["resumes"] == RESUMES

    cancelled = await cancels(ports, tmp_path / "runs.db", count=CANCELS, seed=12)
    print(cancelled.summary())
    assert cancelled.violations == []
    assert cancelled.counts["cancels"] == CANCELS


async def test_a_client_that_forgets_one_event_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: one event of one run is dropped on its way, as by a window between replay and live."""
    take = Reader._take

    def forgetting(self: Reader, block: bytes) -> bool:
        taken = take(self, block)
        if taken and self.history.cursor == 17:
            self.history.events[-1:] = [Seen(18, "", self.history.events[-1].frame)]
        return taken

    monkeypatch.setattr(Reader, "_take", forgetting)
    settings = Settings(log=f"sqlite:///{tmp_path / 'runs.db'}")
    async with Server(settings, tmp_path) as server:
        outcome = await resumes([server.port], tmp_path / "runs.db", count=10, seed=13)
    assert outcome.violations
