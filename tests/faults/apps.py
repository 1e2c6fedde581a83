"""The application that the fault tests serve: real agno, one component of each family, configured by the environment.

A run's message says what its model does, see ``say``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from agno.agent import Agent
from agno.team import Team
from agno.workflow import Step, StepInput, StepOutput, Workflow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from agno_resumable import resumable_routes
from agno_resumable.asgi.response import EventStreamResponse
from agno_resumable.demo.scripted import Pause, ScriptedModel, ScriptItem, ToolCall

__all__ = ["ENVIRONMENT", "FAMILIES", "Settings", "make_app", "say"]

ENVIRONMENT = "AGNO_RESUMABLE_FAULTS"
FAMILIES = {"agent": "/agents/talker", "team": "/teams/crew", "workflow": "/workflows/chain"}
"""Where the component of each family is served."""

_PAGE = "<!doctype html><meta charset=utf-8><title>faults</title>"


@dataclass(frozen=True)
class Settings:
    """What a server process is told. Times in seconds, ``retry_ms`` the largest delay that EventSource is told."""

    log: str
    lease: float = 15.0
    sweep_interval: float = 5.0
    drain_grace: float = 10.0
    cancel_grace: float = 5.0
    lifespan: bool = True
    retry_ms: int = 3000

    def environment(self) -> dict[str, str]:
        """The settings as environment variables for the server's process."""
        return {ENVIRONMENT: json.dumps(asdict(self)), "AGNO_TELEMETRY": "false"}


def say(deltas: int, pause: float = 0.0, silence: float = 0.0, *, gate: Path | None = None) -> str:
    """The message on which a component says so many deltas, with pauses between them and a silence before the last.

    Args:
        deltas: How many.
        pause: Seconds before each.
        silence: Seconds before the very last: a run that is certainly not over.
        gate: A file, without spaces in its path, that has to exist before the very last.
    """
    return f"{deltas} {pause} {silence} {gate or '-'}"


def _script(message: str) -> Sequence[ScriptItem]:
    count, pause, silence, gate = message.split()[-4:]
    items: list[ScriptItem] = []
    for number in range(int(count)):
        items += (Pause(float(pause)), f"word-{number} ünï¢ödé \u2028{'x' * (number % 7)} ")
    items.append(Pause(float(silence)))
    if gate != "-":
        items.append(partial(_opened, Path(gate)))
    return [*items, "That was all."]


async def _opened(gate: Path) -> None:
    while not gate.exists():  # noqa: ASYNC110, ASYNC240  # another process makes it, in a local directory
        await asyncio.sleep(0.02)


def _delegating(message: str) -> Sequence[ScriptItem]:
    call = ToolCall("delegate_task_to_member", {"member_id": "member", "task": say(2)})
    return ["I ask my member. ", call, *_script(message)]


def _sign(step_input: StepInput) -> StepOutput:
    return StepOutput(content=f"{len(str(step_input.previous_step_content))} characters")


def make_app() -> Starlette:
    """The application, for ``uvicorn --factory`` and its like."""
    settings = Settings(**json.loads(os.environ[ENVIRONMENT]))
    agent = Agent(id="talker", model=ScriptedModel(script=_script), telemetry=False)
    member = Agent(id="member", role="Helps.", model=ScriptedModel(script=_script), telemetry=False)
    team = Team(id="crew", members=[member], model=ScriptedModel(script=_delegating), telemetry=False)
    writer = Agent(id="writer", model=ScriptedModel(script=_script), telemetry=False)
    workflow = Workflow(
        id="chain",
        steps=[Step(name="write", agent=writer), Step(name="sign", executor=_sign)],
        telemetry=False,
    )
    routes = resumable_routes(
        log=settings.log,
        agents=[agent],
        teams=[team],
        workflows=[workflow],
        lease=settings.lease,
        sweep_interval=settings.sweep_interval,
        drain_grace=settings.drain_grace,
        cancel_grace=settings.cancel_grace,
    )
    # Of the whole library only this is not an option of the routes: a browser test would wait seconds for each cut
    defaults = EventStreamResponse.__init__.__kwdefaults__
    assert defaults is not None
    defaults["retry_ms"] = settings.retry_ms

    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(_PAGE)

    async def pid(request: Request) -> JSONResponse:
        return JSONResponse({"pid": os.getpid()})

    return Starlette(
        routes=[Route("/", page), Route("/pid", pid), *routes],
        lifespan=routes.lifespan if settings.lifespan else None,
    )
