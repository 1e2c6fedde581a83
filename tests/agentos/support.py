"""Servers with the AgentOS application, and clients that see the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import anyio
from typing_extensions import Self

from ..faults import support as faults
from ..faults.checker import History, Seen
from ..faults.support import Answer, Connection, free_port, request, wait_for
from .apps import APP, FAMILIES, Settings

__all__ = [
    "COMMANDS",
    "TERMINAL",
    "Client",
    "Frame",
    "Run",
    "Server",
    "Stream",
    "bearer",
    "post",
    "row_of",
    "start",
    "status_of",
]

_PYTHON = (sys.executable, "-m")
_QUIET = ("--no-access-log", "--log-level", "warning")
_UVICORN = (*_PYTHON, "uvicorn", "--factory", APP, *_QUIET)
COMMANDS: Mapping[str, Sequence[str]] = {
    "uvicorn": _UVICORN,
    "uvicorn-workers-2": (*_UVICORN, "--workers", "2"),
    "uvicorn-reload": (*_UVICORN, "--reload", "--reload-dir", str(Path(__file__).parent)),
    "uvicorn-graceful": (*_UVICORN, "--timeout-graceful-shutdown", "60"),
    "granian": (*_PYTHON, "granian", "--interface", "asgi", "--factory", APP, "--log-level", "warning"),
    "gunicorn": (
        *_PYTHON,
        "gunicorn",
        "--worker-class",
        "uvicorn.workers.UvicornWorker",
        "--graceful-timeout",
        "60",
        "--log-level",
        "warning",
        f"{APP}()",
    ),
    "hypercorn": (*_PYTHON, "hypercorn", "--workers", "0", "--log-level", "warning", f"{APP}()"),
}
"""The command line of each server that AgentOS may run under, without an address."""

TERMINAL: Mapping[str, Mapping[str, str]] = {
    "agent": {"COMPLETED": "RunCompleted", "ERROR": "RunError", "CANCELLED": "RunCancelled"},
    "team": {"COMPLETED": "TeamRunCompleted", "ERROR": "TeamRunError", "CANCELLED": "TeamRunCancelled"},
    "workflow": {"COMPLETED": "WorkflowCompleted", "ERROR": "WorkflowError", "CANCELLED": "WorkflowCancelled"},
}
"""The terminal event of each family, by its status."""

_ADDRESSED: Mapping[str, str] = {"gunicorn": "--bind=127.0.0.1:{}", "hypercorn": "--bind=127.0.0.1:{}"}


class Server(faults.Server):
    """A server process with the application; ``kind`` is a key of ``COMMANDS``."""

    def __init__(self, settings: Settings, *, kind: str = "uvicorn", port: int | None = None) -> None:
        self.settings = settings
        self.port = port or free_port()
        self.output = Path(settings.directory) / f"server-{self.port}-{time.monotonic_ns()}.log"
        self.started_at = time.time()
        self.ready_at = 0.0
        address = _ADDRESSED.get(kind, "--port={}").format(self.port)
        command = COMMANDS[kind]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, address],
                cwd=faults.ROOT,
                env={**os.environ, **settings.environment()},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C of the tests is not the server's
            )

    async def ready(self) -> None:
        """Wait until it answers."""

        async def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.said()}")
            try:
                return (await request(self.port, "GET", "/-/pid")).status == 200
            except OSError:
                return False

        await wait_for(answers, 60.0, lambda: f"the server to answer: {self.said()}")
        self.ready_at = time.time()

    async def workers(self) -> set[int]:
        """The processes that answer now."""
        answers = [await request(self.port, "GET", "/-/pid") for _ in range(40)]
        return {json.loads(answer.body)["pid"] for answer in answers}

    async def rss(self) -> int:
        """Resident memory of the worker, in bytes."""
        found: int = json.loads((await request(self.port, "GET", "/-/memory")).body)["rss"]
        return found


# ---------------------------------------------------------------- requests


def bearer(token: str) -> dict[str, str]:
    """The header that authenticates a client."""
    return {"Authorization": f"Bearer {token}"}


def _form(fields: Mapping[str, object]) -> tuple[dict[str, str], bytes]:
    text = {
        name: ("true" if value else "false") if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None
    }
    return {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(text).encode()


async def post(port: int, path: str, /, *, headers: Mapping[str, str] | None = None, **fields: object) -> Answer:
    """Post a form; the answer is whole."""
    kind, body = _form(fields)
    return await request(port, "POST", path, headers={**kind, **(headers or {})}, body=body)


@dataclass(frozen=True)
class Run:
    """A run of one of the components, as its client knows it."""

    run_id: str
    session_id: str
    family: str

    @property
    def path(self) -> str:
        """Its own URL path."""
        return f"{FAMILIES[self.family]}/runs/{self.run_id}"


async def row_of(port: int, run: Run, *, headers: Mapping[str, str] | None = None) -> Answer:
    """What AgentOS itself says of the run, from its database."""
    return await request(port, "GET", f"{run.path}?session_id={quote(run.session_id)}", headers=headers)


async def status_of(port: int, run: Run, *, headers: Mapping[str, str] | None = None) -> str:
    """The status of AgentOS's own row of the run."""
    answer = await row_of(port, run, headers=headers)
    assert answer.status == 200, answer
    status: str = json.loads(answer.body)["status"]
    return status


