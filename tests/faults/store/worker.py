"""A worker: takes commands, produces and reads and sweeps, and records what it does.

``python -m tests.faults.store.worker FD`` is the process that others are forked from, so that what a worker needs is
imported only once: a producer can be killed and replaced in a few milliseconds.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import logging
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import orjson
from anyio.abc import TaskGroup

# What children need, imported before they are made
from agno_resumable.errors import LogUnavailable
from agno_resumable.log import postgres, postgres_open, redis, sqlite  # noqa: F401
from agno_resumable.log.protocol import EventLog
from agno_resumable.model import Run, RunStatus
from agno_resumable.supervisor import Policy, Supervisor

from .producing import Pace, Production, create
from .reading import read_to_end
from .recording import Recording
from .records import Failed, Record, Said, dump

__all__ = ["Worker", "make_log"]

_FOR_EVER = 86_400.0


def make_log(kind: str, where: str, options: dict[str, Any]) -> EventLog:
    """The log at a place, not open yet."""
    if kind == "sqlite":
        return sqlite.SQLiteEventLog(where, **options)
    if kind == "postgres":
        return postgres.PostgresEventLog(where, **options)
    assert kind == "redis"
    return redis.RedisEventLog(where, **options)


class Worker:
    """Does what it is told, each command in a task of its own.

    Args:
        name: Under which it records.
        record: Keeps a record.
        log: The log, open, if it is shared with others of this process.
        gate: Where a producer stands still that is stopped, for one that is no process.
    """

    def __init__(
        self,
        name: str,
        record: Callable[[Record], None],
        *,
        log: EventLog | None = None,
        gate: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.record = record
        self._log = log
        self._gate = gate
        self._productions: dict[str, list[Production]] = {}
        self._finishing: set[str] = set()
        self._inheriting: anyio.CancelScope | None = None

    async def work(self, commands: AsyncIterator[dict[str, Any]]) -> None:
        """Take commands until there are no more."""
        async with AsyncExitStack() as stack:
            if self._log is None:
                self._log = await self._open(stack, await anext(commands))
            self.log = Recording(self._log, self.name, self.record, self._gate)
            self.say("open")
            async with anyio.create_task_group() as self._tasks:
                async for command in commands:
                    self._tasks.start_soon(self._guarded, getattr(self, f"do_{command.pop('do')}"), command)
                self._tasks.cancel_scope.cancel()

    def say(self, what: str, value: int = 0) -> None:
        """Answer a command."""
        self.record(Said(self.name, "", what, value))

    async def _open(self, stack: AsyncExitStack, command: dict[str, Any]) -> EventLog:
        while True:
            log = make_log(command["kind"], command["where"], dict(command["options"]))
            try:
                return await stack.enter_async_context(log)
            except LogUnavailable:  # a store that is being restarted
                await anyio.sleep(0.05)

    async def _guarded(self, job: Callable[..., Awaitable[None]], words: dict[str, Any]) -> None:
        try:
            await job(**words)
        except Exception as error:
            said = "".join(traceback.format_exception(error))
            run = words.get("run", "")
            self.record(Failed(self.name, run.run_id if isinstance(run, Run) else run, said))

    # ---------------------------------------------------------------- commands

    async def do_produce(self, run: str, lease: float, seed: int, pause: float, via_outbox: bool) -> None:
        """Create the run and write to it until ``do_finish``."""
        await self._produce(await create(self.log, run, lease), lease, Pace(seed, pause), via_outbox)

    async def _produce(self, run: Run, lease: float, pace: Pace, via_outbox: bool) -> None:
        supervisor = await Supervisor.acquire(self.log, Policy(lease, _FOR_EVER, None))
        try:
            production = Production(self.log, run, pace, via_outbox=via_outbox, supervisor=supervisor)
            self._productions.setdefault(run.run_id, []).append(production)
            if run.run_id in self._finishing:
                production.finish()
            async with anyio.create_task_group() as tasks:
                if not via_outbox:
                    tasks.start_soon(self._renew, run, lease)
                await production.produce()
                tasks.cancel_scope.cancel()
        finally:
            await supervisor.release()

    async def _renew(self, run: Run, lease: float) -> None:
        while True:
            await anyio.sleep(lease / 3)
            try:
                await self.log.renew([(run.run_id, run.generation)], lease=lease)
            except LogUnavailable:
                continue

    async def do_finish(self, run: str) -> None:
        """Have the run end, if it is produced here, or as soon as it is."""
        self._finishing.add(run)
        for production in self._productions.pop(run, []):
            production.finish()

    async def do_rest(self, run: str) -> None:
        """Have the run rest; ``do_produce`` goes on with it."""
        for production in self._productions.pop(run, []):
            production.finish(RunStatus.PAUSED)

    async def do_read(self, run: str, line: str, after: int, limit: int, lag: float) -> None:
        """Follow the run to its end."""
        await read_to_end(self.log, self.name, self.record, run=run, line=line, after=after, limit=limit, lag=lag)

    async def do_inherit(self, how: str, interval: float, lease: float, seed: int) -> None:
        """Look for runs whose producer is lost, until ``do_renounce``: ``bury`` them, or ``adopt`` and go on."""
        with anyio.CancelScope() as self._inheriting:
            self.say("inheriting")
            if how == "bury":
                await self._bury(Policy(lease, interval, None))
            else:
                await self._adopt(self._tasks, interval, lease, seed)
        self.say("renounced")

    async def _bury(self, policy: Policy) -> None:
        # A supervisor of its own, beside that of what is produced here
        sweeping = Recording(self.log.inner, f"{self.name}/sweep", self.record, sweeps=True)
        supervisor = await Supervisor.acquire(sweeping, policy)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await supervisor.release()

    async def _adopt(self, tasks: TaskGroup, interval: float, lease: float, seed: int) -> None:
        estate = Recording(self.log.inner, self.name, self.record, sweeps=True)
        while True:
            try:
                with anyio.CancelScope(shield=True):  # what is claimed has to be produced
                    for run in await estate.expire(lease=lease):
                        words = {"run": run, "lease": lease, "pace": Pace(seed, 0.004), "via_outbox": bool(seed % 2)}
                        tasks.start_soon(self._guarded, self._produce, words)
            except LogUnavailable:
                pass
            await anyio.sleep(interval)

    async def do_renounce(self) -> None:
        """Inherit no more."""
        if self._inheriting is not None:
            self._inheriting.cancel()

    async def do_trim(self, run: str, before: int) -> None:
        """Drop the events under an index."""
        while True:
            try:
                await self.log.trim(run, before=before)
                break
            except LogUnavailable:  # a trim may be done again
                await anyio.sleep(0.02)
        self.say("trimmed", before)

    async def do_limit(self, path: str, beyond: int | None) -> None:
        """Let no file grow further than so many bytes beyond the size of this one; or, with ``None``, any again."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        soft = hard if beyond is None else max(0, os.stat(path).st_size + beyond)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.say("limited")


