"""Servers in processes of their own, and a client that sees the bytes: what the fault tests are made of.

The client is written on a bare socket, because what matters here is what an HTTP library hides: whether a body ended
or was broken off, and the frames as they were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlencode

import anyio
from typing_extensions import Self

from agno_resumable import open_log

from .apps import FAMILIES, Settings
from .checker import History, Seen

__all__ = [
    "GRANIAN",
    "HYPERCORN",
    "UVICORN",
    "Answer",
    "Connection",
    "Reader",
    "Server",
    "Started",
    "integrity",
    "long_form",
    "post",
    "request",
    "runs_of",
    "start_run",
    "stored",
    "wait_for",
]

ROOT = Path(__file__).parents[2]
_APP = "tests.faults.apps:make_app"
UVICORN = (sys.executable, "-m", "uvicorn", "--factory", _APP, "--no-access-log", "--log-level", "warning")
# Its own worker processes hear no signal at all, only an event of its master; without workers it is its own
HYPERCORN = (sys.executable, "-m", "hypercorn", f"{_APP}()", "--workers", "0", "--log-level", "warning")
GRANIAN = (sys.executable, "-m", "granian", "--interface", "asgi", "--factory", _APP, "--log-level", "warning")


def long_form() -> bool:
    """Whether the full numbers of the acceptance are asked for."""
    return bool(os.environ.get("AGNO_RESUMABLE_LONG"))


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Server:
    """An ASGI server in a process of its own, with its output in a file.

    Args:
        settings: For the application.
        directory: Where its output goes.
        command: The server's command line, without host and port.
        port: Where it listens; a free one if not given.
        workers: How many processes it shall start.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        *,
        command: Sequence[str] = UVICORN,
        port: int | None = None,
        workers: int = 1,
    ) -> None:
        self.port = port or free_port()
        self.output = directory / f"server-{self.port}-{time.monotonic_ns()}.log"
        address = ["--bind", f"127.0.0.1:{self.port}"] if command is HYPERCORN else ["--port", str(self.port)]
        many = ["--workers", str(workers)] if workers > 1 else []
        self.started_at = time.time()
        self.ready_at = 0.0
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *address, *many],
                cwd=ROOT,
                env={**os.environ, **settings.environment()},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C of the tests is not the server's
            )

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()

    async def ready(self) -> None:
        """Wait until it answers."""

        async def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.said()}")
            try:
                return (await request(self.port, "GET", "/pid")).status == 200
            except OSError:
                return False

        await wait_for(answers, 60.0, lambda: f"the server to answer: {self.said()}")
        self.ready_at = time.time()

    def said(self) -> str:
        """Its output so far."""
        return self.output.read_text(errors="replace")

    def kill(self) -> None:
        """``kill -9`` of it and of the processes that it has started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # a group of its own: nobody else's processes are in it
        self.process.wait()

    async def exited(self, timeout: float) -> float | None:
        """Wait for its end; return the seconds that it took, or ``None`` if it has not come."""
        begun = time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() - begun > timeout:
                return None
            await asyncio.sleep(0.005)
        return time.monotonic() - begun


async def wait_for(condition: Callable[[], object], timeout: float, what: Callable[[], str]) -> None:
    """Poll ``condition``, or what it returns if that is awaitable, until it is true."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what()}")
        await asyncio.sleep(0.01)


# ---------------------------------------------------------------- HTTP, by hand


@dataclass
class Answer:
    """A response: its head, and how its body ended.

    ``clean`` is true when the server has said that the body is over; false when the connection was broken instead.
    """

    status: int
    headers: dict[str, str]
    body: bytes = b""
    clean: bool = False


