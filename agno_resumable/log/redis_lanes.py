"""Who carries plans out: one writer, which sends all that has gathered while it was on its way, and a few readers.

They are tasks of the log and not of its callers, so that a caller who is cancelled neither breaks a connection nor
takes anybody else's operation along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..errors import LogClosed, LogUnavailable, ResumableError
from .group_commit import GroupCommit, Operation
from .redis_driver import ResponseError
from .redis_link import Command, Lane, Plan, Topology

__all__ = ["Lanes"]

T = TypeVar("T")

_READERS = 3
_READ_TOGETHER = 16  # pages in one exchange: more of them would keep those behind waiting


class _Planned(Operation[None, T]):
    """An operation that is carried out by exchanging commands and replies."""

    __slots__ = ("abandoned", "begun", "commands", "plan")

    def __init__(self, plan: Callable[[], Plan[T]], committed: Callable[[T], None] | None = None) -> None:
        super().__init__(_unused, committed)
        self.plan = plan
        self.begun: Plan[T] | None = None
        self.commands: Sequence[Command] = ()
        self.abandoned = False

    def again(self) -> bool:
        """Begin anew what only reads, if its connection was lost; return whether to."""
        if not isinstance(self.error, LogUnavailable) or isinstance(self.error.__cause__, ResponseError):
            return False
        self.begun, self.error = None, None
        return True

    def advance(self, replies: Sequence[Any] | None) -> bool:
        """Hand the plan its replies; return whether it wants more."""
        for reply in replies or ():
            if isinstance(reply, LogUnavailable):
                self.error = reply
                return False
        try:
            if self.begun is None:
                self.begun = self.plan()
                self.commands = next(self.begun)
            else:
                self.commands = self.begun.send(replies or ())
        except StopIteration as end:
            self.result = end.value
        except (ResumableError, UnicodeEncodeError) as error:  # a name that no store could keep is its caller's
            self.error = error
        except Exception as error:  # a reply of a kind nobody expects: its caller must learn of it, and the task live
            self.error = LogUnavailable(f"Redis gave a reply that cannot be read: {type(error).__name__}.")
            self.error.__cause__ = error
        else:
            return True
        return False


def _wake(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)


def _unused(_: None) -> Any:
    raise AssertionError("a plan is carried out by exchanging commands")


async def _carry_out(lane: Lane, operations: Sequence[_Planned[Any]], *, writes: bool) -> None:
    """Run the plans side by side, each of their rounds as one exchange; every operation has its outcome then."""
    active = [operation for operation in operations if operation.advance(None)]
    first = True
    while active:
        commands = [command for operation in active for command in operation.commands]
        replies = await lane.exchange(commands) if commands else []
        more: list[_Planned[Any]] = []
        start = 0
        for operation in active:
            end = start + len(operation.commands)
            if operation.advance(replies[start:end]):
                more.append(operation)
            elif isinstance(operation.error, LogUnavailable) and not first and writes:
                operation.error.outcome_unknown = True  # its first rounds may have done something
            start = end
        active, first = more, False


class Lanes:
    """The writer and the readers of an open log.

    Args:
        patient: Whether a server that is away is waited for; not where others would have to wait with it.
        lost: Called when the writer's connection was lost.
        begins: Called when a group of writes is about to be sent.
        ended: Called when its operations are settled; with whether what became of some is not known.
    """

    def __init__(
        self,
        topology: Topology,
        timeout: float,
        *,
        patient: bool,
        lost: Callable[[], None],
        begins: Callable[[], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._topology = topology
        self._timeout = timeout
        self._begins = begins
        self._ended = ended
        self._patient = patient
        self._writer = Lane(topology, timeout, lost, patient=patient)
        self.commits: GroupCommit[None] = GroupCommit(self._start_commit)
        self._groups: deque[Sequence[Operation[None, object]]] = deque()
        self._group_came = asyncio.Event()
        self._reads: deque[_Planned[Any]] = deque()
        self._idle: list[asyncio.Future[None]] = []  # readers without anything to read
        self._closed = False

    async def write(self, plan: Callable[[], Plan[T]], committed: Callable[[T], None]) -> T:
        """Carry the plan out with the next group, and ``committed`` behind it; see ``Operation``."""
        if self._closed:
            raise LogClosed
        operation = _Planned(plan, committed)
        self.commits.submit(operation)
        return await operation.outcome()

    async def look(self, plan: Callable[[], Plan[T]]) -> T:
        """Carry out a plan that only reads."""
        if self._closed:
            raise LogClosed
        operation = _Planned(plan)
        self._reads.append(operation)
        if self._idle:
            _wake(self._idle.pop())  # the one that has read last: all that it needs is at hand
        try:
            return await operation.outcome()
        finally:
            operation.abandoned = True

    def readers(self) -> Sequence[Callable[[], Any]]:
        """The tasks that read."""
        return [self._read] * _READERS

    async def run_writer(self) -> None:
        """The task that writes, for ever."""
        try:
            while True:
                if not self._groups:
                    self._group_came.clear()
                    await self._group_came.wait()
                    continue
                group = self._groups.popleft()
                self._begins()
                try:
                    await _carry_out(self._writer, group, writes=True)  # type: ignore[arg-type]  # all are planned
                finally:
                    self._settle(group)
        finally:
            await self._writer.close()

    def _start_commit(self, group: Sequence[Operation[None, object]]) -> None:
        self._groups.append(group)
        self._group_came.set()

    def _settle(self, group: Sequence[Operation[None, object]]) -> None:
        unknown = False
        for operation in group:
            if operation.error is None and not hasattr(operation, "result"):  # the exchange itself was cut off
                operation.error = LogUnavailable("The write was cut off.", outcome_unknown=True)
            unknown = unknown or (isinstance(operation.error, LogUnavailable) and operation.error.outcome_unknown)
        self.commits.finished(group)
        self._ended(unknown)

    async def _read(self) -> None:
        lane = Lane(self._topology, self._timeout, patient=self._patient)
        try:
            while True:
                if not self._reads:
                    idle = asyncio.get_running_loop().create_future()
                    self._idle.append(idle)
                    try:
                        await idle
                    finally:
                        if idle in self._idle:
                            self._idle.remove(idle)
                    continue
                operations: list[_Planned[Any]] = []
                while self._reads and len(operations) < _READ_TOGETHER:
                    operation = self._reads.popleft()
                    if not operation.abandoned:
                        operations.append(operation)
                try:
                    await _carry_out(lane, operations, writes=False)
                    await _carry_out(lane, [operation for operation in operations if operation.again()], writes=False)
                finally:
                    for operation in operations:
                        if operation.error is None and not hasattr(operation, "result"):
                            operation.error = LogUnavailable("The read was cut off.")
                        operation.settle()
        finally:
            await lane.close()

    async def drained(self) -> None:
        """Take nothing more, and wait until what was accepted has its outcome."""
        self._closed = True
        await self.commits.drained()
        for operation in self._reads:
            operation.error = LogClosed()
            operation.settle()
        self._reads.clear()
