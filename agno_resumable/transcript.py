"""The fold of a log: what was said and done in a run, as one JSON object.

A pure function of the events, in order. It is kept while the run is produced, so that it is whole even where the
oldest events were trimmed, and stored with the run's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio.lowlevel
import orjson

from .log.protocol import EventLog
from .model import EncodedEvent, Run, RunStatus
from .restart import RESTARTED, is_restart

__all__ = ["Transcript"]

_PREFIXES = ("Team", "Workflow")
_CONTENT = ("RunContent", "RunIntermediateContent")


class Transcript:
    """The transcript of one run.

    Its JSON: ``content`` (the run's own output so far: text, or an object where the output is structured),
    ``reasoning_content``, ``messages`` (one a component that spoke: ``run_id``, ``component_id``, ``name``,
    ``content``), ``tool_calls`` (``id``, ``name``, ``arguments``, ``result``, ``error``, ``run_id``), ``metrics``,
    ``error`` (``type``, ``message``) and ``truncated``.

    Args:
        run_id: The run.
        max_bytes: How much text is kept; what comes beyond it is left out, and ``truncated`` says so.
    """

    def __init__(self, run_id: str, *, max_bytes: int = 1_048_576) -> None:
        self._run_id = run_id
        self._max_bytes = max_bytes
        self._clear()

    def _clear(self) -> None:
        self._room = self._max_bytes
        self._messages: dict[str, dict[str, Any]] = {}
        self._parts: dict[str, list[str]] = {}
        self._reasoning: list[str] = []
        self._tools: dict[str, dict[str, Any]] = {}
        self._final: Any = None
        self._metrics: Any = None
        self._error: dict[str, Any] | None = None
        self._truncated = False

    @classmethod
    async def of_log(cls, log: EventLog, run: Run) -> Transcript:
        """The transcript of what the log holds of the run."""
        transcript = cls(run.run_id)
        after = run.first_index - 1
        while after < run.last_index:
            page = await log.read(run.run_id, after)
            for batch in page.batches:
                transcript.fold(batch.events)
                after = batch.last
            if not page.batches:
                break  # trimmed or deleted meanwhile
            await anyio.lowlevel.checkpoint()
        return transcript

    def fold(self, events: Iterable[EncodedEvent]) -> None:
        """Take in more events, in order."""
        for type_, data in events:
            try:
                if type_ == "RunContent" or type_ == "TeamRunContent":  # nearly all of a stream
                    self._content(orjson.loads(data))
                elif type_ == RESTARTED and is_restart(orjson.loads(data)):
                    self._clear()
                else:
                    self._other(type_, data)
            except (ValueError, TypeError, RecursionError):
                # JSON that is valid and still too deep for the parser, or for being written again, is in the log all
                # the same; the transcript goes without it and says so.
                self._truncated = True

    def dump(self, status: RunStatus) -> bytes:
        """The transcript as JSON."""
        return orjson.dumps(self.to_dict(status))

    def to_dict(self, status: RunStatus) -> dict[str, Any]:
        """The transcript as plain values, for a run of this status."""
        messages = []
        for key, message in self._messages.items():
            content = "".join(self._parts[key]) if key in self._parts else message.get("content")
            messages.append({**message, "content": content})
        own = self._final
        if own is None:
            own = next((m["content"] for m in messages if m["run_id"] == self._run_id), None)
        if own is None and messages:
            own = messages[-1]["content"]
        return {
            "status": status.value,
            "content": own,
            "reasoning_content": "".join(self._reasoning) or None,
            "messages": messages,
            "tool_calls": list(self._tools.values()),
            "metrics": self._metrics,
            # An event that could not be said leaves an error frame too, and the run goes on: only a run that ended in
            # an error has one.
            "error": self._error if status is RunStatus.ERROR else None,
            "truncated": self._truncated,
        }

    def _content(self, event: dict[str, Any]) -> None:
        reasoning = event.get("reasoning_content")
        if reasoning and isinstance(reasoning, str) and self._fits(len(reasoning)):
            self._reasoning.append(reasoning)
        content = event.get("content")
        if content is None:
            return
        parts = self._parts.get(event.get("run_id") or self._run_id)
        if parts is not None and type(content) is str and len(content) <= self._room:
            self._room -= len(content)  # nearly always: one more delta of a message that has begun
            parts.append(content)
            return
        key = str(event.get("run_id") or self._run_id)
        if key not in self._messages:
            if len(self._messages) >= 1000:
                self._truncated = True
                return
            component = event.get("agent_id") or event.get("team_id") or event.get("workflow_id")
            name = event.get("agent_name") or event.get("team_name") or event.get("workflow_name")
            self._messages[key] = {"run_id": key, "component_id": component, "name": name}
        if isinstance(content, str):
            if self._fits(len(content)):
                self._parts.setdefault(key, []).append(content)
        elif self._fits(len(orjson.dumps(content))):  # structured output comes whole
            self._messages[key]["content"] = content

    def _other(self, type_: str, data: bytes) -> None:
        name = type_
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name.startswith("ToolCall"):
            self._tool(name, orjson.loads(data))
        elif name in ("RunCompleted", "Completed") or name in ("RunError", "Error", "RunPaused", "Paused"):
            self._ending(name, orjson.loads(data))
        elif name in _CONTENT or name == "StepOutput" or type_ == "message":
            self._content(orjson.loads(data))

    def _tool(self, name: str, event: dict[str, Any]) -> None:
        tool = event.get("tool")
        if not isinstance(tool, dict):
            return
        id_ = str(tool.get("tool_call_id") or len(self._tools))
        if id_ not in self._tools and len(self._tools) >= 1000:
            self._truncated = True
            return
        call = self._tools.setdefault(id_, {"id": id_, "run_id": event.get("run_id"), "result": None, "error": None})
        call["name"] = tool.get("tool_name")
        if name == "ToolCallStarted" and self._fits(len(data_of(tool.get("tool_args")))):
            call["arguments"] = tool.get("tool_args")
        elif name == "ToolCallCompleted" and self._fits(len(data_of(tool.get("result")))):
            call["result"] = tool.get("result")
            if tool.get("tool_call_error"):
                call["error"] = True
        elif name == "ToolCallError":
            call["error"] = event.get("error") or True

    def _ending(self, name: str, event: dict[str, Any]) -> None:
        if event.get("run_id") not in (None, self._run_id) or event.get("nested_depth"):
            return
        if name.endswith("Error"):
            message = event.get("error") if event.get("error") is not None else event.get("content")
            self._error = {"type": event.get("error_type"), "message": message}
            return
        self._metrics = event.get("metrics", self._metrics)
        content = event.get("content")
        if name.endswith("Completed") and content is not None:
            # The component's own word on its output; it replaces what was put together from the deltas.
            if len(data_of(content)) <= self._room + sum(map(len, self._parts.get(self._run_id, ()))):
                self._final = content
            else:
                self._truncated = True

    def _fits(self, size: int) -> bool:
        if size > self._room:
            self._truncated = True
            return False
        self._room -= size
        return True


def data_of(value: Any) -> bytes:
    """The JSON of a plain value, for its size."""
    return b"" if value is None else orjson.dumps(value)
