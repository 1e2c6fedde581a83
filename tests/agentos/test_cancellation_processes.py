"""A cancel in one process stops the run in another, whatever it is stuck in, and the row says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from agno_resumable import SQLiteEventLog
from agno_resumable.agentos import LogCancellationManager

from ..support import PATIENCE, ROOT, eventually
from .cancelling import FAMILIES, KINDS

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

CASES = [
    *[(family, kind, "silent") for family in FAMILIES for kind in KINDS],
    *[(family, "stream", "talking") for family in FAMILIES],
    ("team", "whole", "tool"),
    ("workflow", "whole", "function"),
    ("agent", "background", "tool"),
    *[(family, kind, "unstarted") for family in FAMILIES for kind in ("stream", "whole")],
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def worker(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.agentos.cancellation_worker", *words]
    environment = {**os.environ, "AGNO_TELEMETRY": "false"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def said(process: subprocess.Popen[str]) -> list[str]:
    """The next line that is the worker's own; agno writes to the standard output as well."""
    assert process.stdout is not None
    with anyio.fail_after(2 * PATIENCE):
        while True:
            line = await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
            assert line, f"the worker ended with {process.wait()}"
            words = line.split()
            if words and words[0] in ("ready", "CANCELLED", "COMPLETED", "ERROR"):
                return words


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_cancel_stops_the_run_of_another_process(family: str, tmp_path: Path, short: bool) -> None:
    cases = [(kind, what) for of, kind, what in CASES if of == family]
    named = {f"run-{number}": case for number, case in enumerate(cases[:3] if short else cases)}
    words = [f"{kind}:{what}:{run_id}" for run_id, (kind, what) in named.items()]
    url = f"sqlite:///{tmp_path}/runs.db"
    async with LogCancellationManager(url) as manager, SQLiteEventLog(tmp_path / "runs.db") as log:

        async def no_intent_is_left() -> bool:
            return not (await log.intents()).run_ids

        with worker(str(tmp_path), family, *words) as process:
            for kind, what in named.values():
                _, run_id = await said(process)
                await manager.acancel_run(run_id)
                assert await said(process) == ["CANCELLED", "clean"], (family, kind, what)
                await eventually(no_intent_is_left, message=f"{family} {kind} {what}")