# ---------------------------------------------------------------- processes


def _send(channel: socket.socket, data: bytes) -> None:
    """Hand all of it over before anything else happens: from here on a SIGKILL cannot take it back."""
    while data:
        try:
            data = data[channel.send(data) :]
        except BlockingIOError:
            select.select([], [channel], [])


async def _commands(channel: socket.socket) -> AsyncIterator[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(sock=channel.dup())
    try:
        while line := await reader.readline():
            yield orjson.loads(line)
    finally:
        writer.close()


def _child(channel: socket.socket, name: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    channel.setblocking(False)
    worker = Worker(name, lambda record: _send(channel, dump(record)))
    worker.say("hello", os.getpid())
    anyio.run(worker.work, _commands(channel))


def _die_with_parent() -> None:
    """A worker that is stopped when the tests are killed would stay for ever; only Linux can help that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _main(fd: int) -> None:
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are nobody's to wait for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the tests end what they have started
    logging.getLogger("agno_resumable").addHandler(logging.NullHandler())  # what it warns of is what is meant to happen
    nursery = socket.socket(fileno=fd)
    while True:
        said, descriptors = _receive(nursery)
        if not said:
            return
        with socket.socket(fileno=descriptors[0]) as channel:
            if os.fork() == 0:
                status = 1
                try:
                    nursery.close()
                    _die_with_parent()
                    _child(channel, said.decode())
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)


def _receive(nursery: socket.socket) -> tuple[bytes, list[int]]:
    said, ancillary, _, _ = nursery.recvmsg(200, socket.CMSG_LEN(array.array("i").itemsize))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return said, list(descriptors)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
