"""Agno runs that outlive their connections: a run belongs to an append-only log, and every client reads that log."""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; without the import of typing
if TYPE_CHECKING:
    from .asgi.response import EventStreamResponse
    from .asgi.routes import resumable_routes
    from .errors import (
        AgnoUnsupported,
        CursorInvalid,
        Draining,
        EventTooLarge,
        LogClosed,
        LogUnavailable,
        ResumableError,
        RunExists,
        RunFinished,
        RunIdInvalid,
        RunNotFound,
        SchemaTooNew,
        StaleGeneration,
        StreamBroken,
        UnsupportedLogURL,
    )
    from .kinds import EncodedEvent, Family, RunStatus
    from .log.memory import MemoryEventLog
    from .log.metered import LogCall, MeteredEventLog
    from .log.open import open_log
    from .log.postgres import PostgresEventLog
    from .log.protocol import EventLog
    from .log.redis import RedisEventLog
    from .log.sqlite import SQLiteEventLog
    from .model import Batch, Durability, Event, NewRun, Page, Run
    from .reader import End, Gap, Idle, Paused, follow
    from .shutdown import drain
    from .sse import encode_event, format_sse_event
    from .stream import ResumableStream

__version__ = "0.1.0"

_MODULES = {
    ".asgi.response": ("EventStreamResponse",),
    ".asgi.routes": ("resumable_routes",),
    ".errors": (
        "AgnoUnsupported",
        "CursorInvalid",
        "Draining",
        "EventTooLarge",
        "LogClosed",
        "LogUnavailable",
        "ResumableError",
        "RunExists",
        "RunFinished",
        "RunIdInvalid",
        "RunNotFound",
        "SchemaTooNew",
        "StaleGeneration",
        "StreamBroken",
        "UnsupportedLogURL",
    ),
    ".reader": ("End", "Gap", "Idle", "Paused", "follow"),
    ".log.memory": ("MemoryEventLog",),
    ".log.metered": ("LogCall", "MeteredEventLog"),
    ".log.open": ("open_log",),
    ".log.postgres": ("PostgresEventLog",),
    ".log.protocol": ("EventLog",),
    ".log.redis": ("RedisEventLog",),
    ".log.sqlite": ("SQLiteEventLog",),
    ".kinds": ("EncodedEvent", "Family", "RunStatus"),
    ".model": ("Batch", "Durability", "Event", "NewRun", "Page", "Run"),
    ".shutdown": ("drain",),
    ".sse": ("encode_event", "format_sse_event"),
    ".stream": ("ResumableStream",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AgnoUnsupported",
    "Batch",
    "CursorInvalid",
    "Draining",
    "Durability",
    "EncodedEvent",
    "End",
    "Event",
    "EventLog",
    "EventStreamResponse",
    "EventTooLarge",
    "Family",
    "Gap",
    "Idle",
    "LogCall",
    "LogClosed",
    "LogUnavailable",
    "MemoryEventLog",
    "MeteredEventLog",
    "NewRun",
    "Page",
    "Paused",
    "PostgresEventLog",
    "RedisEventLog",
    "ResumableError",
    "ResumableStream",
    "Run",
    "RunExists",
    "RunFinished",
    "RunIdInvalid",
    "RunNotFound",
    "RunStatus",
    "SQLiteEventLog",
    "SchemaTooNew",
    "StaleGeneration",
    "StreamBroken",
    "UnsupportedLogURL",
    "drain",
    "encode_event",
    "follow",
    "format_sse_event",
    "open_log",
    "resumable_routes",
]


def __getattr__(name: str) -> object:
    # Lazily: whoever wants the serializer alone pays for nothing else
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    import importlib

    value = globals()[name] = getattr(importlib.import_module(module, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
