"""What the tests over real connections share: scripted components, uvicorn in a process or a thread, an SSE client."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import uvicorn
from agno.agent import Agent
from agno.team import Team
from agno.workflow import Step, StepInput, StepOutput, Workflow

from agno_resumable import EventLog, Family
from agno_resumable.demo.scripted import ScriptedModel, ScriptItem, ToolCall
from agno_resumable.sse import Decoder, Frame

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
PATIENCE = 30.0
"""Seconds until a test gives up waiting for what must come: no measure of speed."""

KINDS: Mapping[Family, str] = {Family.AGENT: "agents", Family.TEAM: "teams", Family.WORKFLOW: "workflows"}


# ---------------------------------------------------------------- components


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a (int): The first.
        b (int): The second.
    """
    return str(a + b)


def speech(words: int) -> list[ScriptItem]:
    """``words`` deltas, one word each and no two alike; the accents make bytes and characters differ."""
    return [f"wörd{number} " for number in range(words)]


def scripted_agent(
    *script: ScriptItem, id: str = "agent", words: int = 36, delay: float = 0.0, **arguments: Any
) -> Agent:
    """An agent that calls a tool and then says ``words`` words: about 50 events. Or one that plays ``script``."""
    played: Sequence[ScriptItem] = script or [*speech(4), ToolCall("add", {"a": 1, "b": 2}), *speech(words)]
    arguments.setdefault("tools", [add])
    return Agent(id=id, name=id, model=ScriptedModel(script=played, delay=delay), telemetry=False, **arguments)


def scripted_team(*script: ScriptItem, id: str = "team", words: int = 15, delay: float = 0.0, **arguments: Any) -> Team:
    """A team that delegates to a member, whose events come inside its own: about 50 events."""
    member = Agent(
        id="member",
        name="Member",
        role="Speaks.",
        model=ScriptedModel(script=speech(words), delay=delay),
        telemetry=False,
    )
    delegate = ToolCall("delegate_task_to_member", {"member_id": "member", "task": "Speak."})
    played: Sequence[ScriptItem] = script or [*speech(2), delegate, *speech(words)]
    model = ScriptedModel(script=played, delay=delay)
    return Team(id=id, name=id, members=[member], model=model, telemetry=False, **arguments)


def scripted_workflow(
    *script: ScriptItem, id: str = "workflow", words: int = 36, delay: float = 0.0, **arguments: Any
) -> Workflow:
    """A workflow of an agent's step and a function's: about 50 events."""
    agent = scripted_agent(*(script or speech(words)), id="speaker", delay=delay)

    def count(step_input: StepInput) -> StepOutput:
        return StepOutput(content=f"{len(str(step_input.previous_step_content or '').split())} words")

    speak, tell = Step(name="speak", agent=agent), Step(name="count", executor=count)
    return Workflow(id=id, name=id, steps=[speak, tell], telemetry=False, **arguments)


def scripted(family: Family | str, *script: ScriptItem, **arguments: Any) -> Agent | Team | Workflow:
    """The scripted component of a family; its id is the family's name."""
    make: Mapping[Family, Callable[..., Agent | Team | Workflow]] = {
        Family.AGENT: scripted_agent,
        Family.TEAM: scripted_team,
        Family.WORKFLOW: scripted_workflow,
    }
    return make[Family(family)](*script, **arguments)


