"""The rows of a PostgreSQL, whose driver writes JSON by itself."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from agno.db.postgres import AsyncPostgresDb, PostgresDb
from agno.run.agent import RunOutput
from agno.session.agent import AgentSession
from sqlalchemy import create_engine

from agno_resumable.agentos import harden

from ..postgres_server import PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _url(server: PostgresServer) -> str:
    return server.url.replace("postgresql://", "postgresql+psycopg://", 1)


def _session(session_id: str) -> AgentSession:
    state: dict[str, Any] = {
        "nan": float("nan"),
        "surrogate": "x\ud800",
        "lock": threading.Lock(),
        "tuple key": {(1, 2): b"x"},
    }
    run = RunOutput(run_id=f"r-{session_id}", agent_id="a", session_state=state, created_at=1)
    return AgentSession(session_id=session_id, agent_id="a", created_at=1, runs=[run])


def _check(session: Any) -> None:
    [run] = session.runs
    state = run.session_state
    assert state.pop("lock").startswith("<unlocked _thread.lock object")
    assert state == {"nan": None, "surrogate": "x\ufffd", "tuple key": {"(1, 2)": "b'x'"}}


@pytest.mark.parametrize("own_engine", [False, True], ids=["agno's engine", "an engine of the user's own"])
async def test_rows_are_written_over_connections_that_were_open_before(
    own_engine: bool, postgres: PostgresServer
) -> None:
    schema, engine = postgres.schema(), create_engine(_url(postgres))
    db = PostgresDb(db_engine=engine, db_schema=schema)
    if not own_engine:
        engine.dispose()
        db = PostgresDb(db_url=_url(postgres), db_schema=schema)
    try:
        session = _session("s-1")
        db.upsert_session(AgentSession(session_id="s-1", agent_id="a", created_at=1))
        with harden(db):
            db.upsert_session(session)
            if hasattr(db, "upsert_run"):
                db.upsert_run(session.runs[0], session_id="s-1")  # type: ignore[index]
            _check(db.get_session("s-1", "agent"))  # type: ignore[arg-type]
    finally:
        db.db_engine.dispose()


async def test_rows_are_written_asynchronously(postgres: PostgresServer) -> None:
    db = AsyncPostgresDb(db_url=_url(postgres), db_schema=postgres.schema())
    try:
        session = _session("s-1")
        with harden(db):
            await db.upsert_session(session)
            if hasattr(db, "upsert_run"):
                await db.upsert_run(session.runs[0], session_id="s-1")  # type: ignore[index]
            _check(await db.get_session("s-1", "agent"))  # type: ignore[arg-type]
    finally:
        await db.db_engine.dispose()