# ---------------------------------------------------------------- streams


@dataclass(frozen=True)
class Frame:
    """One block of a stream: its name, its JSON, its id, and its bytes without comments and ``retry:``."""

    event: str
    data: dict[str, Any]
    id: str | None
    raw: bytes

    @property
    def index(self) -> int | None:
        """The event's index; ``None`` for what is no event of the run."""
        index = self.data.get("event_index")
        return index if isinstance(index, int) else None


def _strict(text: bytes) -> dict[str, Any]:
    """JSON as a browser reads it: no NaN, no infinity."""

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    value = json.loads(text, parse_constant=refuse)
    assert isinstance(value, dict), value
    return value


def _frame(block: bytes) -> Frame | None:
    lines = [line for line in block.split(b"\n") if not line.startswith((b":", b"retry:"))]
    if not any(lines):
        return None
    fields = {name: value.removeprefix(b" ") for name, _, value in (line.partition(b":") for line in lines)}
    assert set(fields) <= {b"event", b"data", b"id"}, block
    id_ = fields.get(b"id")
    return Frame(
        fields[b"event"].decode(),
        _strict(fields[b"data"]),
        None if id_ is None else id_.decode(),
        b"\n".join(lines),
    )


_BLOCK = re.compile(rb"(.*?)\n\n", re.DOTALL)


@dataclass
class Stream:
    """One streamed answer, read by a task of its own as it comes.

    ``clean`` says, at the end, whether the server has ended the body; ``rest`` is what was no whole frame.
    """

    connection: Connection
    frames: list[Frame] = field(default_factory=list)
    comments: int = 0
    retry: int | None = None
    clean: bool = False
    rest: bytes = b""
    history: History | None = None
    """Where the events go as well."""
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self._progress = asyncio.Event()
        self._stop_after: int | None = None
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls,
        port: int,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, object] | None = None,
        history: History | None = None,
    ) -> Self:
        """Ask for a stream; its status may be any."""
        kind, body = _form(fields) if fields is not None else ({}, b"")
        connection = await Connection.open(port, method, path, headers={**kind, **(headers or {})}, body=body)
        return cls(connection, history=history)

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.connection.answer.status

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer, in lower case."""
        return self.connection.answer.headers

    @property
    def events(self) -> list[Frame]:
        """The frames that are events of the run."""
        return [frame for frame in self.frames if frame.index is not None]

    @property
    def names(self) -> list[str]:
        """The names of all frames."""
        return [frame.event for frame in self.frames]

    @property
    def ended(self) -> bool:
        """Whether the body is over, one way or the other."""
        return self._task.done()

    async def read(self, *, timeout: float = 60.0) -> Self:
        """Wait for the end of the body."""
        with anyio.fail_after(timeout):
            await self._task
        return self

    async def some(self, events: int, *, timeout: float = 60.0) -> Self:
        """Wait until so many events are there, or the body is over."""
        with anyio.fail_after(timeout):
            while len(self.events) < events and not self._task.done():
                self._progress.clear()
                await self._progress.wait()
        return self

    async def begun(self, *, timeout: float = 60.0) -> Self:
        """Wait until a frame is there, with an index or without, or the body is over."""
        with anyio.fail_after(timeout):
            while not self.frames and not self._task.done():
                self._progress.clear()
                await self._progress.wait()
        return self

    async def until(self, event: str, *, timeout: float = 60.0) -> Frame:
        """Wait for a frame of this name."""
        with anyio.fail_after(timeout):
            while not (found := [frame for frame in self.frames if frame.event == event]):
                assert not self._task.done(), f"no {event} came: {self.names[-20:]}"
                self._progress.clear()
                await self._progress.wait()
        return found[0]

    async def having(self, text: str, *, timeout: float = 60.0) -> Self:
        """Wait until an event with this text as its content is there."""
        with anyio.fail_after(timeout):
            while not any(text in str(frame.data.get("content", "")) for frame in self.frames):
                assert not self._task.done(), f"{text!r} never came: {self.names[-20:]}"
                self._progress.clear()
                await self._progress.wait()
        return self

    async def leave(self, *, after: int | None = None) -> Self:
        """Close the connection without a word, at once or when ``after`` events are there; take no more than those."""
        if after is not None:
            self._stop_after = after
            await self.some(after)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.connection.close()
        return self

    async def _read(self) -> None:
        buffer = bytearray()
        json_body = self.headers.get("content-type", "").startswith("application/json")
        try:
            async with contextlib.aclosing(self.connection.body()) as chunks:
                async for chunk in chunks:
                    buffer += chunk
                    if not json_body and self._parse(buffer):
                        return
                    self._progress.set()
            self.clean = self.connection.answer.clean
        finally:
            self.rest = bytes(buffer)
            self.ended_at = time.monotonic()
            self._progress.set()

    def _parse(self, buffer: bytearray) -> bool:
        """Take the whole blocks out of the buffer; True when as many events came as were wanted."""
        begin = 0
        full = False
        while match := _BLOCK.match(buffer, begin):
            begin = match.end()
            block = match[1]
            self.comments += block.startswith(b":") or b"\n:" in block
            for line in block.split(b"\n"):
                if line.startswith(b"retry:"):
                    self.retry = int(line[6:])
            frame = _frame(bytes(block))
            if frame is None:
                continue
            self.frames.append(frame)
            if self.history is not None:
                if frame.index is None:
                    self.history.controls.append((frame.event, frame.data))
                else:
                    self.history.events.append(Seen(frame.index, frame.event, frame.raw))
            if self._stop_after is not None and len(self.events) >= self._stop_after:
                full = True
                break
        del buffer[:begin]
        return full


async def start(
    port: int,
    family: str,
    message: str,
    *,
    headers: Mapping[str, str] | None = None,
    session_id: str | None = None,
    **fields: object,
) -> tuple[Run, Stream]:
    """Start a run whose answer is its stream: ``background=True`` as documented unless said otherwise.

    The run is known from its first frame, as it is to any client.
    """
    session_id = session_id or f"s-{uuid.uuid4().hex[:12]}"
    fields = {"stream": True, "background": True, **fields}
    stream = await Stream.open(
        port,
        "POST",
        f"{FAMILIES[family]}/runs",
        headers=headers,
        fields={"message": message, "session_id": session_id, **fields},
        history=History(""),
    )
    await stream.begun()
    assert stream.status == 200, (stream.connection.answer, stream.rest)
    assert stream.frames, stream.rest
    run = Run(stream.frames[0].data["run_id"], session_id, family)
    assert stream.history is not None
    stream.history.run_id = run.run_id
    return run, stream


async def poll(port: int, run: Run, *statuses: str, timeout: float = 60.0, headers: Any = None) -> str:
    """Wait until AgentOS's own row has one of these statuses."""
    seen = ""

    async def reached() -> bool:
        nonlocal seen
        answer = await row_of(port, run, headers=headers)
        seen = json.loads(answer.body).get("status", "") if answer.status == 200 else f"HTTP {answer.status}"
        return seen in statuses

    await wait_for(reached, timeout, lambda: f"{run} to be {' or '.join(statuses)}; it is {seen}")
    return seen


