"""agno's events as fields, without agno's deep copies where they make no difference.

agno's ``to_dict`` copies every event deeply, which costs ten times what the JSON costs. An event whose values are all
plain comes out of it as it went in, without its ``None``. That is not taken on trust, since it depends on the class,
the fields in use and the version of agno: the first event of each *shape*, which is a class and the names of its
fields that are not ``None`` (and their types, if there are more than scalars), goes both ways, and only a shape that
comes out equal takes the short way from then on.
Events with anything else in them are left to agno's own ``to_dict``.

Nothing of agno is imported: who holds one of its events has imported it already.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

from .templates import Templates, delta_field
from .values import SCALARS, is_plain

__all__ = ["Plan", "Shape", "agno_fields", "is_agno_event", "plans"]

_MAX_CLASSES = 1024  # classes made in functions must not pile up
_MAX_SHAPES = 256


class Shape(IntEnum):
    """How events of a shape are written."""

    SLOW = 0
    SHORT = 1
    SHORT_WITHOUT_INDEX = 2
    """A workflow's event keeps the ``event_index`` stamped on it to itself, and before agno 3.0 every event did."""


class Plan:
    """What is known of one class of agno's events."""

    __slots__ = ("shapes", "size", "templates", "to_dict")

    def __init__(self, cls: Any) -> None:
        self.to_dict: Any = cls.to_dict
        self.size: int = len(cls.__dataclass_fields__)
        self.shapes: dict[tuple[object, ...], Shape] = {}
        delta = delta_field(cls)
        self.templates: Templates | None = Templates(delta) if delta is not None else None


plans: dict[type, Plan | None] = {}
"""By class; ``None`` for a class that is not agno's, or whose fields are not simply what its instances hold."""

_part_shapes: dict[tuple[type, tuple[str, ...]], bool] = {}


def agno_fields(event: Any) -> tuple[dict[str, Any], bool] | None:
    """The fields of an agno event as agno's ``to_dict`` gives them, and whether they are plain.

    The dict is the caller's to change; its values are the event's own. ``None`` if ``event`` is no event of agno's,
    or of a class with a ``to_dict`` of its own.

    Raises:
        Exception: Whatever agno's ``to_dict`` raises for this event.
    """
    cls = type(event)
    try:
        plan = plans[cls]
    except KeyError:
        plan = _make_plan(cls)
    if plan is None or cls.to_dict is not plan.to_dict:
        return None
    held = event.__dict__
    if len(held) < plan.size:
        return _slow(event, held), False  # a field that the instance lacks is read from its class
    fields = {name: value for name, value in held.items() if value is not None}
    shape: tuple[object, ...] = tuple(fields)
    if not SCALARS.issuperset(map(type, fields.values())):
        responses = fields.get("member_responses")
        if type(responses) is list and not responses:
            del fields["member_responses"]  # the one list that agno leaves out when it is empty
        # What agno does with a list depends on its being one.
        shape = (*fields, *map(type, fields.values()))
        if not _parts_to_plain(fields):
            return _slow(event, held), False
    way = plan.shapes.get(shape)
    if way is None:
        return _compare(event, plan, shape, fields), False
    if way is Shape.SLOW:
        return _slow(event, held), False
    if way is Shape.SHORT_WITHOUT_INDEX:
        del fields["event_index"]
    return fields, True


