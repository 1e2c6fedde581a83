"""One run, many readers: in process against agno's event stream, and over sockets up to the highest rate held."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks._apps import AGENT, content_event
from benchmarks._client import Connection, form, read_many, request_bytes
from benchmarks._support import Report, Server, alternate, main, median, raise_descriptor_limit, sqlite_url, workspace

__all__ = ["run"]

READERS = 100
NEEDLE = b"event: RunContent\n"
RATES = (10, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600)


def run(quick: bool = False) -> Report:
    """First in process, alternating; then the ladder of rates over sockets."""
    raise_descriptor_limit()
    report = Report("fanout", "one run to many readers")
    with workspace() as directory:
        _in_process(report, directory, *((500, 2) if quick else (2000, 3)))
        seconds = 0.7 if quick else 2.0
        for readers in (100,) if quick else (100, 500):
            held = {
                "agno /resume": _ladder("agentos", {}, readers, seconds),
                "ours memory": _ladder("ours", {"log": "memory:"}, readers, seconds),
                "ours SQLite FULL": _ladder(
                    "ours", {"log": sqlite_url(directory, f"fanout-{readers}")}, readers, seconds
                ),
            }
            for name, (rate, lag) in held.items():
                report.add(
                    f"{name}: {readers} clients over sockets, highest rate held",
                    rate,
                    "events/s",
                    note=f"{rate * readers:,.0f} deliveries/s; all was there {lag:.2f} s after the last event was due",
                )
    return report


def _in_process(report: Report, directory: Path, events: int, rounds: int) -> None:
    results = alternate(
        rounds,
        {
            "agno": lambda: asyncio.run(_agno_tails(events, each=True)),
            "agno, ready": lambda: asyncio.run(_agno_tails(events, each=False)),
            "ours memory": lambda: asyncio.run(_ours("memory:", events, each=True)),
            "ours memory, ready": lambda: asyncio.run(_ours("memory:", events, each=False)),
            "ours SQLite FULL": lambda: asyncio.run(_ours(sqlite_url(directory), events, each=True)),
            "ours SQLite FULL, ready": lambda: asyncio.run(_ours(sqlite_url(directory), events, each=False)),
        },
    )
    rates = {name: events / median([sample[0] for sample in samples]) for name, samples in results.items()}
    cpu = {name: median([sample[1] for sample in samples]) / events * 1e6 for name, samples in results.items()}
    for name, rate in rates.items():
        way = "all ready" if name.endswith(", ready") else "the producer gives way after each"
        report.add(
            f"{name.partition(',')[0]}: {READERS} readers in process, {way}",
            rate,
            "events/s",
            note=f"{rate * READERS:,.0f} deliveries/s, CPU {cpu[name]:.0f} µs per event",
        )
    best = max(rates["agno"], rates["agno, ready"])
    for name in ("ours memory", "ours SQLite FULL"):
        for variant in (name, f"{name}, ready"):
            report.add(
                f"{variant}: in process, to agno's better",
                rates[variant] / best,
                "x",
                at_least=25,
                note=f"CPU {min(cpu['agno'], cpu['agno, ready']) / cpu[variant]:.1f} x",
            )


async def _agno_tails(events: int, *, each: bool) -> tuple[float, float]:
    """Seconds, and CPU seconds, from the first ``add_event`` until every tail is drained."""
    from agno.os.event_streams.in_memory import InMemoryEventStream
    from agno.os.managers import EventsBuffer, SSESubscriberManager
    from agno.run.base import RunStatus

    stream = InMemoryEventStream(EventsBuffer(max_events_per_run=10_000), SSESubscriberManager())
    await stream.register_run("bench", RunStatus.pending)
    await stream.set_run_status("bench", RunStatus.running)

    async def tail() -> int:
        return sum([1 async for _, _ in stream.tail("bench")])

    tails = [asyncio.create_task(tail()) for _ in range(READERS)]
    await asyncio.sleep(0)
    start, cpu = time.perf_counter(), time.process_time()
    for number in range(events):
        await stream.add_event("bench", content_event(f"{number:04d}"))
        if each:
            await asyncio.sleep(0)
    await stream.complete_run("bench", RunStatus.completed)
    counts = await asyncio.gather(*tails)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    _check(counts, events)
    return seconds, cpu


async def _ours(url: str, events: int, *, each: bool) -> tuple[float, float]:
    """The same with a ``ResumableStream`` and readers that take bytes ready to send, as the response does."""
    from agno_resumable import Batch, ResumableStream, follow, open_log

    go = asyncio.Event()

    async def source(_: str, **__: object) -> AsyncIterator[object]:
        await go.wait()
        for number in range(events):
            yield content_event(f"{number:04d}")
            if each:
                await asyncio.sleep(0)

    async with open_log(url) as log, ResumableStream(source, log=log) as stream:
        run = await stream.start("bench")

        async def reader() -> int:
            count = size = 0
            async for item in follow(log, run.run_id):
                if isinstance(item, Batch):
                    count += len(item)
                    size += len(item.frames)
            if size < count * 100:
                raise RuntimeError("the frames are too short to be true")
            return count

        readers = [asyncio.create_task(reader()) for _ in range(READERS)]
        await asyncio.sleep(0.05)
        start, cpu = time.perf_counter(), time.process_time()
        go.set()
        counts = await asyncio.gather(*readers)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    _check(counts, events)
    return seconds, cpu


def _check(counts: Sequence[int], events: int) -> None:
    if set(counts) != {events}:
        raise RuntimeError(f"the readers got {sorted(set(counts))} of {events} events")


def _ladder(app: str, config: dict[str, str], readers: int, seconds: float) -> tuple[float, float]:
    """The highest rate at which all readers have all events two seconds after the run was due to end.

    It goes up by doubling. A side that falls behind gets one more chance, in a new process, and then one at three
    quarters of that rate. Also returns how late the last event was at the rate that held.
    """
    best, failures = (0.0, 0.0), 0
    rates: list[float] = [*RATES]
    while rates:
        with Server(app, **config) as server:
            while rates and (lag := _lag(server, readers, rates[0], seconds)) is not None:
                best, failures = (rates.pop(0), lag), 0
        failures += 1
        if failures == 2:
            rates = [rates[0] * 0.75] if rates[0] in RATES else []
        elif failures > 2:
            break
    return best


def _lag(server: Server, readers: int, rate: float, seconds: float) -> float | None:
    """Seconds from when the last event was due until all readers had it; ``None`` where that is over two."""
    events = int(rate * seconds)
    delay = 0.3 + readers * 0.002  # the readers are all there before the first event
    message = json.dumps({"events": events, "rate": rate, "delay": delay})
    agno = server.app == "agentos"
    fields: dict[str, str] = {"message": message, "stream": "true", "session_id": "bench"}
    if agno:
        fields |= {"background": "true", "run_id": f"bench-{rate}-{time.monotonic_ns()}"}
    with ExitStack() as stack:
        starter = stack.enter_context(Connection(server.port))
        start = time.perf_counter()
        starter.socket.sendall(request_bytes("POST", f"/agents/{AGENT}/runs", form(**fields)))
        _, headers, _ = starter.head()
        run_id = fields["run_id"] if agno else headers["x-run-id"]
        base = f"/agents/{AGENT}/runs/{run_id}"
        request = (
            request_bytes("POST", f"{base}/resume", form(session_id="bench"))
            if agno
            else request_bytes("GET", f"{base}/events")
        )
        connections = [starter]
        for _ in range(readers - 1):
            connection = stack.enter_context(Connection(server.port))
            connection.socket.sendall(request)
            connections.append(connection)
        due = start + delay + seconds
        counts, end = read_many(connections, NEEDLE, events, due + 2.0)
    return max(end - due, 0.0) if all(count == events for count in counts) else None


if __name__ == "__main__":
    main(run)
