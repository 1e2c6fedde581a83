"""One event every 20 ms: how long from the yield to the reader's socket, against a bare StreamingResponse."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable

from benchmarks._client import Connection, request_bytes
from benchmarks._support import Report, Server, alternate, main, running, sqlite_url, workspace

__all__ = ["run"]

STAMP = re.compile(rb"at=(\d+);")
EVERY = 0.02


def run(quick: bool = False) -> Report:
    """Alternate the three sides; all latencies of a side are taken together."""
    events, rounds = (50, 2) if quick else (150, 4)
    report = Report("latency", f"one event every {EVERY * 1000:.0f} ms, from the yield to the reader's socket")
    message = json.dumps({"events": events, "every": EVERY}).encode()
    with workspace() as directory:
        bare = Server("bare")
        memory = Server("ours_sources", log="memory:")
        sqlite = Server("ours_sources", log=sqlite_url(directory))
        with running(bare, memory, sqlite):
            results = alternate(
                rounds,
                {
                    "bare StreamingResponse": _side(bare, events, message),
                    "ours memory": _side(memory, events, message),
                    "ours SQLite FULL": _side(sqlite, events, message),
                },
            )
    p50: dict[str, float] = {}
    for name, samples in results.items():
        latencies = [latency for sample in samples for latency in sample]
        cuts = statistics.quantiles(latencies, n=100)
        p50[name] = cuts[49]
        report.add(f"{name}, p50", cuts[49], "ms", note=f"p90 {cuts[89]:.2f}, p99 {cuts[98]:.2f} ms")
    for name in ("ours memory", "ours SQLite FULL"):
        report.add(f"{name}, p50 above bare", p50[name] - p50["bare StreamingResponse"], "ms", at_most=1.5)
    return report


def _side(server: Server, events: int, message: bytes) -> Callable[[], list[float]]:
    request = request_bytes("POST", "/ticks", message, content_type="text/plain")

    def once() -> list[float]:
        latencies: list[float] = []
        with Connection(server.port) as connection:
            connection.socket.sendall(request)
            status, _, unread = connection.head()
            if status != 200:
                raise ConnectionError(f"{status}: {unread!r}")
            now = time.monotonic_ns()
            while True:
                end = 0
                for stamp in STAMP.finditer(unread):
                    latencies.append((now - int(stamp[1])) / 1e6)
                    end = stamp.end()
                if len(latencies) == events:
                    return latencies
                chunk = connection.socket.recv(1 << 16)
                now = time.monotonic_ns()  # one clock for all processes of a machine
                if not chunk:
                    raise RuntimeError(f"{len(latencies)} of {events} events came")
                unread = unread[end:] + chunk

    return once


if __name__ == "__main__":
    main(run)
