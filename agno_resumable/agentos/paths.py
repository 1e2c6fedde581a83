"""What a request to AgentOS asks for, by its path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from starlette.routing import Match, Route

from ..model import Family

__all__ = ["Action", "Target", "has_own_route", "route_path", "target_of"]


class Action(Enum):
    """What a request to the runs of a component is about."""

    START = "start"
    """``POST /{agents|teams|workflows}/{id}/runs``"""
    CONTINUE = "continue"
    """``POST …/runs/{run_id}/continue``"""
    RESUME = "resume"
    """``POST …/runs/{run_id}/resume``: agno's own way back into a stream"""
    EVENTS = "events"
    """``GET`` or ``HEAD`` of ``…/runs/{run_id}/events`` or ``…/resume``: ours, for EventSource"""
    CANCEL = "cancel"
    """``POST …/runs/{run_id}/cancel``"""
    OTHER = "other"
    """Anything else below ``/runs``: rows, lists, checkpoints. Nothing of ours."""


class Target(NamedTuple):
    """What a request is about.

    Attributes:
        action: What is wanted.
        family: By the first segment of the path.
        component_id: By the second one, decoded as agno decodes it.
        run_id: The run that the path names; ``None`` for ``/runs`` itself.
    """

    action: Action
    family: Family
    component_id: str
    run_id: str | None


_FAMILIES = {"agents": Family.AGENT, "teams": Family.TEAM, "workflows": Family.WORKFLOW}
_RUNS = re.compile(r"/(agents|teams|workflows)/([^/]+)/runs(?:/([^/]+)(?:/([^/]+))?)?", re.DOTALL)
_POSTS = {"continue": Action.CONTINUE, "resume": Action.RESUME, "cancel": Action.CANCEL}


def target_of(scope: Mapping[str, Any], prefix: str = "") -> Target | None:
    """What the request is about, or ``None`` where it is not about the runs of a component.

    The path is read as Starlette's router reads it: decoded, without ``root_path``, and without trailing slashes, which
    AgentOS takes off. So an id with a slash in it (``%2F``) is no id here, as it is none there.

    Args:
        scope: An ASGI scope of any type.
        prefix: Where an application that is wrapped as a whole mounts AgentOS, as in ``/api``. An AgentOS that is
            wrapped itself needs none, wherever it is mounted.
    """
    if scope["type"] != "http":
        return None
    path = route_path(scope)
    if prefix:
        if not path.startswith(prefix):
            return None
        path = path[len(prefix) :]
    match = _RUNS.fullmatch(path)
    if match is None:
        return None
    family, component_id, run_id, verb = match.groups()
    return Target(_action(scope["method"], run_id, verb), _FAMILIES[family], component_id, run_id)


def route_path(scope: Mapping[str, Any]) -> str:
    """The path that a router below ``root_path`` sees, without trailing slashes."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    # As Starlette: a server may give the path with the root path or without, and a root path ends at a segment.
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path.rstrip("/") or "/"


def has_own_route(app: Any, scope: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether the application has a route of its own, and not agno's, for the runs of components and this request.

    An application that AgentOS was given as its ``base_app`` may. Such a request is the application's alone. A route
    for everything, as single-page applications have, is none of these.

    Args:
        app: The wrapped application; one without ``routes``, such as a middleware, is taken to have none.
        scope: The request.
        prefix: As for ``target_of``.
    """
    for route in getattr(app, "routes", ()):
        if not isinstance(route, Route) or str(getattr(route.endpoint, "__module__", "")).startswith("agno."):
            continue
        family = route.path.removeprefix(prefix).strip("/").partition("/")[0]
        if family in _FAMILIES and route.matches(dict(scope))[0] is Match.FULL:
            return True
    return False


def _action(method: str, run_id: str | None, verb: str | None) -> Action:
    if run_id is None:
        return Action.START if method == "POST" else Action.OTHER
    if method in ("GET", "HEAD"):
        return Action.EVENTS if verb in ("events", "resume") else Action.OTHER
    return _POSTS.get(verb or "", Action.OTHER) if method == "POST" else Action.OTHER
