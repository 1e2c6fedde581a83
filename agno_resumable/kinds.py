"""The smallest words of the library, apart from the rest of the model because the serializer needs only these.

The other types are dataclasses, whose module takes longer to import than the whole serializer.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["EncodedEvent", "Family", "RunStatus"]


class Family(str, Enum):
    """Which of agno's three kinds of component a run belongs to."""

    AGENT = "agent"
    TEAM = "team"
    WORKFLOW = "workflow"


class RunStatus(str, Enum):
    """agno's ``RunStatus`` values, told apart by what may follow."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"

    @property
    def active(self) -> bool:
        """A producer is at work or will be: PENDING and RUNNING."""
        return self is RunStatus.PENDING or self is RunStatus.RUNNING

    @property
    def finished(self) -> bool:
        """Nothing follows: COMPLETED, ERROR and CANCELLED."""
        return self is RunStatus.COMPLETED or self is RunStatus.ERROR or self is RunStatus.CANCELLED


class EncodedEvent(NamedTuple):
    """An event as a producer hands it to the log.

    ``type`` is the SSE event name: printable, not empty, no line ends. ``data`` is one JSON object in UTF-8 on one
    line, without an ``event_index``: the index is known only to the log, which puts it in when it sends.
    """

    type: str
    data: bytes
