"""Group commit: while one commit is in flight, what arrives is gathered and goes into the next.

There is no timer, and no wait when the store is idle. No caller leads: each operation has an outcome of its own, set
by whoever commits, so that cancelling a caller neither loses nor delays the operations of others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio

__all__ = ["GroupCommit", "Operation"]

C = TypeVar("C")
T = TypeVar("T")


class Operation(Generic[C, T]):
    """One write: what to do inside the transaction, and afterwards in the event loop.

    Args:
        apply: Runs inside the transaction, wherever the backend commits. It checks before it writes: a typed error
            that it raises concerns this operation alone, and must have changed nothing.
        committed: Runs in the event loop with the result of ``apply``, once the commit is durable, even if nobody
            waits for the outcome any more, and in the order of the operations.
    """

    __slots__ = ("_settled", "_waiter", "apply", "committed", "error", "result")

    def __init__(self, apply: Callable[[C], T], committed: Callable[[T], None] | None = None) -> None:
        self.apply: Callable[[C], T] = apply
        self.committed: Callable[[T], None] | None = committed
        self.result: T
        self.error: BaseException | None = None
        self._settled = False
        self._waiter: asyncio.Future[None] | anyio.Event | None = None

    async def outcome(self) -> T:
        """Wait for the commit; return the result or raise the error. For the one caller whose operation it is."""
        if not self._settled:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # trio
                self._waiter = anyio.Event()
                await self._waiter.wait()
            else:
                # a third of what an anyio.Event costs, and every append pays it
                self._waiter = loop.create_future()
                await self._waiter
        if self.error is not None:
            raise self.error
        return self.result

    def settle(self) -> None:
        """The commit is over: run what follows and wake the caller."""
        try:
            if self.error is None and self.committed is not None:
                self.committed(self.result)
        finally:
            self._settled = True
            waiter = self._waiter
            if isinstance(waiter, anyio.Event):
                waiter.set()
            elif waiter is not None and not waiter.done():  # its caller may have been cancelled
                waiter.set_result(None)


class GroupCommit(Generic[C]):
    """Hands one group of operations after another to ``commit``, never two at a time.

    Args:
        commit: Starts the commit of a group and returns at once; the backend calls ``finished`` in the event loop
            when it is over and each operation has its ``result`` or ``error``.
    """

    def __init__(self, commit: Callable[[Sequence[Operation[C, object]]], None]) -> None:
        self._commit = commit
        self._gathered: list[Operation[C, object]] = []
        self._in_flight = False
        self._idle: anyio.Event | None = None
        self.commits: int = 0

    def submit(self, operation: Operation[C, T]) -> None:
        """Queue an operation. Each caller waits for its own, so callers bound the queue."""
        self._gathered.append(operation)  # type: ignore[arg-type]  # its result type concerns only its caller
        if not self._in_flight:
            self._start()

    def finished(self, group: Sequence[Operation[C, object]]) -> None:
        """The commit of ``group`` is over; start the next and tell everybody."""
        self.commits += 1
        self._in_flight = False
        if self._gathered:
            self._start()  # before anybody is told: the store works while the loop wakes callers
        elif self._idle is not None:
            self._idle.set()
        for operation in group:
            operation.settle()

    async def drained(self) -> None:
        """Wait until nothing is queued or in flight."""
        while self._in_flight:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _start(self) -> None:
        group, self._gathered = self._gathered, []
        self._in_flight = True
        self._commit(group)
