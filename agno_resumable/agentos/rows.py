"""agno's own row of a run whose producer died: it would say RUNNING for ever."""

from __future__ import annotations

import logging
from typing import Any

import orjson

from ..log.protocol import EventLog
from ..model import Family, Run

__all__ = ["Rows", "component_of"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

_ENDED = "The process that ran this was lost before it ended."
_CANCELLED = "The run was cancelled."


def component_of(agent_os: Any, family: Family, component_id: str | None) -> Any:
    """The agent, team or workflow of an AgentOS with this id; ``None`` if it has none."""
    for component in getattr(agent_os, f"{family.value}s", None) or ():
        if component_id is not None and getattr(component, "id", None) == component_id:
            return component
    return None


class Rows:
    """Ends the rows of lost runs in agno's database, so that row and stream agree.

    Args:
        agent_os: Where the components are, and through them their databases.
        log: Opens the log; the session of a run that did not name one stands in its first event.
    """

    def __init__(self, agent_os: Any, log: EventLog) -> None:
        self._agent_os = agent_os
        self._log = log

    async def settle(self, run: Run) -> None:
        """Set the row to ERROR, or to CANCELLED if that was asked for, if it still says PENDING or RUNNING.

        A run that has no row is left without one.
        """
        component = component_of(self._agent_os, run.family, run.component_id)
        if component is None or getattr(component, "db", None) is None:
            return
        session_id = run.session_id or await self._session_of(run)
        if session_id is None:
            logger.warning("a lost run has no session, so its row is left as it is", extra={"run_id": run.run_id})
            return
        from agno.run.base import RunStatus as AgnoStatus
        from agno.run.status_persist import apersist_run_transition

        row = await component.aget_run_output(run_id=run.run_id, session_id=session_id)
        if row is None or row.status not in (AgnoStatus.pending, AgnoStatus.running):
            return
        cancelled = run.cancel_requested_at is not None
        row.status = AgnoStatus.cancelled if cancelled else AgnoStatus.error
        if row.content is None:
            row.content = _CANCELLED if cancelled else _ENDED
        await apersist_run_transition(
            component,
            run.family.value,
            session_id,
            row,
            user_id=run.user_id or getattr(row, "user_id", None),
            extra_fields={"content": row.content},
        )
        logger.info("the row of a lost run was ended", extra={"run_id": run.run_id})

    async def _session_of(self, run: Run) -> str | None:
        for event in (await self._log.read(run.run_id, run.first_index - 1, limit=1)).events:
            session_id = orjson.loads(event.data).get("session_id")
            return session_id if isinstance(session_id, str) else None
        return None
