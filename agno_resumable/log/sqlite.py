"""The log in one SQLite file, shared by every process on the machine: the embedded default.

One writer thread a process commits for everybody (group commit); readers have threads and connections of their own.
What other processes commit is noticed by ``PRAGMA data_version`` on the writer's connection, which changes with every
commit but its own.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

import anyio
from typing_extensions import Self

from ..errors import LogClosed, LogUnavailable, ResumableError, RunNotFound
from ..model import Batch, Durability, EncodedEvent, NewRun, Page, Run, RunStatus, check_run_id
from . import sqlite_ops as ops
from .checks import MAX_EVENT_BYTES, MAX_RUN_BYTES, check_events
from .group_commit import GroupCommit, Operation
from .hot import HotTail, take
from .protocol import Claim
from .signals import loop_caller
from .sqlite_commit import transact
from .sqlite_schema import connect, set_up
from .watch import Watch
from .worker import Worker

__all__ = ["SQLiteEventLog"]

T = TypeVar("T")
Group = Sequence[Operation[sqlite3.Connection, object]]

_DURABILITY = {0: Durability.PROCESS_CRASH, 1: Durability.PROCESS_CRASH, 2: Durability.POWER_LOSS}
_PRUNE_STEP = 32

logger: logging.Logger = logging.getLogger("agno_resumable.log")


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
        self._synchronous = synchronous.lower()
        self._poll_interval = poll_interval
        self._busy_timeout = busy_timeout
        self._max_run_bytes = max_run_bytes
        self._max_event_bytes = max_event_bytes
        self._hot_bytes = hot_bytes
        self._watch = Watch(HotTail(max_bytes=hot_bytes))
        self._open = False
        self._durability = Durability.POWER_LOSS
        self._writer: Worker[sqlite3.Connection]
        self._reader: Worker[sqlite3.Connection]
        self._commit: GroupCommit[sqlite3.Connection]
        self._data_version = 0
        self._polled_at = 0.0
        self._appends = self._events = 0

    def __repr__(self) -> str:
        return f"SQLiteEventLog({self.path!r})"

    @property
    def durability(self) -> Durability:
        return self._durability

    @property
    def is_open(self) -> bool:
        return self._open

    # ---------------------------------------------------------------- opening and closing

    async def __aenter__(self) -> Self:
        if self._open:
            raise LogClosed("This log is open already: enter it once and share it.")
        self._call = loop_caller()
        writer = Worker(
            "agno-resumable-writer",
            self._open_writer,
            sqlite3.Connection.close,
            idle=self._poll,
            idle_while=lambda: self._watch.busy,
            idle_interval=self._poll_interval,
        )
        await writer.start()
        reader = Worker("agno-resumable-reader", self._open_reader, sqlite3.Connection.close, threads=2)
        try:
            await reader.start()
        except BaseException:
            await writer.stop()
            raise
        self._writer, self._reader = writer, reader
        self._commit = GroupCommit(self._start_commit)
        self._open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not self._open:
            return
        self._open = False  # from here on every call raises LogClosed
        self._watch.close()
        with anyio.CancelScope(shield=True):  # what was accepted is written, whatever closes the log
            await self._commit.drained()
            await self._reader.stop()
            await self._writer.stop()  # last: the last connection to close folds the write-ahead log into the file
        self._watch = Watch(HotTail(max_bytes=self._hot_bytes))

    def stats(self) -> Mapping[str, int]:
        """See ``EventLog.stats``; also ``hot_bytes``, the JSON held in memory."""
        return {
            "commits": self._commit.commits if self._open else 0,
            "appends": self._appends,
            "events": self._events,
            "waiters": self._watch.waiters,
            "hot_bytes": self._watch.hot.size,
        }

    def _open_writer(self) -> sqlite3.Connection:
        db = connect(self.path, synchronous=self._synchronous, timeout=self._busy_timeout)
        try:
            set_up(db, self.path)
            level = db.execute("PRAGMA synchronous").fetchone()[0]
            self._durability = _DURABILITY.get(level, Durability.POWER_LOSS)
            self._data_version = db.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            db.close()
            raise LogUnavailable(f"SQLite cannot use {self.path!r}: {error}.") from error
        except ResumableError:
            db.close()
            raise
        return db

    def _open_reader(self) -> sqlite3.Connection:
        return connect(self.path, synchronous=self._synchronous, timeout=self._busy_timeout, read_only=True)

    # ---------------------------------------------------------------- committing

    async def _write(self, apply: Callable[[sqlite3.Connection], T], committed: Callable[[T], None]) -> T:
        if not self._open:
            raise LogClosed
        operation = Operation(apply, committed)
        self._commit.submit(operation)
        return await operation.outcome()

    def _start_commit(self, group: Group) -> None:
        def commit(db: sqlite3.Connection) -> None:
            try:
                transact(db, group)
            finally:
                self._call(lambda: self._finished(group))

        self._writer.put(commit)

    async def _look(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read in a reader thread."""
        if not self._open:
            raise LogClosed
        try:
            return await self._reader.run(job)
        except sqlite3.Error as error:
            raise LogUnavailable(f"SQLite could not read {self.path!r}: {error}.") from error

    def _poll(self, db: sqlite3.Connection) -> None:
        """In the writer thread, between jobs: have other processes committed, and what of it concerns us?"""
        now = time.monotonic()
        unsure = self._watch.unsure
        if not unsure and (now - self._polled_at < self._poll_interval or not self._watch.busy):
            return
        self._polled_at = now
        try:
            version = db.execute("PRAGMA data_version").fetchone()[0]
            foreign = version != self._data_version
            if foreign or unsure:
                asked = self._watch.due()
                found = ops.states(db, asked)
                self._call(lambda: self._refresh(asked, found, foreign))
            self._data_version = version
        except sqlite3.Error:
            # A store that is away for a moment is asked again at the next turn; those who read or write are told.
            logger.warning("could not look for the commits of other processes", exc_info=True)

    # ---------------------------------------------------------------- writes

    async def create(self, run: NewRun, *, lease: float) -> Run:
        check_run_id(run.run_id)
        return await self._write(lambda db: ops.create(db, run, lease), self._saw)

    async def claim(self, run_id: str, *, lease: float, generation: int | None = None) -> Run:
        return await self._write(lambda db: ops.claim(db, run_id, lease, generation), self._saw)

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        size = check_events(run_id, events, self._max_event_bytes)
        parts = ops.chunks(events)

        def committed(appended: ops.Appended) -> None:
            batches = []
            first = appended.first
            for part in parts:
                batches.append(Batch(run_id, first, part))
                first += len(part)
            self._appends += 1
            self._events += len(events)
            self._watch.hot.publish(appended.run, batches)
            self._watch.saw(appended.run)

        appended = await self._write(
            lambda db: ops.append(db, run_id, generation, parts, size, status, transcript, self._max_run_bytes),
            committed,
        )
        return appended.run.next_index

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        return await self._write(lambda db: ops.renew(db, claims, lease), _nothing)

    async def request_cancel(self, run_id: str) -> Run:
        return await self._write(lambda db: ops.request_cancel(db, run_id), self._saw)

    async def trim(self, run_id: str, *, before: int) -> None:
        await self._write(lambda db: ops.trim(db, run_id, before), self._saw)

    async def delete(self, run_id: str) -> None:
        await self._write(lambda db: ops.delete(db, run_id), self._gone)

    async def prune(self, *, finished_before: float) -> int:
        pruned = 0
        while True:
            removed = await self._write(lambda db: ops.prune(db, finished_before, _PRUNE_STEP), self._gone)
            pruned += len(removed)
            if len(removed) < _PRUNE_STEP:
                return pruned

    async def expire(self, *, lease: float) -> Sequence[Run]:
        return await self._write(lambda db: ops.expire(db, lease), self._saw_all)

    # ---------------------------------------------------------------- reads

    async def now(self) -> float:
        return time.time()  # every process of a SQLite file is on one machine

    async def get(self, run_id: str) -> Run:
        return await self._look(lambda db: ops.get(db, run_id))

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        if not self._open:
            raise LogClosed
        hot = self._watch.hot
        page = hot.read(run_id, after, limit, max_bytes)
        if page is not None:
            return page
        epoch = hot.epoch
        run, batches = await self._look(lambda db: ops.read(db, run_id, after, limit, max_bytes))
        hot.confirm(run, epoch)
        self._watch.saw(run)
        return Page(run, take(batches, max(after, run.first_index - 1), limit, max_bytes))

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        if not self._open:
            raise LogClosed
        await self._watch.wait(run_id, version, timeout, self._nudge)

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        for look_again in (True, False):
            try:
                run = (await self.read(run_id, limit=0)).run
            except RunNotFound:
                return True
            if run.cancel_requested_at is not None:
                return True
            if look_again:
                await self._watch.wait_cancel(run_id, run.version, timeout, self._nudge)
        return False

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
        return await self._look(lambda db: ops.list_runs(db, filters, limit, before))

    # ---------------------------------------------------------------- after a commit, in the event loop

    def _nudge(self) -> None:
        """Have the writer thread look now, or know that it has to look from now on, even if it waits for a job."""
        self._writer.put(_nothing)

    def _finished(self, group: Group) -> None:
        was_busy = self._watch.busy
        self._commit.finished(group)
        if self._watch.busy and not was_busy:  # the thread waits for a job, and looks at nothing until there is one
            self._nudge()

    def _refresh(self, asked: Sequence[str], found: Sequence[Run], foreign: bool) -> None:
        self._watch.refresh(asked, found, foreign=foreign)
        if self._watch.unsure:
            self._nudge()

    def _saw(self, run: Run) -> None:
        if run.input is not None or run.metadata is not None or run.transcript is not None:
            run = replace(run, input=None, metadata=None, transcript=None)  # a page comes without them
        self._watch.hot.publish(run, ())
        self._watch.saw(run)

    def _saw_all(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self._saw(run)

    def _gone(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            self._watch.gone(run_id)


def _nothing(_: object) -> None:
    """After a commit that concerns no reader; and a job that only wakes the thread."""
