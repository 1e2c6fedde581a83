"""An agent, a team and a workflow on one log, with AgentOS's routes. Run it with ``uvicorn examples.agents:app``."""

from __future__ import annotations

import os

from agno.agent import Agent
from agno.team import Team
from agno.workflow import Step, StepInput, StepOutput, Workflow
from starlette.applications import Starlette

from agno_resumable import resumable_routes
from agno_resumable.demo.scripted import ScriptedModel


def scripted(*words: str) -> ScriptedModel:
    """A model that says these words; put your own in its place."""
    return ScriptedModel(script=[f"{word} " for word in words], delay=0.01)


def count(step_input: StepInput) -> StepOutput:
    """A step of a workflow that is a plain function."""
    return StepOutput(content=f"{len(str(step_input.previous_step_content).split())} words")


writer = Agent(id="writer", name="Writer", model=scripted("Once", "upon", "a", "time"), telemetry=False)
editors = Team(
    id="editors",
    name="Editors",
    members=[Agent(id="reader", name="Reader", model=scripted("I", "like", "it"), telemetry=False)],
    model=scripted("We", "all", "agree"),
    telemetry=False,
)
press = Workflow(
    id="press",
    name="Press",
    steps=[
        Step(name="write", agent=Agent(id="author", model=scripted("Once", "more"), telemetry=False)),
        Step(name="count", executor=count),
    ],
    telemetry=False,
)

routes = resumable_routes(
    log=os.environ.get("LOG_URL", "sqlite:///runs.db"), agents=[writer], teams=[editors], workflows=[press]
)
app = Starlette(routes=routes, lifespan=routes.lifespan)
