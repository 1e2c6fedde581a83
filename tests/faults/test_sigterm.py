"""A stopped server tells every client, gives its runs their grace, and is gone in time."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from .apps import Settings, say
from .sigterm import stop
from .support import GRANIAN, HYPERCORN, Server, long_form, start_run, stored

STREAMS, RUNS = (200, 20) if long_form() else (60, 12)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_run_that_nobody_reads_gets_its_end_too_and_without_a_lifespan(tmp_path: Path) -> None:
    settings = Settings(log=f"sqlite:///{tmp_path / 'runs.db'}", drain_grace=0.5, lifespan=False)
    async with Server(settings, tmp_path) as server:
        run = await start_run(server.port, "workflow", say(5000, 0.02))
        server.process.send_signal(signal.SIGTERM)
        assert await server.exited(5.0) is not None
    status, history = await stored(tmp_path / "runs.db", run.run_id)
    assert status == "CANCELLED"
    assert history.events[-1].type == "WorkflowCancelled"


def _need(server: str) -> None:
    if find_spec(server) is None:
        pytest.skip(f"{server} is not installed; 'pip install {server}' adds this test")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("lifespan", [True, False], ids=["lifespan", "no-lifespan"])
async def test_uvicorn_drains(tmp_path: Path, number: signal.Signals, lifespan: bool) -> None:
    outcome = await stop(tmp_path, streams=STREAMS, runs=RUNS, stalled=2, number=number, lifespan=lifespan)
    print(outcome.summary())
    assert outcome.violations == []


@pytest.mark.parametrize("lifespan", [True, False] if long_form() else [False])
async def test_uvicorn_with_two_workers_drains(tmp_path: Path, lifespan: bool) -> None:
    outcome = await stop(tmp_path, streams=STREAMS, runs=RUNS, stalled=2, workers=2, lifespan=lifespan)
    print(outcome.summary())
    assert outcome.violations == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize(("name", "command"), [("hypercorn", HYPERCORN), ("granian", GRANIAN)])
async def test_other_servers_drain_with_a_lifespan(
    tmp_path: Path, name: str, command: Sequence[str], number: signal.Signals
) -> None:
    _need(name)
    outcome = await stop(tmp_path, streams=STREAMS, runs=RUNS, command=command, number=number)
    print(outcome.summary())
    assert outcome.violations == []


async def test_hypercorn_without_a_lifespan_ends_the_runs_at_once(tmp_path: Path) -> None:
    # Its handler is the event loop's, in front of which nobody can stand: no grace, and still an honest end.
    # granian's does not even leave the loop in an orderly way; there the runs end when their lease runs out.
    _need("hypercorn")
    outcome = await stop(tmp_path, streams=STREAMS, runs=RUNS, command=HYPERCORN, lifespan=False, attended=False)
    print(outcome.summary())
    assert outcome.violations == []


async def test_a_server_that_does_not_drain_does_not_pass(tmp_path: Path) -> None:
    """The seeded fault: a signal that nobody can hear."""
    outcome = await stop(tmp_path, streams=6, runs=3, number=signal.SIGKILL)
    text = "\n".join(outcome.violations)
    for complaint in ("a client was told []", "the body of a GET was broken off", "it is RUNNING and not"):
        assert complaint in text
