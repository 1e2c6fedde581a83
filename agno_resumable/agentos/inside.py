"""One request to the application inside of the bridge, and the client that it came from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
from starlette.types import Message, Receive, Scope, Send

from .splitting import FrameSplitter

__all__ = ["Body", "Incoming", "Inside", "Written", "inner_scope", "is_event_stream"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

# Bytes of agno's frames that wait here for the log or for the client, before agno itself has to wait
_BUFFER = 131_072


def is_event_stream(start: Message) -> bool:
    """Whether this ``http.response.start`` begins an event stream that can be read."""
    headers = {name.lower(): value for name, value in start["headers"]}
    kind: bytes = headers.get(b"content-type", b"")
    return start["status"] == 200 and kind.startswith(b"text/event-stream") and b"content-encoding" not in headers


class Body(Protocol):
    """Where the application inside gets its request from."""

    async def receive(self) -> Message:
        """The request, then the disconnect."""
        ...

    def tell(self) -> None:
        """The application is to hear that the client has gone."""
        ...


class Incoming:
    """The client's request: its body, and the moment when it leaves.

    Args:
        read: The body has been read already, or is of no interest.
    """

    def __init__(self, receive: Receive, *, read: bool = False) -> None:
        self._receive = receive
        self._read = asyncio.Event()
        if read:
            self._read.set()
        self._told = asyncio.Event()
        self.left: bool = False

    async def receive(self) -> Message:
        """For the application: the body as it comes; then nothing, until ``tell`` has been called.

        Behind the body a server may say a further, empty ``http.request``, which middleware of Starlette's takes for
        an error.
        """
        if not self._read.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.left = True
                self._told.set()
                self._read.set()
            elif not message.get("more_body", False):
                self._read.set()
            return message
        await self._told.wait()
        return {"type": "http.disconnect"}

    def tell(self) -> None:
        self._told.set()

    async def watch(self, gone: Callable[[], None]) -> None:
        """Call ``gone`` as soon as the client leaves; servers that drop what is sent afterwards do not tell."""
        await self._read.wait()
        while not self.left:
            self.left = (await self._receive())["type"] == "http.disconnect"
        gone()


class Written:
    """A body written here, in the place of the client's."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._told = asyncio.Event()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._told.wait()
        return {"type": "http.disconnect"}

    def tell(self) -> None:
        self._told.set()


