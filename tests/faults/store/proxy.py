"""A TCP proxy between workers and their database that cuts connections wherever its seed says."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from types import TracebackType

from typing_extensions import Self

__all__ = ["CuttingProxy"]

_Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# Longer than a client needs to come back and ask, on a machine that has nothing else to do
_LATE = 0.1


class CuttingProxy:
    """Hands everything on, until it is armed: then each connection has only so many bytes before it is cut.

    A third of the cuts falls on what the database answers. Of the cuts on what it is sent, half end in the middle of
    it; of the other half the client is told that the connection is gone, and the database gets all of it a moment
    later, as from a network that sends again what it had lost.

    Args:
        connect: Opens a connection to the database.
        seed: Chooses where.
        most: The most bytes that one connection gets.
    """

    def __init__(self, connect: Callable[[], Awaitable[_Opened]], *, seed: int, most: int = 60_000) -> None:
        self.port: int = 0
        self.cuts: int = 0
        self._connect = connect
        self._random = random.Random(seed)
        self._most = most
        self._armed = False
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def arm(self) -> None:
        """Cut from here on, also the connections that are there."""
        self._armed = True
        for link in self._links:
            self._plan(link)

    def calm(self) -> None:
        """Cut no more."""
        self._armed = False
        for link in self._links:
            link.left = None

    def _plan(self, link: _Link) -> None:
        link.way = self._random.choice(("up", "up", "down"))
        link.all_arrives = self._random.random() < 0.5
        # As often some hundred bytes as some ten thousand
        link.left = int(self._most ** self._random.random())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Cancelled when the proxy closes, of which asyncio's streams would complain
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                await self._serve(reader, writer)
            finally:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        down, up = await self._connect()
        link = _Link()
        if self._armed:
            self._plan(link)
        self._links.add(link)
        ways = {
            asyncio.create_task(self._pump(link, "up", reader, up, writer)),
            asyncio.create_task(self._pump(link, "down", down, writer, writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if link.late:
                await asyncio.wait(ways)
        finally:
            self._links.discard(link)
            for way in ways:
                way.cancel()
            up.close()  # what is in its buffer goes out first
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self,
        link: _Link,
        way: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        while data := await reader.read(65536):
            cut = False
            if link.left is not None and link.way == way:
                cut = len(data) >= link.left
                if cut:
                    self.cuts += 1
                    if way == "up" and link.all_arrives:
                        link.late = True
                        client.transport.abort()
                        await asyncio.sleep(_LATE * self._random.random())
                    else:
                        data = data[: link.left]
                link.left = max(0, link.left - len(data))
            writer.write(data)
            await writer.drain()
            if cut:
                return


class _Link:
    """One connection, and what is planned for it."""

    def __init__(self) -> None:
        self.way = ""
        self.left: int | None = None
        self.all_arrives = False
        self.late = False
