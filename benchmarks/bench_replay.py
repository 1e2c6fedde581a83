"""Replay of a finished run over HTTP, and a resume that misses 9 of 10,000 events, against agno's ``POST /resume``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks._apps import AGENT
from benchmarks._client import Connection, form, request_bytes
from benchmarks._support import Report, Server, alternate, main, median, running, sqlite_url, workspace

__all__ = ["run"]

NEEDLE = b'"event_index":'
DELTAS = 9_990  # with the events around them just under the 10,000 that agno's buffer holds
MISSED = 9


@dataclass(frozen=True)
class Finished:
    """A run that is over, and how its side is asked for it."""

    server: Server
    run_id: str
    session_id: str
    events: int

    def request(self, after: int | None) -> bytes:
        """The request of a client that has everything up to ``after``."""
        base = f"/agents/{AGENT}/runs/{self.run_id}"
        if self.server.app == "agentos":
            fields: dict[str, object] = {"session_id": self.session_id}
            if after is not None:
                fields["last_event_index"] = after
            return request_bytes("POST", f"{base}/resume", form(**fields))
        headers = {} if after is None else {"Last-Event-ID": f"{self.run_id}:{after}"}
        return request_bytes("GET", f"{base}/events", headers=headers)


def run(quick: bool = False) -> Report:
    """Fill the three sides with the same run, then read it whole and read its end."""
    rounds, resumes, starts = (3, 20, 1) if quick else (7, 100, 3)
    report = Report("replay", f"a finished run of a real Agent with {DELTAS:,} deltas, over HTTP")
    with workspace() as directory:
        agentos = Server("agentos")
        memory = Server("ours", log="memory:")
        sqlite = Server("ours", log=sqlite_url(directory))
        later = Server("ours", log=sqlite_url(directory))
        with running(agentos, memory, sqlite, later):
            produced = fill(sqlite, DELTAS)
            runs = {
                "agno /resume": fill(agentos, DELTAS),
                "ours memory": fill(memory, DELTAS),
                "ours SQLite, the producing process": produced,
                "ours SQLite, from the file": replace(produced, server=later),
            }
            first = [_first_of_a_process(directory, produced) for _ in range(starts)]
            whole = alternate(rounds, {name: _whole(finished) for name, finished in runs.items()})
            fresh = alternate(resumes, {name: _missed_on_new_connection(finished) for name, finished in runs.items()})
            kept: dict[str, list[float]] = {}
            connections = {name: Connection(finished.server.port) for name, finished in runs.items()}
            try:
                kept = alternate(
                    resumes, {name: _missed(connections[name], finished) for name, finished in runs.items()}
                )
            finally:
                for connection in connections.values():
                    connection.close()
    rates = {name: runs[name].events / median(samples) for name, samples in whole.items()}
    for name, rate in rates.items():
        report.add(f"{name}: whole run", rate, "events/s")
    for name, rate in rates.items():
        if name != "agno /resume":
            report.add(f"{name} to agno", rate / rates["agno /resume"], "x", at_least=25)
    report.add(
        "ours SQLite: first request of a new process, a whole replay",
        median(first) * 1000,
        "ms",
        note="imports and opens what a process needs once",
    )
    for name in runs:
        at_most = 2.0 if name != "agno /resume" else None
        for how, samples in (("new connection", fresh[name]), ("keep-alive", kept[name])):
            worst = sorted(samples)[len(samples) * 9 // 10]
            report.add(
                f"{name}: {MISSED} missed, {how}",
                median(samples) * 1000,
                "ms",
                at_most=at_most,
                note=f"p90 {worst * 1000:.2f} ms",
            )
    return report


def fill(server: Server, deltas: int) -> Finished:
    """Run the agent once on this server, to the end."""
    session_id = "bench-session"
    message = json.dumps({"events": deltas})
    fields = {"message": message, "stream": "true", "session_id": session_id}
    if server.app == "agentos":
        fields |= {"background": "true", "run_id": "bench-run"}
    with Connection(server.port) as connection:
        stream = connection.stream(request_bytes("POST", f"/agents/{AGENT}/runs", form(**fields)), NEEDLE)
    if stream.events < deltas:
        raise RuntimeError(f"{stream.events} of {deltas} events came: {stream.tail!r}")
    return Finished(server, stream.headers.get("x-run-id", "bench-run"), session_id, stream.events)


def _whole(finished: Finished) -> Callable[[], float]:
    def once() -> float:
        with Connection(finished.server.port) as connection:
            stream = connection.stream(finished.request(None), NEEDLE)
        if stream.events != finished.events:
            raise RuntimeError(f"{stream.events} of {finished.events} events came: {stream.tail!r}")
        return stream.seconds

    return once


def _missed(connection: Connection, finished: Finished) -> Callable[[], float]:
    request = finished.request(finished.events - 1 - MISSED)

    def once() -> float:
        stream = connection.stream(request, NEEDLE, until=MISSED)
        if stream.events != MISSED:
            raise RuntimeError(f"{stream.events} of {MISSED} events came: {stream.tail!r}")
        return stream.seconds

    return once


def _missed_on_new_connection(finished: Finished) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        with Connection(finished.server.port) as connection:
            connected = time.perf_counter() - start
            return connected + _missed(connection, finished)()

    return once


def _first_of_a_process(directory: Path, finished: Finished) -> float:
    with Server("ours", log=sqlite_url(directory)) as server:
        return _whole(replace(finished, server=server))()


if __name__ == "__main__":
    main(run)
