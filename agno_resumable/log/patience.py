"""How long a server may take to answer, in time that this process could have heard it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Patience"]

# A timer that fires so much later than it should, in seconds, is that of an event loop that something has blocked; and
# what the loop then gets to look at its sockets, where the answer may lie by now. Not for ever: a loop that is always
# late is no reason to wait for a server that stands still.
_BLOCKED = 0.1
_MOMENT = 1.0
_MOMENTS = 10


class Patience:
    """Calls ``late`` unless it is left within ``seconds``; for asyncio.

    A timer of asyncio or uvloop alone would not do: behind a pause of the loop, a call that blocked it for example, it
    fires before the answer is read that came meanwhile. And a cancel scope takes as long as all the rest of sending a
    command.
    """

    __slots__ = ("_due", "_loop", "_moments", "_timer", "late", "lost")

    def __init__(self, seconds: float, late: Callable[[], object]) -> None:
        self.lost: bool = False
        """Whether ``late`` was called."""
        self.late: Callable[[], object] = late
        """What to call now."""
        self._loop = asyncio.get_running_loop()
        self._moments = 0
        self._due = time.monotonic() + seconds
        self._timer = self._loop.call_later(seconds, self._fire)

    def __enter__(self) -> None:
        """The time has begun already."""

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _fire(self) -> None:
        now = time.monotonic()
        if now - self._due > _BLOCKED and self._moments < _MOMENTS:
            self._moments += 1
            self._due = now + _MOMENT
            self._timer = self._loop.call_later(_MOMENT, self._fire)
        else:
            self.lost = True
            self.late()
