"""Resident memory of the server: readers that never read through 50 MB of one run, and readers that only wait."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks._apps import AGENT
from benchmarks._client import Connection, form, request_bytes
from benchmarks._support import Report, Server, main, raise_descriptor_limit, sqlite_url, workspace

__all__ = ["run"]

MIB = 1 << 20
IDLE = 1000
EVENT_SIZE = 1024
STALLED = {"agno": 2, "ours": 8}  # several, so that one reader's share stands out from the allocator's noise


def run(quick: bool = False) -> Report:
    """Each figure is the difference to the same server without those readers."""
    report = Report("memory", "resident memory of the server process per reader")
    if not Path("/proc/self/statm").exists():
        print("bench_memory reads /proc, which this system does not have", file=sys.stderr)
        return report
    raise_descriptor_limit()
    events = 10_000 if quick else 40_000
    with workspace() as directory:
        megabytes = events * 1300 / 1e6
        for side in STALLED:
            cost = _stalled(side, directory, events)
            report.add(
                f"{side}: stalled reader of a {megabytes:.0f} MB run",
                cost / MIB,
                "MiB",
                at_most=None if side == "agno" else 1.0,
                note=f"mean of {STALLED[side]}",
            )
        for side in STALLED:
            report.add(
                f"{side}: idle reader",
                _idle(side, directory) / 1024,
                "KiB",
                at_most=None if side == "agno" else 30,
                note=f"mean of {IDLE:,}",
            )
    return report


class _Agno:
    """agno's event stream and its ``POST /resume``; events go in by the door that ``benchmarks._apps`` adds."""

    def __init__(self) -> None:
        self.server = Server("agentos")
        self._runs = 0

    def hold(self) -> bytes:
        """Open a silent run; return the request of a reader."""
        self._runs += 1
        with Connection(self.server.port) as connection:
            connection.json(request_bytes("POST", f"/_bench/hold?run_id=run-{self._runs}", b"-"))
        return request_bytes("POST", f"/agents/{AGENT}/runs/run-{self._runs}/resume", form(session_id="bench"))

    @contextmanager
    def feed(self, message: bytes) -> Iterator[tuple[bytes, Callable[[], None]]]:
        """Start a run; give the request of a reader, and what waits for the end of the run."""
        reader = self.hold()
        with Connection(self.server.port) as connection:
            connection.socket.sendall(request_bytes("POST", f"/_bench/feed?run_id=run-{self._runs}", message))
            yield reader, lambda: _until_json(connection)


class _Ours:
    """A ``ResumableStream`` on SQLite and its ``GET …/events``."""

    def __init__(self, directory: Path, name: str) -> None:
        self.server = Server("ours_sources", log=sqlite_url(directory, name))

    def hold(self) -> bytes:
        """Open a silent run; return the request of a reader."""
        with Connection(self.server.port) as connection:
            connection.socket.sendall(request_bytes("POST", "/held", b'{"events": 3}', content_type="text/plain"))
            _, headers, _ = connection.head()
        return request_bytes("GET", f"/held/{headers['x-run-id']}/events")

    @contextmanager
    def feed(self, message: bytes) -> Iterator[tuple[bytes, Callable[[], None]]]:
        """Start a run, which its own client reads as it comes; give as ``_Agno.feed`` does."""
        with Connection(self.server.port) as connection:
            connection.socket.sendall(request_bytes("POST", "/paced", message, content_type="text/plain"))
            _, headers, _ = connection.head()
            yield request_bytes("GET", f"/paced/{headers['x-run-id']}/events"), lambda: _until_last_chunk(connection)


def _make(side: str, directory: Path, name: str) -> _Agno | _Ours:
    return _Agno() if side == "agno" else _Ours(directory, name)


def _until_json(connection: Connection) -> None:
    status, _, body = connection.head()
    if status != 200:
        raise ConnectionError(f"{status}: {body!r}")


def _until_last_chunk(connection: Connection) -> None:
    carry = b""
    while not carry.endswith(b"0\r\n\r\n"):
        chunk = connection.socket.recv(MIB)
        if not chunk:
            raise ConnectionError("the run's own client was cut off")
        carry = (carry + chunk)[-8:]


def _stalled(side: str, directory: Path, events: int) -> float:
    """Bytes per stalled reader: how much more the peak rises over the start with them than without."""
    message = json.dumps({"events": events, "size": EVENT_SIZE, "rate": 20_000, "delay": 0.3}).encode()
    fixture = _make(side, directory, "stalled")

    def rise(readers: int) -> int:
        before = fixture.server.rss
        with ExitStack() as stack:
            request, wait = stack.enter_context(fixture.feed(message))
            for _ in range(readers):
                connection = stack.enter_context(Connection(fixture.server.port, receive_buffer=4096))
                connection.socket.sendall(request)
            with _Peak(fixture.server) as peak:
                wait()
                time.sleep(0.5)
            return peak.rss - before

    with fixture.server:
        rise(0)
        without = rise(0)
        return (rise(STALLED[side]) - without) / STALLED[side]


class _Peak:
    """The highest resident memory while the block ran."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.rss = 0

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.rss = max(self.rss, self._server.rss)
            if self._over.wait(0.05):
                return


def _idle(side: str, directory: Path) -> float:
    """Bytes per idle reader of one run; 50 more are there before, so that first-time costs are not counted."""
    fixture = _make(side, directory, "idle")
    with fixture.server, ExitStack() as stack:
        request = fixture.hold()
        _connect(stack, fixture.server, request, 50)
        before = fixture.server.rss
        _connect(stack, fixture.server, request, IDLE)
        return (fixture.server.rss - before) / IDLE


def _connect(stack: ExitStack, server: Server, request: bytes, count: int) -> None:
    connections = [stack.enter_context(Connection(server.port)) for _ in range(count)]
    for connection in connections:
        connection.socket.sendall(request)
    for connection in connections:
        status, _, body = connection.head()
        if status != 200:
            raise ConnectionError(f"{status}: {body!r}")
        if not body:
            connection.socket.recv(MIB)
    time.sleep(1)


if __name__ == "__main__":
    main(run)
