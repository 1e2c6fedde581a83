"""Group commit on PostgreSQL: one statement stores what all runs of the process have appended in the meantime."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from random import random
from typing import Any, TypeVar

import anyio
import psycopg
from psycopg import errors

from ..errors import LogUnavailable, ResumableError, RunFinished, RunNotFound, StaleGeneration
from ..model import Batch, EncodedEvent, Run, RunStatus
from .checks import chunks
from .group_commit import Operation
from .hot import batches_of
from .postgres_link import Connection, Connections, unavailable
from .postgres_ops import states, trim
from .postgres_sql import Statements
from .postgres_values import Byteas, Int8s, Texts, fetch
from .rows import pack, run_from_row

__all__ = ["Append", "Call", "Committer", "again"]

T = TypeVar("T")

# One statement's parameters lie in memory here and there: more goes in a second one.
_STATEMENT_BYTES = 16_777_216
_STATEMENT_RUNS = 1024


class Append(Operation[Connection, object]):
    """Events, a status and a transcript on their way to one run."""

    __slots__ = ("count", "events", "generation", "next_index", "run_id", "size", "status", "transcript")

    def __init__(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        size: int,
        status: RunStatus | None,
        transcript: bytes | None,
    ) -> None:
        super().__init__(_together)
        self.run_id: str = run_id
        self.generation: int = generation
        self.events: Sequence[EncodedEvent] = events
        self.count: int = len(events)
        self.size: int = size
        self.status: RunStatus | None = status
        self.transcript: bytes | None = transcript
        self.next_index: int = -1
        """The run's next index behind these events, once they are stored."""


def _together(_: Connection) -> object:
    raise AssertionError("appends are applied together")


class Call(Operation[Connection, Any]):
    """Any other write.

    Args:
        work: What to do on the connection; it may be done again where the database asks for that.
        runs: What it touches; ``None`` for any run.
        committed: See ``Operation``.
    """

    __slots__ = ("runs", "work")

    def __init__(
        self,
        work: Callable[[Connection], Awaitable[Any]],
        runs: Sequence[str] | None,
        committed: Callable[[Any], None],
    ) -> None:
        super().__init__(_together, committed)
        self.work: Callable[[Connection], Awaitable[Any]] = work
        self.runs: Sequence[str] | None = runs


class _Entry:
    """What one statement does to one run: appends that follow one another and stand behind the same fence."""

    __slots__ = ("appends", "closed", "count", "size")

    def __init__(self, first: Append) -> None:
        self.appends = [first]
        self.count = first.count
        self.size = first.size
        self.closed = first.status is not None or first.transcript is not None

    def takes(self, append: Append) -> bool:
        if self.closed or append.generation != self.appends[0].generation:
            return False
        self.appends.append(append)
        self.count += append.count
        self.size += append.size
        self.closed = append.status is not None or append.transcript is not None
        return True

    @property
    def last(self) -> Append:
        return self.appends[-1]

    @property
    def parts(self) -> list[Sequence[EncodedEvent]]:
        """The events as they are stored: what comes together lies together."""
        if len(self.appends) == 1:
            return chunks(self.last.events, self.size)
        return chunks([event for append in self.appends for event in append.events], self.size)

    def settle(self, next_index: int) -> None:
        index = next_index - self.count
        for append in self.appends:
            index += append.count
            append.result = append.next_index = index

    def fail(self, error: BaseException) -> None:
        for append in self.appends:
            append.error = error if append is self.last else _copy(error)


def _copy(error: BaseException) -> BaseException:
    """An error of its own for each caller: a traceback grows wherever it is raised."""
    if isinstance(error, LogUnavailable):
        copied = LogUnavailable(str(error), run_id=error.run_id, outcome_unknown=error.outcome_unknown)
        copied.__cause__ = error.__cause__
        return copied
    if isinstance(error, StaleGeneration):
        return StaleGeneration(error.run_id or "", error.given, error.current)
    if isinstance(error, RunFinished):
        return RunFinished(error.run_id or "", error.status)
    if isinstance(error, RunNotFound):
        return RunNotFound(error.run_id or "")
    return error


async def again(work: Callable[[], Awaitable[T]], tries: int = 30) -> T:
    """Do what PostgreSQL asks to be done again: transactions got in each other's way, and this one was undone."""
    for attempt in range(tries):
        try:
            return await work()
        except (errors.SerializationFailure, errors.DeadlockDetected):
            if attempt == tries - 1:
                raise
            await anyio.sleep(0.002 * 2 ** min(attempt, 6) * random())  # noqa: S311 - so that they part
    raise AssertionError("unreachable")


