"""The pieces that stand before AgentOS in a bridge, and nothing else of it: for the tests of these pieces alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
from agno.os import AgentOS
from agno.os.middleware.jwt import JWTMiddleware
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from agno_resumable.agentos.paths import Action, target_of
from agno_resumable.agentos.promotion import promotable
from agno_resumable.agentos.refusal import Claim, refuse_reused
from agno_resumable.agentos.uploads import FormWatch

from ..support import http, server_thread
from .apps import Settings, make_agent_os, token

__all__ = ["Before", "Served", "bearer", "indices", "secured", "serving"]

SECRET = "a secret of at least thirty-two bytes"


class Before:
    """Watches, promotes and refuses starts and continues on their way to AgentOS."""

    def __init__(self, app: ASGIApp, agent_os: AgentOS) -> None:
        self.app, self.agent_os = app, agent_os
        self.watches: list[FormWatch] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = target_of(scope)
        if target is None or target.action not in (Action.START, Action.CONTINUE):
            await self.app(scope, receive, send)
            return

        async def on_run_id(run_id: str) -> Claim:
            return await refuse_reused(
                run_id,
                target=target,
                scope=watch.scope,
                fields=watch.fields,
                agent_os=self.agent_os,
                log=None,
            )

        watch = FormWatch(
            scope,
            receive,
            promote=await promotable(self.agent_os, target),
            on_run_id=on_run_id if target.action is Action.START else None,
        )
        self.watches.append(watch)
        await watch.run(self.app, send)


class Served:
    """A server of an AgentOS, with the pieces before it or without."""

    def __init__(self, address: str, before: Before | None = None, directory: Path | None = None) -> None:
        self.address, self.before, self.directory = address, before, directory

    @property
    def promoted(self) -> bool:
        """Whether the newest request was promoted."""
        assert self.before is not None
        return self.before.watches[-1].promoted

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the server."""
        async with http(self.address) as client:
            yield client

    def row(self, run_id: str) -> tuple[Any, ...] | None:
        """agno's own row of a run, as it lies in the database: session, user, status and the run."""
        assert self.directory is not None
        connection = sqlite3.connect(self.directory / "agentos.db")
        try:
            found: tuple[Any, ...] | None = connection.execute(
                "SELECT session_id, user_id, status, run_data FROM agno_runs WHERE run_id = ?", (run_id,)
            ).fetchone()
            return found
        finally:
            connection.close()


@contextmanager
def serving(
    agent_os: AgentOS | None = None, *, directory: Path | None = None, base: FastAPI | None = None
) -> Iterator[Served]:
    """Serve ``agent_os``, or else the tests' own with its database in ``directory``."""
    if agent_os is None:
        assert directory is not None
        agent_os = make_agent_os(Settings(str(directory)), base)
    before = Before(agent_os.get_app(), agent_os)
    with server_thread(before) as address:
        yield Served(address, before, directory)


def secured(base: FastAPI) -> FastAPI:
    """With agno's own authentication and user isolation."""
    base.add_middleware(
        JWTMiddleware, verification_keys=[SECRET], algorithm="HS256", authorization=True, user_isolation=True
    )
    return base


def bearer(user: str, **claims: Any) -> dict[str, str]:
    """The headers of a request of ``user``."""
    return {"Authorization": f"Bearer {token(SECRET, user, **claims)}"}


def indices(stream: str) -> list[int]:
    """The indices of the events of an SSE stream."""
    events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: ")]
    return [event["event_index"] for event in events if event.get("event_index") is not None]
