"""Our serializer in the place of agno's two formatters."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...kinds import EncodedEvent
from ...sse import format_sse_event as format_frame
from ...sse.failures import read
from .places import Places, missing

__all__ = ["format_sse_event", "format_sse_event_with_index", "replace_formatters"]

_EVENTS = "agno_resumable.agentos.events"


def format_sse_event(event: Any) -> str:
    """What agno's function of this name gives, for everything.

    Where the log's event stream is in use, the frame carries the index that it has stamped on the event, whatever
    the event's family.
    """
    index = read(event, "event_index")
    if type(index) is int and _EVENTS in sys.modules:
        return _encoded(event, index) or format_frame(event, index)
    return format_frame(event)


def format_sse_event_with_index(event: Any, event_index: int | None = None, run_id: str | None = None) -> str:
    """What agno's function of this name gives, for everything."""
    if event_index is not None:
        frame = _encoded(event, event_index)
        if frame is not None:
            return frame
    return format_frame(event, event_index, run_id)


def _encoded(event: Any, index: int) -> str | None:
    """The frame of what the log has for this event, encoded just now; ``None`` if it has nothing."""
    events = sys.modules.get(_EVENTS)  # nothing can have been encoded where it is not loaded
    last_encoded: Callable[[object, int], EncodedEvent | None] | None = getattr(events, "last_encoded", None)
    encoded = None if last_encoded is None else last_encoded(event, index)
    if encoded is None:
        return None
    name, data = encoded
    return f'event: {name}\ndata: {data[:-1].decode()},"event_index":{index}}}\n\n'


def replace_formatters(places: Places) -> None:
    """Replace agno's formatters wherever they are held: by identity, for others have the same names."""
    try:
        utils = import_module("agno.os.utils")
    except ImportError as error:
        missing(f"agno.os.utils could not be imported ({error})")
        return
    for replacement in (format_sse_event, format_sse_event_with_index):
        name = replacement.__name__
        original = getattr(utils, name, None)
        if original is replacement:
            continue
        if not callable(original) or not _same_arguments(original, replacement):
            missing(f"agno.os.utils.{name} is not as agno 2.6 to 3.1 have it")
            continue
        places.everywhere(original, replacement)


def _same_arguments(original: Callable[..., Any], replacement: Callable[..., Any]) -> bool:
    try:
        return list(inspect.signature(original).parameters) == list(inspect.signature(replacement).parameters)
    except (TypeError, ValueError):
        return False
