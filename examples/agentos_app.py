"""An AgentOS whose runs outlive their connections, by one line.

Run it with ``uvicorn examples.agentos_app:app`` and try::

    curl -N -d message=hello -d session_id=s1 http://localhost:8000/agents/story/runs
    curl -N -H "Last-Event-ID: $RUN_ID:3" "http://localhost:8000/agents/story/runs/$RUN_ID/events?session_id=s1"
"""

from __future__ import annotations

import os

from agno.agent import Agent
from agno.db.sqlite import SqliteDb
from agno.os import AgentOS
from agno.team import Team
from agno.workflow import Step, StepInput, StepOutput, Workflow

from agno_resumable.agentos import make_resumable
from agno_resumable.demo.scripted import ScriptedModel


def scripted(words: int) -> ScriptedModel:
    """A model that plays a script; put your own in its place."""
    return ScriptedModel(script=[f"word{n} " for n in range(words)], delay=0.02)


def count(step_input: StepInput) -> StepOutput:
    """A step of a workflow that is a plain function."""
    return StepOutput(content=f"{len(str(step_input.previous_step_content).split())} words")


db = SqliteDb(db_file=os.environ.get("DB_FILE", "agno.db"))
agent_os = AgentOS(
    agents=[Agent(id="story", name="Story", model=scripted(40), db=db, telemetry=False)],
    teams=[
        Team(
            id="editors",
            name="Editors",
            members=[Agent(id="reader", name="Reader", model=scripted(3), telemetry=False)],
            model=scripted(5),
            db=db,
            telemetry=False,
        )
    ],
    workflows=[
        Workflow(
            id="press",
            name="Press",
            steps=[
                Step(name="write", agent=Agent(id="author", model=scripted(5), telemetry=False)),
                Step(name="count", executor=count),
            ],
            db=db,
            telemetry=False,
        )
    ],
    telemetry=False,
)

# The one line. It was: app = agent_os.get_app()
app = make_resumable(agent_os, log=os.environ.get("LOG_URL"))  # without LOG_URL: agno.events.db, beside agno.db
