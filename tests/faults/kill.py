"""``kill -9`` of a server in the middle of its runs, again and again, on one SQLite file.

In each cycle a server starts on what the killed one has left. The clients of the interrupted runs come back with their
cursors and read on to the end; finished runs are replayed; then new runs start, and the server is killed while they
are being produced and read::

    python -m tests.faults.kill --cycles 50 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .apps import FAMILIES, Settings, say
from .checker import History, check_history, check_run
from .support import Reader, Server, Started, integrity, request, runs_of, start_run, wait_for

__all__ = ["Report", "kill_cycles", "kill_one_of_two"]

LEASE = 1.0
SWEEP = 0.25
# What a loaded machine may add to lease and sweep: a sweep that is due runs when the event loop comes to it.
SLACK = 1.5


@dataclass
class Report:
    """What was found, and how much was looked at."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    ended_after: list[float] = field(default_factory=list)
    """For each interrupted run, the seconds from the kill, or from the first server that could notice, to its end."""

    def summary(self) -> str:
        """One line of figures."""
        ended = sorted(self.ended_after)
        times = f"; ended after {ended[len(ended) // 2]:.2f} s (median), {ended[-1]:.2f} s (most)" if ended else ""
        return ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items())) + times


@dataclass
class _Interrupted:
    """A run that was active when its server was killed, and its clients."""

    run: Started
    readers: list[Reader]


class _Cycles:
    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.path = directory / "runs.db"
        self.settings = Settings(log=f"sqlite:///{self.path}", lease=LEASE, sweep_interval=SWEEP)
        self.random = random.Random(seed)
        self.report = Report()
        self.finished: dict[Started, list[bytes]] = {}
        self.interrupted: list[_Interrupted] = []
        self.killed_at = 0.0

    async def cycle(self, *, last: bool) -> None:
        """Start a server, settle what the last one left, and kill it unless it is the ``last``."""
        if self.path.exists() and self.random.random() < 0.5:
            self._check_file()  # before the server that recovers it; else the server is the first to open it
        async with Server(self.settings, self.directory) as server:
            for left in self.interrupted:
                await self._settle(server, left)
            self.interrupted.clear()
            for run in self.random.sample(list(self.finished), min(6, len(self.finished))):
                await self._replay_again(server, run)
            if last:
                for run in list(self.finished):
                    await self._replay_again(server, run)
                return
            await self._run_and_kill(server)
        self._check_file()

    def _check_file(self) -> None:
        found = integrity(self.path)
        self.report.counts["integrity checks"] += 1
        if found != "ok":
            self.report.violations.append(f"integrity_check: {found}")

    async def _run_and_kill(self, server: Server) -> None:
        # Some end before the kill, and are told so; one of each family is in the middle of it.
        pace = self.random.choice((0, 0.002, 0.01))
        for family in FAMILIES:
            reader = await Reader.posting(server.port, family, say(12))
            await reader.receive()
            await self._keep_finished(server, reader)
        tasks: list[asyncio.Task[object]] = []
        for family in FAMILIES:
            poster = await Reader.posting(server.port, family, say(2000, pace, 60))
            readers = [poster, Reader.of(poster.run), Reader.of(poster.run)]
            self.interrupted.append(_Interrupted(poster.run, readers))
            tasks.append(asyncio.create_task(poster.receive()))
            tasks += [asyncio.create_task(_quietly(reader, server.port)) for reader in readers[1:]]
        watched = self.random.choice(self.interrupted).readers[self.random.randrange(3)]
        await watched.reached(self.random.randrange(5, 200))
        # Somewhere within the commits and sends of the next moment
        await asyncio.sleep(self.random.random() * 0.02)
        server.kill()
        self.killed_at = time.time()
        await asyncio.gather(*tasks)
        self.report.counts["kills"] += 1

    async def _settle(self, server: Server, left: _Interrupted) -> None:
        for reader in left.readers:
            self.report.counts["acknowledged events"] += len(reader.history.events)
        statuses = await asyncio.gather(*[reader.get(server.port) for reader in left.readers])
        if set(statuses) != {200}:
            self.report.violations.append(f"{left.run}: clients that came back got {statuses}")
        again = await asyncio.gather(*[reader.get(server.port) for reader in left.readers])
        if set(again) != {204}:
            self.report.violations.append(f"{left.run}: at the end clients got {again} instead of 204")
        row = runs_of(self.path)[left.run.run_id]
        replay = Reader.of(left.run)
        await replay.get(server.port)
        histories = [reader.history for reader in left.readers]
        self._check(left.run, replay.history, histories, "ERROR")
        last = replay.history.events[-1].data
        if last.get("error_type") != "producer_lost" or last.get("run_id") != left.run.run_id:
            self.report.violations.append(f"{left.run}: its last event is {last}")
        finished_at = row["finished_at"]
        assert isinstance(finished_at, float)
        # The first server that could notice is the new one, and the lease has to run out before
        noticed = finished_at - max(self.killed_at + LEASE, server.ready_at)
        self.report.ended_after.append(max(0.0, finished_at - max(self.killed_at, server.ready_at)))
        if noticed > SWEEP + SLACK:
            self.report.violations.append(f"{left.run}: it ended {noticed:.2f} s after its lease")
        self.finished[left.run] = [seen.frame for seen in replay.history.events]
        self.report.counts["interrupted runs"] += 1

    async def _keep_finished(self, server: Server, reader: Reader) -> None:
        replay = Reader.of(reader.run)
        await replay.get(server.port)
        if not reader.clean:
            self.report.violations.append(f"{reader.run}: the answer to its POST did not end cleanly")
        self._check(reader.run, replay.history, [reader.history], "COMPLETED")
        self.finished[reader.run] = [seen.frame for seen in replay.history.events]
        self.report.counts["finished runs"] += 1

    async def _replay_again(self, server: Server, run: Started) -> None:
        replay = Reader.of(run)
        await replay.get(server.port)
        if [seen.frame for seen in replay.history.events] != self.finished[run] or not replay.history.ended:
            self.report.violations.append(f"{run}: its replay has changed")
        self.report.violations += [f"{run}: {violation}" for violation in check_history(replay.history)]
        self.report.counts["replays"] += 1

    def _check(self, run: Started, replay: History, histories: Sequence[History], status: str) -> None:
        found = check_run(replay, histories, family=run.family, status=status)
        self.report.violations += [f"{run}: {violation}" for violation in found]


