"""A log that writes down what is asked of it and what it answers, around any other: what is tested is left as it is."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agno_resumable.errors import LogUnavailable, ResumableError
from agno_resumable.log.protocol import Claim, EventLog
from agno_resumable.model import EncodedEvent, NewRun, Run, RunStatus

from ...broken_logs import Wrapped
from .records import Acknowledged, Attempted, Doubted, Held, Record, Refused, Trimmed, event_digest

__all__ = ["Recording"]


class Recording(Wrapped):
    """Records every append before it is called and every answer after it, and whoever gets hold of a run.

    Args:
        log: What does the work.
        worker: The name under which it records.
        record: Keeps a record; returns when nothing can lose it any more.
        gate: Awaited between the record of an attempt and the attempt: where a producer that is stopped
            stands still, and renews nothing.
        sweeps: Whether ``expire`` finds anything. A supervisor sweeps as soon as it begins, and would end runs that
            the test has meant for somebody else.
    """

    def __init__(
        self,
        log: EventLog,
        worker: str,
        record: Callable[[Record], None],
        gate: Callable[[], Awaitable[None]] | None = None,
        *,
        sweeps: bool = False,
    ) -> None:
        # Not Wrapped's own, which makes a log in memory
        self.inner: Any = log
        self.worker = worker
        self.record = record
        self._gate = gate
        self._sweeps = sweeps
        self._numbers = itertools.count()

    async def create(self, run: NewRun, *, lease: float) -> Run:
        return self._hold(await super().create(run, lease=lease))

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        claimed = await super().claim(run_id, lease=lease, generation=generation, floor=floor, reopen=reopen)
        return self._hold(claimed)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        if self._gate is not None:
            await self._gate()
        return await super().renew(claims, lease=lease)

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        if not self._sweeps:
            return []
        return [self._hold(run) for run in await super().expire(lease=lease, serves=serves, patience=patience)]

    def _hold(self, run: Run) -> Run:
        self.record(Held(self.worker, run.run_id, run.generation, run.next_index))
        return run

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        if not events and status is None:  # a look at the fence
            return await super().append(run_id, generation, events)
        number = next(self._numbers)
        digests = tuple(event_digest(event) for event in events)
        ends = status.value if status is not None else None
        self.record(Attempted(self.worker, run_id, number, generation, digests, ends))
        if self._gate is not None:
            await self._gate()
        try:
            after = await super().append(run_id, generation, events, status=status, transcript=transcript)
        except LogUnavailable as error:
            answer = Doubted if error.outcome_unknown else Refused
            self.record(answer(self.worker, run_id, number, _named(error)))
            raise
        except ResumableError as error:
            self.record(Refused(self.worker, run_id, number, _named(error)))
            raise
        self.record(Acknowledged(self.worker, run_id, generation, after - len(events), digests, ends))
        return after

    def told(
        self, run_id: str, generation: int, first: int, events: Sequence[EncodedEvent], status: RunStatus | None = None
    ) -> None:
        """The producer has found out that an append in doubt was stored, which is as good as an acknowledgement."""
        digests = tuple(event_digest(event) for event in events)
        ends = status.value if status is not None else None
        self.record(Acknowledged(self.worker, run_id, generation, first, digests, ends))

    async def trim(self, run_id: str, *, before: int) -> None:
        self.record(Trimmed(self.worker, run_id, before))
        await super().trim(run_id, before=before)


def _named(error: BaseException) -> str:
    cause = f" from {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
    return f"{type(error).__name__}{cause}: {error}"[:300]
