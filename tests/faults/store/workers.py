"""The workers of a fault test, seen from outside: started, told what to do, stopped and killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import anyio
import orjson
from typing_extensions import Self

from agno_resumable.log.protocol import EventLog

from .records import Failed, Record, Said, load
from .worker import Worker

__all__ = ["Handle", "LocalWorker", "Nursery", "ProcessWorker"]

ROOT = Path(__file__).parents[3]


class Handle(Protocol):
    """A worker."""

    name: str

    @property
    def alive(self) -> bool:
        """Whether it takes commands."""
        ...

    def send(self, **command: Any) -> None:
        """Give it a command; see ``Worker``."""
        ...

    async def kill(self) -> None:
        """End it at once, whatever it is doing; return when it is gone."""
        ...

    def stop(self) -> None:
        """Have it stand still."""
        ...

    def go_on(self) -> None:
        """Have it go on behind ``stop``."""
        ...


class Nursery:
    """The process that worker processes are forked from."""

    def __enter__(self) -> Self:
        self._channel, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.faults.store.worker", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._channel.close()
        self._process.kill()  # its children go with it
        self._process.wait()

    async def spawn(self, name: str, record: Callable[[Record], None], spec: dict[str, Any]) -> ProcessWorker:
        """A new worker on the log that ``spec`` describes; it is open already."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._channel, [name.encode()], [theirs.fileno()])
        ours.setblocking(False)
        worker = ProcessWorker(name, record)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        worker.send(**spec)
        await worker.opened.wait()
        if not worker.alive:
            raise RuntimeError(f"the worker {name} has ended before it began")
        return worker


class ProcessWorker(asyncio.Protocol):
    """A worker that is a process. What it has recorded is kept, however it ends."""

    def __init__(self, name: str, record: Callable[[Record], None]) -> None:
        self.name = name
        self.pid = 0
        self.opened = anyio.Event()
        self._record = record
        self._rest = b""
        self._gone = anyio.Event()
        self._killed = False
        self._transport: asyncio.Transport

    @property
    def alive(self) -> bool:
        return not self._gone.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            record = load(line)
            if isinstance(record, Said) and record.what == "hello":
                self.pid = record.value
            elif isinstance(record, Said) and record.what == "open":
                self.opened.set()
            else:
                self._record(record)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self.opened.set()
        if not self._killed:
            self._record(Failed(self.name, "", "the process has ended by itself"))

    def send(self, **command: Any) -> None:
        self._transport.write(orjson.dumps(command) + b"\n")

    async def kill(self) -> None:
        self._killed = True
        self._signal(signal.SIGKILL)
        await self._gone.wait()
        self._transport.close()

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class LocalWorker:
    """A worker that is a task of this process, for logs that only one process has.

    Killed, it is cancelled, which may happen in the middle of an append. Stopped, its producers stand still between
    the record of an append and the append.
    """

    def __init__(self, name: str, record: Callable[[Record], None], log: EventLog) -> None:
        self.name = name
        self._going = anyio.Event()
        self._going.set()
        self._send, self._receive = anyio.create_memory_object_stream[dict[str, Any]](1000)
        self._worker = Worker(name, record, log=log, gate=self._wait)
        self._task = asyncio.create_task(self._work())

    @property
    def alive(self) -> bool:
        return not self._task.done()

    async def _wait(self) -> None:
        await self._going.wait()

    async def _work(self) -> None:
        async with self._receive:
            await self._worker.work(self._commands())

    async def _commands(self) -> AsyncIterator[dict[str, Any]]:
        async for command in self._receive:
            yield command

    def send(self, **command: Any) -> None:
        self._send.send_nowait(command)

    async def kill(self) -> None:
        self._send.close()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._receive.close()  # if it was cancelled before its first step

    def stop(self) -> None:
        self._going = anyio.Event()

    def go_on(self) -> None:
        self._going.set()
