"""AgentOS with the hostile components, for a server of its own."""

from __future__ import annotations

import os
from pathlib import Path

from agno.db.sqlite import SqliteDb
from agno.os import AgentOS
from fastapi import FastAPI
from starlette.types import ASGIApp

from .apps import _own_routes
from .hostile import components

__all__ = ["APP", "DIRECTORY", "HARDENED", "LOG", "make_app"]

APP = "tests.agentos.hostile_app:make_app"
DIRECTORY = "AGNO_RESUMABLE_HOSTILE_DIRECTORY"
HARDENED = "AGNO_RESUMABLE_HOSTILE_HARDENED"
"""``""`` for AgentOS as it comes, ``harden`` for that alone, ``all`` for ``make_resumable``."""

LOG = "runs.db"


def make_app() -> ASGIApp:
    """The application, for ``uvicorn --factory``."""
    directory, hardened = os.environ[DIRECTORY], os.environ[HARDENED]
    db = SqliteDb(db_file=str(Path(directory, "agentos.db")))
    base_app = FastAPI()
    _own_routes(base_app)
    given = components(db)
    agent_os = AgentOS(
        id="hostile",
        db=db,
        agents=[given.agent],
        teams=[given.team],
        workflows=[given.workflow],
        base_app=base_app,
        telemetry=False,
    )
    if hardened == "all":
        from agno_resumable.agentos import make_resumable

        resumable: ASGIApp = make_resumable(agent_os, log=f"sqlite:///{Path(directory, LOG)}")
        return resumable
    if hardened:
        from agno_resumable.agentos import harden

        harden(agent_os)
    app: ASGIApp = agent_os.get_app()
    return app
