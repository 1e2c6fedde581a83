"""Any callable can be made resumable: here a function of your own that does something before it asks an agent.

Run it with ``uvicorn examples.pipeline:app``; its routes are those of an agent, below ``/answers``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from agno.agent import Agent
from starlette.applications import Starlette
from starlette.routing import Mount

from agno_resumable import ResumableStream
from agno_resumable.demo.scripted import ScriptedModel

agent = Agent(id="answerer", model=ScriptedModel(script=["Forty", "-two", "."], delay=0.02), telemetry=False)


async def answer(question: str, run_id: str, session_id: str) -> AsyncIterator[Any]:
    """Events are agno's, dicts, strings, dataclasses or pydantic models, in any order."""
    yield {"event": "Searching", "query": question}
    async for event in agent.arun(question, stream=True, stream_events=True, run_id=run_id, session_id=session_id):
        yield event


answers = ResumableStream(answer, log=os.environ.get("LOG_URL", "sqlite:///runs.db"), component_id="answers")
app = Starlette(routes=[Mount("/answers", routes=answers.routes())], lifespan=answers.lifespan)
