"""What stands in the stream for an event that cannot be serialized: the error frame of the family, and a log record."""

from __future__ import annotations

from typing import Any

from ..kinds import EncodedEvent, Family
from .frames import Identity, error_event
from .names import event_name
from .values import class_name, clean_text, is_control_flow

__all__ = ["failure_event", "family_of", "read"]

_MAX_TEXT = 300
_BASES = {
    "BaseAgentRunEvent": Family.AGENT,
    "BaseTeamRunEvent": Family.TEAM,
    "BaseWorkflowRunOutputEvent": Family.WORKFLOW,
}
# agno's workflow events that are not named Workflow…; an agent's ReasoningStep begins otherwise
_WORKFLOW_NAMES = ("Workflow", "Step", "Loop", "Parallel", "Condition", "Router")


def failure_event(
    event: object, error: BaseException, *, family: Family | str | None, run_id: str | None
) -> EncodedEvent:
    """The error frame in place of ``event``. Logs the failure, without anything of the event's content."""
    event_class = class_name(event)
    event_type = event_name(read(event, "event"))
    cause = class_name(error)
    family = family_of(event, event_type, family)
    identity = _identity(event, family, run_id)
    _log(event_class, event_type, cause, identity.run_id)
    reason = _text_of(error)
    return error_event(
        family,
        f"The event {event_type} ({event_class}) could not be serialized: {cause}{': ' if reason else ''}{reason}",
        error_type="serialization_error",
        identity=identity,
        additional_data={"event_class": event_class, "event_type": event_type, "cause": cause, "reason": reason},
    )


def _log(event_class: str, event_type: str, cause: str, run_id: str | None) -> None:
    import logging  # 5 ms that only a failure needs

    # The message of the cause is left out: it may quote the payload.
    logging.getLogger("agno_resumable.sse").error(
        "The event %s (%s) could not be serialized: %s. An error frame stands in for it.",
        event_type,
        event_class,
        cause,
        extra={"run_id": run_id, "event_class": event_class, "event_type": event_type, "cause": cause},
    )


def family_of(event: object, event_type: str, family: Family | str | None = None) -> Family:
    """The stream's family if given, else that of the event's base class, else what its name says, else agent."""
    if family is not None:
        try:
            return Family(family)
        except ValueError:
            pass  # an unknown family must not cost the frame
    try:
        for base in type(event).__mro__:
            if base.__name__ in _BASES:
                return _BASES[base.__name__]
    except BaseException as error:  # a metaclass may answer anything
        if is_control_flow(error):
            raise
    name = event_type if event_type != "message" else class_name(event).rpartition(".")[2]
    if name.startswith("Team"):
        return Family.TEAM
    return Family.WORKFLOW if name.startswith(_WORKFLOW_NAMES) else Family.AGENT


def _identity(event: object, family: Family, run_id: str | None) -> Identity:
    own_id, depth = _text(event, "run_id"), read(event, "nested_depth")
    if family is Family.WORKFLOW:
        # A workflow's events know no parent run: that of a step inside it is named by the workflow's run.
        own_id = _text(event, "workflow_run_id") or own_id
    return Identity(
        run_id=own_id or run_id,
        session_id=_text(event, "session_id"),
        component_id=_text(event, f"{family.value}_id"),
        component_name=_text(event, f"{family.value}_name"),
        parent_run_id=_text(event, "parent_run_id"),
        workflow_id=_text(event, "workflow_id"),
        workflow_run_id=_text(event, "workflow_run_id"),
        step_id=_text(event, "step_id"),
        step_name=_text(event, "step_name"),
        nested_depth=depth if type(depth) is int and 0 <= depth < 1000 else 0,
    )


def _text(event: object, name: str) -> str | None:
    value: Any = read(event, name)
    return clean_text(str.__str__(value)[:_MAX_TEXT]) if issubclass(type(value), str) else None


def read(event: Any, name: str) -> object:
    """One attribute of an event, or one item of a ``dict``; ``None`` if there is none, or reading it fails."""
    try:
        if issubclass(type(event), dict):
            return dict.get(event, name)
        return getattr(event, name, None)
    except BaseException as error:  # properties and __getattr__ may raise anything
        if is_control_flow(error):
            raise
        return None


def _text_of(error: BaseException) -> str:
    try:
        return clean_text(str.__str__(str(error))[:_MAX_TEXT])
    except BaseException as second:  # and so may an exception's __str__
        if is_control_flow(second):
            raise
        return ""
