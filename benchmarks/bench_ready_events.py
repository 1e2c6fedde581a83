"""Ready events from an async iterator through producer, log and one reader over a socket: the library alone."""

from __future__ import annotations

import json
from collections.abc import Callable

from benchmarks._client import Connection, request_bytes
from benchmarks._support import (
    Report,
    Server,
    alternate,
    cpu_note,
    cpu_per_event,
    main,
    median,
    running,
    sqlite_url,
    workspace,
)

__all__ = ["run"]

NEEDLE = b"event: RunContent\n"


def run(quick: bool = False) -> Report:
    """Alternate a bare StreamingResponse with agno's formatter, ours in memory, ours on SQLite."""
    events, rounds = (40_000, 3) if quick else (150_000, 5)
    report = Report("ready_events", f"{events:,} ready RunContent events to one reader, no agno run in the way")
    with workspace() as directory:
        bare = Server("bare")
        memory = Server("ours_sources", log="memory:")
        sqlite = Server("ours_sources", log=sqlite_url(directory))
        with running(bare, memory, sqlite):
            results = alternate(
                rounds,
                {
                    "bare StreamingResponse": _side(bare, events // 4),  # as many seconds as the others
                    "ours memory": _side(memory, events),
                    "ours SQLite FULL": _side(sqlite, events),
                },
            )
    gates = {"ours memory": 90_000, "ours SQLite FULL": 60_000}
    rate = {name: median([sample[0] for sample in samples]) for name, samples in results.items()}
    for name, samples in results.items():
        cpu = median([sample[1] for sample in samples])
        report.add(name, rate[name], "events/s", at_least=gates.get(name), note=cpu_note(rate[name], cpu))
    for name in gates:
        report.add(f"{name} to bare", rate[name] / rate["bare StreamingResponse"], "x")
    return report


def _side(server: Server, events: int) -> Callable[[], tuple[float, float]]:
    message = json.dumps({"events": events, "size": 24}).encode()
    request = request_bytes("POST", "/ready", message, content_type="text/plain")

    def once() -> tuple[float, float]:
        def work() -> float:
            with Connection(server.port) as connection:
                stream = connection.stream(request, NEEDLE)
            if stream.events != events:
                raise RuntimeError(f"{stream.events} of {events} events came: {stream.tail!r}")
            return stream.seconds

        return cpu_per_event(server, events, work)

    return once


if __name__ == "__main__":
    main(run)
