"""agno's event stream on Redis, and ours on the log in Redis: one server, one driver with its faster parser."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from benchmarks._apps import content_event, redis_event_stream
from benchmarks._support import ROOT, Report, alternate, main, median
from benchmarks.bench_agentos import redis_server

__all__ = ["run"]

AGNO, OURS = "agno Redis", "ours Redis"
AS_INSTALLED = "agno Redis without hiredis"
"""As agno's ``redis`` extra installs it; hiredis comes with ours."""
STAMP = re.compile(r"at=(\d+);")
RUN_EVENTS = 10_000
MISSED = 9
TAIL_EVERY = 0.01


def run(quick: bool = False) -> Report:
    """Adding events, following a run of another process, and coming back to a long one."""
    report = Report("redis", "agno's RedisEventStream and LogEventStream on the log in Redis, one server, no disk")
    with redis_server() as url, closing(_loop()) as loop:
        for part in (_adding, _tailing, _resuming):
            part(report, url, loop, quick=quick)
    return report


def _loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    return loop


async def _open(name: str, url: str) -> Any:
    if name in (AGNO, AS_INSTALLED):
        return redis_event_stream(url, hiredis=name == AGNO)
    from agno_resumable.agentos import LogEventStream

    return await LogEventStream(f"redis+{url}").__aenter__()


