"""A thread that does one job after another, for a driver that blocks.

A thread of our own and not a limiter around worker threads: a cancelled caller gives a limiter's token back while
its thread still runs, and then two jobs would share one connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import anyio

from .signals import loop_caller

__all__ = ["Worker"]

R = TypeVar("R")
T = TypeVar("T")


class Worker(Generic[R]):
    """Threads that share a queue of jobs, each with a resource of its own.

    Args:
        name: The name of the threads.
        acquire: Makes the resource, in the thread.
        release: Ends it, in the thread.
        threads: How many.
        idle: Called in the thread after every job and when there was none for ``idle_interval`` seconds, as long as
            ``idle_while`` says so.
    """

    def __init__(
        self,
        name: str,
        acquire: Callable[[], R],
        release: Callable[[R], object],
        *,
        threads: int = 1,
        idle: Callable[[R], object] | None = None,
        idle_while: Callable[[], bool] = lambda: False,
        idle_interval: float = 0.02,
    ) -> None:
        self._acquire = acquire
        self._release = release
        self._idle = idle
        self._idle_while = idle_while
        self._idle_interval = idle_interval
        self._jobs: SimpleQueue[Callable[[R], object] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._main, name=name, daemon=True) for _ in range(threads)]
        self._failed: BaseException | None = None
        self._started = anyio.Event()
        self._stopped = anyio.Event()
        self._alive = 0
        self._call = loop_caller()

    async def start(self) -> None:
        """Start the threads; return when each has its resource, or raise what kept the first one from it."""
        self._alive = waiting = len(self._threads)

        def count() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._started.set()

        self._count = count
        for thread in self._threads:
            thread.start()
        with anyio.CancelScope(shield=True):  # opening is short, and a thread must not be left behind
            await self._started.wait()
        if self._failed is not None:
            await self.stop()
            raise self._failed

    def put(self, job: Callable[[R], object]) -> None:
        """Queue a job that handles its own errors. It runs even if nobody waits any more."""
        self._jobs.put(job)

    async def run(self, job: Callable[[R], T]) -> T:
        """Run ``job`` in a thread and return what it returns, or raise what it raises."""
        done = anyio.Event()
        outcome: list[Any] = [None, None]

        def work(resource: R) -> None:
            try:
                outcome[0] = job(resource)
            except BaseException as error:  # handed to the caller: a thread that dies would leave it waiting for ever
                outcome[1] = error
            self._call(done.set)

        self._jobs.put(work)
        await done.wait()
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    async def stop(self) -> None:
        """Let the threads do what is queued, then end them and wait."""
        for _ in self._threads:
            self._jobs.put(None)
        with anyio.CancelScope(shield=True):
            if self._alive:
                await self._stopped.wait()
        for thread in self._threads:
            thread.join()

    def _main(self) -> None:
        try:
            resource = self._acquire()
        except BaseException as error:  # raised by start(), in the loop
            self._failed = error
            self._call(self._count)
            self._call(self._left)
            return
        self._call(self._count)
        try:
            while True:
                try:
                    job = self._jobs.get(timeout=self._idle_interval if self._idle_while() else None)
                except Empty:
                    pass
                else:
                    if job is None:
                        break
                    job(resource)
                if self._idle is not None:
                    self._idle(resource)
        finally:
            self._release(resource)
            self._call(self._left)

    def _left(self) -> None:
        self._alive -= 1
        if not self._alive:
            self._stopped.set()
