"""One process's hold on a PostgreSQL log: its connections, its tasks, and what it knows of what others commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import psycopg

from ..errors import LogClosed
from ..model import Batch, Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus
from . import postgres_ops as ops
from .group_commit import GroupCommit, Operation
from .hot import HotTail
from .postgres_commit import Append, Call, Committer, again
from .postgres_follow import Follower
from .postgres_link import Connection, Connections, Connector, unavailable
from .postgres_notify import INTENTS, Listener, Notifier
from .postgres_read import Request
from .postgres_sql import Statements
from .postgres_tasks import Tasks
from .postgres_values import fetch
from .protocol import Claim
from .watch import IntentWatch, Watch

__all__ = ["PostgresSession"]

T = TypeVar("T")


class PostgresSession:
    """The connections and tasks of one open log; made anew for each opening, in the event loop that it belongs to.

    Args:
        writer: Where the connection that writes comes from.
        readers: Where those that read come from.
        connect: Opens the connections that listen and that notify; ``None`` for a log that does neither.
        statements: The log's.
        poll_interval: How often, in seconds, the commits of other processes are looked for while nobody tells of them.
        hot_bytes: The JSON of the newest events that is kept in memory, in bytes.
        max_run_bytes: What one run may hold, in bytes of JSON.
    """

    def __init__(
        self,
        writer: Connections,
        readers: Connections,
        connect: Connector | None,
        statements: Statements,
        *,
        poll_interval: float,
        hot_bytes: int,
        max_run_bytes: int,
    ) -> None:
        self.watch: Watch = Watch(HotTail(max_bytes=hot_bytes))
        self.intents: IntentWatch = IntentWatch()
        self.durability: Durability = Durability.POWER_LOSS
        self.sql: Statements = statements
        self.commits: GroupCommit[Connection] = GroupCommit(self._start_commit)
        self._writer = writer
        self._readers = readers
        self._committer = Committer(
            writer, statements, max_run_bytes=max_run_bytes, appended=self._appended, epoch=lambda: self.watch.hot.epoch
        )
        self._tasks = Tasks()
        self._group: Sequence[Operation[Connection, object]] = ()
        self._some_to_commit = asyncio.Event()
        self.follower: Follower = Follower(
            self.watch,
            self.intents,
            statements,
            look=self._look,
            tasks=self._tasks,
            is_listening=lambda: self.is_listening,
            poll_interval=poll_interval,
        )
        self._notifier: Notifier | None = None
        self._listener: Listener | None = None
        if connect is not None:
            channel = statements.names.channel
            self._notifier = Notifier(connect, channel, self._tasks.busy)
            self._listener = Listener(
                connect, channel, self._notifier, heard=self.follower.heard, found=self.follower.found
            )

    async def open(self) -> None:
        """Start what runs beside."""
        self.durability = await self._look(_durability)
        await self._tasks.open()
        self._tasks.loop(self._keep_committing)
        self.follower.start()
        if self._listener is not None and self._notifier is not None:
            self._tasks.loop(self._listener.run)
            self._tasks.loop(self._notifier.run)

    async def close(self) -> None:
        """Wake who waits, store what was accepted, and end the tasks."""
        self.watch.close()
        self.intents.close()
        try:
            with anyio.CancelScope(shield=True):
                await self.commits.drained()
                if self._notifier is not None:
                    await self._notifier.drained()
            await self._tasks.close()
        finally:
            with anyio.CancelScope(shield=True):
                await self._writer.close()
                await self._readers.close()

    @property
    def is_listening(self) -> bool:
        """Whether changes by other processes are told."""
        return self._listener is not None and self._listener.is_listening

    # ---------------------------------------------------------------- writing

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        size: int,
        status: RunStatus | None,
        transcript: bytes | None,
    ) -> int:
        append = Append(run_id, generation, events, size, status, transcript)
        self.commits.submit(append)
        await append.outcome()
        return append.next_index

    async def create(self, run: NewRun, lease: float) -> Run:
        return await self._write([run.run_id], self._changed, lambda db: ops.create(db, self.sql, run, lease))

    async def claim(self, run_id: str, lease: float, generation: int | None, floor: int | None, reopen: bool) -> Run:
        return await self._write(
            [run_id], self._changed, lambda db: ops.claim(db, self.sql, run_id, lease, generation, floor, reopen)
        )

    async def renew(self, claims: Sequence[Claim], lease: float) -> Sequence[str]:
        # with the appends, and not beside them: two statements that lock many runs would wait for each other
        runs = [run_id for run_id, _ in claims]
        return await self._write(runs, _nothing, lambda db: ops.renew(db, self.sql, claims, lease))

    async def request_cancel(self, run_id: str) -> Run:
        return await self._write([run_id], self._changed, lambda db: ops.request_cancel(db, self.sql, run_id))

    async def intend_cancel(self, run_id: str, ttl: float) -> None:
        await self._write([], self._intended, lambda db: ops.intend_cancel(db, self.sql, run_id, ttl))

    async def drop_intent(self, run_id: str) -> None:
        await self._write([], self._intended, lambda db: ops.drop_intent(db, self.sql, run_id))

    async def trim(self, run_id: str, before: int) -> None:
        await self._write([run_id], self._changed, lambda db: ops.trim(db, self.sql, run_id, before))

    async def delete(self, run_id: str) -> None:
        await self._write([run_id], self._gone, lambda db: ops.delete(db, self.sql, run_id))

    async def prune(self, finished_before: float) -> Sequence[str]:
        """One step of it: appends wait behind a transaction. Nothing when there is nothing left."""
        return await self._write(None, self._gone, lambda db: ops.prune(db, self.sql, finished_before))

    async def expire(self, lease: float, serves: Sequence[str], patience: float) -> Sequence[Run]:
        return await self._write(None, self._all_changed, lambda db: ops.expire(db, self.sql, lease, serves, patience))

    async def _write(
        self,
        runs: Sequence[str] | None,
        committed: Callable[[T], None],
        work: Callable[[Connection], Awaitable[T]],
    ) -> T:
        """Do ``work`` with the next group, and ``committed`` behind it; see ``Call``."""
        call = Call(work, runs, committed)
        self.commits.submit(call)
        result: T = await call.outcome()
        return result

    def _start_commit(self, group: Sequence[Operation[Connection, object]]) -> None:
        if self._tasks.closed:
            raise LogClosed
        self._group = group
        self._some_to_commit.set()

    async def _keep_committing(self) -> None:
        while True:
            await self._some_to_commit.wait()
            self._some_to_commit.clear()
            group = self._group
            try:
                await self._committer.commit(group)
            finally:
                self.commits.finished(group)

    @property
    def appends(self) -> int:
        """How many appends were stored."""
        return self._committer.appends

    @property
    def events(self) -> int:
        """How many events."""
        return self._committer.events

    def _appended(self, stored: Sequence[tuple[Run, Sequence[Batch]]], epoch: int) -> None:
        # Others first: what they do about it takes time that this process's own readers do not take from them
        self._tell([run.run_id for run, _ in stored])
        watch = self.watch
        for run, batches in stored:
            watch.hot.publish(run, batches, epoch)
            watch.saw(run)

    def _changed(self, run: Run | None) -> None:
        if run is not None:
            self.watch.committed(run)
            self._tell([run.run_id])

    def _all_changed(self, runs: Sequence[Run]) -> None:
        self.watch.all_committed(runs)
        self._tell([run.run_id for run in runs])

    def _gone(self, run_ids: Sequence[str]) -> None:
        self.watch.all_gone(run_ids)
        self._tell(run_ids)

    def _intended(self, version: int | None) -> None:
        if version is not None:
            self.intents.saw(version)
            self._tell([INTENTS])

    def _tell(self, words: Sequence[str]) -> None:
        if self._notifier is not None and words:
            self._notifier.tell(words)

    # ---------------------------------------------------------------- reading

    async def read(self, run_id: str, after: int, limit: int, max_bytes: int) -> Page:
        return await self.follower.pages.read(Request(run_id, after, limit, max_bytes))

    async def get(self, run_id: str) -> Run:
        return await self._read(lambda db: ops.get(db, self.sql, run_id))

    async def list(self, filters: Sequence[tuple[str, str]], limit: int, before: float | None) -> Sequence[Run]:
        return await self._read(lambda db: ops.list_runs(db, self.sql, filters, limit, before))

    async def now(self) -> float:
        return await self._read(lambda db: ops.now(db, self.sql))

    async def read_intents(self, limit: int) -> Intents:
        found = await self._read(lambda db: ops.read_intents(db, self.sql, limit))
        self.intents.saw(found.version)
        return found

    async def _read(self, job: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._tasks.run(lambda: self._look(job))

    async def _look(self, job: Callable[[Connection], Awaitable[T]], /) -> T:
        """Read something.

        Raises:
            LogUnavailable: The database did not answer.
        """
        for fresh in (False, True):
            with self._tasks.busy():
                async with self._readers.use() as db:
                    try:
                        return await again(lambda: job(db))
                    except psycopg.Error as error:
                        if fresh or not db.closed:
                            raise unavailable(error) from error
            # the connection was cut under a read, which may be done again
        raise AssertionError("unreachable")


async def _durability(db: Connection) -> Durability:
    ((synchronous, fsync),) = await fetch(db, "SELECT current_setting('synchronous_commit'), current_setting('fsync')")
    return Durability.POWER_LOSS if synchronous != "off" and fsync != "off" else Durability.PROCESS_CRASH


def _nothing(_: object) -> None:
    """After a commit that concerns no reader."""
