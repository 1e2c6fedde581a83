"""Values that JSON, a deep copy or UTF-8 refuse, and components that put them wherever a user's code could."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from agno.agent import Agent
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.run import RunContext
from agno.run.agent import CustomEvent
from agno.team import Team
from agno.workflow import Step, StepInput, StepOutput, Workflow
from typing_extensions import Self

from agno_resumable.demo.scripted import ScriptedModel, ScriptItem, ToolCall

__all__ = ["PLACES", "VALUES", "Components", "FoundEvent", "asked", "cases", "components", "strict"]


def _circular_list() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


def _circular_dict() -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    value["itself"] = {"b": [value]}
    return value


def _generator() -> Iterator[int]:
    yield 1


VALUES: Mapping[str, Callable[[], Any]] = {
    "bytes": lambda: b"\xff\x00",
    "set": lambda: {1, 2},
    "object": lambda: object(),
    "ndarray": lambda: np.arange(3.0),
    "nan": lambda: float("nan"),
    "infinities": lambda: [float("inf"), float("-inf")],
    "surrogate": lambda: "lone \ud800 surrogate",
    "circular list": _circular_list,
    "circular dict": _circular_dict,
    "tuple key": lambda: {(1, 2): 3},
    "lock": threading.Lock,
    "generator": _generator,
}
"""What each of them is made by: a generator is one only once."""

PLACES = ("custom event", "tool result", "model delta", "tool argument", "session state", "step output")
"""Where they get to."""


def cases() -> list[tuple[str, str]]:
    """Every place with every value."""
    return [(place, value) for place in PLACES for value in VALUES]


def asked(place: str, value: str) -> str:
    """The message on which a component does it."""
    return json.dumps({"place": place, "value": value})


def strict(text: str | bytes) -> Any:
    """JSON as a browser reads it, and as UTF-8 can hold it."""

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()  # an escaped lone surrogate fails here
    return found


@dataclass
class FoundEvent(CustomEvent):
    """An event of a user's tool."""

    created_at: int = 1
    value: Any = None


class Hostile:
    """The tools and the model of the components; what they do is read from the last message of the user."""

    def __init__(self) -> None:
        self.place = ""
        self.make: Callable[[], Any] = int

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # AgentOS copies components, and their tools, for each request

    def read(self, message: str) -> None:
        """Take what is asked for."""
        found = json.loads(re.findall(r"\{[^{}]*\}", message)[-1])
        self.place, self.make = found["place"], VALUES[found["value"]]

    def script(self, message: str) -> Sequence[ScriptItem]:
        """What the model says."""
        self.read(message)
        if self.place == "model delta":
            return ["It is ", ModelResponse(content=self.make(), provider_data={"value": self.make()}), " in all."]
        tool = {"custom event": "find", "session state": "remember"}.get(self.place, "look")
        return ["Let me see. ", ToolCall(tool, {"at": 1}), "It is ", "there."]

    async def hook(self, function_name: str, function_call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Puts the value into the arguments of a tool, as a hook may."""
        result = function_call(**arguments)
        if isawaitable(result):
            result = await result
        if self.place == "tool argument":
            arguments["value"] = self.make()
        return result

    def look(self, at: int, value: Any = None) -> Any:
        """Look.

        Args:
            at (int): Where.
            value (float): What for.
        """
        return self.make() if self.place == "tool result" else "nothing"

    def remember(self, run_context: RunContext, at: int) -> str:
        """Remember.

        Args:
            at (int): Where.
        """
        if run_context.session_state is None:
            run_context.session_state = {}
        run_context.session_state["value"] = self.make()
        return "remembered"

    async def find(self, at: int) -> AsyncIterator[Any]:
        """Find.

        Args:
            at (int): Where.
        """
        yield FoundEvent(value=self.make())
        yield "found"

    def sign(self, step_input: StepInput) -> StepOutput:
        """The function step of the workflow."""
        if self.place == "step output":
            return StepOutput(content=self.make())
        return StepOutput(content="signed")


@dataclass
class Arguing(ScriptedModel):
    """Calls its tool with arguments that Python's own JSON reads, and nobody else's."""

    hostile: Hostile | None = None

    def _turn(self, messages: Sequence[Message]) -> Iterator[Any]:
        assert self.hostile is not None
        for item in super()._turn(messages):
            if isinstance(item, list) and self.hostile.place == "tool argument":
                value = self.hostile.make()
                if isinstance(value, float) or (isinstance(value, list) and value[0] != 1):
                    arguments = json.dumps({"at": 1, "value": value})
                    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": arguments}}
                    yield ModelResponse(tool_calls=[call])
                    continue
            yield item


@dataclass
class Components:
    """A component of each family, with the ids that the tests' client knows."""

    agent: Agent
    team: Team
    workflow: Workflow

    def of(self, family: str) -> Any:
        """The one of this family."""
        return getattr(self, family)


def components(db: Any) -> Components:
    """Components that do what they are asked, and store all of it."""
    common: dict[str, Any] = {"telemetry": False, "store_events": True}
    hostile = Hostile()
    doing: dict[str, Any] = {
        "model": Arguing(script=hostile.script, hostile=hostile),
        "tools": [hostile.look, hostile.find, hostile.remember],
        "tool_hooks": [hostile.hook],
        **common,
    }

    def delegating(message: str) -> Sequence[ScriptItem]:
        delegated = ToolCall("delegate_task_to_member", {"member_id": "member", "task": message})
        return ["I ask my member. ", delegated, *hostile.script(message)]

    member = Agent(id="member", name="Member", role="Helps.", **doing)
    writer = Agent(id="writer", name="Writer", **doing)
    return Components(
        Agent(id="talker", name="Talker", db=db, **doing),
        Team(
            id="crew",
            name="Crew",
            members=[member],
            db=db,
            stream_member_events=True,
            store_member_responses=True,
            **{**doing, "model": Arguing(script=delegating, hostile=hostile)},
        ),
        Workflow(
            id="chain",
            name="Chain",
            steps=[Step(name="write", agent=writer), Step(name="sign", executor=hostile.sign)],
            db=db,
            **common,
        ),
    )


def stored_json(path: Path) -> list[str]:
    """All JSON documents of a SQLite database, as they are stored."""
    import sqlite3
    from contextlib import closing

    found = []
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = connection.execute(f'SELECT * FROM "{table}"')
            found += [
                cell for cell in chain.from_iterable(rows) if isinstance(cell, str) and cell[:1] in ("{", "[", '"')
            ]
    return found
