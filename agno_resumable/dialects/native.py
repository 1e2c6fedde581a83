"""The native wire: agno's events with ids, and four control frames."""

from __future__ import annotations

from collections.abc import Collection

import orjson

from ..model import Batch, Run, render_frames
from ..reader import Gap
from ..restart import RESTARTED
from . import LeaveReason

__all__ = ["Native", "control_frame"]


def control_frame(event: str, **data: object) -> bytes:
    """A control frame. It has no id, so that a client's cursor stays on an event.

    No space stands between ``data:`` and the JSON. The standard makes it optional, and agno's own line-based client,
    which logs an error for each event it does not know, sees only lines that begin with ``data: ``.
    """
    return b"event: %b\ndata:%b\n\n" % (event.encode(), orjson.dumps(data))


class Native:
    """The wire for EventSource, fetch and our own client.

    Args:
        types: Only events of these types; all if ``None``.
        exclude: No events of these types.
    """

    def __init__(self, *, types: Collection[str] | None = None, exclude: Collection[str] = ()) -> None:
        self._types = types
        self._exclude = exclude

    @property
    def filters(self) -> bool:
        """Whether some events may be left out."""
        return self._types is not None or bool(self._exclude)

    def wants(self, type_: str) -> bool:
        """Whether an event of this type goes out."""
        if type_ == RESTARTED:  # what it says concerns all that has been sent, whatever it was
            return True
        return (self._types is None or type_ in self._types) and type_ not in self._exclude

    def opening(self, run: Run, after: int) -> bytes:
        return b""

    def batch(self, batch: Batch) -> bytes:
        if not self.filters:
            return batch.frames
        return b"".join(
            [
                render_frames(batch.run_id, index, (event,))
                for index, event in enumerate(batch.events, batch.first)
                if self.wants(event.type)
            ]
        )

    def gap(self, gap: Gap) -> bytes:
        return control_frame(
            "gap",
            requested=gap.requested,
            first_available=gap.first_available,
            missed=gap.missed,
            reason=gap.reason,
        )

    def idle(self) -> bytes:
        # One line and no blank one, which some clients take for a message
        return b": hb\n"

    def paused(self, run: Run) -> bytes:
        return control_frame("paused", status=run.status.value, last_event_index=run.last_index)

    def end(self, run: Run) -> bytes:
        return control_frame("end", status=run.status.value, last_event_index=run.last_index)

    def leaving(self, reason: LeaveReason, retry_ms: int) -> bytes:
        return control_frame("disconnecting", reason=reason, retry_ms=retry_ms)
