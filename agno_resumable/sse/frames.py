"""The events that this library emits itself: error, cancelled and completed, shaped as agno's own of the family."""

from __future__ import annotations

import sys
from time import time
from typing import Any, NamedTuple

from ..kinds import EncodedEvent, Family
from .values import as_agno, json_object, normalise

__all__ = ["Identity", "cancelled_event", "completed_event", "error_event"]

_EVENTS = {
    "error": {Family.AGENT: "RunError", Family.TEAM: "TeamRunError", Family.WORKFLOW: "WorkflowError"},
    "cancelled": {Family.AGENT: "RunCancelled", Family.TEAM: "TeamRunCancelled", Family.WORKFLOW: "WorkflowCancelled"},
    "completed": {Family.AGENT: "RunCompleted", Family.TEAM: "TeamRunCompleted", Family.WORKFLOW: "WorkflowCompleted"},
}


class Identity(NamedTuple):
    """Whose event it is: what agno's events carry of their run. ``None`` is unknown, and left out.

    ``component_id`` and ``component_name`` are the agent's, the team's or the workflow's, by the family of the event.
    ``parent_run_id`` is the team's run above a member's. ``workflow_id``, ``workflow_run_id`` and the step belong to
    a run inside a workflow; an event of a workflow itself takes only ``step_id`` of these.
    """

    run_id: str | None = None
    session_id: str | None = None
    component_id: str | None = None
    component_name: str | None = None
    parent_run_id: str | None = None
    workflow_id: str | None = None
    workflow_run_id: str | None = None
    step_id: str | None = None
    step_name: str | None = None
    step_index: int | None = None
    nested_depth: int = 0


def error_event(
    family: Family | str,
    message: str,
    *,
    error_type: str,
    identity: Identity,
    error_id: str | None = None,
    additional_data: dict[str, Any] | None = None,
) -> EncodedEvent:
    """The family's error event: ``RunError``, ``TeamRunError`` or ``WorkflowError``.

    The message stands in ``content``, in a workflow's event in ``error``, as agno has it.

    Raises:
        ValueError: ``family`` is none of agent, team and workflow.
    """
    family = Family(family)
    return _event(
        "error",
        family,
        identity,
        {
            "error" if family is Family.WORKFLOW else "content": message,
            "error_type": error_type,
            "error_id": error_id,
            "additional_data": additional_data,
        },
    )


def cancelled_event(family: Family | str, reason: str | None, *, identity: Identity) -> EncodedEvent:
    """The family's cancelled event: ``RunCancelled``, ``TeamRunCancelled`` or ``WorkflowCancelled``.

    Raises:
        ValueError: ``family`` is none of agent, team and workflow.
    """
    return _event("cancelled", Family(family), identity, {"reason": reason})


def completed_event(family: Family | str, *, identity: Identity, content: object = None) -> EncodedEvent:
    """The family's completed event: ``RunCompleted``, ``TeamRunCompleted`` or ``WorkflowCompleted``.

    ``content`` is any JSON value; ``content_type`` is the name of its Python type, and ``str`` without content.

    Raises:
        ValueError: ``family`` is none of agent, team and workflow.
        TypeError, ValueError: ``content`` is no JSON value.
    """
    family = Family(family)
    values: dict[str, Any] = {"content": content, "content_type": "str" if content is None else type(content).__name__}
    if family is Family.WORKFLOW:
        values["step_results"] = []
    return _event("completed", family, identity, values)


def _event(kind: str, family: Family, identity: Identity, values: dict[str, Any]) -> EncodedEvent:
    name = _EVENTS[kind][family]
    fields = {"created_at": int(time()), "event": name, **_identity_fields(family, identity), **values}
    known = _installed_fields(family, kind)
    present = {key: value for key, value in fields.items() if value is not None and (known is None or key in known)}
    return EncodedEvent(name, json_object(normalise(present, as_agno)))


def _identity_fields(family: Family, identity: Identity) -> dict[str, Any]:
    if family is Family.WORKFLOW:
        return {
            "workflow_id": identity.component_id,
            "workflow_name": identity.component_name,
            "session_id": identity.session_id,
            "run_id": identity.run_id,
            "step_id": identity.step_id,
            "nested_depth": identity.nested_depth,
        }
    return {
        # agno's default is the empty string, so that the keys are always there
        f"{family.value}_id": identity.component_id or "",
        f"{family.value}_name": identity.component_name or "",
        "run_id": identity.run_id,
        "parent_run_id": identity.parent_run_id,
        "session_id": identity.session_id,
        "workflow_id": identity.workflow_id,
        "workflow_run_id": identity.workflow_run_id,
        "step_id": identity.step_id,
        "step_name": identity.step_name,
        "step_index": identity.step_index,
        "nested_depth": identity.nested_depth,
    }


def _installed_fields(family: Family, kind: str) -> dict[str, Any] | None:
    """The fields that the event has in the agno that is loaded; ``None`` if none is: an older one has fewer."""
    module = sys.modules.get(f"agno.run.{family.value}")
    prefix = "Workflow" if family is Family.WORKFLOW else "Run"
    fields = getattr(getattr(module, f"{prefix}{kind.capitalize()}Event", None), "__dataclass_fields__", None)
    return fields if isinstance(fields, dict) else None
