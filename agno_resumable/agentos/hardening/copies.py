"""A ``__deepcopy__`` that cannot raise: agno copies runs before it stores them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...sse.values import is_control_flow
from .places import Places

__all__ = ["replace_deep_copies"]

_CLASSES = {
    "agno.run.base": ("BaseRunOutputEvent",),
    "agno.run.agent": ("RunOutput",),
    "agno.run.team": ("TeamRunOutput",),
    "agno.run.workflow": ("WorkflowRunOutput",),
    "agno.workflow.types": ("StepOutput",),
}


def replace_deep_copies(places: Places) -> None:
    """Give agno's events, runs and step outputs deep copies that share what cannot be copied."""
    for module_name, names in _CLASSES.items():
        try:
            module = import_module(module_name)
        except ImportError:
            continue  # said already, where their to_dict is replaced
        for name in names:
            cls: Any = getattr(module, name, None)
            # with a way of its own it is left to it
            if cls is not None and not hasattr(cls, "__deepcopy__") and cls.__reduce_ex__ is object.__reduce_ex__:
                places.set(cls, "__deepcopy__", _deep_copy)


def _deep_copy(self: Any, memo: dict[int, Any]) -> Any:
    made = self.__reduce_ex__(4)
    make, args, state = made[:3]
    new = make(*args)
    memo[id(self)] = new
    parts: tuple[Any, ...] = state if type(state) is tuple else (state,)
    setters: tuple[Callable[[str, Any], None], ...] = (
        lambda name, value: new.__dict__.__setitem__(name, value),
        lambda name, value: object.__setattr__(new, name, value),  # slots
    )
    for part, put in zip(parts, setters, strict=False):
        for name, value in (part or {}).items():
            put(name, _copied(value, memo))
    return new


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    size = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except BaseException as error:
        if is_control_flow(error):
            raise
    while len(memo) > size:
        memo.popitem()  # copies that were begun
    kind = type(value)
    if kind is dict:
        pairs: dict[Any, Any] = {}
        memo[id(value)] = pairs
        for key, item in value.items():
            pairs[key] = _copied(item, memo)
        return pairs
    if kind is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend([_copied(item, memo) for item in value])
        return items
    memo[id(value)] = value
    return value
