"""The log in one SQLite file, shared by every process on the machine: the embedded default.

One writer thread a process commits for everybody (group commit); readers have threads and connections of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType

from typing_extensions import Self

from ..errors import LogClosed
from ..model import Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus
from . import sqlite_ops as ops
from .checks import MAX_EVENT_BYTES, MAX_RUN_BYTES, check_events, check_intended, check_new_run, chunks
from .hot import batches_of, take
from .protocol import Claim
from .sqlite_file import SQLiteFile
from .watch import cancel_seen

__all__ = ["SQLiteEventLog"]

_PRUNE_STEP = 32


class SQLiteEventLog:
    """An ``EventLog`` in a SQLite file.

    Args:
        path: The file; made if it is missing, in a directory that exists. It must lie on a local disk.
        synchronous: ``"full"`` (default: an acknowledged event survives a power cut), ``"normal"`` (it survives a
            crash of the process; faster on slow disks) or ``"extra"``.
        poll_interval: How often, in seconds, the commits of other processes are looked for.
        busy_timeout: How long, in seconds, a write waits for another process's before it fails.
        max_run_bytes: The JSON of one run's events, in bytes, beyond which the oldest are trimmed.
        max_event_bytes: The JSON of the largest single event, in bytes.
        hot_bytes: The JSON of the newest events that is kept in memory for local readers, in bytes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "full",
        poll_interval: float = 0.02,
        busy_timeout: float = 30.0,
        max_run_bytes: int = MAX_RUN_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
        hot_bytes: int = 67_108_864,
    ) -> None:
        if synchronous.lower() not in ("full", "normal", "extra"):
            raise ValueError(f"synchronous is 'full', 'normal' or 'extra', not {synchronous!r}.")
        self.path: str = os.fspath(path)
        if self.path in ("", ":memory:"):
            raise ValueError("SQLiteEventLog needs a file; use MemoryEventLog for a log in memory.")
        self._max_run_bytes = max_run_bytes
        self._max_event_bytes = max_event_bytes
        self._make_file: Callable[[], SQLiteFile] = partial(
            SQLiteFile,
            self.path,
            synchronous=synchronous.lower(),
            poll_interval=poll_interval,
            busy_timeout=busy_timeout,
            hot_bytes=hot_bytes,
        )
        self._opened: SQLiteFile | None = None
        self._appends = self._events = 0

    def __repr__(self) -> str:
        return f"SQLiteEventLog({self.path!r})"

    @property
    def durability(self) -> Durability:
        """What an acknowledged append survives; known once the log is open."""
        return self._file.durability

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def _file(self) -> SQLiteFile:
        if self._opened is None:
            raise LogClosed
        return self._opened

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise LogClosed("This log is open already: enter it once and share it.")
        file = self._make_file()
        await file.open()
        self._opened = file
        self._appends = self._events = 0  # `stats()` counts since the opening
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        file, self._opened = self._opened, None  # from here on every call raises LogClosed
        if file is not None:
            await file.close()

    def stats(self) -> Mapping[str, int]:
        """See ``EventLog.stats``; also ``hot_bytes``, the JSON held in memory."""
        file = self._opened
        return {
            "commits": file.commits.commits if file else 0,
            "appends": self._appends,
            "events": self._events,
            "waiters": file.watch.waiters + file.intents.waiters if file else 0,
            "hot_bytes": file.watch.hot.size if file else 0,
        }

    # ---------------------------------------------------------------- writes

    async def create(self, run: NewRun, *, lease: float) -> Run:
        check_new_run(run)
        return await self._file.write(lambda db: ops.create(db, run, lease), self._file.watch.committed)

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        return await self._file.write(
            lambda db: ops.claim(db, run_id, lease, generation, floor, reopen), self._file.watch.committed
        )

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        file = self._file
        size = check_events(run_id, events, self._max_event_bytes)
        parts = chunks(events, size)

        def committed(appended: ops.Appended) -> None:
            self._appends += 1
            self._events += len(events)
            file.watch.committed(appended.run, batches_of(run_id, appended.first, parts, size))

        appended = await file.write(
            lambda db: ops.append(db, run_id, generation, parts, size, status, transcript, self._max_run_bytes),
            committed,
        )
        return appended.run.next_index

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        return await self._file.write(lambda db: ops.renew(db, claims, lease), _nothing)

    async def request_cancel(self, run_id: str) -> Run:
        return await self._file.write(lambda db: ops.request_cancel(db, run_id), self._file.watch.committed)

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        check_intended(run_id)
        await self._file.write(lambda db: ops.intend_cancel(db, run_id, ttl), self._file.intents.saw)

    async def drop_intent(self, run_id: str) -> None:
        await self._file.write(lambda db: ops.drop_intent(db, run_id), self._file.intents.saw)

    async def trim(self, run_id: str, *, before: int) -> None:
        await self._file.write(lambda db: ops.trim(db, run_id, before), self._file.watch.committed)

    async def delete(self, run_id: str) -> None:
        await self._file.write(lambda db: ops.delete(db, run_id), self._file.watch.all_gone)

    async def prune(self, *, finished_before: float) -> int:
        pruned = 0
        while True:
            removed = await self._file.write(
                lambda db: ops.prune(db, finished_before, _PRUNE_STEP), self._file.watch.all_gone
            )
            pruned += len(removed)
            if len(removed) < _PRUNE_STEP:
                return pruned

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        return await self._file.write(
            lambda db: ops.expire(db, lease, serves, patience), self._file.watch.all_committed
        )

    # ---------------------------------------------------------------- reads

    async def now(self) -> float:
        return time.time()  # every process of a SQLite file is on one machine

    async def get(self, run_id: str) -> Run:
        return await self._file.look(lambda db: ops.get(db, run_id))

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        file = self._file
        hot = file.watch.hot
        page = hot.read(run_id, after, limit, max_bytes)
        if page is not None:
            return page
        epoch = hot.epoch
        run, batches = await file.look(lambda db: ops.read(db, run_id, after, limit, max_bytes))
        hot.confirm(run, epoch)
        file.watch.saw(run)
        return Page(run, take(batches, max(after, run.first_index - 1), limit, max_bytes))

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        file = self._file
        await file.watch.wait(run_id, version, timeout, file.nudge)

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        async def wait(version: int, left: float) -> None:
            file = self._file
            await file.watch.wait_cancel(run_id, version, left, file.nudge)

        return await cancel_seen(partial(self.read, run_id, limit=0), wait, timeout)

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        file = self._file
        found = await file.look(lambda db: ops.read_intents(db, limit))
        file.intents.saw(found.version)
        if found.version == version and timeout > 0:
            await file.intents.wait(version, timeout, file.nudge)
            found = await self._file.look(lambda db: ops.read_intents(db, limit))
        return found

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
        given = {
            "component_id": component_id,
            "session_id": session_id,
            "user_id": user_id,
            "status": status.value if status is not None else None,
        }
        filters = [(column, value) for column, value in given.items() if value is not None]
        return await self._file.look(lambda db: ops.list_runs(db, filters, limit, before))


def _nothing(_: object) -> None:
    """After a commit that concerns no reader."""
