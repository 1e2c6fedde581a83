"""What logs that are broken on purpose have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from agno_resumable.model import EncodedEvent, Page, Run, RunStatus

from ...broken_logs import Wrapped
from .judging import Kind

__all__ = ["Mutant"]


class Mutant(Wrapped):
    """A broken log: one overrides ``store``, another ``show``.

    Attributes:
        shows: The violation that has to be found.
        fault: The fault under which the log is used.
        patience: How long, in seconds, what does not come is waited for.
    """

    shows: ClassVar[Kind]
    fault: ClassVar[str] = "calm"
    patience: ClassVar[float] = 10.0

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        return await self.store(run_id, generation, events, status)

    async def store(
        self, run_id: str, generation: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> int:
        """What an append does."""
        return await self.inner.append(run_id, generation, events, status=status)

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        return self.show(await self.inner.read(run_id, after, limit=limit, max_bytes=max_bytes), after)

    def show(self, page: Page, after: int) -> Page:
        """What a read behind ``after`` gives, made of what it should give."""
        return page

    async def run(self, run_id: str) -> Run:
        """The run as it is."""
        return (await self.inner.read(run_id, limit=0)).run