class _Side:
    """One of the two streams. Both live on one loop, so that neither finds its own neglected when its turn comes."""

    def __init__(self, name: str, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.url = url
        self.loop = loop
        self.stream: Any = self.loop.run_until_complete(_open(name, url))
        self.runs = 0

    def close(self) -> None:
        self.loop.run_until_complete(self.stream.aclose())

    async def new_run(self) -> str:
        from agno.run.base import RunStatus

        self.runs += 1
        run_id = f"{self.name.replace(' ', '-')}-{self.runs}-{time.monotonic_ns()}"
        await self.stream.register_run(run_id, RunStatus.pending)
        return run_id


async def _fill(side: _Side, run_id: str, count: int) -> float:
    """Add events as a model gives them, with a turn of the loop between two; seconds until all can be read."""
    from agno.run.base import RunStatus

    events = [content_event(f"{number % 1000:03d} ") for number in range(count)]
    for event in events:
        event.run_id = run_id
    await side.stream.set_run_status(run_id, RunStatus.running)
    start = time.perf_counter()
    for event in events:
        await side.stream.add_event(run_id, event)
        await asyncio.sleep(0)
    if await side.stream.get_last_index(run_id) != count - 1:
        raise RuntimeError("events are missing")
    return time.perf_counter() - start


def _adding(report: Report, url: str, loop: asyncio.AbstractEventLoop, *, quick: bool) -> None:
    count, rounds = (2_000, 3) if quick else (5_000, 9)
    sides = [_Side(name, url, loop) for name in (AGNO, OURS)]

    def adding(side: _Side) -> Callable[[], float]:
        async def once() -> float:
            from agno.run.base import RunStatus

            run_id = await side.new_run()
            seconds = await _fill(side, run_id, count)
            await side.stream.complete_run(run_id, RunStatus.completed)
            await side.stream.cleanup_run(run_id)
            return seconds

        return lambda: side.loop.run_until_complete(once())

    results = alternate(rounds, {side.name: adding(side) for side in sides})
    for side in sides:
        side.close()
    rate = {name: count / median(seconds) for name, seconds in results.items()}
    for name in results:
        report.add(f"add_event, one run, until readable: {name}", rate[name], "events/s")
    report.add("add_event: ours to agno", rate[OURS] / rate[AGNO], "x", at_least=10)


@contextmanager
def _producer(name: str, url: str, count: int) -> Iterator[Callable[[str], None]]:
    """A process of its own, as behind a load balancer, that produces one run after another when it is told."""
    command = [sys.executable, "-m", "benchmarks.bench_redis", "--produce", json.dumps([name, url, count])]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    asked = process.stdin

    def produce(run_id: str) -> None:
        asked.write(f"{run_id}\n".encode())
        asked.flush()

    try:
        process.stdout.readline()  # it is ready
        yield produce
    finally:
        process.stdin.close()
        process.wait()


async def _produce(name: str, url: str, count: int) -> None:
    from agno.run.base import RunStatus

    stream = await _open(name, url)
    print("ready", flush=True)
    while run_id := (await asyncio.to_thread(sys.stdin.readline)).strip():
        await stream.set_run_status(run_id, RunStatus.running)
        for _ in range(count):
            await asyncio.sleep(TAIL_EVERY)
            event = content_event(f"at={time.monotonic_ns()};")
            event.run_id = run_id
            await stream.add_event(run_id, event)
        await stream.complete_run(run_id, RunStatus.completed)
    await stream.aclose()


def _tailing(report: Report, url: str, loop: asyncio.AbstractEventLoop, *, quick: bool) -> None:
    count, rounds = (100, 3) if quick else (300, 6)
    sides = [_Side(name, url, loop) for name in (AGNO, OURS)]

    def tailing(side: _Side, produce: Callable[[str], None]) -> Callable[[], list[float]]:
        async def once() -> list[float]:
            run_id = await side.new_run()
            produce(run_id)
            latencies: list[float] = []
            async for _, frame in side.stream.tail(run_id):
                now = time.monotonic_ns()  # one clock for all processes of a machine
                stamp = STAMP.search(frame)
                if stamp:
                    latencies.append((now - int(stamp[1])) / 1e6)
            if len(latencies) != count:
                raise RuntimeError(f"{len(latencies)} of {count} events came")
            return latencies

        return lambda: side.loop.run_until_complete(once())

    with ExitStack() as stack:
        producers = {side.name: stack.enter_context(_producer(side.name, url, count)) for side in sides}
        results = alternate(rounds, {side.name: tailing(side, producers[side.name]) for side in sides})
    for side in sides:
        side.close()
    p50 = {}
    for name, samples in results.items():
        cuts = statistics.quantiles([latency for sample in samples for latency in sample], n=100)
        p50[name] = cuts[49]
        note = f"p90 {cuts[89]:.2f}, p99 {cuts[98]:.2f} ms"
        report.add(f"add_event to another process's tail, p50: {name}", cuts[49], "ms", note=note)
    report.add("tail p50: ours to agno", p50[OURS] / p50[AGNO], "x", at_most=1.0)


def _resuming(report: Report, url: str, loop: asyncio.AbstractEventLoop, *, quick: bool) -> None:
    """From the question to the first frame, in a process that has nothing of the run in memory.

    Several in a turn, so that of most no side pays for what the other's turn has left to server and caches.
    """
    rounds = 2 if quick else 12
    filled: dict[str, str] = {}
    for name in (AGNO, AS_INSTALLED, OURS):
        side = _Side(name, url, loop)

        async def fill(side: _Side = side) -> str:
            from agno.run.base import RunStatus

            run_id = await side.new_run()
            await _fill(side, run_id, RUN_EVENTS)
            await side.stream.complete_run(run_id, RunStatus.completed)
            return run_id

        filled[name] = side.loop.run_until_complete(fill())
        side.close()
    sides = [_Side(name, url, loop) for name in (AGNO, AS_INSTALLED, OURS)]

    def resuming(side: _Side) -> Callable[[], list[float]]:
        async def once() -> float:
            start = time.perf_counter()
            first = 0.0
            seen = 0
            async for index, frame in side.stream.tail(filled[side.name], RUN_EVENTS - 1 - MISSED):
                if f'"event_index":{index}' not in frame.replace(" ", ""):
                    continue  # ours ends with the run's own last event
                first = first or time.perf_counter() - start
                seen += 1
            if seen < MISSED:
                raise RuntimeError(f"{seen} of {MISSED} events came")
            return first

        async def turn() -> list[float]:
            return [await once() for _ in range(5)]

        return lambda: side.loop.run_until_complete(turn())

    results = alternate(rounds, {side.name: resuming(side) for side in sides})
    for side in sides:
        side.close()
    first = {name: median([one for turn in turns for one in turn]) * 1000 for name, turns in results.items()}
    for name, turns in results.items():
        note = f"the first of each turn {median([turn[0] for turn in turns]) * 1000:.2f} ms"
        report.add(f"last {MISSED} of {RUN_EVENTS:,}, first frame: {name}", first[name], "ms", note=note)
    report.add("resume: agno without hiredis to ours", first[AS_INSTALLED] / first[OURS], "x")
    report.add("resume: agno to ours", first[AGNO] / first[OURS], "x", at_least=50)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--produce"]:
        _loop().run_until_complete(_produce(*json.loads(sys.argv[2])))
    else:
        main(run)
