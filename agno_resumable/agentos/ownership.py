"""Whose run it is, from the request to wherever agno registers the run.

``register_run`` of agno's event streams is told a run id and nothing else. A context variable set around the request
reaches it, and every task that the request starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..model import Family

__all__ = ["RUN_OF_REQUEST", "RequestOwner", "request_owner"]

RUN_OF_REQUEST = "agno_resumable_run_id"
"""In the request's state: the outermost run that it has begun, as agno registers it for cancellation."""


class RequestOwner(NamedTuple):
    """The request that a run comes from.

    Attributes:
        family: By the request's path.
        component_id: By the request's path.
        fields: The form's fields, as far as they have been read by now.
        state: The scope's own state, which agno's middleware writes to later: it sits inside of the bridge.
    """

    family: Family
    component_id: str
    fields: Mapping[str, str] | None
    state: Mapping[str, Any]

    @property
    def session_id(self) -> str | None:
        """The session, where the client named it; agno makes one otherwise."""
        return (self.fields or {}).get("session_id") or None

    @property
    def user_id(self) -> str | None:
        """The authenticated user, as far as the request has been authenticated by now."""
        user_id = self.state.get("user_id")
        return None if user_id is None else str(user_id)


request_owner: ContextVar[RequestOwner | None] = ContextVar("agno_resumable_request_owner", default=None)