class Committer:
    """Takes a group of operations to the database.

    Args:
        connections: Where the one connection that writes comes from.
        max_run_bytes: What one run may hold before its oldest events are trimmed.
        appended: Called with the runs of a statement, each with its new batches, and with the epoch as soon as they
            are committed, in the order of the commits.
        epoch: The hot tail's, asked before a statement is sent.
    """

    def __init__(
        self,
        connections: Connections,
        statements: Statements,
        *,
        max_run_bytes: int,
        appended: Callable[[Sequence[tuple[Run, Sequence[Batch]]], int], None],
        epoch: Callable[[], int],
    ) -> None:
        self._connections = connections
        self._sql = statements
        self._max_run_bytes = max_run_bytes
        self._appended = appended
        self._epoch = epoch
        self.appends: int = 0
        self.events: int = 0
        self._origin = secrets.randbits(62)
        self._connection = 1  # raised whenever one was lost under a write, whose outcome nobody knows

    async def commit(self, group: Sequence[Operation[Connection, object]]) -> None:
        """Apply the group, what concerns one run in its order; give every operation its result or its error."""
        left: Sequence[Operation[Connection, object]] = group
        try:
            while left:
                entries, calls, left = _plan(left)
                async with self._connections.use() as db:
                    if entries:
                        await self._append(db, entries)
                    for call in calls:
                        await self._call(db, call)
        except BaseException as error:  # whatever it is, the callers must learn of it
            sent = isinstance(error, asyncio.CancelledError)
            self._connection += 1
            failure = error if isinstance(error, ResumableError) else unavailable(error, outcome_unknown=sent)
            for operation in group:
                if operation.error is None and not hasattr(operation, "result"):
                    operation.error = _copy(failure)
            if not isinstance(error, Exception):
                raise

    async def _call(self, db: Connection, call: Call) -> None:
        try:
            call.result = await again(lambda: call.work(db))
        except ResumableError as error:
            call.error = error
        except psycopg.Error as error:
            call.error = unavailable(error, outcome_unknown=_is_unknown(db, error))
            if db.closed:
                raise unavailable(error) from error

    # ---------------------------------------------------------------- appends

    async def _append(self, db: Connection, entries: Sequence[_Entry]) -> None:
        storing = [entry for entry in entries if entry.count or entry.closed]
        checking = [entry for entry in entries if not entry.count and not entry.closed]
        for attempt in range(8):
            refused = await self._store(db, storing) if storing else []
            storing = await self._refuse(db, [*refused, *checking])
            checking = []
            if not storing:
                return
            # The row was another one when the statement came to it than when it was looked at: it was made anew.
            await anyio.sleep(0.001 * attempt)
        for entry in storing:
            entry.fail(LogUnavailable("PostgreSQL did not store this: the run changes too quickly."))

    async def _store(self, db: Connection, entries: Sequence[_Entry]) -> list[_Entry]:
        """Store what may be stored; return what was refused."""
        epoch = self._epoch()
        try:
            parts = [entry.parts for entry in entries]
            writer = (self._origin, self._connection)
            rows = await again(lambda: fetch(db, *_statement(self._sql, writer, entries, parts)))
        except (psycopg.Error, ValueError) as error:
            if db.closed or _is_unknown(db, error):
                self._connection += 1
            if db.closed:
                self._fail(entries, unavailable(error, outcome_unknown=True))
                raise unavailable(error) from error
            if len(entries) == 1:
                self._fail(entries, unavailable(error, outcome_unknown=_is_unknown(db, error)))
                return []
            # whatever it is that PostgreSQL refuses, it may be the doing of one run
            return [refused for entry in entries for refused in await self._store(db, [entry])]
        stored: dict[int, tuple[Run, Sequence[Batch]]] = {}
        excess: list[tuple[int, int, int]] = []
        for position, id_, size, *row in rows:
            entry = entries[position - 1]
            run = run_from_row(row)
            first = run.next_index - entry.count
            entry.settle(run.next_index)
            stored[position] = run, batches_of(run.run_id, first, parts[position - 1], entry.size)
            self.appends += len(entry.appends)
            self.events += entry.count
            if size > self._max_run_bytes:
                excess.append((position, id_, size - self._max_run_bytes))
        for position, id_, over in excess:
            run, batches = stored[position]
            stored[position] = await self._shed(db, run, id_, over), batches
        self._appended(list(stored.values()), epoch)
        if len(stored) == len(entries):
            return []
        return [entry for position, entry in enumerate(entries, 1) if position not in stored]

    @staticmethod
    def _fail(entries: Sequence[_Entry], error: BaseException) -> None:
        for entry in entries:
            entry.fail(_copy(error))

    async def _refuse(self, db: Connection, entries: Sequence[_Entry]) -> list[_Entry]:
        """Say why, or that there is no reason; return the entries for which there is none although they would store."""
        if not entries:
            return []
        asking = [entry.last for entry in entries if not entry.count and not entry.closed]
        try:
            if asking and self._connection > 1:
                names, held = Texts([one.run_id for one in asking]), Int8s([one.generation for one in asking])
                fence = (names, held, self._origin, self._connection)
                await again(lambda: fetch(db, self._sql.fence, fence))
            found = {run.run_id: run for run in await states(db, self._sql, [entry.last.run_id for entry in entries])}
        except psycopg.Error as error:
            self._fail(entries, unavailable(error))
            return []
        unexplained = []
        for entry in entries:
            run_id, generation = entry.last.run_id, entry.last.generation
            run = found.get(run_id)
            if run is None:
                entry.fail(RunNotFound(run_id))
            elif run.generation != generation:
                entry.fail(StaleGeneration(run_id, generation, run.generation))
            elif run.status.finished:
                entry.fail(RunFinished(run_id, run.status.value))
            elif entry.count or entry.closed:
                unexplained.append(entry)
            else:
                entry.settle(run.next_index)
        return unexplained

    async def _shed(self, db: Connection, run: Run, id_: int, excess: int) -> Run:
        """Drop the oldest chunks until ``excess`` bytes are gone, but never the newest chunk."""
        try:
            ((before,),) = await fetch(db, self._sql.excess, (id_, id_, excess))
            if before is not None:
                return await again(lambda: trim(db, self._sql, run.run_id, int(before))) or run
        except (psycopg.Error, RunNotFound):  # the events are stored; the next append finds it too large again
            pass
        return run


