"""``make_resumable`` and what it decides by itself; that it works is the other files' matter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agno.db.in_memory import InMemoryDb
from agno.db.sqlite import SqliteDb
from agno.os import AgentOS, event_streams as agnos
from agno.run import cancel as cancelling
from agno.run.agent import RunOutput
from agno.run.base import RunStatus as AgnoStatus
from agno.run.team import TeamRunOutput
from agno.run.workflow import WorkflowRunOutput
from agno.session import AgentSession, TeamSession, WorkflowSession
from fastapi import FastAPI

from agno_resumable import EncodedEvent, Family, MemoryEventLog, NewRun, UnsupportedLogURL
from agno_resumable.agentos import (
    AgentOSBridge,
    LogCancellationManager,
    LogEventStream,
    harden,
    make_resumable,
)
from agno_resumable.agentos.install import log_url_of
from agno_resumable.agentos.rows import Rows

from ..support import scripted, scripted_agent

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def agno_as_it_was() -> Iterator[None]:
    """What ``make_resumable`` sets belongs to the process."""
    stream, manager = agnos.get_event_stream(), cancelling.get_cancellation_manager()
    yield
    agnos.set_event_stream(stream)
    cancelling.set_cancellation_manager(manager)
    harden().undo()


def agent_os(db: Any = None, **options: Any) -> AgentOS:
    return AgentOS(agents=[scripted_agent("word", db=db)], telemetry=False, **options)


def test_one_line_sets_the_stream_the_cancellation_and_the_bridge(tmp_path: Path) -> None:
    app = make_resumable(agent_os(SqliteDb(db_file=str(tmp_path / "agno.db"))))
    assert isinstance(app, AgentOSBridge)
    assert isinstance(app.app, FastAPI)  # for routes and state of one's own
    assert isinstance(agnos.get_event_stream(), LogEventStream)
    assert isinstance(cancelling.get_cancellation_manager(), LogCancellationManager)


def test_the_log_lies_beside_a_sqlite_database(tmp_path: Path) -> None:
    db = SqliteDb(db_file=str(tmp_path / "agno.db"))
    assert log_url_of(agent_os(db)) == f"sqlite:///{tmp_path / 'agno.events.db'}"
    assert log_url_of(AgentOS(agents=[scripted_agent("word")], db=db)) == log_url_of(agent_os(db))


def test_without_a_database_a_log_has_to_be_given() -> None:
    in_memory = InMemoryDb()  # type: ignore[no-untyped-call]
    for db in (None, in_memory):
        with pytest.raises(UnsupportedLogURL, match="log='memory:'"):
            make_resumable(agent_os(db))


@pytest.fixture
async def log() -> AsyncIterator[MemoryEventLog]:
    async with MemoryEventLog() as log:
        yield log


def _stored(db: SqliteDb, family: Family, status: AgnoStatus) -> None:
    if family is Family.AGENT:
        db.upsert_session(AgentSession(session_id="s", agent_id=family.value))
        db.upsert_run(RunOutput(run_id="run", session_id="s", agent_id=family.value, status=status), session_id="s")
    elif family is Family.TEAM:
        db.upsert_session(TeamSession(session_id="s", team_id=family.value))
        db.upsert_run(TeamRunOutput(run_id="run", session_id="s", team_id=family.value, status=status), session_id="s")
    else:
        db.upsert_session(WorkflowSession(session_id="s", workflow_id=family.value))
        row = WorkflowRunOutput(run_id="run", session_id="s", workflow_id=family.value, status=status)
        db.upsert_run(row, session_id="s")


@pytest.mark.parametrize(
    ("asked", "status", "said"), [(False, AgnoStatus.error, "lost"), (True, AgnoStatus.cancelled, "cancelled")]
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("family", Family)
async def test_the_row_of_a_lost_run_says_how_it_ended(
    family: Family, known: bool, asked: bool, status: AgnoStatus, said: str, log: MemoryEventLog, tmp_path: Path
) -> None:
    db = SqliteDb(db_file=str(tmp_path / "agno.db"))
    component = scripted(family, "word", id=family.value, db=db)
    system = AgentOS(**{f"{family.value}s": [component]}, telemetry=False)  # type: ignore[arg-type]
    _stored(db, family, AgnoStatus.running)
    await log.create(NewRun("run", family, family.value, "s" if known else None), lease=1)
    await log.append("run", 1, [EncodedEvent("RunStarted", b'{"event":"RunStarted","session_id":"s"}')])
    if asked:
        await log.request_cancel("run")
    await Rows(system, log).settle((await log.read("run")).run)
    row = await component.aget_run_output(run_id="run", session_id="s")
    assert row is not None
    assert row.status == status
    assert said in str(row.content)


async def test_a_row_that_has_its_end_is_left_alone(log: MemoryEventLog, tmp_path: Path) -> None:
    db = SqliteDb(db_file=str(tmp_path / "agno.db"))
    agent = scripted_agent("word", id="agent", db=db)
    _stored(db, Family.AGENT, AgnoStatus.completed)
    run = await log.create(NewRun("run", Family.AGENT, "agent", "s"), lease=1)
    await Rows(AgentOS(agents=[agent], telemetry=False), log).settle(run)
    row = await agent.aget_run_output(run_id="run", session_id="s")
    assert row is not None
    assert row.status == AgnoStatus.completed


async def test_a_run_without_a_row_or_a_component_is_left_without(log: MemoryEventLog, tmp_path: Path) -> None:
    system = agent_os(SqliteDb(db_file=str(tmp_path / "agno.db")))
    component_id = str(system.agents[0].id)  # type: ignore[index]
    for run_id, component in (("one", component_id), ("two", "nobody")):
        run = await log.create(NewRun(run_id, Family.AGENT, component, "s"), lease=1)
        await Rows(system, log).settle(run)
