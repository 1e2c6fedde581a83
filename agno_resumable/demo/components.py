"""An agent with a tool, a team that delegates and a workflow of two steps: what the demo runs, with no provider."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agno.agent import Agent
from agno.models.base import Model
from agno.team import Team
from agno.workflow import Step, StepInput, StepOutput, Workflow

from .scripted import ScriptedModel, ScriptItem, ToolCall

__all__ = ["make_agent", "make_team", "make_workflow", "words"]

ModelChoice = Model | str | None
"""A model, agno's model string such as ``openai:gpt-4o-mini``, or ``None`` for the script."""

_TIDE = """\
Low water at Port Ellery is at 05:40 tomorrow, and the flood starts slowly there: for the first hour it hardly lifts a
cork. So be off the mooring by six. Keep the white beacon on your left hand until the bell buoy answers it, then turn
your back on the church tower and let it push you out between the two of them. You will meet the fishing boats coming
home; they know the channel better than the chart does, so give them the deep side. High water is at 11:52, and by then
you should be around the head, where the swell grows long and easy. If fog comes down, anchor early, make tea, and
wait. The harbour will still be there when it lifts, and so will the rest of this sentence when your connection comes
back."""

_ROUTE = """\
From the harbour to the lighthouse it is nine miles, and I would take them in three parts. First the river mouth, two
miles on the ebb, with the sandbank kept a good cable to starboard. Then the open bay, five miles on a course of two
hundred and ten degrees; the wind should be on the beam there, and the sailing fast and wet. Last the lee of the
island, two miles of flat water and seals. Start at six and you will be alongside before ten, with two hours of tide in
hand for whatever goes wrong, because something usually does."""

_PLAN = """\
The navigator has the route, so here is the plan for the day. Breakfast at five, and nobody argues about it. Cast off at
six with the ebb, and have the foresail ready before the bar. In the bay one hand steers, one watches the chart and one
is free to be sea-sick. We eat lunch under the lighthouse, look at the lamp if the keeper lets us, and come home on the
evening flood with the sun behind us. If the weather turns, we stay in and mend things; there is always something to
mend."""

_ENTRY = """\
Night watch, second hour. The rain stopped a little after one, all at once, as if somebody had closed a tap, and since
then the sea has been so quiet that I can hear the lamp turn. Two ships passed to the west, both outward bound, and a
third came close enough to ask for the time. I told them, and they thanked me, and that was the whole of it; but I
noticed that I was smiling for a good while after. The glass is rising. The cat has taken my chair. There was a break in
the cable just before three, which lasted less than a minute, and nothing was lost: every word that I had sent was in
the book already, and the other end read on from where it had been."""


def words(text: str) -> list[str]:
    """Cut a text into deltas of one word each, with the space behind it, and unfold its lines."""
    return re.findall(r"\S+ ?", " ".join(text.split()))


def _model(chosen: ModelChoice, script: Sequence[ScriptItem], delay: float) -> Model | str:
    return ScriptedModel(script=script, delay=delay) if chosen is None else chosen


def tide_table(harbour: str) -> str:
    """Look up tomorrow's times of low and high water.

    Args:
        harbour (str): The name of the harbour.
    """
    return f"{harbour}: low water 05:40 (0.6 m), high water 11:52 (4.1 m), low water 18:03 (0.8 m)"


def make_agent(model: ModelChoice = None, *, delay: float = 0.1) -> Agent:
    """An agent that calls its tool and then tells what it found: about 150 events, 12 seconds at the default delay."""
    script: list[ScriptItem] = [
        *words("Let me look at the tide table first. "),
        ToolCall("tide_table", {"harbour": "Port Ellery"}),
        *words(_TIDE),
    ]
    return Agent(
        id="harbour-pilot",
        name="Harbour pilot",
        description="You are a harbour pilot. You give calm, exact advice in one paragraph.",
        model=_model(model, script, delay),
        tools=[tide_table],
        telemetry=False,
    )


def make_team(model: ModelChoice = None, *, delay: float = 0.1) -> Team:
    """A team that delegates to its navigator, whose events come inside the team's: about 200 events, 18 seconds."""
    navigator = Agent(
        id="navigator",
        name="Navigator",
        role="Plans routes at sea.",
        model=_model(model, words(_ROUTE), delay),
        telemetry=False,
    )
    script: list[ScriptItem] = [
        *words("That is a question for the navigator. "),
        ToolCall("delegate_task_to_member", {"member_id": "navigator", "task": "Plan the way to the lighthouse."}),
        *words(_PLAN),
    ]
    return Team(
        id="boat-crew",
        name="Boat crew",
        description="You skipper a small boat. Ask the navigator for the route, then give the plan for the day.",
        members=[navigator],
        model=_model(model, script, delay),
        telemetry=False,
    )


def _enter(step_input: StepInput) -> StepOutput:
    words_written = len(str(step_input.previous_step_content or "").split())
    return StepOutput(content=f"Entered in the log book: {words_written} words, signed and dry.")


def make_workflow(model: ModelChoice = None, *, delay: float = 0.1) -> Workflow:
    """A workflow of an agent's step and a function's: about 140 events, 13 seconds at the default delay."""
    keeper = Agent(
        id="keeper",
        name="Lighthouse keeper",
        description="You keep a lighthouse. You write short entries for the night log.",
        model=_model(model, words(_ENTRY), delay),
        telemetry=False,
    )
    return Workflow(
        id="night-log",
        name="Night log",
        description="The keeper writes an entry, and the log book takes it.",
        steps=[Step(name="write", agent=keeper), Step(name="enter", executor=_enter)],
        telemetry=False,
    )
