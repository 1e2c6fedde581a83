"""Which event ends a run, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .kinds import Family, RunStatus

__all__ = ["Ending"]

_ENDINGS: Mapping[Family, Mapping[str, RunStatus]] = {
    family: {
        prefix + "Completed": RunStatus.COMPLETED,
        prefix + "Error": RunStatus.ERROR,
        prefix + "Cancelled": RunStatus.CANCELLED,
        prefix + "Paused": RunStatus.PAUSED,
    }
    for family, prefix in ((Family.AGENT, "Run"), (Family.TEAM, "TeamRun"), (Family.WORKFLOW, "Workflow"))
}


class Ending:
    """Tells which event ends a run, and how, from the events of its stream.

    Only the run's own top-level event ends it: members complete inside a team's stream, agents and nested workflows
    inside a workflow's. Of agno's Cancelled and then Completed the first counts. A callable may run components under
    run ids of their own; what the last of them said is then how the run ended, once the iterator ends.
    """

    def __init__(self, run_id: str, family: Family) -> None:
        self._run_id = run_id
        self._names = _ENDINGS[family]
        self._others: dict[str, RunStatus] = {}
        self._last = RunStatus.COMPLETED

    @property
    def at_exhaustion(self) -> RunStatus:
        """How the run ended, if its iterator ended without an event that says so."""
        return self._last

    def of(self, type_: str, event: Any) -> RunStatus | None:
        """The status that this event gives the run, or ``None``."""
        status = self._names.get(type_)
        if status is None:
            return None
        if _name(event) not in self._names:
            return None  # an event that could not be said: its error frame stands in its place, and the run goes on
        if _read(event, "nested_depth") or _read(event, "parent_run_id") or _read(event, "workflow_run_id"):
            return None
        run_id = _read(event, "run_id")
        if run_id is None or run_id == self._run_id:
            return status
        self._last = self._others.setdefault(str(run_id), status)
        return None


def _name(event: Any) -> str:
    name = _read(event, "event")
    return str(getattr(name, "value", name))


def _read(event: Any, name: str) -> Any:
    try:
        return event.get(name) if isinstance(event, Mapping) else getattr(event, name, None)
    except Exception:  # an event may be anybody's object; one that cannot be read says nothing
        return None
