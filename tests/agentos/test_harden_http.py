"""Acceptance 5: hostile values over HTTP, in every place, for every family, inline and in the background.

``AGNO_RESUMABLE_SHORT`` takes every fifth of the cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..faults import support as faults
from ..faults.support import free_port, long_form
from .hostile import asked, cases, stored_json, strict
from .hostile_app import APP, DIRECTORY, HARDENED
from .support import TERMINAL, Client, Run, Server, Stream, poll, row_of, start

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FAMILIES = ("agent", "team", "workflow")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class HostileServer(Server):
    """A uvicorn with the hostile application."""

    def __init__(self, directory: Path, hardened: str) -> None:
        self.port = free_port()
        self.output = directory / f"server-{self.port}.log"
        self.started_at = time.time()
        self.ready_at = 0.0
        command = [sys.executable, "-m", "uvicorn", "--factory", APP, "--no-access-log", "--log-level", "warning"]
        own = {DIRECTORY: str(directory), HARDENED: hardened, "AGNO_TELEMETRY": "false", "JWT_VERIFICATION_KEY": ""}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, f"--port={self.port}"],
                cwd=faults.ROOT,
                env={**os.environ, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _terminal(stream: Stream, family: str) -> bool:
    return stream.clean and bool(stream.names) and stream.names[-1] in TERMINAL[family].values()


def _cases(short: bool) -> list[tuple[str, str, str, bool]]:
    all_of_them = [
        (place, value, family, background)
        for place, value in cases()
        for family in (FAMILIES if place != "step output" else ("workflow",))
        for background in (False, True)
    ]
    # Seven has no part in common with the numbers of families and ways: every value comes up in each of them somewhere
    return all_of_them if long_form() else all_of_them[:: 35 if short else 7]


async def _violations(port: int, place: str, value: str, family: str, background: bool, resumable: bool) -> list[str]:
    """What is wrong with one run, its row and its replay; its frames are strict JSON, or reading them raises."""
    found = []
    run, stream = await start(port, family, asked(place, value), background=background)
    await stream.read()
    if not _terminal(stream, family):
        found.append(f"ends in {stream.names[-1:]}, clean: {stream.clean}")
    stream.connection.close()
    if background:
        # the client's end comes before agno has completed the run
        await poll(port, run, "COMPLETED", "ERROR")
        client = Client.of(run)
        again = await (await client.resume(port)).read()
        again.connection.close()
        if not _terminal(again, family):
            found.append(f"resumes to {again.names[-1:]}, clean: {again.clean}")
        if resumable and [frame.index for frame in again.events] != [frame.index for frame in stream.events]:
            found.append("is resumed with other events")
    found += await _row_violations(port, run)
    return found


async def _row_violations(port: int, run: Run) -> list[str]:
    answer = await row_of(port, run)
    if answer.status != 200:
        return [f"GET is answered {answer.status}"]
    status = strict(answer.body)["status"]
    return [] if status in ("COMPLETED", "ERROR") else [f"row is {status}"]


@pytest.mark.parametrize("hardened", ["harden", "all"])
async def test_every_stream_ends_is_strict_and_leaves_a_row_that_can_be_read(
    hardened: str, tmp_path: Path, short: bool
) -> None:
    failed: dict[str, list[str]] = {}
    async with HostileServer(tmp_path, hardened) as server:
        for case in _cases(short):
            violations = await _violations(server.port, *case, resumable=hardened == "all")
            if violations:
                failed[repr(case)] = violations
        said = server.said()
    assert not failed, f"{len(failed)} of {len(_cases(short))}: {json.dumps(failed, indent=1)}\n{said[-2000:]}"
    documents = stored_json(tmp_path / "agentos.db")
    assert len(documents) >= len(_cases(short))
    for document in documents:
        strict(document)


async def test_agno_alone_fails_on_the_same(tmp_path: Path) -> None:
    failed = 0
    async with HostileServer(tmp_path, "") as server:
        for place, value in (("custom event", "nan"), ("custom event", "ndarray"), ("session state", "bytes")):
            try:
                failed += bool(await _violations(server.port, place, value, "agent", False, False))
            except (ValueError, AssertionError):
                failed += 1  # no strict JSON, or no stream at all
    assert failed == 3
