"""What other processes commit: heard from them, or looked for, and read once for all readers of this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import anyio

from ..errors import ResumableError
from ..model import Page
from . import postgres_ops as ops
from .postgres_link import Connection
from .postgres_notify import EVERYTHING, INTENTS
from .postgres_read import TOGETHER, GroupRead, read_behind
from .postgres_sql import Statements
from .postgres_tasks import Tasks
from .watch import IntentWatch, Watch

__all__ = ["Follower", "Look"]

T = TypeVar("T")

# How many chunks are read at once of a run that another process adds to, and the cursor of one of which only the state
# is wanted: its readers here are not at its end yet.
_CHUNKS = 16
_FAR = 2**40

# While there is a listener, what it has not heard of is looked for at this pace: another process may tell nothing.
_CALM = 1.0

# Of the polling interval: what another process commits is to be here within it, the look and what it finds included.
_SOONER = 0.8

logger: logging.Logger = logging.getLogger("agno_resumable.log.postgres")


class Look(Protocol):
    """Runs a read on a connection, again where the connection was cut under it."""

    def __call__(self, job: Callable[[Connection], Awaitable[T]], /) -> Awaitable[T]: ...


class Follower:
    """Keeps ``watch`` and ``intents`` right about the commits of other processes.

    Args:
        look: How to read.
        tasks: The log's.
        is_listening: Whether others' commits are told to this process at the moment.
        poll_interval: How often to look for them while they are not, in seconds.
    """

    def __init__(
        self,
        watch: Watch,
        intents: IntentWatch,
        statements: Statements,
        *,
        look: Look,
        tasks: Tasks,
        is_listening: Callable[[], bool],
        poll_interval: float,
    ) -> None:
        self._watch = watch
        self._intents = intents
        self._sql = statements
        self._look = look
        self._tasks = tasks
        self._is_listening = is_listening
        self._poll_interval = poll_interval
        self.pages: GroupRead = GroupRead(
            tasks.start, look, statements, saw=self._read, heard=self._told_of, epoch=lambda: watch.hot.epoch
        )
        self._told: set[str] = set()  # runs that another process has changed, and that concern somebody here
        self._some_told = asyncio.Event()
        self._nudged = asyncio.Event()
        self._everything = False  # whether anything may have changed
        self._failing = False

    def start(self) -> None:
        """Begin to follow."""
        self._tasks.loop(self._keep_reading)
        self._tasks.loop(self._keep_looking)

    def nudge(self) -> None:
        """Look at once."""
        self._nudged.set()

    def heard(self, words: Sequence[str]) -> None:
        """Another process has changed these runs, or the intents, or too much to name it."""
        if EVERYTHING in words or (INTENTS in words and self._intents.busy):
            self._everything = self._everything or EVERYTHING in words
            self._intents.doubt()
            self.nudge()
        self.pages.told(words)
        self._told_of([word for word in words if self._watch.concerns(word)])

    def found(self) -> None:
        """There is a listener, again: what was said in the meantime was said to nobody."""
        self.heard([EVERYTHING])

    def _told_of(self, names: Sequence[str]) -> None:
        if names:
            self._told.update(names)
            self._some_told.set()

    def _read(self, page: Page, after: int, epoch: int) -> None:
        self._watch.hot.absorb(page, after, epoch)
        self._watch.saw(page.run)

    async def _keep_reading(self) -> None:
        """Read what others have added to the runs that somebody here reads."""
        while True:
            await self._some_told.wait()
            self._some_told.clear()
            try:
                while self._told:
                    names = list(self._told)[:TOGETHER]
                    self._told.difference_update(names)
                    await self._catch_up(names)
            except ResumableError:
                self._everything = True  # it is looked at when the database answers again
                self._told.clear()
                self.nudge()

    async def _catch_up(self, names: Sequence[str]) -> None:
        hot = self._watch.hot
        epoch = hot.epoch
        ends = {name: _FAR if end is None else end for name, end in [(name, hot.end_of(name)) for name in names]}
        pages = await self._look(partial(read_behind, sql=self._sql, ends=list(ends.items()), most=_CHUNKS))
        for name, end in ends.items():
            page = pages.get(name)
            if page is None:
                self._watch.gone(name)
                continue
            hot.absorb(page, end, epoch)
            if page.last is not None and page.last < page.run.last_index:
                hot.forget(name)  # it is far ahead of its readers here, who read for themselves
            self._watch.saw(page.run)

    async def _keep_looking(self) -> None:
        looked = anyio.current_time()
        while True:
            interval = _CALM if self._is_listening() else self._poll_interval * _SOONER
            with anyio.move_on_after(looked + interval - anyio.current_time()):
                await self._nudged.wait()
            self._nudged.clear()
            now = anyio.current_time()
            whole = now - looked >= interval
            if whole:
                looked = now
            try:
                await self._look_once(whole)
                self._failing = False
            except ResumableError as error:
                # A store that is away for a moment is asked again; those who read or write are told.
                if not self._failing:
                    logger.warning(
                        "could not look for the commits of other processes",
                        extra={"error_type": type(error.__cause__ or error).__name__},
                    )
                self._failing = True
                await anyio.sleep(self._poll_interval)
                self.nudge()

    async def _look_once(self, whole: bool) -> None:
        whole = whole or self._everything
        self._everything = False
        watch, intents = self._watch, self._intents
        try:
            asked = watch.due() if whole else watch.doubted()
            if asked:
                found = await self._look(partial(ops.states, sql=self._sql, run_ids=asked))
                watch.looked_at(asked)
                watch.refresh(asked, found, foreign=whole)
            elif whole:
                watch.hot.doubt()
            if intents.unsure or (intents.busy and whole):
                intents.looked_at()
                intents.saw(await self._look(partial(ops.intents_version, sql=self._sql)))
        except ResumableError:
            self._everything = self._everything or whole
            intents.doubt()
            raise
        if watch.unsure:
            self.nudge()
