"""A posted ``run_id`` that is taken is refused before agno reads the form.

agno takes a ``run_id`` from the form of every start and writes its row and its events under it, whoever's they are.
Its row is written by the id alone, and an exception from the event stream is suppressed: inside of agno nothing can
stop it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from ..asgi.serve import error_response
from ..errors import LogUnavailable, ResumableError, RunExists, RunIdInvalid, RunNotFound
from ..log.protocol import EventLog
from ..model import Run, check_run_id
from .paths import Target
from .promotion import database_of, query

__all__ = ["Claim", "Refused", "may_read", "refuse_reused"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")


class Refused(ResumableError):
    """A request is refused before agno sees it.

    Attributes:
        response: What to answer.
    """

    def __init__(self, error: ResumableError) -> None:
        super().__init__(str(error), run_id=error.run_id)
        self.response: Response = error_response(error)


class Claim:
    """A run id that a request of this process is about to use. Dropping the object gives it back as well.

    Attributes:
        run_id: The id.
        user_id: Whose request it is; ``None`` for a caller that agno does not confine to what is his own.
    """

    def __init__(self, run_id: str, user_id: str | None) -> None:
        self.run_id: str = run_id
        self.user_id: str | None = user_id

    def release(self) -> None:
        """Give the id back: agno has the run by now, or never made it. May be called again."""
        if _claims.get(self.run_id) is self:
            del _claims[self.run_id]


_claims: WeakValueDictionary[str, Claim] = WeakValueDictionary()


class _Caller(NamedTuple):
    confined: bool
    user_id: str | None

    def sees(self, owner: str | None) -> bool:
        return not self.confined or (owner is not None and owner == self.user_id)


class _Found(NamedTuple):
    owner: str | None


async def refuse_reused(
    run_id: str, *, target: Target, scope: Scope, fields: Mapping[str, str], agent_os: Any, log: EventLog | None
) -> Claim:
    """Refuse a posted ``run_id`` that is taken: in the log, in agno's database, in agno's event stream, or by another
    request that this process serves at the moment.

    Two posts of one new id through two processes at the same moment are not told apart: until agno registers a run it
    is nowhere. That is some milliseconds in the background, and the whole run for one without it.

    Args:
        run_id: As posted.
        target: What the request is about.
        scope: As handed to the inner application: its middleware has authenticated the caller by the time that the
            body is read.
        fields: The other fields of the form; agno 2 needs ``session_id``, because it keeps runs in sessions.
        agent_os: The ``AgentOS``, or ``None`` if it is not known.
        log: The open log, or ``None``.

    Returns:
        The claim. Keep it until the request ends.

    Raises:
        Refused: 400 for what can be no id, 409 for one that is taken by a run that the caller may see, 404 for one
            that is taken by somebody else's, 503 if that cannot be found out.
    """
    # agno makes a boolean of these two, and that the id of a run
    if run_id.lower() in ("true", "false"):
        raise Refused(RunIdInvalid(f"{run_id!r} cannot be a run id: AgentOS reads it as a boolean.", run_id=run_id))
    try:
        check_run_id(run_id)
    except RunIdInvalid as error:
        raise Refused(error) from None
    caller = _caller(scope)
    other = _claims.get(run_id)
    if other is not None:
        raise Refused(RunExists(run_id) if caller.sees(other.user_id) else RunNotFound(run_id))
    claim = Claim(run_id, caller.user_id)
    _claims[run_id] = claim
    try:
        found = await _find(run_id, target, fields, agent_os, log)
    except Exception as error:
        logger.warning(
            "a posted run id could not be checked", extra={"run_id": run_id, "error_type": type(error).__name__}
        )
        claim.release()
        text = "Whether this run id is free could not be found out: try again, or leave the id to the server."
        raise Refused(LogUnavailable(text, run_id=run_id)) from error
    except BaseException:
        claim.release()
        raise
    if found is not None:
        claim.release()
        logger.info("a posted run id was refused because it is taken", extra={"run_id": run_id})
        raise Refused(RunExists(run_id) if caller.sees(found.owner) else RunNotFound(run_id))
    return claim


def may_read(run: Run, scope: Scope) -> bool:
    """Whether agno, as this AgentOS is set up, confines the caller to what is his own, and if so whether the run is.

    Args:
        run: As in the log.
        scope: The very scope that was handed to the inner application, after it has authenticated the caller and left
            there what it knows.
    """
    return _caller(scope).sees(run.user_id)


async def _find(
    run_id: str, target: Target, fields: Mapping[str, str], agent_os: Any, log: EventLog | None
) -> _Found | None:
    if log is not None:
        try:
            return _Found((await log.read(run_id, limit=0)).run.user_id)
        except RunNotFound:
            pass
    db = database_of(agent_os, target)
    if db is not None:
        found = await _in_database(db, run_id, target, fields)
        if found is not None:
            return found
    return _Found(None) if await _in_event_stream(run_id) else None


async def _in_database(db: Any, run_id: str, target: Target, fields: Mapping[str, str]) -> _Found | None:
    """agno 3 has a table of runs, with the id as its key. agno 2, and a database that was not brought along, keeps
    runs in their session, where the same id in another session is another run."""
    if _own_method(db, "get_run"):
        row = await query(db.get_run, run_id, deserialize=False)
        return None if row is None else _Found(_text(row, "user_id"))
    session_id = fields.get("session_id")
    if not session_id or not hasattr(db, "get_session"):
        return None
    from agno.db.base import SessionType

    session = await query(db.get_session, session_id, SessionType(target.family.value), deserialize=False)
    runs = session.get("runs") if isinstance(session, dict) else getattr(session, "runs", None)
    if any(_text(run, "run_id") == run_id for run in runs or ()):
        return _Found(_text(session, "user_id"))
    return None


async def _in_event_stream(run_id: str) -> bool:
    """Whether agno's own event stream knows the run: one in memory perhaps, where there is no log."""
    try:
        from agno.os.event_streams import get_event_stream
    except ImportError:  # agno 2
        from agno.os.managers import event_buffer

        return event_buffer.get_run_status(run_id) is not None
    return await get_event_stream().get_run_status(run_id) is not None


def _own_method(db: Any, name: str) -> bool:
    """Whether a database implements a method that agno's base classes only declare."""
    from agno.db import base

    method = getattr(type(db), name, None)
    declared = [getattr(getattr(base, kind, None), name, None) for kind in ("BaseDb", "AsyncBaseDb")]
    return inspect.isfunction(method) and method not in declared


def _text(row: Any, name: str) -> str | None:
    value = row.get(name) if isinstance(row, dict) else getattr(row, name, None)
    return None if value is None else str(value)


def _caller(scope: Scope) -> _Caller:
    """Whom agno confines the request to. agno decides: by isolation, administrators' scopes, service accounts."""
    try:
        from agno.os.middleware.user_scope import get_scoped_user_id
    except ImportError:  # before agno confined anybody
        return _Caller(False, None)
    try:
        user_id = get_scoped_user_id(Request(scope))
    except Exception:  # agno answers 403 itself: nobody that owns anything
        return _Caller(True, None)
    return _Caller(user_id is not None, user_id)
