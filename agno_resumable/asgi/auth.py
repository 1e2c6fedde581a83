"""Who may touch a run."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request

from ..model import Run

__all__ = ["Access", "Authorize", "Owner", "authenticated_user"]

Authorize = Callable[[Request, Run | None], bool | Awaitable[bool]]
Owner = Callable[[Request], str | None]


def authenticated_user(request: Request) -> str | None:
    """The user of the request, as Starlette's ``AuthenticationMiddleware`` or agno's JWT middleware has found it."""
    user: Any = request.scope.get("user")
    if user is not None and getattr(user, "is_authenticated", False):
        try:
            identity = user.identity
        except NotImplementedError:  # Starlette's own SimpleUser has only a name
            identity = user.display_name
        return str(identity)
    user_id = request.scope.get("state", {}).get("user_id")
    return None if user_id is None else str(user_id)


def _is_protected(request: Request) -> bool:
    return "user" in request.scope or "user_id" in request.scope.get("state", {})


class Access:
    """The rule of one set of routes.

    Args:
        authorize: Decides for a request and a run, or for a request alone where ``None`` is given instead of a run:
            may it start and list runs? The default: where there is authentication, a run is its owner's; where there
            is none, everybody's.
        owner: Names the user of a request.
    """

    def __init__(self, authorize: Authorize | None = None, owner: Owner | None = None) -> None:
        self._authorize = authorize
        self._owner = owner

    def protected(self, request: Request) -> bool:
        """Whether requests have owners here: then a ``user_id`` in a body counts for nothing."""
        return self._owner is not None or _is_protected(request)

    def owner(self, request: Request) -> str | None:
        """The user of the request, who owns the runs that it starts."""
        return self._owner(request) if self._owner is not None else authenticated_user(request)

    async def allows(self, request: Request, run: Run | None) -> bool:
        """Whether the request may touch ``run``, or start and list runs."""
        if self._authorize is not None:
            allowed = self._authorize(request, run)
            return bool(await allowed) if inspect.isawaitable(allowed) else bool(allowed)
        if run is None or not self.protected(request):
            return True
        return run.user_id == self.owner(request)
