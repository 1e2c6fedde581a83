"""Who in this process reads which run: for ``on_disconnect``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

__all__ = ["Audience"]


class Audience:
    """Counts the readers of each run and wakes who waits for the first to come or the last to go."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._changed: dict[str, anyio.Event] = {}

    def count(self, run_id: str) -> int:
        """How many read the run at this moment."""
        return self._counts.get(run_id, 0)

    @property
    def total(self) -> int:
        """How many read any run at this moment."""
        return sum(self._counts.values())

    @contextmanager
    def reading(self, run_id: str) -> Iterator[None]:
        """Count as a reader of the run."""
        self._add(run_id, 1)
        try:
            yield
        finally:
            self._add(run_id, -1)

    async def wait_read(self, run_id: str) -> None:
        """Return as soon as somebody reads the run."""
        while not self.count(run_id):
            await self._next(run_id)

    async def wait_unread(self, run_id: str) -> None:
        """Return as soon as nobody reads the run."""
        while self.count(run_id):
            await self._next(run_id)

    def forget(self, run_id: str) -> None:
        """Nobody will wait for this run any more."""
        self._changed.pop(run_id, None)

    async def _next(self, run_id: str) -> None:
        await self._changed.setdefault(run_id, anyio.Event()).wait()

    def _add(self, run_id: str, change: int) -> None:
        count = self._counts.pop(run_id, 0) + change
        if count:
            self._counts[run_id] = count
        event = self._changed.pop(run_id, None)
        if event is not None:
            event.set()
