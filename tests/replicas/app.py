"""What the replicas serve: one agent at ``/agents/talker``, with leases short enough for a test.

Like ``examples/replicas/app.py``, with its settings from the environment and a message that says what the model does.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from agno.agent import Agent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import agno_resumable
from agno_resumable import ResumableStream
from agno_resumable.demo.scripted import Pause, ScriptedModel, ScriptItem

from ..faults import apps

__all__ = ["PATH", "LostPolicy", "Settings", "make_app", "said", "talk", "talker"]

PATH = apps.FAMILIES["agent"]

LostPolicy = Literal["error", "restart"]


@dataclass(frozen=True)
class Settings(apps.Settings):
    """What a replica is told. ``max_attempts``: a run may lose its process at every other kill, and none may run out of
    attempts before the test is over."""

    lease: float = 1.0
    sweep_interval: float = 0.3
    drain_grace: float = 0.5
    cancel_grace: float = 0.5
    on_producer_lost: LostPolicy = "restart"
    max_attempts: int = 10_000


def talk(words: int, pause: float, gate: Path | None = None) -> str:
    """The message on which the agent says so many words, with ``pause`` seconds before each.

    With a ``gate``, a file whose path holds no space, it waits for that before the very last, and does not pause any
    more once it is there.
    """
    return f"{words} {pause} {gate or '-'}"


def said(message: str) -> str:
    """What the agent has said to a message, when it has said everything."""
    return "".join(item for item in _script(message) if isinstance(item, str))


def _script(message: str) -> Sequence[ScriptItem]:
    words, pause, gate = message.split()
    silence = Pause(float(pause)) if gate == "-" else partial(_pause, float(pause), Path(gate))
    items: list[ScriptItem] = []
    for number in range(int(words)):
        items += (silence, f"wörd-{number} \u2028{'x' * (number % 7)} ")
    if gate != "-":
        items.append(partial(_opened, Path(gate)))
    return [*items, "That was all."]


async def _pause(seconds: float, gate: Path) -> None:
    if not gate.exists():  # noqa: ASYNC240  # in a local directory
        await asyncio.sleep(seconds)


async def _opened(gate: Path) -> None:
    while not gate.exists():  # noqa: ASYNC110, ASYNC240  # another process makes it
        await asyncio.sleep(0.1)


def talker() -> Agent:
    """The agent."""
    return Agent(id=PATH.rpartition("/")[2], model=ScriptedModel(script=_script), telemetry=False)


def make_app() -> Starlette:
    """The application, for ``uvicorn --factory``."""
    settings = Settings(**json.loads(os.environ[apps.ENVIRONMENT]))
    stream = ResumableStream(
        talker(),
        log=settings.log,
        lease=settings.lease,
        sweep_interval=settings.sweep_interval,
        drain_grace=settings.drain_grace,
        cancel_grace=settings.cancel_grace,
        on_producer_lost=settings.on_producer_lost,
        max_attempts=settings.max_attempts,
    )

    async def pid(request: Request) -> JSONResponse:
        return JSONResponse({"pid": os.getpid(), "library": agno_resumable.__file__})

    return Starlette(routes=[Route("/pid", pid), Mount(PATH, routes=stream.routes())], lifespan=stream.lifespan)
