"""How many runs at 30 events a second hold, each with a reader on the other of two processes that share the log.

A run is produced in one process and read over a loopback socket from the other, so that every event crosses the
store; the log in memory is one process, as a baseline. This process is the client of all readers, and it, the servers
and the database share the machine's cores. The runs are plain async iterators: no agno run is in the way. A number of
runs *holds* if at least 98 % of the offered events arrive in time, of the second half's as well, each once and in
order, the 99th percentile from the yield to the socket is under a second, and no yield is a second behind its time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks._bars import bars
from benchmarks._client import Connection, request_bytes
from benchmarks._load_client import Readers
from benchmarks._stores import BACKENDS, store_of
from benchmarks._support import Report, Server, raise_descriptor_limit, render, workspace

__all__ = ["run"]

RATE = 30.0
WARM_UP = 2.0
MOST_RUNS = 4096


@dataclass(frozen=True)
class Held:
    """What one number of runs came to. Latencies in milliseconds, CPU in µs for each event that arrived."""

    backend: str
    durability: str
    runs: int
    seconds: float
    offered: float
    arrived: float
    p50: float
    p99: float
    late: float
    """By how much the most belated yield was behind its schedule."""
    server_cpu: float
    store_cpu: float
    client_cpu: float
    busy: float
    """Of the machine's cores, over all."""
    commits: float
    complaint: str = ""
    """Why it does not hold; empty if it does."""


