"""What the bridge was made with, and what its streams have in common."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ..dialects import LeaveReason
from ..model import EncodedEvent

if TYPE_CHECKING:
    from .cancellation import LogCancellationManager
    from .events import LogEventStream

__all__ = ["HEARTBEAT", "Leaving", "Result", "Settings", "event_frame"]

HEARTBEAT = b": hb\n"  # one line and no blank one, which some clients take for a message


@dataclass(frozen=True)
class Settings:
    """See ``AgentOSBridge``."""

    stream: LogEventStream | None = None
    cancellation: LogCancellationManager | None = None
    heartbeat: float = 15.0
    max_age: float = 300.0
    send_timeout: float = 30.0
    retry_ms: int = 3000


class Result(Enum):
    """What has become of a response."""

    CLEAN = 1
    """The body has its end."""
    BROKEN = 2
    """It is to be broken off, so that the client comes back."""
    GONE = 3
    """The client has left."""


class Leaving(Exception):
    """The client is to come again."""

    def __init__(self, reason: LeaveReason) -> None:
        self.reason: LeaveReason = reason


def event_frame(event: EncodedEvent) -> bytes:
    """An event that has no index, as a frame."""
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), event.data)
