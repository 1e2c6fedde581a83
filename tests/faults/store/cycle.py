"""One cycle: runs are produced and read, something is done to them, they get their end, and the checker judges."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress

import anyio

from agno_resumable.errors import LogUnavailable, RunNotFound

from .backends import Backend, MemoryBackend
from .checker import Kind, Violation, check
from .journal import Journal, Stuck
from .records import Acknowledged, Doubted, Failed, Final, Missed, read_final
from .workers import Handle, LocalWorker, Nursery

__all__ = ["Cycle", "Outcome", "Stage"]

READERS = ("reader-1", "reader-2")
# Only runs whose producers are lost on purpose have leases that run out
LONG_LEASE, SHORT_LEASE = 600.0, 0.5


class Stage:
    """The workers that live through many cycles: one that produces, one that inherits, two that read.

    Args:
        nursery: Where processes come from; ``None`` for a log that only this process has.
        port: Of the proxy between the workers and the store, if there is one.
        timeout: How long, in seconds, a server may take to answer its clients.
        patience: How long, in seconds, anything may take.
    """

    def __init__(
        self,
        backend: Backend,
        nursery: Nursery | None,
        *,
        port: int | None = None,
        timeout: float = 30.0,
        patience: float = 120.0,
    ) -> None:
        self.backend = backend
        self.journal = Journal(patience)
        self._nursery = nursery
        self._port = port
        self._timeout = timeout
        self._workers: dict[str, Handle] = {}
        self._spawned = 0

    async def worker(self, role: str) -> Handle:
        """Who has this role; a new one, if the last one was killed."""
        worker = self._workers.get(role)
        if worker is None or not worker.alive:
            self._spawned += 1
            name = f"{role}#{self._spawned}"
            if self._nursery is None:
                assert isinstance(self.backend, MemoryBackend)
                worker = LocalWorker(name, self.journal.add, self.backend.log)
            else:
                worker = await self._nursery.spawn(name, self.journal.add, self.backend.spec(self._port, self._timeout))
            self._workers[role] = worker
        return worker

    @property
    def workers(self) -> Sequence[Handle]:
        """Those that live."""
        return [worker for worker in self._workers.values() if worker.alive]

    async def clear(self) -> None:
        """End all workers."""
        for worker in self.workers:
            await worker.kill()
        self._workers.clear()


class Outcome:
    """What came of one cycle."""

    def __init__(self, journal: Journal, violations: Sequence[Violation], finals: Sequence[Final]) -> None:
        told = [record for record in journal.records if isinstance(record, Acknowledged)]
        kinds = [violation.kind for violation in violations]
        self.violations: Sequence[Violation] = violations
        self.finals: Sequence[Final] = finals
        self.acknowledged: int = len({event for record in told for event in record.events})
        self.lost: int = kinds.count(Kind.LOST_EVENT)
        self.late: int = kinds.count(Kind.LATE_EVENT)
        self.doubts: int = sum(isinstance(record, Doubted) for record in journal.records)
        self.gaps: int = sum(isinstance(record, Missed) for record in journal.records)
        self.takeovers: int = sum(final.generation - 1 for final in finals)


class Cycle:
    """The runs of one cycle, and what a fault does with them.

    Args:
        name: What the names of its runs begin with.
        seed: Chooses everything that is chosen.
        lease: Of the producers, in seconds.
        pause: About how long, in seconds, a producer waits between two appends.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        seed: int,
        *,
        lease: float = LONG_LEASE,
        pause: float = 0.004,
        runs: int = 2,
    ) -> None:
        self.random = random.Random(seed)
        self.backend = stage.backend
        self.journal = stage.journal
        self.runs: Sequence[str] = [f"{name}.{number}" for number in range(runs)]
        self._stage = stage
        self._lease = lease
        self._pause = pause
        self._inheriting = False
        self._lines: dict[str, tuple[str, str]] = {}  # by line: the reader's role, and the run

    # ---------------------------------------------------------------- workers

    async def worker(self, role: str) -> Handle:
        """Who has this role: ``producer``, ``heir``, ``reader-1`` or ``reader-2``."""
        return await self._stage.worker(role)

    async def begin(self) -> None:
        """Have the runs produced, and read by two processes."""
        self.journal.clear()
        producer = await self.worker("producer")
        for role in (*READERS, "heir"):
            await self.worker(role)
        self.produce(producer)
        await self.until(lambda: all(run in self.journal.generation for run in self.runs), "the runs are created")
        for run in self.runs:
            for role in READERS:
                await self.read(role, run, f"{role}:{run}")

    def produce(self, producer: Handle) -> None:
        """Create the runs, or go on with them, one by hand and one through an outbox."""
        for number, run in enumerate(self.runs):
            seed = self.random.getrandbits(32)
            producer.send(
                do="produce", run=run, lease=self._lease, seed=seed, pause=self._pause, via_outbox=bool(number % 2)
            )

    async def rest(self) -> None:
        """Have the runs rest and go on, with all readers staying."""
        producer = await self.worker("producer")
        for run in self.runs:
            producer.send(do="rest", run=run)
        # Whoever has not come to the pause when it is over is not told of it, so the next leg waits
        await self.until(lambda: self.journal.rested >= self._lines.keys(), "readers are told of the pause")
        self.produce(producer)
        await self.taken_over()

    async def read(self, role: str, run: str, line: str) -> None:
        """Have a client read a run, from where it was, if it was there."""
        self._lines[line] = (role, run)
        # Small pages, a slow client, and one that takes all there is
        limit, lag = self.random.choice(((7, 0.0), (200, 0.01), (2048, 0.0)))
        (await self.worker(role)).send(
            do="read",
            run=run,
            line=line,
            after=self.journal.cursors.get(line, -1),
            limit=limit,
            lag=lag,
        )

    async def kill(self, role: str) -> None:
        """``kill -9`` at any moment."""
        await self.phase()
        worker = await self.worker(role)
        await worker.kill()
        self.journal.forget(worker.name)

    async def come_back(self, role: str) -> None:
        """What a killed reader's clients do."""
        for line, (reader, run) in list(self._lines.items()):
            if reader == role and line not in self.journal.ended:
                await self.read(role, run, line)

    async def inherit(self, how: str) -> None:
        """Have the heir ``bury`` or ``adopt`` runs whose lease has run out."""
        heir = await self.worker("heir")
        self._inheriting = True
        before = self.journal.said.get((heir.name, "inheriting"), 0)
        # What is adopted shall not be lost by the heir itself, however slow the machine is
        lease = 30.0
        heir.send(do="inherit", how=how, interval=0.05, lease=lease, seed=self.random.getrandbits(16))
        await self.until(lambda: self.journal.said.get((heir.name, "inheriting"), 0) > before, "the heir is ready")

    async def renounce(self) -> None:
        """Have the heir look no more: the next cycle may want it to do something else."""
        if self._inheriting:
            heir = await self.worker("heir")
            heir.send(do="renounce")
            await self.until(lambda: (heir.name, "renounced") in self.journal.said, "the heir looks no more")

    async def phase(self) -> None:
        """Come to any moment between two commits or within one: waiting for a record always leads to the same."""
        await anyio.sleep(self.random.random() * 0.01)

    # ---------------------------------------------------------------- what is waited for

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """See ``Journal.until``."""
        await self.journal.until(condition, what)

    async def progress(self, most: int, least: int = 1) -> None:
        """Wait until each run has so many events more, between ``least`` and ``most``."""
        seen = self.journal.next_index
        wanted = {run: seen.get(run, 0) + self.random.randint(least, most) for run in self.runs}
        await self.until(
            lambda: all(seen.get(run, 0) >= wanted[run] for run in self.runs), f"each run gets to {wanted}"
        )

    def troubles(self) -> dict[str, int]:
        """How many appends to each run were refused or in doubt so far."""
        return {run: self.journal.troubles.get(run, 0) for run in self.runs}

    async def trouble(self, before: dict[str, int], what: str, *, times: int = 1, everywhere: bool = False) -> None:
        """Wait until ``troubles`` has risen by ``times`` since ``before``, for one run or for each."""
        enough = all if everywhere else any
        await self.until(
            lambda: enough(found >= before[run] + times for run, found in self.troubles().items()),
            what,
        )

    async def taken_over(self) -> None:
        """Wait until somebody else produces each of the runs."""
        await self.until(
            lambda: {run for _, run, generation in self.journal.producing if generation > 1} >= {*self.runs},
            "the runs are taken over",
        )

    async def told_the_end(self) -> None:
        """Wait until all readers were told the end."""
        await self.until(lambda: self.journal.ended >= self._lines.keys(), "readers are told the end")

    async def ended(self) -> None:
        """Wait until all readers were told the end, and no producer that lives produces any more."""
        await self.told_the_end()
        await self.until(lambda: not self.journal.producing, "producers have noticed the end")

    # ---------------------------------------------------------------- the end

    async def finish(self) -> None:
        """Have whoever produces the runs end them."""
        for worker in self._stage.workers:
            for run in self.runs:
                worker.send(do="finish", run=run)

    async def judge(self, *troubles: Violation) -> Outcome:
        """Read what there is, with a log that was not open before, and check it."""
        finals: list[Final] = []
        found = list(troubles)
        try:
            async with AsyncExitStack() as stack:
                log = self.backend.open()
                if not log.is_open:
                    await stack.enter_async_context(log)
                for run in self.runs:
                    with suppress(RunNotFound):  # the checker says what that means
                        finals.append(await read_final(log, run))
        except LogUnavailable as error:
            found.append(Violation(Kind.STUCK, self.runs[0], f"the log cannot be read afterwards: {error}"))
        else:
            found += check(self.journal.records, finals)
        return Outcome(self.journal, found, finals)

    async def play(self, strike: Callable[[Cycle], Awaitable[None]]) -> Outcome:
        """The whole cycle, with ``strike`` in its middle."""
        try:
            await self.begin()
            await self.progress(30)
            await strike(self)
            await self.finish()
            await self.ended()
            await self.renounce()
        except Stuck as stuck:
            trouble = self._explain(stuck)
            await self._stage.clear()  # what is still written could not be judged
            outcome = await self.judge(*trouble)
            # That it has no end then says nothing more
            outcome.violations = [each for each in outcome.violations if each.kind is not Kind.NO_END]
            return outcome
        return await self.judge()

    def _explain(self, stuck: Stuck) -> Sequence[Violation]:
        if any(isinstance(record, Failed) for record in self.journal.records):
            return ()  # the failure says it
        open_lines = sorted(self._lines.keys() - self.journal.ended)
        state = f"{stuck}; still producing: {sorted(self.journal.producing)}; not ended: {open_lines}"
        return [Violation(Kind.STUCK, self.runs[0], state)]
