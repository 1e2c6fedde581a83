"""The application of the AgentOS tests: a real AgentOS with a component of each family, configured by the environment.

A run's message says what its model does, see ``say``. With ``resumable=False`` it is AgentOS as it comes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agno.agent import Agent
from agno.db.sqlite import SqliteDb
from agno.os import AgentOS
from agno.team import Team
from agno.tools import tool
from agno.workflow import Step, StepInput, StepOutput, Workflow
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp

from agno_resumable.demo.scripted import Pause, ScriptedModel, ScriptItem, ToolCall

__all__ = [
    "APP",
    "COOKIE",
    "ENVIRONMENT",
    "FAMILIES",
    "OPEN_PATHS",
    "Settings",
    "in_member",
    "make_app",
    "say",
    "token",
]

APP = "tests.agentos.apps:make_app"
ENVIRONMENT = "AGNO_RESUMABLE_AGENTOS"
FAMILIES = {"agent": "/agents/talker", "team": "/teams/crew", "workflow": "/workflows/chain"}
"""Where the component of each family is served."""

COOKIE = "access_token"
OPEN_PATHS = ("/", "/health", "/-/pid", "/-/memory")
"""What is served without a token."""

_PAGE = "<!doctype html><meta charset=utf-8><title>agentos</title>"


@dataclass(frozen=True)
class Settings:
    """What a server process is told.

    Attributes:
        directory: Where AgentOS's own database is, and by default the log.
        resumable: Whether ``make_resumable`` is applied at all.
        log: The log's URL.
        secret: Of the JWTs; without one there is no authentication.
        options: Further arguments of ``make_resumable``.
        log_options: Arguments of ``SQLiteEventLog``, in the place of ``log``.
        grace: Seconds that AgentOS gives its background runs at its end, in the place of its own 30.
        database: The URL of a PostgreSQL for AgentOS, in the place of a SQLite file; then the log is there too.
    """

    directory: str
    resumable: bool = True
    log: str | None = None
    secret: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    log_options: Mapping[str, Any] = field(default_factory=dict)
    grace: float | None = None
    database: str | None = None

    @property
    def log_path(self) -> Path:
        """The file of the log."""
        return Path(self.directory, "runs.db")

    def environment(self) -> dict[str, str]:
        """The settings as environment variables for the server's process."""
        return {ENVIRONMENT: json.dumps(asdict(self)), "AGNO_TELEMETRY": "false", "JWT_VERIFICATION_KEY": ""}


def token(secret: str, user: str, *, admin: bool = False, hours: float = 1.0) -> str:
    """A JWT for ``user`` who may run everything, which under isolation means: everything of their own."""
    import jwt  # agno's own choice, needed by the tests with authentication alone

    scopes = [f"{kind}:{action}" for kind in ("agents", "teams", "workflows", "sessions") for action in ("read", "run")]
    claims = {"sub": user, "scopes": ["agent_os:admin"] if admin else scopes, "exp": int(time.time() + hours * 3600)}
    return jwt.encode(claims, secret, algorithm="HS256")


# ---------------------------------------------------------------- what a run does


def say(
    deltas: int = 3,
    pause: float = 0.0,
    silence: float = 0.0,
    *,
    gate: Path | None = None,
    hold: Path | None = None,
    size: int = 0,
    adding: tuple[int, int] | None = None,
    confirm: bool = False,
) -> str:
    """The message on which a component says so many deltas.

    Args:
        deltas: How many.
        pause: Seconds before each.
        silence: Seconds before the very last: one model call in which nothing comes.
        gate: A file that has to exist before the very last.
        hold: A file that has to exist before the very first.
        size: Of a delta, in characters; without it, a few, and not ASCII alone.
        adding: Arguments for the tool ``add``, which is called first.
        confirm: Whether, behind the deltas, the tool is called that needs a confirmation.
    """
    files = {"g": str(gate or ""), "h": str(hold or "")}
    asked = {"n": deltas, "p": pause, "s": silence, **files, "z": size, "t": adding, "c": confirm}
    return json.dumps({name: value for name, value in asked.items() if value or name == "n"}, separators=(",", ":"))


_ASKED = re.compile(r"\{[^{}]*\}")


def _asked(message: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_ASKED.findall(message)[-1])
    return found


def _script(message: str) -> Sequence[ScriptItem]:
    asked = _asked(message)
    items: list[ScriptItem] = []
    if asked.get("t"):
        a, b = asked["t"]
        items.append(ToolCall("add", {"a": a, "b": b}))
    if asked.get("h"):
        items.append(partial(_opened, Path(asked["h"])))
    size, pause = asked.get("z", 0), Pause(asked.get("p", 0.0))
    for number in range(asked["n"]):
        if pause.seconds:
            items.append(pause)
        items.append("x" * size if size else f"word-{number} ünï¢ödé \u2028{'x' * (number % 7)} ")
    if asked.get("s"):
        items.append(Pause(asked["s"]))
    if asked.get("g"):
        items.append(partial(_opened, Path(asked["g"])))
    if asked.get("c"):
        items.append(ToolCall("launch", {"what": "rocket"}))
    return [*items, "That was all."]


