"""What a reader is told, in the words of its kind of client: pure functions from what ``follow`` yields to frames."""

from __future__ import annotations

from typing import Literal, Protocol

from ..model import Batch, Run
from ..reader import Gap

__all__ = ["Dialect", "LeaveReason"]

LeaveReason = Literal["cycle", "drain", "unavailable"]


class Dialect(Protocol):
    """The wire of one response. It may keep state; it does no I/O."""

    def opening(self, run: Run, after: int) -> bytes:
        """What comes first. ``run`` as it is at that moment, ``after`` the cursor of the reader."""
        ...

    def batch(self, batch: Batch) -> bytes:
        """Events. Nothing may come of them, where a filter takes them all."""
        ...

    def gap(self, gap: Gap) -> bytes:
        """Events that will not come."""
        ...

    def idle(self) -> bytes:
        """A heartbeat."""
        ...

    def paused(self, run: Run) -> bytes:
        """The run rests."""
        ...

    def end(self, run: Run) -> bytes:
        """The run has finished."""
        ...

    def leaving(self, reason: LeaveReason, retry_ms: int) -> bytes:
        """The server ends the connection though there is more to come."""
        ...
