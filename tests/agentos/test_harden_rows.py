"""Runs with hostile values in them come to their end, have a row, and the row can be read: without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agno.db.sqlite import AsyncSqliteDb, SqliteDb
from agno.os import utils

from agno_resumable.agentos.hardening import Hardening, harden

from .hostile import Components, asked, cases, components, stored_json, strict
from .support import TERMINAL

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # agno's own


@pytest.fixture
def hardened() -> Iterator[Hardening]:
    with harden() as hardening:
        yield hardening


async def _run(given: Components, family: str, message: str) -> tuple[str, list[str]]:
    """Run it, and give its id and its frames."""
    run_id, frames = "", []
    stream = given.of(family).arun(message, stream=True, stream_events=True, session_id=f"s-{family}")
    async for event in stream:
        run_id = run_id or event.run_id
        frames.append(utils.format_sse_event(event))
    return run_id, frames


async def _row(given: Components, family: str, run_id: str) -> Any:
    return await given.of(family).aget_run_output(run_id=run_id, session_id=f"s-{family}")


@pytest.mark.parametrize(("place", "value"), cases())
async def test_a_run_with_a_hostile_value_ends_and_has_a_row_that_can_be_read(
    place: str, value: str, tmp_path: Path, hardened: Hardening
) -> None:
    path = tmp_path / "agno.db"
    db = SqliteDb(db_file=str(path))
    assert harden(db) is hardened
    given = components(db)
    try:
        for family in ("agent", "team", "workflow") if place != "step output" else ("workflow",):
            run_id, frames = await _run(given, family, asked(place, value))
            names = [frame.partition("\n")[0].removeprefix("event: ") for frame in frames]
            assert names[-1] in TERMINAL[family].values(), names
            assert place != "custom event" or "CustomEvent" in names
            for frame in frames:
                strict(frame.split("\ndata: ", 1)[1])
            assert not any("serialization_error" in frame for frame in frames)
            row = await _row(given, family, run_id)
            assert row is not None
            assert row.status in ("COMPLETED", "ERROR"), row.status
            strict(json.dumps(row.to_dict()))
        documents = stored_json(path)
        assert documents
        for document in documents:
            strict(document)
    finally:
        db.db_engine.dispose()


async def test_an_asynchronous_database_is_hardened_by_its_synchronous_engine(
    tmp_path: Path, hardened: Hardening
) -> None:
    path = tmp_path / "agno.db"
    db = AsyncSqliteDb(db_file=str(path))
    harden(db)
    given = components(db)
    try:
        for family in ("agent", "team", "workflow"):
            for value in ("lock", "nan", "tuple key", "surrogate"):
                run_id, _ = await _run(given, family, asked("custom event", value))
                row = await _row(given, family, run_id)
                assert row is not None
                assert row.status == "COMPLETED"
        for document in stored_json(path):
            strict(document)
    finally:
        await db.db_engine.dispose()


async def test_without_hardening_such_a_run_is_lost(tmp_path: Path) -> None:
    db = SqliteDb(db_file=str(tmp_path / "agno.db"))
    given = components(db)
    try:
        run_id, _ = await _run(given, "agent", asked("session state", "bytes"))
        assert await _row(given, "agent", run_id) is None
        _, frames = await _run(given, "agent", asked("custom event", "nan"))
        assert any("NaN" in frame for frame in frames)
    finally:
        db.db_engine.dispose()