class Connection:
    """One HTTP/1.1 request and its response, on a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
        self._reader = reader
        self._writer = writer
        self.answer = answer

    @classmethod
    async def open(
        cls, port: int, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Self:
        """Send a request and read the head of its answer.

        Raises:
            OSError: The connection was refused or broken before the head was whole.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            writer.write("\r\n".join([*lines, "\r\n"]).encode() + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, asyncio.IncompleteReadError):
                raise ConnectionResetError("no answer") from error
            raise
        named = (line.partition(":") for line in head[1:] if line)
        fields = {name.lower(): value.strip() for name, _, value in named}
        return cls(reader, writer, Answer(int(head[0].split()[1]), fields))

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; afterwards ``answer.clean`` says how it ended."""
        headers = self.answer.headers
        try:
            if self.answer.status in (204, 304):
                self.answer.clean = True
            elif headers.get("transfer-encoding") == "chunked":
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    chunk = await self._reader.readexactly(size + 2)
                    yield chunk[:-2]
                await self._reader.readexactly(2)
                self.answer.clean = True
            else:
                yield await self._reader.readexactly(int(headers["content-length"]))
                self.answer.clean = True
        except (asyncio.IncompleteReadError, OSError, ValueError):
            pass  # broken off: `clean` stays false
        finally:
            self.close()

    def close(self) -> None:
        """Leave, without a word."""
        self._writer.transport.abort()


async def request(
    port: int, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Answer:
    """A request that is answered at once, with its whole answer."""
    connection = await Connection.open(port, method, path, headers=headers, body=body)
    async for chunk in connection.body():
        connection.answer.body += chunk
    return connection.answer


def _form(fields: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(fields).encode()


async def post(port: int, path: str, **fields: str) -> Answer:
    """Post a form."""
    headers, body = _form(fields)
    return await request(port, "POST", path, headers=headers, body=body)


@dataclass(frozen=True)
class Started:
    """A run that was started in the background."""

    run_id: str
    family: str

    @property
    def path(self) -> str:
        """Its own URL path."""
        return f"{FAMILIES[self.family]}/runs/{self.run_id}"


async def start_run(port: int, family: str, message: str) -> Started:
    """Start a run that nobody reads yet."""
    answer = await post(port, f"{FAMILIES[family]}/runs", message=message, stream="false", background="true")
    assert answer.status == 202, answer
    return Started(json.loads(answer.body)["run_id"], family)


_FRAME = re.compile(rb"(.*?)\n\n", re.DOTALL)


@dataclass
class Reader:
    """A client of one run. Its history goes on over as many connections as it makes."""

    history: History
    family: str
    statuses: list[int] = field(default_factory=list)
    """The status of each connection's answer."""
    clean: bool = False
    """How the body of the last connection ended."""
    connection: Connection | None = None
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with everything that comes; whoever waits for it clears it."""

    @classmethod
    def of(cls, run: Started) -> Self:
        """A client of a run that was started by somebody else."""
        return cls(History(run.run_id), run.family)

    @classmethod
    async def posting(cls, port: int, family: str, message: str) -> Self:
        """Start a run with the POST whose answer is its stream; the body is for ``receive``."""
        headers, body = _form({"message": message})
        connection = await Connection.open(port, "POST", f"{FAMILIES[family]}/runs", headers=headers, body=body)
        assert connection.answer.status == 200, connection.answer
        reader = cls(History(connection.answer.headers["x-run-id"]), family)
        reader.connection = connection
        return reader

    @property
    def run(self) -> Started:
        """The run that it reads."""
        return Started(self.history.run_id, self.family)

    async def get(self, port: int, *, stop_after: int | None = None) -> int:
        """Connect with the cursor and read: to the end of the body, or until ``stop_after`` more events have come.

        Returns:
            The status of the answer.
        """
        path = f"{self.run.path}/events"
        # As EventSource does: no cursor before the first event
        headers = {"Last-Event-ID": f"{self.run.run_id}:{self.history.cursor}"} if self.history.cursor >= 0 else {}
        self.connection = await Connection.open(port, "GET", path, headers=headers)
        await self.receive(stop_after=stop_after)
        return self.statuses[-1]

    async def receive(self, *, stop_after: int | None = None) -> None:
        """Read the body of the open connection; a frame that is not whole when it breaks is dropped."""
        connection = self.connection
        assert connection is not None
        self.statuses.append(connection.answer.status)
        rest = b""
        left = stop_after
        async with contextlib.aclosing(connection.body()) as chunks:
            async for chunk in chunks:
                rest += chunk
                while match := _FRAME.match(rest):
                    rest = rest[match.end() :]
                    if self._take(match[1]) and left is not None:
                        left -= 1
                        if left <= 0:
                            self.progress.set()
                            return
                self.progress.set()
        self.clean = connection.answer.clean
        self.progress.set()

    async def reached(self, index: int, timeout: float = 30.0) -> None:
        """Wait until the event of this index has come."""
        with anyio.fail_after(timeout):
            while self.history.cursor < index:
                self.progress.clear()
                await self.progress.wait()

    def _take(self, block: bytes) -> bool:
        lines = [line for line in block.split(b"\n") if not line.startswith((b":", b"retry:"))]
        if not lines:
            return False
        name = lines[0].removeprefix(b"event: ").decode()
        if lines[-1].startswith(b"id: "):
            index = int(lines[-1].rpartition(b":")[2])
            self.history.events.append(Seen(index, name, b"\n".join(lines)))
            return True
        self.history.controls.append((name, json.loads(lines[-1].removeprefix(b"data:"))))
        return False


# ---------------------------------------------------------------- the file, behind the server's back


def integrity(path: Path) -> str:
    """What SQLite's own check says of the file: ``"ok"``."""
    with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as db:
        found: str = db.execute("PRAGMA integrity_check").fetchone()[0]
        return found


def runs_of(path: Path) -> dict[str, dict[str, object]]:
    """The rows of all runs."""
    with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as db:
        db.row_factory = sqlite3.Row
        return {row["run_id"]: dict(row) for row in db.execute("SELECT * FROM run")}


async def stored(path: Path, run_id: str) -> tuple[str, History]:
    """Status and events of a run as the log gives them, without a server."""
    log = open_log(f"sqlite:///{path}")
    async with log:
        history = History(run_id)
        run = (await log.read(run_id, limit=0)).run
        while history.cursor < run.last_index:
            page = await log.read(run_id, history.cursor)
            for batch in page.batches:
                for event, frame in zip(batch, batch.frames.split(b"\n\n"), strict=False):
                    history.events.append(Seen(event.index, event.type, frame))
        history.controls.append(("end", {"status": run.status.value, "last_event_index": run.last_index}))
        return run.status.value, history
