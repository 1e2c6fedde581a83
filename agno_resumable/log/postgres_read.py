"""Reads that come together go together: a thousand readers that a commit has woken cost one statement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import anyio

from ..errors import LogClosed, RunNotFound
from ..model import Batch, Page, Run
from .hot import take
from .postgres_link import Connection
from .postgres_sql import Statements
from .postgres_values import Int8s, Texts, fetch
from .rows import batch_behind, run_from_row

__all__ = ["TOGETHER", "GroupRead", "Request", "read_behind", "read_pages"]

_MOST = 2**40
TOGETHER = 256
"""How many runs one statement reads."""


class Request(NamedTuple):
    """A page that somebody wants; two who want the same get the same."""

    run_id: str
    after: int
    limit: int
    max_bytes: int


class _Reading:
    __slots__ = ("done", "error", "page")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.page: Page | None = None
        self.error: Exception | None = None


class _UnderWay:
    """A statement that reads these runs, and of which of them another process has told since it began."""

    __slots__ = ("names", "told")

    def __init__(self, requests: Sequence[Request]) -> None:
        self.names = {request.run_id for request in requests}
        self.told: set[str] = set()


class GroupRead:
    """Gathers requests while others are under way.

    Args:
        start: Has a job run in a task of the log's own.
        run: Runs a read on a connection.
        saw: Called with each page, the cursor behind which it was read, and the epoch at which its read began; before
            whoever wants the page gets it.
        heard: Called with the runs of which another process has told while they were read.
        epoch: The hot tail's.
        width: How many statements may be under way at the same time.
    """

    def __init__(
        self,
        start: Callable[[Callable[[], Awaitable[object]]], None],
        run: Callable[[Callable[[Connection], Awaitable[list[Page | None]]]], Awaitable[list[Page | None]]],
        statements: Statements,
        *,
        saw: Callable[[Page, int, int], None],
        heard: Callable[[Sequence[str]], None],
        epoch: Callable[[], int],
        width: int = 2,
    ) -> None:
        self._start = start
        self._run = run
        self._sql = statements
        self._saw = saw
        self._heard = heard
        self._epoch = epoch
        self._free = width
        self._gathered: dict[Request, _Reading] = {}
        self._under_way: set[_UnderWay] = set()

    async def read(self, request: Request) -> Page:
        """The page, read by a statement that begins now or later.

        Raises:
            RunNotFound: There is no such run.
            LogUnavailable: The database did not answer.
        """
        reading = self._gathered.get(request)
        if reading is None:
            reading = self._gathered[request] = _Reading()
            if self._free:
                self._free -= 1
                self._start(self._work)
        await reading.done.wait()
        if reading.error is not None:
            raise reading.error
        if reading.page is None:
            raise RunNotFound(request.run_id)
        return reading.page

    def told(self, words: Sequence[str]) -> None:
        """Another process has changed these runs: a read that is under way may be of the moment before."""
        for statement in self._under_way:
            statement.told.update(statement.names.intersection(words))

    async def _work(self) -> None:
        group: dict[Request, _Reading] = {}
        try:
            while self._gathered:
                group = {request: self._gathered[request] for request in list(self._gathered)[:TOGETHER]}
                for request in group:
                    del self._gathered[request]
                await self._read(group)
        except BaseException:  # cancelled with the log: nobody may be left waiting
            left, self._gathered = {**group, **self._gathered}, {}
            for reading in left.values():
                reading.error = LogClosed("The log was closed before the database had answered.")
                reading.done.set()
            raise
        finally:
            self._free += 1

    async def _read(self, group: dict[Request, _Reading]) -> None:
        epoch = self._epoch()
        requests = list(group)
        under_way = _UnderWay(requests)
        self._under_way.add(under_way)
        try:
            pages = await self._run(lambda db: read_pages(db, self._sql, requests))
        except Exception as error:  # told to those who wait for it
            for reading in group.values():
                reading.error = error
                reading.done.set()
            return
        finally:
            self._under_way.discard(under_way)
        for request, page in zip(requests, pages, strict=True):
            if page is not None:
                self._saw(page, request.after, epoch)
            group[request].page = page
            group[request].done.set()
        if under_way.told:
            self._heard(list(under_way.told))


async def read_behind(db: Connection, sql: Statements, ends: Sequence[tuple[str, int]], most: int) -> dict[str, Page]:
    """By run, up to ``most`` chunks behind an end; all of one moment. A run that does not exist is left out."""
    if len(ends) == 1:
        rows = await fetch(db, sql.follow_one, (ends[0][1], most, ends[0][0]))
    else:
        rows = await fetch(db, sql.follow, (Texts([name for name, _ in ends]), Int8s([end for _, end in ends]), most))
    found: dict[str, tuple[Run, list[Batch]]] = {}
    for position, first, blob, *row in rows:
        name, end = ends[position - 1]
        if name not in found:
            found[name] = (run_from_row(row), [])
        if blob is not None:
            run, batches = found[name]
            batch = batch_behind(name, first, blob, max(end, run.first_index - 1))
            if batch:
                batches.append(batch)
    return {name: Page(*of_run) for name, of_run in found.items()}


async def read_pages(db: Connection, sql: Statements, requests: Sequence[Request]) -> list[Page | None]:
    """A page for each request, or ``None`` where the run does not exist; all of one moment."""
    rows = await fetch(
        db,
        sql.read,
        (
            Texts([request.run_id for request in requests]),
            Int8s([min(request.after, _MOST) for request in requests]),
            Int8s([min(max(request.limit, 0), _MOST) for request in requests]),
            Int8s([min(request.max_bytes, _MOST) for request in requests]),
        ),
    )
    pages: list[Page | None] = [None] * len(requests)
    for position, firsts, blobs, *row in rows:
        run = run_from_row(row)
        request = requests[position - 1]
        after = max(request.after, run.first_index - 1)
        batches = [
            batch_behind(run.run_id, first, blob, after) for first, blob in zip(firsts or (), blobs or (), strict=True)
        ]
        pages[position - 1] = Page(run, take(batches, after, request.limit, request.max_bytes))
    return pages