@dataclass
class Client:
    """A client that follows one run over as many connections as it makes, and keeps its cursor.

    ``get`` is what EventSource does, ``resume`` what AgentOS's documentation says.
    """

    run: Run
    history: History
    headers: Mapping[str, str] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run, *, headers: Mapping[str, str] | None = None, after: int = -1) -> Self:
        """A client of a run that was started by somebody else."""
        return cls(run, History(run.run_id, after), dict(headers or {}))

    @classmethod
    def going_on(cls, run: Run, stream: Stream, *, headers: Mapping[str, str] | None = None) -> Self:
        """The client that started the run, and whose connection has ended."""
        assert stream.history is not None
        return cls(run, stream.history, dict(headers or {}), [stream])

    async def get(self, port: int, *, query: str = "") -> Stream:
        """Connect as an EventSource does, without a cursor before the first event."""
        cursor = self.history.cursor
        headers = dict(self.headers)
        if cursor >= 0:
            headers["Last-Event-ID"] = f"{self.run.run_id}:{cursor}"
        path = f"{self.run.path}/events?session_id={quote(self.run.session_id)}{query}"
        return self._keep(await Stream.open(port, "GET", path, headers=headers, history=self.history))

    async def resume(self, port: int) -> Stream:
        """Connect as a client of AgentOS does."""
        cursor = self.history.cursor
        fields = {"session_id": self.run.session_id, "last_event_index": cursor if cursor >= 0 else None}
        return self._keep(
            await Stream.open(
                port, "POST", f"{self.run.path}/resume", headers=self.headers, fields=fields, history=self.history
            )
        )

    def _keep(self, stream: Stream) -> Stream:
        self.streams.append(stream)
        return stream

    async def cancel(self, port: int) -> Answer:
        """Ask for the run to be cancelled."""
        return await post(port, f"{self.run.path}/cancel?session_id={quote(self.run.session_id)}", headers=self.headers)


async def together(*awaited: Awaitable[Any]) -> list[Any]:
    """All of them at once."""
    return list(await asyncio.gather(*awaited))
