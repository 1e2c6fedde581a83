"""Consecutive deltas of a run differ in their text and, once a second, in their time: the rest is written once.

Nearly all events of a stream are such deltas. A template holds the JSON around the text of one run's latest delta, and
the values that this JSON came from. An event takes it if its fields are the same, in the same order, with values that
are the same but for the text.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from operator import is_not
from typing import Any

from .values import SCALARS, escape_separators, json_object

__all__ = ["Template", "Templates", "delta_field"]

_MAX_TEMPLATES = 64
_PAUSE = 100  # events; a template costs as much as it saves on five
_DELTAS = {
    "RunContentEvent": "content",
    "IntermediateRunContentEvent": "content",
    "ReasoningContentDeltaEvent": "reasoning_content",
}


class Template:
    """The JSON of one run's deltas of one class."""

    __slots__ = ("at", "dumps", "head", "name", "names", "places", "used", "values")

    def __init__(self, name: str, held: dict[str, Any], fields: dict[str, Any], delta: str) -> None:
        from orjson import dumps  # loaded with the first event, see values.py

        self.dumps: Callable[[str], bytes] = dumps
        self.name: str = name
        self.used: bool = False
        self.names: tuple[str, ...] = tuple(held)
        self.at: int = self.names.index(delta)
        self.places: range = range(len(self.names))
        # The text counts as changed in every event, so that it is looked at in every event.
        self.values: tuple[Any, ...] = tuple([value if name != delta else object() for name, value in held.items()])
        others = {key: value for key, value in fields.items() if key != delta}
        self.head: bytes = json_object(others)[:-1] + b',"' + delta.encode() + b'":'


def delta_field(cls: type) -> str | None:
    """The field of an agno class of events that holds a delta's text."""
    return _DELTAS.get(cls.__name__)


class Templates:
    """The templates of one class of events, by run id."""

    __slots__ = ("_by_run", "_delta", "_pause")

    def __init__(self, delta: str) -> None:
        self._delta = delta
        self._by_run: dict[str, Template] = {}
        self._pause = 0

    def fill(self, held: dict[str, Any]) -> tuple[str, bytes] | None:
        """An event's SSE name and JSON, from its instance dict; ``None`` if no template fits."""
        run_id = held.get("run_id")
        if type(run_id) is not str:
            return None
        template = self._by_run.get(run_id)
        if template is None or tuple(held) != template.names:
            return None
        values, known, at = tuple(held.values()), template.values, template.at
        for place in compress(template.places, map(is_not, values, known)):
            value = values[place]
            if place == at:
                if type(value) is not str:
                    return None
            elif type(value) is not type(known[place]) or value != known[place]:
                return None  # types first: what a template knows are scalars, whose comparison is their own
        try:
            text = template.dumps(values[at])
        except TypeError:
            return None  # lone surrogates
        template.used = True
        return template.name, b"%b%b}" % (template.head, text if text.isascii() else escape_separators(text))

    def learn(self, name: str, held: dict[str, Any], fields: dict[str, Any]) -> None:
        """Keep a template of an event that is all scalars, ``fields`` being those it is written with."""
        if self._pause:
            self._pause -= 1
            return
        run_id = fields.get("run_id")
        if type(run_id) is not str or type(fields.get(self._delta)) is not str or "event_index" in held:
            return
        if not SCALARS.issuperset(map(type, held.values())):
            return
        last = self._by_run.get(run_id)
        if last is not None and not last.used:
            self._pause = _PAUSE  # these deltas differ in more than their text
        if len(self._by_run) >= _MAX_TEMPLATES:
            self._by_run.clear()
        self._by_run[run_id] = Template(name, held, fields, self._delta)