async def _opened(gate: Path) -> None:
    while not gate.exists():  # noqa: ASYNC110, ASYNC240  # another process makes it, in a local directory
        await asyncio.sleep(0.02)


def _delegating(message: str) -> Sequence[ScriptItem]:
    # What has to be confirmed, or takes its time, is the member's where the team says so
    asked = _asked(message)
    task = say(2)
    if asked.get("m"):
        task = json.dumps({**asked, "m": False}, separators=(",", ":"))
        return ["I ask my member. ", ToolCall("delegate_task_to_member", {"member_id": "member", "task": task}), "So."]
    call = ToolCall("delegate_task_to_member", {"member_id": "member", "task": task})
    return ["I ask my member. ", call, *_script(message)]


def in_member(message: str) -> str:
    """The same, done by the team's member: the team itself only waits for it."""
    return json.dumps({**json.loads(message), "m": True}, separators=(",", ":"))


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a (int): The first.
        b (int): The second.
    """
    return str(a + b)


@tool(requires_confirmation=True)
def launch(what: str) -> str:
    """Launch something.

    Args:
        what (str): The thing.
    """
    return f"{what} launched"


def _sign(step_input: StepInput) -> StepOutput:
    return StepOutput(content=f"{len(str(step_input.previous_step_content))} characters")


# ---------------------------------------------------------------- the application


def make_agent_os(settings: Settings, base_app: FastAPI | None = None) -> AgentOS:
    """AgentOS with an agent, a team with a member, and a workflow of an agent's step and a function's."""
    db: Any = SqliteDb(db_file=str(Path(settings.directory, "agentos.db")))
    if settings.database:
        from agno.db.postgres import PostgresDb

        db = PostgresDb(db_url=settings.database)
    model = ScriptedModel(script=_script)
    tools: list[Any] = [add, launch]
    agent = Agent(id="talker", name="Talker", model=model, tools=tools, db=db, telemetry=False)
    member = Agent(id="member", name="Member", role="Helps.", model=model, tools=tools, telemetry=False)
    team = Team(
        id="crew",
        name="Crew",
        members=[member],
        model=ScriptedModel(script=_delegating),
        tools=tools,
        db=db,
        telemetry=False,
    )
    writer = Agent(id="writer", name="Writer", model=model, tools=tools, telemetry=False)
    workflow = Workflow(
        id="chain",
        name="Chain",
        steps=[Step(name="write", agent=writer), Step(name="sign", executor=_sign)],
        db=db,
        telemetry=False,
    )
    return AgentOS(
        id="tests",
        db=db,
        agents=[agent],
        teams=[team],
        workflows=[workflow],
        base_app=base_app,
        telemetry=False,
    )


def make_app() -> ASGIApp:
    """The application, for ``uvicorn --factory`` and its like."""
    settings = Settings(**json.loads(os.environ[ENVIRONMENT]))
    base_app = FastAPI()
    _own_routes(base_app)
    if settings.secret:
        from agno.os.middleware.jwt import JWTMiddleware, TokenSource

        base_app.add_middleware(
            JWTMiddleware,
            verification_keys=[settings.secret],
            algorithm="HS256",
            authorization=True,
            token_source=TokenSource.BOTH,
            cookie_name=COOKIE,
            user_isolation=True,
            excluded_route_paths=list(OPEN_PATHS),
        )
    agent_os = make_agent_os(settings, base_app)
    if settings.grace is not None:
        from agno.os import app as agno_app

        agno_app._drain_cancel_persist_tasks.__defaults__ = (settings.grace,)
    if not settings.resumable:
        plain: ASGIApp = agent_os.get_app()
        return plain
    from agno_resumable import SQLiteEventLog
    from agno_resumable.agentos import make_resumable

    if settings.database:
        beside: ASGIApp = make_resumable(agent_os, **settings.options)
        return beside
    log = SQLiteEventLog(settings.log_path, **settings.log_options) if settings.log_options else None
    resumable: ASGIApp = make_resumable(
        agent_os, log=log or settings.log or f"sqlite:///{settings.log_path}", **settings.options
    )
    return resumable


def _own_routes(app: FastAPI) -> None:
    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(_PAGE)

    async def pid(request: Request) -> JSONResponse:
        return JSONResponse({"pid": os.getpid()})

    async def memory(request: Request) -> JSONResponse:
        pages = int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240  # no disk behind it
        return JSONResponse({"rss": pages * os.sysconf("SC_PAGE_SIZE")})

    app.add_route("/", page)
    app.add_route("/-/pid", pid)
    app.add_route("/-/memory", memory)


def app() -> ASGIApp:
    """The same for servers that know no factories: gunicorn calls ``module:app()``."""
    return make_app()