def _compare(event: Any, plan: Plan, shape: tuple[object, ...], fields: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = event.to_dict()
    way = Shape.SLOW
    if same(result, fields):
        way = Shape.SHORT
    elif "event_index" in fields:
        del fields["event_index"]
        if same(result, fields):
            way = Shape.SHORT_WITHOUT_INDEX
    if len(plan.shapes) >= _MAX_SHAPES:
        plan.shapes.clear()
    plan.shapes[shape] = way
    return result


def _slow(event: Any, held: dict[str, Any]) -> dict[str, Any]:
    cls = type(event)
    names = cls.__dataclass_fields__
    if any(base.__name__ == "CustomEvent" for base in cls.__mro__) and not all(
        name in held or hasattr(cls, name) for name in names
    ):
        # CustomEvent(...) stores its arguments and no defaults, so that agno's to_dict always raises. The arguments
        # are all it has to say.
        defaults = {name: getattr(cls, name) for name in names if hasattr(cls, name)}
        return {name: value for name, value in {**defaults, **held}.items() if value is not None}
    return dict(event.to_dict())


def is_agno_event(cls: type) -> bool:
    """Whether ``cls`` is a class of events of agno's, or derived from one."""
    return any(base.__name__ == "BaseRunOutputEvent" and base.__module__ == "agno.run.base" for base in cls.__mro__)


def _make_plan(cls: type) -> Plan | None:
    if len(plans) >= _MAX_CLASSES:
        plans.clear()
    plans[cls] = plan = Plan(cls) if is_agno_event(cls) and _is_transparent(cls) else None
    return plan


def _is_transparent(cls: Any) -> bool:
    """Whether ``vars`` of an instance shows what agno's own ``to_dict`` would read."""
    if not str(cls.to_dict.__module__).startswith("agno.run."):
        return False
    if cls.__getattribute__ is not object.__getattribute__ or getattr(cls, "event_index", None) is not None:
        return False
    if any(isinstance(vars(base).get("__dict__"), property) for base in cls.__mro__):
        return False
    for name in cls.__dataclass_fields__:
        found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
        if hasattr(type(found), "__set__"):
            return False  # a property or a slot in the place of a field
    return True


def same(left: Any, right: Any) -> bool:
    """Whether two values give the same JSON; unlike ``==``, it tells 1 from True and from 1.0, and takes NaN as itself.

    Tuples and lists are the same.
    """
    kind = type(left)
    if kind is dict and type(right) is dict:
        return left.keys() == right.keys() and all(same(item, right[key]) for key, item in left.items())
    if kind in (list, tuple) and type(right) in (list, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return kind is type(right) and (left is right or left == right)


def _parts_to_plain(fields: dict[str, Any]) -> bool:
    """Replace a tool execution and run metrics in ``fields`` by their JSON; whether everything is plain then."""
    for name, value in fields.items():
        kind = type(value)
        if kind in SCALARS:
            continue
        if name == "tool":
            part = _tool(value)
        elif name == "metrics":
            part = _metrics(value)
        else:
            part = value if is_plain(value) else None
        if part is None:
            return False
        fields[name] = part  # a new value under an old key: legal while iterating
    return True


def _agno_class(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


def _tool(tool: Any) -> dict[str, Any] | None:
    """A ``ToolExecution`` as its ``to_dict`` gives it, Nones included; ``None`` if it takes agno's own to know."""
    cls: Any = type(tool)
    if cls is not _agno_class("agno.models.response", "ToolExecution"):
        return None
    fields = dict(vars(tool))
    timing = fields.get("metrics")
    if timing is not None:
        if type(timing) is not _agno_class("agno.metrics", "ToolCallMetrics"):
            return None
        fields["metrics"] = {
            name: value
            for name, value in vars(timing).items()
            if value is not None and name != "timer" and not (value == 0 and isinstance(value, int))
        }
    if len(fields) != len(cls.__dataclass_fields__) or not is_plain(fields):
        return None
    return _checked_part(tool, fields)


def _metrics(metrics: Any) -> dict[str, Any] | None:
    """``RunMetrics`` as its ``to_dict`` gives them: no timer, no zeros, nothing empty; ``None`` as for ``_tool``."""
    cls: Any = type(metrics)
    if cls is not _agno_class("agno.metrics", "RunMetrics") or len(vars(metrics)) != len(cls.__dataclass_fields__):
        return None
    fields = {}
    for name, value in vars(metrics).items():
        if value is None or name == "timer":
            continue
        if name == "details":
            value = _details(value)
            if value is None:
                return None
        if type(value) is float or value:
            fields[name] = value
    return _checked_part(metrics, fields) if is_plain(fields) else None


def _details(details: Any) -> dict[str, Any] | None:
    cls = _agno_class("agno.metrics", "ModelMetrics")
    if type(details) is not dict:
        return None
    result = {}
    for model_type, models in details.items():
        if type(models) is not list or any(type(model) is not cls for model in models):
            return None
        result[model_type] = [
            {
                name: value
                for name, value in vars(model).items()
                if value is not None and not (value == 0 and isinstance(value, int))
            }
            for model in models
        ]
    return result


def _checked_part(part: Any, fields: dict[str, Any]) -> dict[str, Any] | None:
    key = (type(part), tuple([name for name, value in fields.items() if value is not None]))
    equal = _part_shapes.get(key)
    if equal is None:
        if len(_part_shapes) >= _MAX_SHAPES:
            _part_shapes.clear()
        equal = _part_shapes[key] = same(fields, part.to_dict())
    return fields if equal else None
