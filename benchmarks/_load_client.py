"""The readers of the load benchmark: one process, one selector, and a look at each event's own clock."""

from __future__ import annotations

import gc
import re
import selectors
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from statistics import quantiles
from types import TracebackType

import psutil
from typing_extensions import Self

from benchmarks._client import request_bytes

__all__ = ["Readers"]

STAMP = re.compile(rb"at=(\d+);")
LONGEST_STAMP = 32
CHUNK = 1 << 18


class _Reader:
    __slots__ = ("carry", "last", "seen", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.carry = b""
        self.seen = 0
        self.last = 0


class Readers:
    """Sockets that read one run each.

    Args:
        events: How many events each run has.
    """

    def __init__(self, events: int) -> None:
        self.arrived = 0
        """Events that came within the window."""
        self.arrived_late = 0
        """Those in its second half."""
        self.cpu = 0.0
        """CPU of this process within the window, in µs."""
        self.busy = 0.0
        """How much of the machine's cores was busy within the window, in percent."""
        self.broken = ""
        """What must not be: a stream that ended early, or an event that came twice."""
        self._events = events
        self._latencies = array("d")
        self._readers: list[_Reader] = []
        self._cuts: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.socket.close()

    def connect(self, port: int, run_ids: Sequence[str]) -> None:
        """Ask for the events of these runs, each on a connection of its own, and wait for the heads."""
        asked: list[_Reader] = []
        for run_id in run_ids:
            sock = socket.create_connection(("127.0.0.1", port), timeout=60)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(request_bytes("GET", f"/runs/{run_id}/events"))
            asked.append(_Reader(sock))
        for reader in asked:
            head = b""
            while b"\n\n" not in head:  # behind the head comes `retry:`, when the run has been found
                chunk = reader.socket.recv(CHUNK)
                if not chunk:
                    raise ConnectionError(f"a reader was turned away: {head!r}")
                head += chunk
            if b" 200 " not in head[:20]:
                raise ConnectionError(f"a reader was turned away: {head!r}")
            reader.socket.setblocking(False)
        self._readers += asked

    def latency(self, percent: int) -> float:
        """That percentile from the yield to the socket, in milliseconds."""
        if not self._cuts:
            self._cuts = quantiles(self._latencies, n=100) if len(self._latencies) > 1 else [float("inf")] * 99
        return self._cuts[percent - 1]

    def read(
        self, window: tuple[int, int], store_cpu: Callable[[], float], *, needed: int, give_up_after: float
    ) -> float:
        """Read until each run has all its events, or ``give_up_after`` seconds behind the window.

        Where fewer than ``needed`` came within the window, nothing behind it matters. Returns the CPU of the database
        within the window, in µs.
        """
        begin, end = window
        half = (begin + end) // 2
        used: list[tuple[float, float, float]] = []
        latencies = self._latencies
        pending = len(self._readers)
        view = memoryview(bytearray(CHUNK))
        gc.collect()
        gc.disable()  # the objects here are few and long-lived, and a pause would count as latency
        try:
            with selectors.DefaultSelector() as selector:
                for reader in self._readers:
                    selector.register(reader.socket, selectors.EVENT_READ, reader)
                while pending:
                    ready = selector.select(0.1)
                    now = time.monotonic_ns()
                    if len(used) == 0 and now >= begin:
                        psutil.cpu_percent()
                        used.append((time.process_time(), store_cpu(), 0.0))
                    elif len(used) == 1 and now >= end:
                        used.append((time.process_time(), store_cpu(), psutil.cpu_percent()))
                        if len(latencies) < needed:
                            break
                    if now > end + give_up_after * 1e9:
                        break
                    for key, _ in ready:
                        reader = key.data
                        try:
                            received = reader.socket.recv_into(view)
                        except (BlockingIOError, InterruptedError):
                            continue
                        except OSError:
                            received = 0
                        now = time.monotonic_ns()
                        if not received:
                            self.broken = f"a stream ended after {reader.seen} of {self._events} events"
                            selector.unregister(reader.socket)
                            pending -= 1
                            continue
                        data = reader.carry + bytes(view[:received])
                        rest = 0
                        for found in STAMP.finditer(data):
                            stamp = int(found[1])
                            if stamp <= reader.last:
                                self.broken = "an event came twice, or too late"
                            reader.last = stamp
                            reader.seen += 1
                            if begin <= now < end:
                                latencies.append((now - stamp) / 1e6)
                                if now >= half:
                                    self.arrived_late += 1
                            rest = found.end()
                        reader.carry = data[max(rest, len(data) - LONGEST_STAMP) :]
                        if reader.seen >= self._events:
                            selector.unregister(reader.socket)
                            pending -= 1
        finally:
            gc.enable()
        self.arrived = len(latencies)
        if len(used) < 2:
            used = [*used, *[(time.process_time(), store_cpu(), float("nan"))] * (2 - len(used))]
        self.cpu = (used[1][0] - used[0][0]) * 1e6
        self.busy = used[1][2]
        return used[1][1] - used[0][1]
