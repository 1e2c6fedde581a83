"""The log in the memory of one process: for tests, for development, and where losing runs with the process is fine.

Every operation is done in one step of the event loop, so there is nothing to lock, and no commit during which others
could gather: group commit has no place here.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from typing_extensions import Self

from ..errors import LogClosed, RunExists, RunFinished, RunNotFound, StaleGeneration
from ..model import Batch, Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus, changed_run
from .checks import MAX_EVENT_BYTES, MAX_RUN_BYTES, check_events, check_intended, check_new_run, chunks
from .hot import batches_of, take
from .protocol import Claim
from .signals import Signals

__all__ = ["MemoryEventLog"]


class _Stored:
    __slots__ = ("batches", "heavy", "run", "size")

    def __init__(self, run: Run, heavy: tuple[bytes | None, bytes | None, bytes | None]) -> None:
        self.run = run
        self.heavy = heavy  # input and metadata
        self.batches: list[Batch] = []
        self.size = 0


class MemoryEventLog:
    """An ``EventLog`` in memory; everything is gone with the process, or when the log is closed.

    Args:
        max_run_bytes: The JSON of one run's events, in bytes, beyond which the oldest are trimmed.
        max_event_bytes: The JSON of the largest single event, in bytes.
    """

    durability = Durability.NOTHING

    def __init__(self, *, max_run_bytes: int = MAX_RUN_BYTES, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_run_bytes = max_run_bytes
        self._max_event_bytes = max_event_bytes
        self._runs: dict[str, _Stored] = {}
        self._keys: dict[tuple[str | None, str], str] = {}
        self._transcripts: dict[str, bytes] = {}
        self._changed = Signals()
        self._cancelled = Signals()
        self._intents: dict[str, float] = {}  # by run, when the intent runs out
        self._intents_version = 0
        self._intended = Signals()
        self._open = False
        self._commits = self._appends = self._events = 0

    def __repr__(self) -> str:
        return f"MemoryEventLog(runs={len(self._runs)})"

    @property
    def is_open(self) -> bool:
        return self._open

    async def __aenter__(self) -> Self:
        if self._open:
            raise LogClosed("This log is open already: enter it once and share it.")
        self._open = True
        self._commits = self._appends = self._events = 0  # `stats()` counts since the opening
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._open = False
        self._changed.set_all()
        self._cancelled.set_all()
        self._intents.clear()
        self._intents_changed()
        self._runs.clear()
        self._keys.clear()
        self._transcripts.clear()

    def stats(self) -> Mapping[str, int]:
        """See ``EventLog.stats``; also ``runs`` and ``bytes`` that are held."""
        return {
            "commits": self._commits,
            "appends": self._appends,
            "events": self._events,
            "waiters": self._changed.waiters + self._cancelled.waiters + self._intended.waiters,
            "runs": len(self._runs),
            "bytes": sum(stored.size for stored in self._runs.values()),
        }

    async def now(self) -> float:
        return time.time()

    async def create(self, run: NewRun, *, lease: float) -> Run:
        self._check_open()
        check_new_run(run)
        if run.run_id in self._runs:
            raise RunExists(run.run_id)
        if run.idempotency_key is not None:
            taken = self._keys.setdefault((run.user_id, run.idempotency_key), run.run_id)
            if taken != run.run_id:
                raise RunExists(taken, idempotency_key=run.idempotency_key)
        now = time.time()
        created = Run(
            run_id=run.run_id,
            family=run.family,
            component_id=run.component_id,
            session_id=run.session_id,
            user_id=run.user_id,
            idempotency_key=run.idempotency_key,
            input=None,
            metadata=None,
            status=RunStatus.PENDING,
            first_index=0,
            next_index=0,
            generation=1,
            attempts=1,
            version=1,
            created_at=now,
            updated_at=now,
            lease_expires_at=now + lease,
            max_attempts=run.max_attempts,
        )
        self._runs[run.run_id] = _Stored(created, (run.input, run.metadata, run.options))
        self._commits += 1
        self._changed.set(run.run_id)
        return self._whole(run.run_id)

    async def get(self, run_id: str) -> Run:
        self._check_open()
        return self._whole(run_id)

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        self._check_open()
        stored = self._find(run_id)
        run = stored.run
        reopened = reopen and run.status is RunStatus.ERROR
        if run.status.finished and not reopened:
            raise RunFinished(run_id, run.status.value)
        if generation is None:
            generation = run.generation + 1
        elif generation <= run.generation:
            raise StaleGeneration(run_id, generation, run.generation)
        if floor is not None and floor > run.next_index:
            stored.batches.clear()
            stored.size = 0
            run = replace(run, first_index=floor, next_index=floor)
        if reopened:
            self._transcripts.pop(run_id, None)
            run = replace(run, status=RunStatus.RUNNING, finished_at=None, cancel_requested_at=None)
        self._take_over(run, generation, lease)
        return self._whole(run_id)

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        self._check_open()
        size = check_events(run_id, events, self._max_event_bytes)
        stored = self._find(run_id)
        run = stored.run
        if generation != run.generation:
            raise StaleGeneration(run_id, generation, run.generation)
        if run.status.finished:
            raise RunFinished(run_id, run.status.value)
        if status is None and run.status is RunStatus.PENDING and events:
            status = RunStatus.RUNNING
        if not events and status is None and transcript is None:
            return run.next_index
        now = time.time()
        if events:
            stored.batches += batches_of(run_id, run.next_index, chunks(tuple(events), size), size)
            stored.size += size
        if transcript is not None:
            self._transcripts[run_id] = transcript
        rests = status is not None and not status.active
        self._put(
            changed_run(
                run,
                status=status or run.status,
                next_index=run.next_index + len(events),
                version=run.version + 1,
                updated_at=now,
                finished_at=now if status is not None and status.finished else None,
                lease_expires_at=None if rests else run.lease_expires_at,
            )
        )
        self._shed(stored)
        self._commits += 1
        self._appends += 1
        self._events += len(events)
        return stored.run.next_index

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        self._check_open()
        stored = self._find(run_id)
        return Page(stored.run, take(stored.batches, max(after, stored.run.first_index - 1), limit, max_bytes))

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        self._check_open()
        stored = self._runs.get(run_id)
        if stored is not None and stored.run.version == version:  # a lower one is that of a run made anew
            await self._changed.wait(run_id, timeout)

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        self._check_open()
        if not self._cancel_requested(run_id):
            await self._cancelled.wait(run_id, timeout)
            self._check_open()  # a run that went with the log has not been cancelled
        return self._cancel_requested(run_id)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        self._check_open()
        lost = []
        expires = time.time() + lease
        for run_id, generation in claims:
            stored = self._runs.get(run_id)
            if stored is None or stored.run.generation != generation or not stored.run.status.active:
                lost.append(run_id)
            else:
                stored.run = replace(stored.run, lease_expires_at=expires)
        return lost

    async def request_cancel(self, run_id: str) -> Run:
        self._check_open()
        run = self._find(run_id).run
        if run.cancel_requested_at is None and not run.status.finished:
            now = time.time()
            self._put(replace(run, cancel_requested_at=now, updated_at=now, version=run.version + 1))
            self._cancelled.set(run_id)
        return self._whole(run_id)

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        self._check_open()
        check_intended(run_id)
        self._sweep_intents()
        self._intents[run_id] = max(time.time() + ttl, self._intents.get(run_id, 0.0))
        self._intents_changed()

    async def drop_intent(self, run_id: str) -> None:
        self._check_open()
        if self._intents.pop(run_id, None) is not None:
            self._intents_changed()

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        self._check_open()
        if version == self._intents_version and timeout > 0:
            await self._intended.wait("", timeout)
            self._check_open()
        self._sweep_intents()
        longest_first = sorted(self._intents, key=self._intents.__getitem__, reverse=True)
        return Intents(self._intents_version, longest_first[: max(limit, 0)])

    async def list(
        self,
        *,
        component_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
        before: float | None = None,
    ) -> Sequence[Run]:
        self._check_open()
        found = [
            stored.run
            for stored in reversed(self._runs.values())
            if (component_id is None or stored.run.component_id == component_id)
            and (session_id is None or stored.run.session_id == session_id)
            and (user_id is None or stored.run.user_id == user_id)
            and (status is None or stored.run.status is status)
            and (before is None or stored.run.created_at < before)
        ]
        found.sort(key=lambda run: run.created_at, reverse=True)
        return found[: max(limit, 0)]

    async def trim(self, run_id: str, *, before: int) -> None:
        self._check_open()
        stored = self._find(run_id)
        self._trim(stored, min(before, stored.run.next_index))

    async def delete(self, run_id: str) -> None:
        self._check_open()
        self._remove(run_id)

    async def prune(self, *, finished_before: float) -> int:
        self._check_open()
        old = [
            run_id
            for run_id, stored in self._runs.items()
            if stored.run.finished_at is not None and stored.run.finished_at < finished_before
        ]
        for run_id in old:
            self._remove(run_id)
        self._sweep_intents()
        return len(old)

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        self._check_open()
        now = time.time()

        def is_due(run: Run) -> bool:
            if run.lease_expires_at is None or run.lease_expires_at > now:
                return False
            if run.attempts >= run.max_attempts or run.lease_expires_at <= now - patience:
                return True
            return run.component_id is not None and f"{run.family.value}:{run.component_id}" in serves

        dead = [stored.run for stored in self._runs.values() if is_due(stored.run)]
        return [self._take_over(run, run.generation + 1, lease) for run in dead]

    def _check_open(self) -> None:
        if not self._open:
            raise LogClosed

    def _find(self, run_id: str) -> _Stored:
        try:
            return self._runs[run_id]
        except KeyError:
            raise RunNotFound(run_id) from None

    def _whole(self, run_id: str) -> Run:
        stored = self._find(run_id)
        input_, metadata, options = stored.heavy
        transcript = self._transcripts.get(run_id)
        return replace(stored.run, input=input_, metadata=metadata, options=options, transcript=transcript)

    def _cancel_requested(self, run_id: str) -> bool:
        stored = self._runs.get(run_id)
        return stored is None or stored.run.cancel_requested_at is not None

    def _intents_changed(self) -> None:
        self._intents_version += 1
        self._commits += 1
        self._intended.set_all()

    def _sweep_intents(self) -> None:
        now = time.time()
        for run_id in [run_id for run_id, expires in self._intents.items() if expires <= now]:
            del self._intents[run_id]

    def _put(self, run: Run) -> Run:
        self._runs[run.run_id].run = run
        self._changed.set(run.run_id)
        return run

    def _take_over(self, run: Run, generation: int, lease: float) -> Run:
        now = time.time()
        self._commits += 1
        return self._put(
            replace(
                run,
                status=RunStatus.RUNNING if run.status is RunStatus.PAUSED else run.status,
                generation=generation,
                attempts=run.attempts + 1,
                version=run.version + 1,
                updated_at=now,
                lease_expires_at=now + lease,
            )
        )

    def _shed(self, stored: _Stored) -> None:
        """Drop the oldest batches beyond the limit, but never the newest."""
        size, keep = stored.size, 0
        while size > self._max_run_bytes and keep < len(stored.batches) - 1:
            size -= stored.batches[keep].size
            keep += 1
        if keep:
            self._trim(stored, stored.batches[keep].first)

    def _trim(self, stored: _Stored, before: int) -> None:
        if before <= stored.run.first_index:
            return
        keep = bisect_left(stored.batches, before, key=lambda batch: batch.last)
        stored.size -= sum(batch.size for batch in stored.batches[:keep])
        del stored.batches[:keep]
        self._put(replace(stored.run, first_index=before, version=stored.run.version + 1, updated_at=time.time()))

    def _remove(self, run_id: str) -> None:
        stored = self._runs.pop(run_id, None)
        if stored is None:
            return
        self._transcripts.pop(run_id, None)
        if stored.run.idempotency_key is not None:
            self._keys.pop((stored.run.user_id, stored.run.idempotency_key), None)
        self._changed.set(run_id)
        self._cancelled.set(run_id)
