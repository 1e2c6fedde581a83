"""One process's hold on a SQLite file: a thread that writes, threads that read, and a look at what others commit.

What other processes commit is noticed by ``PRAGMA data_version`` on the writer's connection, which changes with every
commit but its own.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio

from ..errors import LogUnavailable, ResumableError
from ..model import Durability, Run
from .group_commit import GroupCommit, Operation
from .hot import HotTail
from .signals import loop_caller
from .sqlite_commit import transact
from .sqlite_ops import intents_version, states
from .sqlite_schema import connect, set_up
from .watch import IntentWatch, Watch
from .worker import Worker

__all__ = ["SQLiteFile"]

T = TypeVar("T")
Group = Sequence[Operation[sqlite3.Connection, object]]

_DURABILITY = {0: Durability.PROCESS_CRASH, 1: Durability.PROCESS_CRASH, 2: Durability.POWER_LOSS}

logger: logging.Logger = logging.getLogger("agno_resumable.log")


class SQLiteFile:
    """The connections of one open log; made anew for each opening, in the event loop that it belongs to.

    Args:
        path: The file.
        synchronous: The value of the pragma.
        poll_interval: How often, in seconds, the commits of other processes are looked for while they concern anybody.
        busy_timeout: How long, in seconds, a write waits for another process's.
        hot_bytes: The JSON of the newest events that is kept in memory, in bytes.
    """

    def __init__(
        self, path: str, *, synchronous: str, poll_interval: float, busy_timeout: float, hot_bytes: int
    ) -> None:
        self._path = path
        self._synchronous = synchronous
        self._poll_interval = poll_interval
        self._busy_timeout = busy_timeout
        self.watch: Watch = Watch(HotTail(max_bytes=hot_bytes))
        self.intents: IntentWatch = IntentWatch()
        self.durability: Durability = Durability.POWER_LOSS
        self._writer: Worker[sqlite3.Connection] = Worker(
            "agno-resumable-writer",
            self._open_writer,
            sqlite3.Connection.close,
            idle=self._poll,
            idle_while=self._is_watching,
            idle_interval=poll_interval,
        )
        self._reader: Worker[sqlite3.Connection] = Worker(
            "agno-resumable-reader", self._open_reader, sqlite3.Connection.close, threads=2
        )
        self.commits: GroupCommit[sqlite3.Connection] = GroupCommit(self._start_commit)
        self._call = loop_caller()
        self._data_version = 0
        self._polled_at = 0.0
        self._poll_failed = False

    async def open(self) -> None:
        """Start the threads and open the file.

        Raises:
            LogUnavailable, SchemaTooNew: The file cannot be used; nothing is left behind.
        """
        await self._writer.start()
        try:
            await self._reader.start()
        except BaseException:
            await self._writer.stop()
            raise

    async def close(self) -> None:
        """Wake who waits, write what was accepted, and end the threads."""
        self.watch.close()
        self.intents.close()
        with anyio.CancelScope(shield=True):
            await self.commits.drained()
            await self._reader.stop()
            await self._writer.stop()  # last: the last connection to close folds the write-ahead log into the file

    async def write(self, apply: Callable[[sqlite3.Connection], T], committed: Callable[[T], None]) -> T:
        """Run ``apply`` in the next transaction and ``committed`` behind it, in the event loop; see ``Operation``."""
        operation = Operation(apply, committed)
        self.commits.submit(operation)
        return await operation.outcome()

    async def look(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read in a reader thread.

        Raises:
            LogUnavailable: SQLite could not read.
        """
        try:
            return await self._reader.run(job)
        except sqlite3.Error as error:
            raise LogUnavailable(f"SQLite could not read {self._path!r}: {error}.") from error

    def nudge(self) -> None:
        """Have the writer thread look now, or know that it has to look from now on, even if it waits for a job."""
        self._writer.put(_nothing)

    def _open_writer(self) -> sqlite3.Connection:
        db = connect(self._path, synchronous=self._synchronous, timeout=self._busy_timeout)
        try:
            set_up(db, self._path)
            level = db.execute("PRAGMA synchronous").fetchone()[0]
            self.durability = _DURABILITY.get(level, Durability.POWER_LOSS)
            self._data_version = db.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            db.close()
            raise LogUnavailable(f"SQLite cannot use {self._path!r}: {error}.") from error
        except ResumableError:
            db.close()
            raise
        return db

    def _open_reader(self) -> sqlite3.Connection:
        return connect(self._path, synchronous=self._synchronous, timeout=self._busy_timeout, read_only=True)

    def _start_commit(self, group: Group) -> None:
        def commit(db: sqlite3.Connection) -> None:
            try:
                transact(db, group)
            finally:
                self._call(lambda: self._finished(group))

        self._writer.put(commit)

    def _finished(self, group: Group) -> None:
        was_watching = self._is_watching()
        self.commits.finished(group)
        if (
            self._is_watching() and not was_watching
        ):  # the thread waits for a job, and looks at nothing until there is one
            self.nudge()

    def _refresh(self, asked: Sequence[str], found: Sequence[Run], foreign: bool) -> None:
        self.watch.refresh(asked, found, foreign=foreign)
        if self.watch.unsure:
            self.nudge()

    def _is_watching(self) -> bool:
        return self.watch.busy or self.intents.busy

    def _poll(self, db: sqlite3.Connection) -> None:
        """In the writer thread, between jobs: have other processes committed, and what of it concerns us?"""
        now = time.monotonic()
        unsure = (self.watch.unsure or self.intents.unsure) and not self._poll_failed
        if not unsure and (now - self._polled_at < self._poll_interval or not self._is_watching()):
            return
        self._polled_at = now
        try:
            version = db.execute("PRAGMA data_version").fetchone()[0]
            foreign = version != self._data_version
            if foreign or self.watch.unsure:
                asked = self.watch.due()
                found = states(db, asked)
                self.watch.looked_at(asked)
                self._call(lambda: self._refresh(asked, found, foreign))
            if self.intents.unsure or (foreign and self.intents.busy):
                self.intents.looked_at()
                intents = intents_version(db)
                self._call(lambda: self.intents.saw(intents))
            self._data_version = version
        except sqlite3.Error:
            # A store that is away for a moment is asked again at the next turn; those who read or write are told.
            if not self._poll_failed:
                logger.warning("could not look for the commits of other processes", exc_info=True)
            self._poll_failed = True
            self.intents.doubt()
        else:
            self._poll_failed = False


def _nothing(_: object) -> None:
    """A job that only wakes the thread."""