class Inside:
    """The application at work on one request, in a task of its own: its answer is taken from here, frame by frame.

    It is held at the head of its answer until somebody says what becomes of it: ``forward``, ``read`` or ``cancel``.
    """

    def __init__(self, body: Body) -> None:
        self.start: Message | None = None
        self.ended: bool = False
        """The application has returned, after the body and whatever it does behind it."""
        self.error: Exception | None = None
        """What it raised."""
        self.cancelled: bool = False
        """Somebody else has cancelled its task."""
        self.wake: asyncio.Event = asyncio.Event()
        self.splitter: FrameSplitter = FrameSplitter()
        self._body = body
        self._scope = anyio.CancelScope()
        self._decided = asyncio.Event()
        self._forward: Send | None = None
        self._discarding = False
        self._said = False
        self._complete = False
        self._chunks: list[bytes] = []
        self._put_back: list[bytes] = []
        self._size = 0
        self._room = asyncio.Event()

    # ---------------------------------------------------------------- the application's side

    async def run(self, app: Callable[[Send], Awaitable[None]], within: anyio.CancelScope) -> None:
        """Have ``app`` answer; ``within`` is the scope of the task group that this runs in."""
        try:
            with self._scope:
                await app(self.send)
        except Exception as error:
            self.error = error
        except asyncio.CancelledError:
            if self._scope.cancel_called or within.cancel_called:
                raise
            # A run that does not poll is cancelled by its task, and this may be it: the request goes on
            self.cancelled = True
        finally:
            self.ended = True
            self.wake.set()

    async def send(self, message: Message) -> None:
        """What the application sends with."""
        if message["type"] == "http.response.start":
            self.start = message
            self.wake.set()
            await self._decided.wait()
        if self._forward is not None:
            await self._forward(message)
        elif message["type"] == "http.response.body":
            await self._take(message)

    async def _take(self, message: Message) -> None:
        body: bytes = message.get("body", b"")
        if self._discarding:
            await asyncio.sleep(0)  # a long replay that nobody waits for must not keep the loop
        elif body:
            self._chunks.append(body)
            self._size += len(body)
        if not message.get("more_body", False):
            self._complete = True
        self.wake.set()
        while self._size > _BUFFER and not self._discarding:
            self._room.clear()
            await self._room.wait()

    # ---------------------------------------------------------------- the bridge's side

    async def begun(self) -> bool:
        """Wait for the head of the answer; False if none will come."""
        while self.start is None and not self.ended:
            self.wake.clear()
            await self.wake.wait()
        return self.start is not None

    def forward(self, send: Send) -> None:
        """Let the answer through as it is, from its head on."""
        self._forward = send
        self._decided.set()

    def read(self) -> None:
        """Let the body come; ``frames`` gives it."""
        self._decided.set()

    async def frames(self) -> list[bytes] | None:
        """What has come, if need be after waiting for it; nothing if ``wake`` was set for another reason.

        ``None`` means that there is no more.
        """
        if self._put_back:
            frames, self._put_back = self._put_back, []
            return frames
        if not self._chunks:
            if self._complete or self.ended:
                return None
            self.wake.clear()
            await self.wake.wait()
        chunks, self._chunks, self._size = self._chunks, [], 0
        self._room.set()
        if len(chunks) == 1:
            return self.splitter.feed(chunks[0])
        return [frame for chunk in chunks for frame in self.splitter.feed(chunk)]

    def put_back(self, frames: list[bytes]) -> None:
        """What ``frames`` shall give next."""
        self._put_back = frames

    def discard(self) -> None:
        """Nobody reads any more; what still comes is thrown away, so that the application gets to its end."""
        self._discarding = True
        self._chunks, self._size = [], 0
        self._decided.set()
        self._room.set()

    def tell(self) -> None:
        """Tell the application that its client has gone."""
        self._body.tell()

    async def settled(self) -> None:
        """Let an error of the application come to light: Starlette's middleware raises it behind the body's end."""
        for _ in range(5):
            if self.ended:
                return
            await asyncio.sleep(0)

    def say_error(self, **about: object) -> bool:
        """Log what the application has raised while its answer was read here; whether there was anything."""
        if self.error is None:
            return False
        if not self._said:
            self._said = True
            extra = {**about, "error_type": type(self.error).__name__}
            logger.error("a stream broke inside of AgentOS", extra=extra, exc_info=self.error)
        return True

    def cancel(self) -> None:
        """End the application's work on this request."""
        self._scope.cancel()


def inner_scope(scope: Scope, *, moved: Callable[[str], str] | None = None, body: bytes = b"") -> Scope:
    """The request for the application inside, whose answer shall not be compressed.

    Args:
        moved: Makes the path of it a posted form, with ``body``, at another path.
    """
    dropped = {b"accept-encoding"}  # what is compressed inside could not be read here
    inner = dict(scope)
    if moved is not None:
        dropped |= {b"content-type", b"content-length", b"transfer-encoding", b"last-event-id", b"expect"}
        inner.update(method="POST", path=moved(scope["path"]))
        if inner.get("raw_path"):
            inner["raw_path"] = moved(inner["raw_path"].decode("latin-1")).encode("latin-1")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    if moved is not None:
        headers.append((b"content-type", b"application/x-www-form-urlencoded"))
        headers.append((b"content-length", str(len(body)).encode()))
    # Told by `receive` alone, applications hear of a disconnect in one way, whatever the server can do
    asgi = {**scope.get("asgi", {}), "spec_version": "2.3"}
    inner.update(headers=headers, asgi=asgi, state=scope.setdefault("state", {}))
    return inner