class Gate:
    """A place in a script where a run waits until the test opens it: ``scripted_agent("a", gate.pass_, "b")``."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()

    async def pass_(self) -> None:
        self.reached.set()
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


# ---------------------------------------------------------------- waiting


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], *, timeout: float = PATIENCE, message: str = ""
) -> None:
    """Return as soon as ``condition`` holds; fail with ``message`` if it does not within ``timeout`` seconds."""
    deadline = anyio.current_time() + timeout
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        assert anyio.current_time() < deadline, message or "the condition never held"
        await anyio.sleep(0.01)


# ---------------------------------------------------------------- servers


class Server:
    """A uvicorn in a process of its own; ``address`` is ``http://127.0.0.1:port``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, terminal: Path) -> None:
        self.process = process
        self.port = port
        self.address = f"http://{HOST}:{port}"
        self._terminal = terminal

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """What the server has written so far, both streams."""
        return self._terminal.read_text("utf-8", "replace")

    def end(self, how: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send the signal, wait for the end and return the exit status."""
        self.process.send_signal(how)
        return self.process.wait(timeout)


@contextmanager
def server_process(
    app: str, *options: str, env: Mapping[str, str] | None = None, port: int = 0, factory: bool = False
) -> Iterator[Server]:
    """uvicorn with ``app``, given as ``module:app``, in a process; ready when this is entered, gone when it is left.

    Args:
        options: Further options of uvicorn's command line: ``"--workers", "2"``.
        env: Added to the environment of this process.
        port: The port; any free one if 0. That of an earlier server is free again after its end.
        factory: Whether ``app`` is a function that makes the application.
    """
    command = [sys.executable, "-m", "uvicorn", app, "--host", HOST, "--port", str(port), "--log-level", "info"]
    command += ["--no-access-log", *(["--factory"] if factory else []), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "AGNO_TELEMETRY": "false", **(env or {})}
    with tempfile.TemporaryDirectory() as directory:
        terminal = Path(directory, "terminal")
        with terminal.open("wb") as stream:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            bound = _bound_port(process, terminal)
            server = Server(process, bound, terminal)
            _answers(server)
            yield server
        finally:
            process.kill()
            process.wait()


def _bound_port(process: subprocess.Popen[bytes], terminal: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        said = terminal.read_text("utf-8", "replace")
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", said)
        if found:
            return int(found[1])
        assert process.poll() is None, f"the server ended with {process.returncode}: {said}"
        assert time.monotonic() < deadline, f"the server never said that it runs: {said}"
        time.sleep(0.02)


def _answers(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:  # with several workers the port is there before any of them
        try:
            httpx.get(f"{server.address}/-/ready", timeout=PATIENCE)
        except httpx.TransportError:
            assert server.process.poll() is None, server.output()
            assert time.monotonic() < deadline, server.output()
            time.sleep(0.02)
        else:
            return


@contextmanager
def server_thread(app: Any, **config: Any) -> Iterator[str]:
    """uvicorn with ``app`` in a thread with a loop of its own; gives its address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((HOST, 0))
    listener.listen(1024)
    config = {"log_level": "critical", "ws": "none", "timeout_graceful_shutdown": 5, **config}
    server = uvicorn.Server(uvicorn.Config(app, **config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


# ---------------------------------------------------------------- clients


@asynccontextmanager
async def http(address: str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server at ``address``; it reads no settings of a proxy from the environment."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(
        base_url=address, trust_env=False, limits=limits, timeout=httpx.Timeout(PATIENCE), **options
    ) as client:
        yield client


class EventStream:
    """One SSE response, decoded by the library's strict decoder, with its bytes kept.

    Iterate it for frames. ``frames`` is all of them so far, ``events`` those with an id, ``last_event_id`` the cursor.
    ``complete`` is True after a clean end of the body, and ``broken`` after one that was no end.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.headers = response.headers
        self.body = b""
        self.frames: list[Frame] = []
        self.complete = False
        self.broken = False
        self._decoder = Decoder()
        self._ready: list[Frame] = []
        self._chunks = response.aiter_raw()

    @property
    def last_event_id(self) -> str | None:
        return self._decoder.last_event_id

    @property
    def events(self) -> list[Frame]:
        """The frames that carry an index: agno's events."""
        return [frame for frame in self.frames if '"event_index":' in frame.data]

    @property
    def blocks(self) -> list[bytes]:
        """The bytes of each block with an id, as they came: what must equal the log."""
        lines = self.body.split(b"\n\n")[:-1]
        return [
            b"\n".join(line for line in block.split(b"\n") if not line.startswith(b":")) + b"\n\n"
            for block in lines
            if b"\nid: " in block
        ]

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Frame:
        while not self._ready:
            try:
                chunk = await self._chunks.__anext__()
            except StopAsyncIteration:
                self.complete = True
                raise
            except httpx.RemoteProtocolError:
                self.broken = True
                raise StopAsyncIteration from None
            self.body += chunk
            self._ready = self._decoder.feed(chunk)
        frame = self._ready.pop(0)
        self.frames.append(frame)
        return frame

    async def until(self, event: str) -> Frame:
        """The next frame with this event name."""
        async for frame in self:
            if frame.event == event:
                return frame
        raise AssertionError(f"the stream ended before a {event!r}: {[frame.event for frame in self.frames]}")


@asynccontextmanager
async def open_stream(client: httpx.AsyncClient, method: str, url: str, **request: Any) -> AsyncIterator[EventStream]:
    """The response of a request as an ``EventStream``; leaving the context closes the connection."""
    async with client.stream(method, url, **request) as response:
        yield EventStream(response)


async def receive(
    client: httpx.AsyncClient, method: str, url: str, *, leave_after: int | None = None, **request: Any
) -> EventStream:
    """Read a stream to its end, or leave it (closing the connection) after ``leave_after`` events."""
    with anyio.fail_after(PATIENCE):
        async with open_stream(client, method, url, **request) as stream:
            events = 0
            async for frame in stream:
                events += '"event_index":' in frame.data
                if leave_after is not None and events >= leave_after:
                    break
    return stream


async def logged_blocks(log: EventLog, run_id: str) -> list[bytes]:
    """What the log holds of the run, each event as the native frame it has to be sent as."""
    blocks: list[bytes] = []
    after = -1
    while True:
        page = await log.read(run_id, after)
        if not page.batches:
            return blocks
        for event in page.events:
            data = event.data[:-1] + b',"event_index":%d}' % event.index
            id_ = f"{run_id}:{event.index}".encode()
            blocks.append(b"event: %b\ndata: %b\nid: %b\n\n" % (event.type.encode(), data, id_))
            after = event.index