class Bench:
    """One backend, its server processes, and the process of its database."""

    def __init__(self, backend: str, stack: ExitStack, directory: Path) -> None:
        self.backend = backend
        url, self.store = store_of(backend, stack, directory)
        count = 1 if backend == "memory" else 2
        self.servers = [stack.enter_context(Server("load", log=url)) for _ in range(count)]

    def attempt(self, runs: int, seconds: float) -> Held:
        """Let ``runs`` runs speak for ``seconds``, beside a warm-up."""
        shares = [runs // len(self.servers) + (n < runs % len(self.servers)) for n in range(len(self.servers))]
        produced = [_post(server, "/runs", {"runs": share}) for server, share in zip(self.servers, shares, strict=True)]
        events = int((WARM_UP + seconds + 0.5) * RATE)
        with Readers(events) as readers:
            for number, found in enumerate(produced):
                # of two processes always the other one
                readers.connect(self.servers[number - 1].port, found["run_ids"])
            begin = time.monotonic_ns() + 200_000_000
            window = (begin + int(WARM_UP * 1e9), begin + int((WARM_UP + seconds) * 1e9))
            plan = {"rate": RATE, "events": events, "begin_ns": begin, "samples_ns": window}
            for server in self.servers:
                _post(server, "/begin", plan)
            needed = int(0.98 * runs * RATE * seconds)
            store = readers.read(window, self._store_cpu, needed=needed, give_up_after=seconds * 0.5 + 5.0)
        samples = [_post(server, "/end", {})["samples"] for server in self.servers]
        return self._judge(readers, runs, seconds, produced[0]["durability"], samples, store)

    def _judge(
        self,
        readers: Readers,
        runs: int,
        seconds: float,
        durability: str,
        samples: Sequence[Sequence[dict[str, float]]],
        store: float,
    ) -> Held:
        offered = runs * RATE
        arrived = readers.arrived / seconds
        events = max(readers.arrived, 1)
        whole = all(len(each) == 2 for each in samples)

        def used(name: str) -> float:
            return sum(each[1][name] - each[0][name] for each in samples) if whole else float("nan")

        server_cpu = used("cpu_ns") / 1e3
        late = max([each[1]["late"] for each in samples]) * 1e3 if whole else float("nan")
        complaint = ""
        if readers.broken:
            complaint = readers.broken
        elif arrived < 0.98 * offered or readers.arrived_late < 0.98 * offered * seconds / 2:
            second = readers.arrived_late / offered / seconds * 2
            complaint = f"{arrived / offered:.0%} of the events came, {second:.0%} in the second half"
        elif readers.latency(99) > 1000.0:
            complaint = f"p99 {readers.latency(99):,.0f} ms"
        elif late > 1000.0:
            complaint = f"yields up to {late:,.0f} ms late"
        return Held(
            backend=self.backend,
            durability=durability,
            runs=runs,
            seconds=seconds,
            offered=offered,
            arrived=arrived,
            p50=readers.latency(50),
            p99=readers.latency(99),
            late=late,
            server_cpu=server_cpu / events,
            store_cpu=store / events,
            client_cpu=readers.cpu / events,
            busy=readers.busy,
            commits=used("commits") / seconds,
            complaint=complaint,
        )

    def _store_cpu(self) -> float:
        """CPU of the database's processes so far, in µs."""
        if self.store is None:
            return 0.0
        first = psutil.Process(self.store)
        times = first.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in first.children(recursive=True):
            try:
                each = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += each.user + each.system
        return total * 1e6


def search(bench: Bench, first: int, most: int, probe: float, duration: float, say: Callable[[Held], None]) -> Held:
    """Double until it does not hold, bisect to a tenth, then hold what was found for ``duration``, or a little less."""
    holds, fails, runs = 0, most + 1, min(first, most)
    while fails - holds > max(holds // 10, 1) and runs > holds:
        found = bench.attempt(runs, probe)
        say(found)
        if found.complaint:
            fails = runs
        else:
            holds = runs
        runs = min(holds * 2, most) if fails > most else (holds + fails) // 2
    runs = max(holds, 1)
    while True:
        found = bench.attempt(runs, duration)
        say(found)
        if not found.complaint or runs == 1:
            return found
        runs = runs * 9 // 10  # a short probe may hold what a minute does not


def _post(server: Server, path: str, body: object) -> Any:
    told = json.dumps(body).encode()
    with Connection(server.port, timeout=120) as connection:
        return connection.json(
            request_bytes("POST", path, told, {"Connection": "close"}, content_type="application/json")
        )


def run(
    *, quick: bool, backends: Sequence[str], duration: float, probe: float, first: int, runs: int = 0
) -> list[Held]:
    """Search and hold, one backend after the other; or try exactly ``runs``."""
    raise_descriptor_limit()
    most = 48 if quick else MOST_RUNS
    found: list[Held] = []
    for backend in backends:
        with workspace() as directory, ExitStack() as stack:
            bench = Bench(backend, stack, directory)
            if runs:
                found.append(bench.attempt(runs, duration))
                _say(found[-1])
            else:
                found.append(search(bench, min(first, most), most, probe, duration, _say))
    return found


def _say(held: Held) -> None:
    verdict = held.complaint or "holds"
    print(
        f"{held.backend:<9} {held.runs:>5} runs, {held.seconds:>2.0f} s: {held.arrived:>7,.0f} of {held.offered:>7,.0f}"
        f" events/s, p50 {held.p50:>6.1f}, p99 {held.p99:>7.1f} ms: {verdict}",
        file=sys.stderr,
        flush=True,
    )


def report_of(found: Sequence[Held]) -> Report:
    """The figures as every benchmark gives them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report = Report(
        "load",
        f"runs at {RATE:.0f} events/s that hold on {cores} cores, which servers, database and client share; "
        "each read by one client on the other of two processes (memory: on the only one)",
    )
    for held in found:
        name = f"{held.backend} ({held.durability})"
        report.add(
            f"{name}: runs that hold for {held.seconds:.0f} s",
            held.runs,
            "runs",
            note=f"{held.arrived:,.0f} events/s, {held.commits:,.0f} commits/s, {held.busy:.0f} % of the cores busy"
            + (f"; does NOT hold: {held.complaint}" if held.complaint else ""),
        )
        report.add(
            f"{name}: yield to socket, p50",
            held.p50,
            "ms",
            note=f"p99 {held.p99:,.1f} ms, yields up to {held.late:,.0f} ms late",
        )
        report.add(
            f"{name}: CPU of the servers",
            held.server_cpu,
            "µs/event",
            note=f"database {held.store_cpu:.1f}, client {held.client_cpu:.1f} µs",
        )
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("--quick", action="store_true", help="at most 48 runs, for 8 s each")
    parser.add_argument("--duration", type=float, help="seconds that the number found has to hold (default: 60)")
    parser.add_argument("--probe", type=float, help="seconds for each number tried in the search (default: 10)")
    parser.add_argument("--first", type=int, default=128, metavar="RUNS", help="where the search begins")
    parser.add_argument("--runs", type=int, default=0, help="try this number only, and search nothing")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them, as SVG")
    options = parser.parse_args()
    start = time.perf_counter()
    found = run(
        quick=options.quick,
        backends=options.backend or BACKENDS,
        duration=options.duration or (8.0 if options.quick else 60.0),
        probe=options.probe or (3.0 if options.quick else 10.0),
        first=options.first,
        runs=options.runs,
    )
    report = report_of(found)
    report.seconds = time.perf_counter() - start
    print(render([report]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({**report.as_json(), "held": [asdict(held) for held in found]}, indent=2))
    if options.plot:
        options.plot.write_text(
            bars(
                f"Runs at {RATE:.0f} events/s that hold: across two processes, memory in one",
                [
                    (
                        held.backend,
                        held.runs,
                        f"{held.arrived:,.0f} events/s, p50 {held.p50:.0f}, p99 {held.p99:.0f} ms",
                    )
                    for held in found
                ],
            )
        )


if __name__ == "__main__":
    main()
