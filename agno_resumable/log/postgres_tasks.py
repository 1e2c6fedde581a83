"""Tasks that belong to an open log, whatever is cancelled around it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from ..errors import LogClosed

__all__ = ["Tasks"]

T = TypeVar("T")
Job = Callable[[], Awaitable[object]]

logger: logging.Logger = logging.getLogger("agno_resumable.log.postgres")

# How long jobs that are under way when the log closes may take to end by themselves, in seconds.
_LAST_WORDS = 2.0


class _Busy:
    __slots__ = ("_tasks",)

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def __enter__(self) -> None:
        self._tasks.begun()

    def __exit__(self, *_: object) -> None:
        self._tasks.ended()


class Tasks:
    """Loops that run as long as the log is open, and jobs that end by themselves.

    A caller who is cancelled cuts no statement short: psycopg would ask the server to cancel it, on a connection made
    for that, and whether it was done nobody could tell.
    """

    def __init__(self) -> None:
        self.closed: bool = False
        self._group: TaskGroup
        self._owner: object = None  # the task; held, because an event loop holds tasks only weakly
        self._begun = anyio.Event()
        self._stop = anyio.Event()
        self._over = anyio.Event()
        self._scopes: set[anyio.CancelScope] = set()
        self._jobs = 0
        self._quiet = anyio.Event()

    async def open(self) -> None:
        """Let tasks be started.

        Their owner is a task by itself, in an empty context: a log may be closed in another task than the one that
        opened it, and under other cancel scopes, and carries no request's context along.
        """
        self._owner = contextvars.Context().run(asyncio.get_running_loop().create_task, self._main())
        await self._begun.wait()

    async def _main(self) -> None:
        try:
            async with anyio.create_task_group() as self._group:
                with anyio.CancelScope(shield=True):
                    self._begun.set()
                    while not self.closed:
                        try:
                            await self._stop.wait()
                        except anyio.get_cancelled_exc_class():
                            continue  # asyncio.run at its end cancels every task there is, see _own
        except Exception:  # a bug of ours: whoever closes the log must not wait for ever
            logger.exception("a task of the log failed")
        finally:
            self._over.set()

    async def close(self) -> None:
        """Wait for jobs, but not for long, and end the loops."""
        self.closed = True
        with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORDS):
            while self._jobs:
                self._quiet = anyio.Event()
                await self._quiet.wait()
        for scope in self._scopes:
            scope.cancel()
        self._stop.set()
        with anyio.CancelScope(shield=True):
            await self._over.wait()

    def loop(self, job: Job) -> None:
        """Run ``job``, which never ends, until the log closes."""
        self._group.start_soon(self._own, job, True)

    def start(self, job: Job) -> None:
        """Run ``job`` to its end.

        Raises:
            LogClosed: The log is closed.
        """
        if self.closed:
            raise LogClosed
        self.begun()
        self._group.start_soon(self._own, job, False)

    def busy(self) -> AbstractContextManager[None]:
        """What a loop does in here is a job."""
        return _Busy(self)

    def begun(self) -> None:
        """A job has begun."""
        self._jobs += 1

    def ended(self) -> None:
        """A job has ended."""
        self._jobs -= 1
        if not self._jobs:
            self._quiet.set()

    async def run(self, job: Callable[[], Awaitable[T]]) -> T:
        """Run ``job`` and give what it gives, or raise what it raises; it goes on if the caller is cancelled."""
        done = anyio.Event()
        outcome: list[Any] = [None, LogClosed("The log was closed before the database had answered.")]

        async def work() -> None:
            try:
                outcome[:] = [await job(), None]
            except Exception as error:  # raised where it was asked for
                outcome[1] = error
            finally:
                done.set()

        self.start(work)
        await done.wait()
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    async def _own(self, job: Job, endless: bool) -> None:
        if endless and self.closed:
            return  # before its first step: there was no scope yet that could be cancelled
        with anyio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            try:
                while True:
                    try:
                        await job()
                        return
                    except anyio.get_cancelled_exc_class():
                        if scope.cancel_called or not endless:
                            # asyncio.run at its end cancels every task there is, this one too; the log is closed by
                            # whoever opened it, and until then its runs want to be finished
                            return
            finally:
                self._scopes.discard(scope)
                if not endless:
                    self.ended()
