"""A cheap HTTP client: blocking sockets that count frames in the raw bytes, so that the server is the bottleneck."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

__all__ = ["Connection", "Stream", "form", "get_json", "read_many", "request_bytes"]

CHUNK = 1 << 20
_LAST_CHUNK = b"0\r\n\r\n"  # ends a chunked body; SSE bodies hold no carriage return of their own


def form(**fields: object) -> bytes:
    """An urlencoded body."""
    return urlencode({name: str(value) for name, value in fields.items()}).encode()


def request_bytes(
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/x-www-form-urlencoded",
) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class Stream:
    """What came of one streamed response. Times are ``time.perf_counter()``, from before the request was sent."""

    events: int
    body_bytes: int
    headers: Mapping[str, str]
    sent: float
    first: float
    """When the first bytes of the body came."""
    last: float
    """When the wanted event came, or the end of the body."""
    tail: bytes
    """The end of what was read, for a look at the last frame."""

    @property
    def seconds(self) -> float:
        """From the request to the last event or the end."""
        return self.last - self.sent


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int, *, timeout: float = 60, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(("127.0.0.1", port))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def head(self) -> tuple[int, dict[str, str], bytes]:
        """Read status, headers (lower case) and whatever of the body came with them."""
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = self.socket.recv(CHUNK)
            if not chunk:
                raise ConnectionError(f"the server closed the connection after {data!r}")
            data += chunk
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, rest

    def json(self, request: bytes) -> Any:
        """Send a request, return the JSON of a plain answer."""
        self.socket.sendall(request)
        status, headers, body = self.head()
        while len(body) < int(headers.get("content-length", 0)):
            body += self.socket.recv(CHUNK)
        if status >= 300:
            raise ConnectionError(f"{status}: {body[:300]!r}")
        return json.loads(body)

    def stream(
        self, request: bytes, needle: bytes, *, until: int | None = None, sent: float | None = None, to_end: bool = True
    ) -> Stream:
        """Send a request and count ``needle`` in the streamed body.

        ``last`` is when the ``until``-th needle came, or the end of the body. Without ``to_end`` the rest of the
        body is left unread.
        """
        sent = time.perf_counter() if sent is None else sent
        self.socket.sendall(request)
        status, headers, chunk = self.head()
        if status != 200:
            raise ConnectionError(f"{status}: {chunk[:300]!r}")
        first = last = time.perf_counter() if chunk else 0.0
        overlap = len(needle) - 1
        events, size, carry = 0, 0, b""
        buffer = memoryview(bytearray(CHUNK))
        reached = False
        while True:
            if chunk:
                size += len(chunk)
                # a needle may be split between two reads; the carry is too short to hold a whole one
                events += chunk.count(needle) + (carry[-overlap:] + chunk[:overlap]).count(needle)
                carry = chunk[-128:] if len(chunk) >= 128 else (carry + chunk)[-128:]
                if until is not None and events >= until and not reached:
                    reached, last = True, time.perf_counter()
                    if not to_end:
                        break
                if carry.endswith(_LAST_CHUNK):
                    break
            received = self.socket.recv_into(buffer)
            if not received:
                break
            chunk = bytes(buffer[:received])
            first = first or time.perf_counter()
        if not reached:
            last = time.perf_counter()
        return Stream(events, size, headers, sent, first, last, carry)


def get_json(port: int, path: str, *, timeout: float = 60) -> Any:
    """GET one JSON document on a connection of its own."""
    with Connection(port, timeout=timeout) as connection:
        return connection.json(request_bytes("GET", path, headers={"Connection": "close"}))


@dataclass
class _Reader:
    events: int = 0
    carry: bytes = b""
    done: bool = False


def read_many(
    connections: Sequence[Connection], needle: bytes, expected: int, deadline: float
) -> tuple[list[int], float]:
    """Read all connections at once, whose requests are sent, until each has ``expected`` needles or the deadline.

    Returns how many each got, and when (``time.perf_counter()``) the last of them had all.
    """
    overlap = len(needle) - 1
    readers = [_Reader() for _ in connections]
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    pending = len(readers)
    with selectors.DefaultSelector() as selector:
        for connection, reader in zip(connections, readers, strict=True):
            connection.socket.setblocking(False)
            selector.register(connection.socket, selectors.EVENT_READ, (connection.socket, reader))
        while pending and (left := deadline - time.perf_counter()) > 0:
            for key, _ in selector.select(left):
                sock, reader = key.data
                try:
                    received = sock.recv_into(view)
                except (BlockingIOError, InterruptedError):
                    continue
                if received:
                    chunk = bytes(view[:received])
                    reader.events += chunk.count(needle) + (reader.carry + chunk[:overlap]).count(needle)
                    reader.carry = (reader.carry + chunk[-overlap:])[-overlap:]
                if not reader.done and (reader.events >= expected or not received):
                    reader.done = True
                    pending -= 1
                if not received:
                    selector.unregister(sock)
    return [reader.events for reader in readers], time.perf_counter()
