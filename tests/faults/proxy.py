"""A TCP proxy that cuts connections of the event stream at random byte offsets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from types import TracebackType

from typing_extensions import Self

__all__ = ["CuttingProxy"]


@dataclass
class _Plan:
    """What is to happen to one connection: nothing, or the end after ``offset`` bytes of body, or before the head."""

    armed: bool = False
    offset: int | None = None
    begun: bool = False


class CuttingProxy:
    """Forwards to a port on loopback; of the first connections that carry events it delivers only so many bytes.

    A connection is cut where its seed says: before the answer has begun, right behind its head, within a frame,
    between two. Half of the cuts are an orderly close, half a reset. None lies within the head: Chromium takes one
    that breaks off before its Content-Type for a whole one, and closes the EventSource for good, whatever a server
    does. It is one segment on the wire.

    Args:
        port: Where to.
        cuts: How many connections are cut; those that come later live.
        seed: Chooses the offsets.
        most: The largest offset, in bytes of the body.
    """

    def __init__(self, port: int, *, cuts: int, seed: int, most: int = 4000) -> None:
        self._to = port
        self._random = random.Random(seed)
        self._most = most
        self._left = cuts
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut = 0
        """How many were cut."""
        self.requests: list[bytes] = []
        """The heads of all requests for events, as they were sent."""

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
        up: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, asyncio.CancelledError):
            down, up = await asyncio.open_connection("127.0.0.1", self._to)
            plan = _Plan()
            ways = {
                asyncio.create_task(self._upstream(reader, up, plan)),
                asyncio.create_task(self._downstream(down, writer, plan)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, up):
            if end is not None:
                end.close()

    async def _upstream(self, client: asyncio.StreamReader, server: asyncio.StreamWriter, plan: _Plan) -> None:
        while data := await client.read(65536):
            if b"/events" in data.split(b"\r\n", 1)[0]:
                self.requests.append(data)
                if self._left:
                    self._left -= 1
                    plan.armed = True
                    if self._random.random() < 0.9:
                        plan.offset = int(self._most * self._random.random() ** 2)  # rather early than late
            server.write(data)
            await server.drain()

    async def _downstream(self, server: asyncio.StreamReader, client: asyncio.StreamWriter, plan: _Plan) -> None:
        head = b""
        while data := await server.read(65536):
            if plan.armed and plan.offset is not None:
                if not plan.begun:
                    head += data
                    before, end, data = head.partition(b"\r\n\r\n")
                    if not end:
                        continue
                    client.write(before + end)
                    plan.begun = True
                client.write(data[: plan.offset])
                plan.offset -= len(data)
            elif not plan.armed:
                client.write(data)
            await client.drain()
            if plan.armed and (plan.offset is None or plan.offset <= 0):
                self.cut += 1
                if self._random.random() < 0.5:
                    client.transport.abort()
                return
