"""A ``to_dict`` that cannot raise, for what agno's rows are made of.

agno's own is asked first, with two exceptions that save its time: what holds itself (a RecursionError costs
milliseconds, and every event of a run is told again with each of its rows) and what cannot be copied. Where it fails,
it is asked again about a copy without the values that it stumbles over, so that all else comes out as always.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from ...sse.plans import plans
from ...sse.values import SCALARS, class_name, is_control_flow, is_plain
from .cleaning import is_harmless, stated, tamed
from .places import Places, logger, missing

__all__ = ["replace_to_dicts"]

_CLASSES = {
    "agno.run.base": ("BaseRunOutputEvent",),
    "agno.run.agent": ("RunInput", "RunOutput"),
    "agno.run.team": ("TeamRunInput", "TeamRunOutput"),
    "agno.run.workflow": ("BaseWorkflowRunOutputEvent", "WorkflowRunOutput"),
    "agno.run.requirement": ("RunRequirement",),
    "agno.workflow.types": ("StepInput", "StepOutput", "StepRequirement", "WorkflowExecutionInput"),
    "agno.models.message": ("Message",),
    "agno.models.response": ("ToolExecution",),
    "agno.session.agent": ("AgentSession",),
    "agno.session.team": ("TeamSession",),
    "agno.session.workflow": ("WorkflowSession",),
}

# Which objects are being told in this task, and by which to_dict: by their ids.
_telling: ContextVar[frozenset[tuple[int, int]]] = ContextVar("agno_resumable_telling", default=frozenset())


def replace_to_dicts(places: Places) -> None:
    """Put a ``to_dict`` that cannot raise in the place of agno's own."""
    for module_name, names in _CLASSES.items():
        try:
            module = import_module(module_name)
        except ImportError as error:
            missing(f"{module_name} could not be imported ({error})")
            continue
        for name in names:
            cls = getattr(module, name, None)
            original: Any = None if cls is None else vars(cls).get("to_dict")
            if not callable(original):
                missing(f"{module_name}.{name}.to_dict is not there")
                continue
            if not hasattr(original, "hardened"):
                places.set(cls, "to_dict", _safe(original))
    # the serializer of events knows agno's classes by their to_dict
    plans.clear()
    places.then(plans.clear)


def _safe(original: Any) -> Callable[..., dict[str, Any]]:
    @functools.wraps(original)
    def to_dict(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        held = self.__dict__
        if SCALARS.issuperset(map(type, held.values())):
            try:
                own: dict[str, Any] = original(self, *args, **kwargs)
                return own
            except BaseException as error:
                if is_control_flow(error):
                    raise
        telling, this = _telling.get(), (id(self), id(original))
        if this in telling:
            # it holds itself, by way of others
            return {name: value for name, value in held.items() if type(value) in SCALARS and value is not None}
        token = _telling.set(telling | {this})
        try:
            told = _told(original, self, args, kwargs)
        finally:
            _telling.reset(token)
        tame: dict[str, Any] = told if is_plain(told) else tamed(told, thorough=False)
        return tame

    to_dict.hardened = True  # type: ignore[attr-defined]
    return to_dict


def _told(original: Callable[..., dict[str, Any]], told: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if all(map(is_harmless, told.__dict__.values())):
        try:
            return original(told, *args, **kwargs)
        except BaseException as error:
            if is_control_flow(error):
                raise
    return _rescued(original, told, args, kwargs)


def _rescued(
    original: Callable[..., dict[str, Any]], told: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    logger.debug("a %s could not be told as it is", class_name(told))
    try:
        safe = copy.copy(told)
        for name, value in list(safe.__dict__.items()):
            tame = tamed(value, thorough=True)
            if tame is not value:
                safe.__dict__[name] = tame
        return original(safe, *args, **kwargs)
    except BaseException as error:
        if is_control_flow(error):
            raise
    fields = stated(told.__dict__)
    if kwargs.get("include_runs", True) is False:
        fields.pop("runs", None)
    return fields
