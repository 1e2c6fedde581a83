"""One agent, to be served by several processes that share nothing but the log. README.md in this directory tells how.

A run whose process dies is run again by another one, from its stored input and under the same id; whoever reads it is
told by a ``restarted`` event, and reads on.
"""

from __future__ import annotations

import os

from agno.agent import Agent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from agno_resumable import ResumableStream
from agno_resumable.demo.scripted import ScriptedModel

# A model that plays a script, for half a minute; put your own in its place. Its tools may be called twice for one run.
model = ScriptedModel(script=[f"word{n} " for n in range(150)], delay=0.2)
agent = Agent(id="story", name="Story", model=model, telemetry=False)

story = ResumableStream(
    agent,
    # postgresql://user:password@host/database, redis://host:6379/0, or a file that all replicas see
    log=os.environ.get("LOG_URL", "sqlite:///runs.db"),
    on_producer_lost="restart",
)


async def whoami(request: Request) -> JSONResponse:
    """Which process answers: to see the balancer at work, and to know which one to kill."""
    return JSONResponse({"pid": os.getpid()})


app = Starlette(
    routes=[Route("/whoami", whoami), Mount("/agents/story", routes=story.routes())],
    lifespan=story.lifespan,
)
