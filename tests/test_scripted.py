"""The scripted model and the demo's components, on real agno."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from agno.agent import Agent
from agno.models.response import ModelResponse

from agno_resumable.demo.components import make_agent, make_team, make_workflow, words
from agno_resumable.demo.scripted import Pause, ScriptedModel, ScriptItem, ToolCall

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # agno runs on nothing else


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a (int): The first.
        b (int): The second.
    """
    return str(a + b)


def make(*script: ScriptItem, delay: float = 0.0) -> Agent:
    return Agent(id="scripted", model=ScriptedModel(script=script, delay=delay), tools=[add], telemetry=False)


async def played(component: Any, message: str = "Go on.") -> list[Any]:
    stream = cast("AsyncIterator[Any]", component.arun(message, stream=True, stream_events=True))
    return [event async for event in stream]


def contents(events: list[Any], name: str = "RunContent") -> list[str]:
    return [event.content for event in events if event.event == name]


async def test_each_string_of_a_script_is_one_content_event_and_the_order_is_kept() -> None:
    events = await played(make("one ", "two ", "three"))
    assert contents(events) == ["one ", "two ", "three"]
    assert events[0].event == "RunStarted"
    assert events[-1].event == "RunCompleted"
    assert events[-1].content == "one two three"


async def test_a_tool_call_runs_the_tool_and_then_the_script_goes_on() -> None:
    events = await played(make("Let me see. ", ToolCall("add", {"a": 1, "b": 2}), "It is ", "three."))
    names = [event.event for event in events]
    started, completed = names.index("ToolCallStarted"), names.index("ToolCallCompleted")
    assert names.index("RunContent") < started < completed < len(names) - 1
    assert events[started].tool.tool_args == {"a": 1, "b": 2}
    assert events[completed].tool.result == "3"
    assert contents(events) == ["Let me see. ", "It is ", "three."]
    assert names.count("ModelRequestStarted") == 2


async def test_tool_calls_in_a_row_belong_to_one_turn_and_others_to_turns_of_their_own() -> None:
    call = ToolCall("add", {"a": 1, "b": 1})
    events = await played(make(call, call, "and", call, "done"))
    counted = Counter(event.event for event in events)
    assert counted["ToolCallCompleted"] == 3
    assert counted["ModelRequestStarted"] == 3
    assert contents(events) == ["and", "done"]


async def test_a_script_that_ends_with_a_tool_call_ends_the_run_after_the_tool() -> None:
    events = await played(make(ToolCall("add", {"a": 1, "b": 1})))
    assert [event.event for event in events].count("ToolCallCompleted") == 1
    assert events[-1].event == "RunCompleted"


async def test_runs_at_the_same_time_each_hear_the_whole_script() -> None:
    agent = make(*words("a b c"), ToolCall("add", {"a": 1, "b": 1}), *words("d e f"))
    runs = await asyncio.gather(*[played(agent) for _ in range(5)])
    assert [contents(events) for events in runs] == [["a ", "b ", "c", "d ", "e ", "f"]] * 5


async def test_an_exception_in_the_script_ends_the_run_in_error_behind_what_was_said() -> None:
    events = await played(make("so far ", ValueError("out of ink")))
    assert contents(events) == ["so far "]
    assert events[-1].event == "RunError"
    assert "out of ink" in events[-1].content


async def test_a_gate_holds_the_run_until_it_is_opened() -> None:
    gate = asyncio.Event()
    agent = make("before ", gate.wait, "after")
    seen: list[str] = []
    stream = cast("AsyncIterator[Any]", agent.arun("Go on.", stream=True, stream_events=True))
    async for event in stream:
        if event.event == "RunContent":
            seen.append(event.content)
            if len(seen) == 1:
                asyncio.get_running_loop().call_soon(gate.set)
    assert seen == ["before ", "after"]


async def test_a_script_can_be_a_function_of_what_the_user_said() -> None:
    model = ScriptedModel(script=lambda said: ["You said ", ToolCall("add", {"a": 1, "b": 1}), said])
    events = await played(Agent(model=model, tools=[add], telemetry=False), "good evening")
    assert contents(events) == ["You said ", "good evening"]


async def test_a_delta_may_be_any_model_response() -> None:
    events = await played(make(ModelResponse(reasoning_content="hm"), Pause(0), "yes"))
    assert [event.reasoning_content or event.content for event in events if event.event == "RunContent"] == [
        "hm",
        "yes",
    ]


async def test_even_without_a_delay_other_tasks_get_their_turn_between_two_deltas() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await played(make(*["x"] * 51))
    counting.cancel()
    assert turns >= 50


async def test_a_run_without_streaming_gets_the_whole_text() -> None:
    run = await make("one ", ToolCall("add", {"a": 1, "b": 2}), "two").arun("Go on.")
    assert run.content == "one two"
    assert [tool.result for tool in run.tools or []] == ["3"]


def test_a_synchronous_run_plays_the_same_script() -> None:
    agent = make("one ", ToolCall("add", {"a": 1, "b": 2}), "two")
    events = list(agent.run("Go on.", stream=True, stream_events=True))
    assert contents(events) == ["one ", "two"]
    assert agent.run("Go on.").content == "one two"


def test_a_synchronous_run_cannot_wait_at_a_gate_and_says_so() -> None:
    events: list[Any] = list(make(asyncio.Event().wait).run("Go on.", stream=True, stream_events=True))
    assert events[-1].event == "RunError"
    assert "asynchronous" in events[-1].content


# -------------------------------------------------------------------- the demo's components


def test_the_words_of_a_text_are_the_text() -> None:
    assert words("one  two\nthree ") == ["one ", "two ", "three"]


async def test_the_demo_agent_looks_up_the_tide_and_streams_its_advice() -> None:
    events = await played(make_agent(delay=0))
    assert 100 <= len(events) <= 250
    assert [event.tool.tool_name for event in events if event.event == "ToolCallCompleted"] == ["tide_table"]
    assert events[-1].event == "RunCompleted"


async def test_the_demo_team_delegates_and_the_members_events_come_inside_its_own() -> None:
    events = await played(make_team(delay=0))
    names = [event.event for event in events]
    assert 100 <= len(events) <= 250
    assert names.index("TeamToolCallStarted") < names.index("RunStarted") < names.index("TeamToolCallCompleted")
    assert len(contents(events, "RunContent")) > 50
    assert len(contents(events, "TeamRunContent")) > 50
    assert names[-1] == "TeamRunCompleted"


async def test_the_demo_workflow_has_an_agents_step_and_a_functions() -> None:
    events = await played(make_workflow(delay=0))
    assert 100 <= len(events) <= 250
    assert [event.step_name for event in events if event.event == "StepCompleted"] == ["write", "enter"]
    assert events[-1].event == "WorkflowCompleted"
    assert events[-1].content == f"Entered in the log book: {len(contents(events))} words, signed and dry."
