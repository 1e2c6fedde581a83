"""A client that stops reading costs the server next to nothing beyond what agno itself puts by for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from ..faults.support import long_form
from .apps import FAMILIES, Settings, say
from .support import Client, Run, Server, poll, start

DELTAS = 200_000 if long_form() else 6_000
STALLED = 4
"""Several, so that the share of one stands out from the noise of the allocator."""
MIB = 1 << 20

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def _stalled(port: int, method: str, path: str, fields: dict[str, object] | None = None) -> AsyncIterator[bytes]:
    """A client that sends its request, reads the first bytes of the answer, and nothing more; gives those."""
    body = urlencode(fields or {}).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    head.append("Content-Type: application/x-www-form-urlencoded")
    client = socket.socket()
    with contextlib.closing(client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, "\r\n".join([*head, "\r\n"]).encode() + body)
        begin = b""
        while b"event: " not in begin:
            begin += await asyncio.wait_for(loop.sock_recv(client, 512), 30)
        yield begin


async def _peak(server: Server, over: asyncio.Event) -> int:
    peak = 0
    while not over.is_set():
        peak = max(peak, await server.rss())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 0.1)
    return max(peak, await server.rss())


async def _rise(server: Server, *, resumes: int = 0, gets: int = 0, primary: bool = False) -> int:
    """By how much the memory of the server rises at most through one run, with so many clients that do not read it."""
    before = await server.rss()
    # The deltas begin when all the clients are there
    hold = Path(server.settings.directory, f"hold-{before}")
    message = say(DELTAS, hold=hold, size=4)
    async with contextlib.AsyncExitStack() as stack:
        if primary:
            run = Run(f"stalled-{before}", f"s-{before}", "agent")
            fields: dict[str, object] = {
                "message": message,
                "stream": "true",
                "background": "true",
                "session_id": run.session_id,
                "run_id": run.run_id,
            }
            await stack.enter_async_context(_stalled(server.port, "POST", f"{FAMILIES['agent']}/runs", fields))
        else:
            run, stream = await start(server.port, "agent", message)
            await stream.leave()
        over = asyncio.Event()
        watching = asyncio.create_task(_peak(server, over))
        for _ in range(resumes):
            fields = {"session_id": run.session_id}
            await stack.enter_async_context(_stalled(server.port, "POST", f"{run.path}/resume", fields))
        for _ in range(gets):
            path = f"{run.path}/events?session_id={run.session_id}"
            await stack.enter_async_context(_stalled(server.port, "GET", path))
        hold.touch()  # noqa: ASYNC240  # in a local directory
        await poll(server.port, run, "COMPLETED", timeout=600.0)
        await asyncio.sleep(0.5)
        over.set()
        return await watching - before


async def test_a_client_that_stalls_costs_two_mebibytes_at_most(tmp_path: Path) -> None:
    figures: dict[str, float] = {}
    for name in ("agno", "ours"):
        directory = tmp_path / name
        directory.mkdir()
        async with Server(Settings(str(directory), resumable=name == "ours")) as server:
            await _rise(server)
            alone = await _rise(server)
            if name == "ours":
                figures["ours, stalled GET"] = (await _rise(server, gets=STALLED) - alone) / STALLED / MIB
            figures[f"{name}, stalled resume"] = (await _rise(server, resumes=STALLED) - alone) / STALLED / MIB
            figures[f"{name}, stalled start"] = (await _rise(server, primary=True) - alone) / MIB
    print(", ".join(f"{name}: {value:.1f} MiB" for name, value in figures.items()))
    assert figures["ours, stalled GET"] <= 2
    assert figures["ours, stalled resume"] <= 2
    # agno puts the frames of a background run by for the client that started it, whoever serves it
    assert figures["ours, stalled start"] <= max(0, figures["agno, stalled start"]) + 2


async def test_a_client_that_stalled_is_let_go_and_comes_back(tmp_path: Path) -> None:
    async with Server(Settings(str(tmp_path))) as server:
        run, stream = await start(server.port, "agent", say(5_000, size=200))
        await stream.leave(after=1)
        client = Client.going_on(run, stream)
        path = f"{run.path}/events?session_id={run.session_id}"
        async with _stalled(server.port, "GET", path):
            # It holds nobody up
            await poll(server.port, run, "COMPLETED")
            await (await client.get(server.port)).read()
        assert client.history.ended
        assert client.history.cursor == len(client.history.events) - 1
