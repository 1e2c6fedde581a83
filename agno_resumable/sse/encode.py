"""Events to frames and to what the log stores. Nothing that an event holds makes either of these functions raise."""

from __future__ import annotations

from typing import Any

from ..kinds import EncodedEvent, Family
from .failures import failure_event, read
from .names import event_name, known_names
from .plans import Shape, agno_fields, is_agno_event, plans
from .values import SCALARS, as_agno, as_agno_but_live, is_control_flow, is_plain, json_object, normalise

__all__ = ["encode_event", "format_sse_event"]


def encode_event(event: Any, *, family: Family | str | None = None, run_id: str | None = None) -> EncodedEvent:
    """Encode an event for the log: its SSE name, and one JSON object without ``event_index``, which the log assigns.

    Args:
        event: An event of agno's; a ``dict``, named by its ``event``, else its ``type``; a ``str`` or another JSON
            value, which becomes the ``content`` of a ``message``; a pydantic model, a dataclass, or an object with a
            ``to_dict``; anything else, as the ``str`` of it.
        family: Of the stream, for the error frame; by default it is read from the event.
        run_id: Put in if the object has no ``run_id``.

    Returns:
        The event; or, if it cannot be serialized, an error event of the family with ``error_type``
        ``serialization_error``, which is also logged to ``agno_resumable.sse``. The run itself goes on: this error
        event is not the end of it.
    """
    try:
        plan = plans.get(type(event))
        if plan is not None and plan.templates is not None and type(event).to_dict is plan.to_dict:
            filled = plan.templates.fill(event.__dict__)
            if filled is not None:
                return EncodedEvent._make(filled)
        fields, name = _collect(event)
        fields.pop("event_index", None)
        if run_id and "run_id" not in fields:
            fields["run_id"] = run_id
        if not fields:
            fields["event"] = name
        return EncodedEvent(name, json_object(fields))
    except BaseException as error:  # a to_dict or a property may raise anything
        if is_control_flow(error):
            raise
        return failure_event(event, error, family=family, run_id=run_id)


def format_sse_event(
    event: Any,
    event_index: int | None = None,
    run_id: str | None = None,
    *,
    family: Family | str | None = None,
) -> str:
    """Format an event as one SSE frame; takes the place of both of agno's formatters, with their arguments.

    Args:
        event: As for ``encode_event``.
        event_index: Put in as ``event_index``; by default the one stamped on the event is kept, as agno does.
        run_id: Put in if the event has no ``run_id``.
        family: Of the stream, for the error frame; by default it is read from the event.

    Returns:
        ``event: <name>\\ndata: <JSON object>\\n\\n``; if the event cannot be serialized, the error frame in its place.
    """
    try:
        plan = plans.get(type(event))
        if plan is not None and plan.templates is not None and type(event).to_dict is plan.to_dict:
            filled = plan.templates.fill(event.__dict__)
            if filled is not None:
                name, data = filled
                if event_index is None:
                    return f"event: {name}\ndata: {data.decode()}\n\n"
                if type(event_index) is int:
                    return f'event: {name}\ndata: {data[:-1].decode()},"event_index":{event_index}}}\n\n'
        fields, name = _collect(event)
        index = fields.pop("event_index", None)
        if event_index is not None:
            index = event_index
        if run_id and "run_id" not in fields:
            fields["run_id"] = run_id
        if not fields:
            fields["event"] = name
        if index is not None:
            fields["event_index"] = index
        return f"event: {name}\ndata: {json_object(fields).decode()}\n\n"
    except BaseException as error:  # a to_dict or a property may raise anything
        if is_control_flow(error):
            raise
        name, data = failure_event(event, error, family=family, run_id=run_id)
        index = read(event, "event_index") if event_index is None else event_index
        at = f',"event_index":{index}' if type(index) is int and -(2**63) <= index < 2**63 else ""
        return f"event: {name}\ndata: {data[:-1].decode()}{at}}}\n\n"


def _collect(event: Any) -> tuple[dict[str, Any], str]:
    """The event as an object of plain values, which is the caller's to change, and its SSE name."""
    cls = type(event)
    plan = plans.get(cls)
    if plan is not None and cls.to_dict is plan.to_dict:
        # The way of nearly every event, in line: it is agno_fields for scalars in a shape that is known.
        held = event.__dict__
        fields = {name: value for name, value in held.items() if value is not None}
        if (
            plan.shapes.get(tuple(fields)) is Shape.SHORT
            and len(held) >= plan.size
            and SCALARS.issuperset(map(type, fields.values()))
        ):
            name = fields.get("event")
            if name not in known_names:
                name = event_name(name)
            if plan.templates is not None:
                plan.templates.learn(name, held, fields)
            return fields, name
    if cls is dict:
        fields = dict(event) if is_plain(event) else normalise(event, as_agno_but_live)
    elif cls is str:
        return {"event": "message", "content": event}, "message"
    else:
        collected = agno_fields(event)
        if collected is not None:
            fields, plain = collected
            if not plain:
                fields = normalise(fields, as_agno)
            return fields, event_name(fields.get("event"))
        fields = _foreign_fields(event, cls)
        if is_agno_event(cls):
            return fields, event_name(fields.get("event", event.event))
    name = fields.get("event")
    if type(name) is not str or not name:
        name = fields.get("type")
    return fields, event_name(name)


def _foreign_fields(event: Any, cls: type) -> dict[str, Any]:
    value, default = event, as_agno_but_live
    if is_agno_event(cls):
        # with a to_dict of its own, or with fields that are computed
        value, default = event.to_dict(), as_agno
    elif not issubclass(cls, (dict, str, int, float, list, tuple)):
        if callable(getattr(cls, "to_dict", None)):
            value = event.to_dict()
        elif any(base.__name__ == "BaseModel" and base.__module__.startswith("pydantic.") for base in cls.__mro__):
            value = event.model_dump() if hasattr(cls, "model_dump") else event.dict()  # pydantic.v1
        elif hasattr(cls, "__dataclass_fields__"):
            from dataclasses import asdict

            value = asdict(event)
    if not issubclass(type(value), dict):
        value = {"event": "message", "content": value}
    fields: dict[str, Any] = normalise(value, default)
    return fields
