"""A run of a real agno Agent to one HTTP client: agno's two streams against ours, in events/s and CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from benchmarks._apps import AGENT
from benchmarks._client import Connection, form, request_bytes
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
    """Alternate the four sides, one warm-up each."""
    deltas, rounds = (1500, 3) if quick else (3000, 9)
    report = Report("agent_http", f"a real Agent, {deltas:,} deltas, one client, POST to the end of the body")
    message = json.dumps({"events": deltas})
    with workspace() as directory:
        agentos = Server("agentos")
        memory = Server("ours", log="memory:")
        sqlite = Server("ours", log=sqlite_url(directory))
        with running(agentos, memory, sqlite):
            results = alternate(
                rounds,
                {
                    "arun alone": _alone(agentos, deltas, message),
                    "agno inline": _side(agentos, deltas, message=message, stream="true"),
                    "agno background": _side(agentos, deltas, message=message, stream="true", background="true"),
                    "ours memory": _side(memory, deltas, message=message, stream="true"),
                    "ours SQLite FULL": _side(sqlite, deltas, message=message, stream="true"),
                },
            )
    rate = {name: median([sample[0] for sample in samples]) for name, samples in results.items()}
    cpu = {name: median([sample[1] for sample in samples]) for name, samples in results.items()}
    for name in results:
        report.add(name, rate[name], "events/s", note=cpu_note(rate[name], cpu[name]))
    ours = "ours SQLite FULL"
    report.add("SQLite FULL to agno inline", rate[ours] / rate["agno inline"], "x", at_least=2.0)
    report.add("SQLite FULL to agno background", rate[ours] / rate["agno background"], "x", at_least=3.0)
    report.add("memory to SQLite FULL", rate["ours memory"] / rate[ours], "x", at_least=0.95, note="5 % for noise")
    report.add("CPU, agno inline to SQLite FULL", cpu["agno inline"] / cpu[ours], "x")
    report.add("CPU, agno background to SQLite FULL", cpu["agno background"] / cpu[ours], "x")
    return report


def _alone(server: Server, deltas: int, message: str) -> Callable[[], tuple[float, float]]:
    """What every side pays for the agent itself: its events are counted in the server and go nowhere."""
    request = request_bytes("POST", "/_bench/arun", message.encode(), content_type="text/plain")

    def once() -> tuple[float, float]:
        def work() -> float:
            start = time.perf_counter()
            with Connection(server.port) as connection:
                connection.json(request)
            return time.perf_counter() - start

        return cpu_per_event(server, deltas, work)

    return once


def _side(server: Server, deltas: int, **fields: str) -> Callable[[], tuple[float, float]]:
    request = request_bytes("POST", f"/agents/{AGENT}/runs", form(**fields))

    def once() -> tuple[float, float]:
        def work() -> float:
            with Connection(server.port) as connection:
                stream = connection.stream(request, NEEDLE)
            if stream.events != deltas:
                raise RuntimeError(f"{stream.events} of {deltas} events came: {stream.tail!r}")
            return stream.seconds

        return cpu_per_event(server, deltas, work)

    return once


if __name__ == "__main__":
    main(run)