async def _quietly(reader: Reader, port: int) -> None:
    with suppress(OSError):  # killed before it answered; the client will come back like the others
        await reader.get(port)


async def kill_cycles(directory: Path, *, cycles: int, seed: int, verbose: bool = False) -> Report:
    """Kill a server ``cycles`` times on one file in ``directory``."""
    state = _Cycles(directory, seed)
    for number in range(cycles + 1):
        before = len(state.report.violations)
        try:
            await state.cycle(last=number == cycles)
        except Exception as error:
            raise RuntimeError(f"cycle {number} of seed {seed} could not go on; {state.report}") from error
        new = state.report.violations[before:]
        if verbose:
            print(f"cycle {number}: {state.report.summary()}", *new, sep="\n  ", flush=True)
    return state.report


async def kill_one_of_two(directory: Path, *, seed: int) -> Report:
    """Kill one of two servers on one file: the other ends its runs, and serves their clients."""
    state = _Cycles(directory, seed)
    async with Server(state.settings, directory) as survivor:
        async with Server(state.settings, directory) as victim:
            await state._run_and_kill(victim)
        for left in state.interrupted:
            await state._settle(survivor, left)
        # The survivor goes on as before
        run = await start_run(survivor.port, "agent", say(5))

        async def completed() -> bool:
            answer = await request(survivor.port, "GET", run.path)
            return bool(json.loads(answer.body)["status"] == "COMPLETED")

        await wait_for(completed, 20.0, lambda: "the survivor to finish a run of its own")
    return state.report


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill", description=__doc__)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        begun = time.monotonic()
        report = asyncio.run(kill_cycles(Path(directory), cycles=options.cycles, seed=options.seed, verbose=True))
    print(f"{report.summary()}; {len(report.violations)} violations; {time.monotonic() - begun:.0f} s")
    return 1 if report.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