def _plan(
    group: Sequence[Operation[Connection, object]],
) -> tuple[list[_Entry], list[Call], list[Operation[Connection, object]]]:
    """What goes first, in one statement, what follows it, and what has to come behind that.

    What is done to one run is done in the order in which it was asked for.
    """
    entries: dict[str, _Entry] = {}
    calls: list[Call] = []
    left: list[Operation[Connection, object]] = []
    behind: set[str] = set()  # runs whose next operation comes behind a call, or behind what is left
    all_behind = False
    size = 0
    for operation in group:
        if isinstance(operation, Append):
            entry = entries.get(operation.run_id)
            if (
                all_behind
                or operation.run_id in behind
                or (size and size + operation.size > _STATEMENT_BYTES)
                or (entry is None and len(entries) == _STATEMENT_RUNS)
                or (entry is not None and not entry.takes(operation))
            ):
                left.append(operation)
                behind.add(operation.run_id)
                continue
            size += operation.size
            if entry is None:
                entries[operation.run_id] = _Entry(operation)
        else:
            assert isinstance(operation, Call)
            waits = all_behind if operation.runs is None else not behind.isdisjoint(operation.runs)
            if (left and (operation.runs is None or waits)) or all_behind:
                left.append(operation)
            else:
                calls.append(operation)
            if operation.runs is None:
                all_behind = True
            else:
                behind.update(operation.runs)
    return list(entries.values()), calls, left


def _statement(
    sql: Statements,
    writer: tuple[int, int],
    entries: Sequence[_Entry],
    parts: Sequence[Sequence[Sequence[EncodedEvent]]],
) -> tuple[str, list[object]]:
    if len(entries) == 1 and len(parts[0]) == 1 and not entries[0].closed:
        (entry,), ((part,),) = entries, parts
        return sql.append_one, [
            *(entry.count, entry.size, *writer, entry.last.run_id, entry.last.generation),
            *(entry.count, entry.size, pack(part)),
        ]
    given: list[object] = [
        *writer,
        Texts([entry.last.run_id for entry in entries]),
        Int8s([entry.last.generation for entry in entries]),
        Int8s([entry.count for entry in entries]),
        Int8s([entry.size for entry in entries]),
        Texts([entry.last.status.value if entry.last.status is not None else "" for entry in entries]),
    ]
    positions, lasts, firsts, sizes, blobs = Int8s(), Int8s(), Int8s(), Int8s(), Byteas()
    for position, (entry, own) in enumerate(zip(entries, parts, strict=True), 1):
        first = entry.count  # from the run's new end
        for part in own:
            positions.append(position)
            firsts.append(first)
            first -= len(part)
            lasts.append(first + 1)
            sizes.append(entry.size if len(own) == 1 else sum([len(data) for _, data in part]))
            blobs.append(pack(part))
    given += [positions, lasts, firsts, sizes, blobs]
    told = [(position, entry.last.transcript) for position, entry in enumerate(entries, 1)]
    transcripts = [(position, transcript) for position, transcript in told if transcript is not None]
    if not transcripts:
        return sql.append, given
    given += [Int8s([position for position, _ in transcripts]), Byteas([told for _, told in transcripts])]
    return sql.append_transcripts, given


def _is_unknown(db: Connection, error: BaseException) -> bool:
    """Whether what failed may have been done all the same: a server that answers with an error has undone it."""
    sqlstate = getattr(error, "sqlstate", None)
    return db.closed or (isinstance(error, psycopg.OperationalError) and (sqlstate is None or sqlstate[:2] in ("08",)))
