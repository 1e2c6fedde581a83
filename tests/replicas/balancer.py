"""What stands in front of the replicas: a TCP balancer of our own, or nginx with the example's configuration."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from ..support import PATIENCE, ROOT

__all__ = ["NGINX", "Balancer", "nginx", "quiet_port", "reset"]

NGINX: str | None = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
"""The nginx of this machine, also where the user's path does not lead to what is the administrator's."""

CONFIGURATION = ROOT / "examples" / "replicas" / "nginx.conf"


def quiet_port() -> int:
    """A free port that the system gives to no outgoing connection.

    One of those that it does give may be taken when a killed replica comes back to it; and who connects to one of them
    again and again while nobody listens there will some day be connected to itself.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset, and not with the orderly end that a close is."""
    with contextlib.suppress(OSError):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Balancer:
    """Forwards each connection to the next of ``ports`` on loopback, in turn; one that refuses is skipped.

    What one side says, the other hears: the end of its sending, and a reset, which is also what a client gets while
    none of the ports answers.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.skipped = 0
        """How often a port refused, and the next one was tried."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ends = [writer]
        try:
            back, up = await self._connect()
            ends.append(up)
            ways = [asyncio.create_task(_forward(reader, up)), asyncio.create_task(_forward(back, writer))]
            try:
                await asyncio.gather(*ways)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            for end in ends:
                end.close()
        except (OSError, asyncio.CancelledError):
            for end in ends:
                reset(end)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self._ports:
            port = self._ports[self._turn % len(self._ports)]
            self._turn += 1
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                self.skipped += 1
        raise ConnectionRefusedError("none of the ports answers")


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.write_eof()


@contextlib.contextmanager
def nginx(ports: Sequence[int]) -> Iterator[int]:
    """nginx with the example's configuration in front of two ports; gives the one that it listens on."""
    assert NGINX is not None
    port = quiet_port()
    text = CONFIGURATION.read_text()
    for written, meant in zip((8001, 8002, 8080), (*ports, port), strict=True):
        assert text.count(f"127.0.0.1:{written}") == 1
        text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{meant}")
    with tempfile.TemporaryDirectory(prefix="agno-resumable-nginx-") as directory:
        configuration, output = Path(directory, "nginx.conf"), Path(directory, "output")
        configuration.write_text(text)
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [NGINX, "-p", directory, "-c", str(configuration)], stdout=stream, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + PATIENCE
            while not _listens(port):
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()  # and not SIGKILL, which would leave its workers behind
            process.wait(PATIENCE)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
