"""Many cycles of one fault on one store, and their figures."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...postgres_server import serve
from ...redis_server import RedisServer
from .backends import Backend, PostgresBackend, RedisBackend, SQLiteBackend
from .checker import Violation
from .cycle import Cycle, Stage
from .injecting import FAULTS, Fault
from .records import dump
from .workers import Nursery

__all__ = ["Report", "campaign", "faults_of", "private_backend"]


@dataclass
class Report:
    """The figures of a campaign."""

    backend: str
    fault: str
    seed: int
    cycles: int = 0
    acknowledged: int = 0
    lost: int = 0
    late: int = 0
    doubts: int = 0
    gaps: int = 0
    takeovers: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)
    failed_cycles: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        figures = (
            f"{self.cycles} cycles, {self.acknowledged} events acknowledged, {self.lost} lost, {self.late} late, "
            f"{self.doubts} appends in doubt, {self.takeovers} takeovers, {self.gaps} gaps told, "
            f"{len(self.violations)} violations, {self.seconds:.1f} s"
        )
        return f"{self.backend} {self.fault}: {figures} (seed {self.seed})"


async def campaign(
    backend: Backend,
    fault: Fault,
    nursery: Nursery | None,
    *,
    cycles: int,
    seed: int,
    duration: float | None = None,
    patience: float = 120.0,
    said: Callable[[str], None] = lambda _: None,
    keep: Path | None = None,
) -> Report:
    """Play cycles one after another, with the same workers, until there are enough or the time is over.

    Args:
        duration: In seconds; ``None`` for as long as it takes.
        patience: How long, in seconds, anything within a cycle may take.
        said: Told each violation as it is found.
        keep: A directory for the records of cycles with violations.
    """
    report = Report(backend.kind, fault.name, seed)
    seeds = random.Random(f"{seed} {backend.kind} {fault.name}")
    begun = time.monotonic()
    async with fault.around(backend, seeds.getrandbits(32)) as port:
        stage = Stage(backend, nursery, port=port, timeout=fault.timeout, patience=patience)
        try:
            for number in range(cycles):
                if duration is not None and time.monotonic() - begun > duration:
                    break
                name = f"{fault.name}-{seeds.getrandbits(64):x}"
                cycle = Cycle(stage, name, seeds.getrandbits(32), lease=fault.lease, pause=fault.pause)
                outcome = await cycle.play(fault.strike)
                report.cycles += 1
                for figure in ("acknowledged", "lost", "late", "doubts", "gaps", "takeovers"):
                    setattr(report, figure, getattr(report, figure) + getattr(outcome, figure))
                if outcome.violations:
                    report.violations += outcome.violations
                    report.failed_cycles.append(number)
                    for violation in outcome.violations:
                        said(f"{backend.kind} {fault.name}, cycle {number} of seed {seed}: {violation}")
                    if keep is not None:
                        name = f"{backend.kind}-{fault.name}-{seed}-{number}.jsonl"
                        keep.joinpath(name).write_bytes(b"".join(map(dump, stage.journal.records)))
                    await stage.clear()  # whatever they do, it is not the next cycle's
        finally:
            await stage.clear()
    report.seconds = time.monotonic() - begun
    return report


@contextmanager
def private_backend(kind: str, directory: Path) -> Iterator[Backend]:
    """A store of this test's own, that may be killed."""
    with ExitStack() as stack:
        if kind == "sqlite":
            yield SQLiteBackend(directory)
        elif kind == "postgres":
            server = stack.enter_context(contextmanager(serve)())
            yield PostgresBackend(server)
        else:
            redis = RedisServer(appendonly="yes", appendfsync="always")
            yield RedisBackend(stack.enter_context(redis))


def faults_of(kind: str) -> list[Fault]:
    """The faults that make sense for a store."""
    return [fault() for fault in FAULTS.values() if kind in fault.backends]
