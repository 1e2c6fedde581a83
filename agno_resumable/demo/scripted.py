"""A model that plays a script: offline, deterministic, and safe to share between runs.

It drives real agno agents, teams and workflows without a provider, in the demo as in tests and benchmarks::

    model = ScriptedModel(script=["Let me see. ", ToolCall("add", {"a": 1, "b": 2}), "It is ", "three."], delay=0.02)
    agent = Agent(model=model, tools=[add], telemetry=False)

The script is one flat sequence. A tool call, or several in a row, ends a turn of the model; what follows is what the
model says when it is asked again with the results. Which turn is due is read from the messages, so that the model has
no state and any number of runs may use it at once.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from agno.models.base import Model
from agno.models.message import Message
from agno.models.response import ModelResponse

__all__ = ["Pause", "ScriptItem", "ScriptedModel", "ToolCall"]


@dataclass(frozen=True)
class ToolCall:
    """The model asks for a tool: the end of its turn, together with the tool calls that follow directly."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pause:
    """The model is silent for ``seconds`` more."""

    seconds: float


Gate = Callable[[], Awaitable[object]]
ScriptItem = str | ModelResponse | ToolCall | Pause | Exception | Gate
"""What a script is made of.

``str`` and ``ModelResponse`` are deltas, each one sent after the model's delay; an exception is raised; a function
that gives an awaitable, such as ``asyncio.Event().wait``, is awaited (by asynchronous runs only).
"""


@dataclass
class ScriptedModel(Model):
    """An agno model that says what its script says.

    Attributes:
        script: The items in order, or a function from the text of the last user message to them.
        delay: Seconds before each delta. Even at 0 every delta gives way to the other tasks of the event loop.
    """

    id: str = "scripted"
    name: str | None = "ScriptedModel"
    provider: str | None = "agno-resumable"
    script: Sequence[ScriptItem] | Callable[[str], Sequence[ScriptItem]] = ()
    delay: float = 0.0

    async def ainvoke_stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ModelResponse]:
        for item in self._turn(kwargs["messages"]):
            if isinstance(item, Pause):
                await asyncio.sleep(item.seconds)
            elif isinstance(item, (str, ModelResponse, list)):
                await asyncio.sleep(self.delay)
                yield _delta(item)
            elif isinstance(item, Exception):
                raise item.with_traceback(None)
            else:
                await item()

    def invoke_stream(self, *args: Any, **kwargs: Any) -> Iterator[ModelResponse]:
        for item in self._turn(kwargs["messages"]):
            if isinstance(item, Pause):
                time.sleep(item.seconds)
            elif isinstance(item, (str, ModelResponse, list)):
                time.sleep(self.delay)
                yield _delta(item)
            elif isinstance(item, Exception):
                raise item.with_traceback(None)
            else:
                raise TypeError("A script that awaits something can only be played by an asynchronous run.")

    async def ainvoke(self, *args: Any, **kwargs: Any) -> ModelResponse:
        return _whole([delta async for delta in self.ainvoke_stream(*args, **kwargs)])

    def invoke(self, *args: Any, **kwargs: Any) -> ModelResponse:
        return _whole(list(self.invoke_stream(*args, **kwargs)))

    def _parse_provider_response(self, response: Any, **kwargs: Any) -> ModelResponse:
        return _delta(response)

    def _parse_provider_response_delta(self, response: Any) -> ModelResponse:
        return _delta(response)

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedModel:
        # agno copies components per request; a copy of the script would wait at gates that nobody opens
        return copy.copy(self)

    def _turn(self, messages: Sequence[Message]) -> Iterator[_Played]:
        due = 0
        said = ""
        for message in reversed(messages):
            if message.role == "user":
                said = message.get_content_string()
                break
            due += message.role == self.assistant_message_role
        script = self.script(said) if callable(self.script) else self.script
        turn = 0
        calls: list[ToolCall] = []
        for item in script:
            if isinstance(item, ToolCall):
                calls.append(item)
                continue
            if calls:
                if turn == due:
                    break
                turn, calls = turn + 1, []
            if turn == due:
                yield item
        if calls and turn == due:
            yield calls


_Played = str | ModelResponse | list[ToolCall] | Pause | Exception | Gate


def _delta(item: str | ModelResponse | list[ToolCall]) -> ModelResponse:
    if isinstance(item, str):
        return ModelResponse(content=item)
    if isinstance(item, ModelResponse):
        return copy.copy(item)
    return ModelResponse(
        tool_calls=[
            {
                "id": f"call_{uuid4().hex[:12]}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for call in item
        ]
    )


def _whole(deltas: Sequence[ModelResponse]) -> ModelResponse:
    text = "".join([delta.content for delta in deltas if isinstance(delta.content, str)])
    return ModelResponse(
        role="assistant", content=text or None, tool_calls=[call for delta in deltas for call in delta.tool_calls]
    )
