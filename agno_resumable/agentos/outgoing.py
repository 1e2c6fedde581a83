"""The client's end of a stream: what is sent to it, and what becomes of it when it does not read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from types import TracebackType

import anyio
from starlette.types import Receive, Send
from typing_extensions import Self

from ..asgi.response import STREAM_HEADERS
from ..shutdown import current_drain

__all__ = ["Alarm", "Client", "Stalled", "jittered", "kept", "stream_head"]

Headers = Iterable[tuple[bytes, bytes]]

# Seconds: a server that stops has no time for a client that does not read
_DRAIN_SEND_TIMEOUT = 1.0
_OURS = frozenset(
    [b"content-type", b"content-length", b"cache-control", b"x-accel-buffering", b"x-run-id", b"transfer-encoding"]
)


def stream_head(headers: Headers, run_id: str | None) -> list[tuple[bytes, bytes]]:
    """The headers of an event stream: ours, and what else agno has said (CORS, cookies)."""
    # The type comes first: Chromium takes a head that is cut off before it for a whole one
    head = [(b"content-type", b"text/event-stream; charset=utf-8")]
    head += [(name.lower().encode(), value.encode()) for name, value in STREAM_HEADERS.items()]
    if run_id is not None:
        head.append((b"x-run-id", run_id.encode("latin-1", "replace")))
    return head + kept(headers)


def kept(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Of agno's headers, those that do not describe its body."""
    return [(name, value) for name, value in headers if name.lower() not in _OURS]


def jittered(retry_ms: int) -> int:
    """The delay to tell EventSource, so that many do not come back at once."""
    return random.randint(retry_ms // 3, retry_ms)  # noqa: S311  # spreads reconnects, guards nothing


class Alarm:
    """Rings when a time has come that mostly moves away before: it is looked at then, and not armed anew each time.

    Args:
        due: When to ring, in the event loop's time.
        ring: Called then, outside of any task, and once more if the time has not moved a little later.
    """

    def __init__(self, due: Callable[[], float], ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = due
        self._ring = ring
        self._timer = self._loop.call_at(due(), self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if self._due() <= now:
            self._ring()
        self._timer = self._loop.call_at(max(self._due(), now + 0.05), self._look)

    def hurry(self) -> None:
        """The time has come nearer."""
        self._timer.cancel()
        self._timer = self._loop.call_at(self._due(), self._look)

    def stop(self) -> None:
        self._timer.cancel()


class Stalled(Exception):
    """The client does not read, or is not there any more."""


class Client:
    """Where a stream goes to. All that is sent is sent within it: ``with client:``; leaving it raises ``Stalled`` when
    a ``send`` was blocked for too long by a client that does not read.

    Args:
        receive: Of the server; only to reach its transport.
        send_timeout: Seconds that one ``send`` may be blocked.
    """

    def __init__(self, receive: Receive, send: Send, *, send_timeout: float) -> None:
        self.begun: bool = False
        self.now: Callable[[], float] = asyncio.get_running_loop().time
        self.quiet_since: float = self.now()
        self._receive = receive
        self._send = send
        self._patience = send_timeout
        self._blocked_since: float | None = None
        self._stalled = False
        self._scope = anyio.CancelScope()
        self._alarm: Alarm | None = None

    def __enter__(self) -> Self:
        self._scope.__enter__()
        self._alarm = Alarm(self._too_long, self._give_up)
        if current_drain().begun:
            self.hurry()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        if self._alarm is not None:
            self._alarm.stop()
        suppressed = self._scope.__exit__(exc_type, exc, tb)
        if suppressed and self._stalled:
            raise Stalled
        return suppressed

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, payload: bytes) -> None:
        """Send a part of the body."""
        self._blocked_since = self.now()
        try:
            await self._send({"type": "http.response.body", "body": payload, "more_body": True})
        except OSError:  # what a server may raise when the client has left
            raise Stalled from None
        self._blocked_since = None
        self.quiet_since = self.now()

    async def end(self) -> None:
        """End the body: all is said."""
        self._blocked_since = self.now()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._blocked_since = None

    def hurry(self) -> None:
        """The drain has begun. A signal calls this outside of any task."""
        if self._patience > _DRAIN_SEND_TIMEOUT:
            self._patience = _DRAIN_SEND_TIMEOUT
            if self._blocked_since is not None:
                self._blocked_since = self.now()  # from now on
        if self._alarm is not None:
            self._alarm.hurry()

    def abort(self) -> None:
        """Reset the connection of a client that does not read, where the server's objects let us reach it."""
        transport = getattr(getattr(self._receive, "__self__", None), "transport", None)
        abort = getattr(transport, "abort", None)
        if callable(abort):
            abort()

    def _too_long(self) -> float:
        since = self._blocked_since
        return (self.now() if since is None else since) + self._patience

    def _give_up(self) -> None:
        self._stalled = True
        self._scope.cancel()
