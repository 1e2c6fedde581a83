"""A route of your own: start a run, leave, come back.

Run it with ``uvicorn examples.own_route:app`` and try::

    curl -N -X POST 'http://localhost:8000/story?topic=rivers'
    curl -N -H "Last-Event-ID: $RUN_ID:3" http://localhost:8000/story/$RUN_ID/events
"""

from __future__ import annotations

import os

from agno.agent import Agent
from fastapi import FastAPI, Request
from starlette.responses import Response

from agno_resumable import ResumableStream
from agno_resumable.demo.scripted import ScriptedModel

# A model that plays a script; put your own in its place.
agent = Agent(id="story", model=ScriptedModel(script=[f"word{n} " for n in range(40)], delay=0.02), telemetry=False)

story = ResumableStream(agent, log=os.environ.get("LOG_URL", "sqlite:///runs.db"))
app = FastAPI(lifespan=story.lifespan)


@app.post("/story")
async def start(request: Request, topic: str) -> Response:
    """Start a run and stream it."""
    return await story.start_response(request, f"Tell me a story about {topic}")


@app.get("/story/{run_id}/events")
async def follow(request: Request, run_id: str) -> Response:
    """Follow a run from behind the cursor in ``Last-Event-ID``; 204 once there is nothing left."""
    return await story.response(request, run_id)
