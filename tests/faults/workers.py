"""Resumes and cancels spread over two server processes that share one SQLite file."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .apps import FAMILIES, say
from .checker import check_run
from .support import Reader, Started, post, request, start_run, stored

__all__ = ["Outcome", "cancels", "resumes", "workers_seen"]


@dataclass
class Outcome:
    """What was done, what was wrong with it, and how long cancels took, in seconds, until a client was told the end."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def summary(self) -> str:
        """One line of figures."""
        text = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        if self.latencies:
            ordered = sorted(self.latencies)
            text += f"; cancel to end: {ordered[len(ordered) // 2] * 1000:.0f} ms (median)"
            text += f", {ordered[-1] * 1000:.0f} ms (most)"
        return text


async def workers_seen(port: int) -> set[int]:
    """The processes that answer on a port."""
    return {json.loads((await request(port, "GET", "/pid")).body)["pid"] for _ in range(40)}


async def resumes(ports: Sequence[int], path: Path, *, count: int, seed: int) -> Outcome:
    """Have clients leave runs of about 100 events and come back to any of ``ports``, ``count`` times in all.

    A tenth of the resumes is made by each of as many clients; two clients read each run.
    """
    outcome = Outcome()
    chosen = random.Random(seed)
    families = list(FAMILIES)
    each = 10
    readers: list[Reader] = []
    for number in range(count // each):
        if number % 2 == 0:
            run = await start_run(chosen.choice(ports), families[number // 2 % 3], say(100, 0.02))
        readers.append(Reader.of(run))

    async def client(reader: Reader) -> None:
        await reader.get(chosen.choice(ports), stop_after=chosen.randrange(1, 10))
        for left in reversed(range(each)):
            status = await reader.get(chosen.choice(ports), stop_after=chosen.randrange(1, 10) if left else None)
            outcome.counts["resumes"] += 1
            if status != 200:
                outcome.violations.append(f"{reader.run}: a resume got {status}")
        if not (reader.clean and reader.history.ended):
            outcome.violations.append(f"{reader.run}: a client was not told the end: {reader.history.controls}")
        if (status := await reader.get(chosen.choice(ports))) != 204:
            outcome.violations.append(f"{reader.run}: at the end a client got {status}")

    await asyncio.gather(*map(client, readers))
    for run in {reader.run for reader in readers}:
        await _check(outcome, path, run, [reader for reader in readers if reader.run == run], "COMPLETED")
    outcome.counts["runs"] = len({reader.run for reader in readers})
    return outcome


async def cancels(ports: Sequence[int], path: Path, *, count: int, seed: int) -> Outcome:
    """Cancel ``count`` runs, most of them by another process than the one that produces them.

    With two ports, the cancel goes to the one that has not started the run; with one, to whoever accepts it.
    """
    outcome = Outcome()
    chosen = random.Random(seed)
    families = list(FAMILIES)

    async def one(number: int) -> None:
        start, other = chosen.sample(list(ports), 2) if len(ports) > 1 else (ports[0], ports[0])
        run = await start_run(start, families[number % 3], say(5000, 0.02))
        reader = Reader.of(run)
        reading = asyncio.create_task(reader.get(chosen.choice(ports)))
        await reader.reached(chosen.randrange(0, 12))
        asked = time.monotonic()
        answer = await post(other, f"{run.path}/cancel")
        if answer.status != 200:
            outcome.violations.append(f"{run}: a cancel got {answer.status}: {answer.body!r}")
        await reading
        outcome.latencies.append(time.monotonic() - asked)
        outcome.counts["cancels"] += 1
        await _check(outcome, path, run, [reader], "CANCELLED")

    for begin in range(0, count, 5):  # five at a time, so that the latency is the cancel's and not the machine's
        await asyncio.gather(*map(one, range(begin, min(begin + 5, count))))
    return outcome


async def _check(outcome: Outcome, path: Path, run: Started, readers: Sequence[Reader], expected: str) -> None:
    status, replay = await stored(path, run.run_id)
    if status != expected:
        outcome.violations.append(f"{run}: it is {status} and not {expected}")
    found = check_run(replay, [reader.history for reader in readers], family=run.family, status=status)
    outcome.violations += [f"{run}: {violation}" for violation in found]
