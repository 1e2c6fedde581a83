"""``harden``: events and rows that no value can break."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from typing_extensions import Self

from .copies import replace_deep_copies
from .formatters import replace_formatters
from .places import HardeningWarning, Places, logger
from .rows_json import engine_of, replace_encoder, replace_serializer
from .to_dict import replace_to_dicts

__all__ = ["Hardening", "HardeningWarning", "harden"]


class Hardening:
    """What ``harden`` has replaced; there is one in a process, since agno's functions are the process's.

    As a context manager it is undone at the end of the outermost ``with``.

    Attributes:
        active: Whether it is in force.
        dbs: The databases whose rows are covered.
    """

    def __init__(self) -> None:
        self.active: bool = False
        self.dbs: list[Any] = []
        self._places = Places()
        self._entered = 0

    def undo(self) -> None:
        """Put back all that was replaced, for every database, unless somebody has replaced it since. At most once."""
        global _hardening
        if self.active:
            self.active = False
            self._places.restore()
            self.dbs = []
            if _hardening is self:
                _hardening = None

    def __enter__(self) -> Self:
        self._entered += 1
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self.undo()

    def _begin(self) -> None:
        replace_formatters(self._places)
        replace_encoder(self._places)
        replace_to_dicts(self._places)
        replace_deep_copies(self._places)
        self.active = True

    def _add(self, db: Any) -> None:
        if any(known is db for known in self.dbs):
            return
        engine = engine_of(db)
        if engine is None:
            logger.info("the database has no SQLAlchemy engine; its rows are as safe as it makes them itself")
        else:
            replace_serializer(self._places, engine)
        self.dbs.append(db)


_hardening: Hardening | None = None


def harden(*dbs: Any) -> Hardening:
    """Make agno's events and rows unable to fail over a value that JSON cannot say.

    It replaces, for the whole process:

    - agno's two formatters of SSE frames, by ``agno_resumable.sse.format_sse_event``: wherever agno's frame is valid,
      ours is equal;
    - the JSON serializer of the databases given, and of all that agno makes an engine for itself from 3.0 on: NaN and
      the infinities become null, lone surrogates U+FFFD, what JSON has no type for its ``str``, what holds itself a
      word; all else is written as before;
    - ``to_dict`` of events, runs, steps, tools, messages and sessions, by one that asks the original first;
    - the deep copies of events and runs, by ones that share what cannot be copied.

    Calling it again adds databases and changes nothing else. What a newer agno has moved is left as it is, with a
    ``HardeningWarning``.

    Args:
        dbs: agno's databases; or an AgentOS, agents, teams and workflows, whose databases are found.

    Returns:
        The process's hardening, to undo.

    Raises:
        TypeError: An argument is none of these.
    """
    found = [db for given in dbs for db in _databases(given)]
    global _hardening
    if _hardening is None:
        _hardening = Hardening()
        _hardening._begin()
    for db in found:
        _hardening._add(db)
    return _hardening


_PARTS = ("db", "dbs", "agents", "teams", "workflows", "members", "steps", "agent", "team", "workflow", "choices")


def _databases(given: Any) -> list[Any]:
    if _is_database(given):
        return [given]
    if not any(hasattr(given, name) for name in _PARTS):
        raise TypeError(
            f"harden() takes agno's databases, an AgentOS, agents, teams and workflows, not {type(given).__name__}."
        )
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [given]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or part is None or isinstance(part, (str, bytes)):
            continue
        seen.add(id(part))
        if _is_database(part):
            found.append(part)
        elif isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, Iterable):
            waiting.extend(part if isinstance(part, (list, tuple)) else ())
        else:
            waiting.extend(held for name in _PARTS if not callable(held := getattr(part, name, None)))
    return found


def _is_database(value: Any) -> bool:
    return any(base.__name__ in ("BaseDb", "AsyncBaseDb") for base in type(value).__mro__)
