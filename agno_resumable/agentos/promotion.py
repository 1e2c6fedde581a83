"""Which components can run in the background, and what agno makes of a form without ``stream``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio.to_thread

from ..model import Family
from .paths import Action, Target

__all__ = ["absent_stream_is_true", "component_of", "database_of", "promotable", "query"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

_LISTS = {Family.AGENT: "agents", Family.TEAM: "teams", Family.WORKFLOW: "workflows"}
_absent_stream: bool | None = None


async def promotable(agent_os: Any, target: Target) -> bool:
    """Whether a streaming request to ``target`` may be made a background one without the client noticing.

    Only where it is certain: an agno agent, team or workflow (no subclass of another protocol, no remote one, no
    factory) that has a database, or one that AgentOS keeps in its own database. Not with a durable queue: which
    runs go there is the application's own decision, and the queue gives them other ids than the posted ones. Nor a
    workflow's continue: agno 3 answers 409 to ``background=true`` there, agno 2 does not know the field.

    Args:
        agent_os: The ``AgentOS``; ``None`` is never promotable.
        target: A start or continue; anything else is not promotable.
    """
    if agent_os is None or target.action not in (Action.START, Action.CONTINUE):
        return False
    if target.action is Action.CONTINUE and target.family is Family.WORKFLOW:
        return False
    if getattr(getattr(agent_os, "queue", None), "durable", False):
        return False
    component = component_of(agent_os, target)
    if component is None:
        possible = await _in_database(agent_os, target)
    else:
        possible = isinstance(component, _class_of(target.family)) and getattr(component, "db", None) is not None
    if possible:
        await _learn_absent_stream()
    return possible


def component_of(agent_os: Any, target: Target) -> Any:
    """The component as it is registered with AgentOS, a factory perhaps, or ``None``."""
    components: Sequence[Any] = getattr(agent_os, _LISTS[target.family], None) or ()
    return next((one for one in components if getattr(one, "id", None) == target.component_id), None)


def database_of(agent_os: Any, target: Target) -> Any:
    """The database where agno keeps the runs of the component, or ``None``."""
    own = getattr(component_of(agent_os, target), "db", None)
    return own if own is not None else getattr(agent_os, "db", None)


async def query(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a method of an agno database, async or sync; a sync one in a worker thread where the database allows it."""
    if inspect.iscoroutinefunction(method):
        return await method(*arguments, **options)
    if _bound_to_thread(getattr(method, "__self__", None)):
        return method(*arguments, **options)
    return await anyio.to_thread.run_sync(lambda: method(*arguments, **options))


def absent_stream_is_true() -> bool:
    """Whether this agno streams when the form has no ``stream``. Known after a first ``promotable``."""
    return _absent_stream is not False


def _bound_to_thread(db: Any) -> bool:
    """An SQLite database in memory is another one in every thread; agno's own in-memory one takes no lock."""
    if type(db).__name__ == "InMemoryDb":
        return True
    return type(getattr(getattr(db, "db_engine", None), "pool", None)).__name__ == "SingletonThreadPool"


def _class_of(family: Family) -> type[Any]:
    if family is Family.AGENT:
        from agno.agent import Agent

        return Agent
    if family is Family.TEAM:
        from agno.team import Team

        return Team
    from agno.workflow import Workflow

    return Workflow


async def _in_database(agent_os: Any, target: Target) -> bool:
    """Whether AgentOS keeps the component in its database; agno gives such a one that very database for its runs."""
    get_component = getattr(getattr(agent_os, "db", None), "get_component", None)
    if get_component is None or inspect.iscoroutinefunction(get_component):
        return False  # agno keeps components in sync databases only
    try:
        row = await query(get_component, target.component_id)
    except Exception as error:
        logger.debug(
            "a component could not be looked up",
            extra={"component_id": target.component_id, "error_type": type(error).__name__},
        )
        return False
    return isinstance(row, dict) and str(getattr(row.get("component_type"), "value", row.get("component_type"))) == (
        target.family.value
    )


async def _learn_absent_stream() -> None:
    """Some versions of FastAPI read an absent boolean form field as false whatever its default is; newer versions of
    agno look for that themselves."""
    global _absent_stream
    if _absent_stream is None:
        import agno.os.utils

        _absent_stream = hasattr(agno.os.utils, "is_form_field_omitted") or await _fastapi_keeps_defaults()


async def _fastapi_keeps_defaults() -> bool:
    from fastapi import FastAPI, Form

    app = FastAPI()
    seen: list[bool] = []

    async def probe(message: str = Form(...), stream: bool = Form(True)) -> None:
        seen.append(stream)

    # the annotations are strings in this module, which FastAPI resolves by the module's names
    probe.__annotations__ = {"message": str, "stream": bool}
    app.post("/")(probe)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"message=1", "more_body": False}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
    }
    await app(scope, receive, send)
    return seen == [True]
