"""Any sequence of calls, some of them cancelled at random, leaves a log in the state of a simple model.

A rule draws what it needs independently of the state: run ids from a few names, generations as "the current one" or
"one before", so that a sequence means the same thing at every replay, whatever became of a cancelled call.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.lowlevel
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agno_resumable.errors import ResumableError, RunExists, RunFinished, RunNotFound, StaleGeneration
from agno_resumable.log.memory import MemoryEventLog
from agno_resumable.log.postgres import PostgresEventLog
from agno_resumable.log.protocol import EventLog
from agno_resumable.log.redis import RedisEventLog
from agno_resumable.log.sqlite import SQLiteEventLog
from agno_resumable.model import EncodedEvent, Event, NewRun, Run, RunStatus

from . import broken_logs as broken
from .postgres_server import PostgresServer
from .redis_server import RedisServer

T = TypeVar("T")

LONG = 600.0  # a lease that nobody sees the end of
SHORT = 0.001  # a lease that is over before the next sweep
PATIENCE = 5.0

NAMES = ("ada", "bob", "cy")
NEVER = EncodedEvent("", b"")  # stands at an index that a floor has jumped over
OWNERS = (None, "ann", "ben")


@dataclass
class Kept:
    """A run as the model has it."""

    new: NewRun
    status: RunStatus = RunStatus.PENDING
    events: list[EncodedEvent] = field(default_factory=list)  # all there ever were
    first: int = 0
    generation: int = 1
    attempts: int = 1
    asked: bool = False
    transcript: bytes | None = None
    lease: float | None = None  # the length of the lease that runs

    @property
    def seen(self) -> tuple[object, ...]:
        """What a run shows of this; times are checked apart."""
        return (
            *vars(self.new).values(),
            self.status,
            self.first,
            len(self.events),
            self.generation,
            self.attempts,
            self.asked,
            self.transcript,
            self.lease,
            self.status.finished,
        )


def seen_of(run: Run) -> tuple[object, ...]:
    """The same of a real run; a test ends long before a long lease is half over."""
    return (
        *[getattr(run, name) for name in vars(NewRun(""))],
        run.status,
        run.first_index,
        run.next_index,
        run.generation,
        run.attempts,
        run.cancel_requested_at is not None,
        run.transcript,
        None if run.lease_expires_at is None else SHORT if run.lease_expires_at < time.time() + LONG / 2 else LONG,
        run.finished_at is not None,
    )


class Model:
    """An event log as a few dictionaries, without time: a short lease is over, a long one never is."""

    def __init__(self) -> None:
        self.runs: dict[str, Kept] = {}
        self.intents: set[str] = set()

    def find(self, run_id: str) -> Kept:
        if run_id not in self.runs:
            raise RunNotFound(run_id)
        return self.runs[run_id]

    def create(self, new: NewRun, lease: float) -> tuple[object, ...]:
        if new.run_id in self.runs:
            raise RunExists(new.run_id)
        for run in self.runs.values():
            if new.idempotency_key is not None and (run.new.user_id, run.new.idempotency_key) == (
                new.user_id,
                new.idempotency_key,
            ):
                raise RunExists(run.new.run_id, idempotency_key=new.idempotency_key)
        self.runs[new.run_id] = Kept(new, lease=lease)
        return self.runs[new.run_id].seen

    def claim(self, run_id: str, lease: float, generation: int | None, floor: int | None) -> tuple[object, ...]:
        run = self.find(run_id)
        if run.status.finished:
            raise RunFinished(run_id, run.status.value)
        if generation is not None and generation <= run.generation:
            raise StaleGeneration(run_id, generation, run.generation)
        run.generation = run.generation + 1 if generation is None else generation
        run.attempts += 1
        run.lease = lease
        if run.status is RunStatus.PAUSED:
            run.status = RunStatus.RUNNING
        if floor is not None and floor > len(run.events):
            run.events += [NEVER] * (floor - len(run.events))
            run.first = floor
        return run.seen

    def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        status: RunStatus | None,
        transcript: bytes | None,
    ) -> int:
        run = self.find(run_id)
        if generation != run.generation:
            raise StaleGeneration(run_id, generation, run.generation)
        if run.status.finished:
            raise RunFinished(run_id, run.status.value)
        run.events += events
        if status is not None:
            run.status = status
        elif events and run.status is RunStatus.PENDING:
            run.status = RunStatus.RUNNING
        if not run.status.active and status is not None:
            run.lease = None
        if transcript is not None:
            run.transcript = transcript
        return len(run.events)

    def renew(self, claims: Sequence[tuple[str, int]], lease: float) -> list[str]:
        lost = []
        for run_id, generation in claims:
            run = self.runs.get(run_id)
            if run is None or run.generation != generation or not run.status.active:
                lost.append(run_id)
            else:
                run.lease = lease
        return sorted(lost)

    def request_cancel(self, run_id: str) -> tuple[object, ...]:
        run = self.find(run_id)
        if not run.status.finished:
            run.asked = True
        return run.seen

    def intend_cancel(self, run_id: str, ttl: float) -> None:
        if ttl == LONG:
            self.intents.add(run_id)

    def drop_intent(self, run_id: str) -> None:
        self.intents.discard(run_id)

    def trim(self, run_id: str, before: int) -> None:
        run = self.find(run_id)
        run.first = max(run.first, min(before, len(run.events)))

    def delete(self, run_id: str) -> None:
        self.runs.pop(run_id, None)

    def prune(self) -> int:
        over = [run_id for run_id, run in self.runs.items() if run.status.finished]
        for run_id in over:
            del self.runs[run_id]
        return len(over)

    def expire(self, lease: float, serves: Sequence[str]) -> list[tuple[str, int]]:
        def is_due(run: Kept) -> bool:
            served = f"{run.new.family.value}:{run.new.component_id}" in serves
            return run.lease == SHORT and (served or run.attempts >= run.new.max_attempts)

        dead = [run for run in self.runs.values() if is_due(run)]
        for run in dead:
            run.generation += 1
            run.attempts += 1
            run.lease = lease
        return sorted((run.new.run_id, run.generation) for run in dead)


CUT = "cut"
"""The outcome of a call that was cancelled before it had one."""


async def outcome_of(call: Callable[[], Awaitable[T]], ticks: int | None) -> object:
    """What ``call`` gives, as a value or an error's type and facts; ``CUT`` if it was cancelled after ``ticks``."""
    outcome: list[object] = []

    async def run() -> None:
        try:
            outcome.append(await call())
        except ResumableError as error:
            outcome.append((type(error), vars(error)))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        if ticks is not None:
            for _ in range(ticks):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    return outcome[0] if outcome else CUT


def predicted(call: Callable[[], object]) -> object:
    """What the model gives, in the same form."""
    try:
        return call()
    except ResumableError as error:
        return (type(error), vars(error))


async def all_events(log: EventLog, run_id: str, limit: int, max_bytes: int) -> tuple[Run, list[Event]]:
    """The run, read to its end; every page must be dense and begin where the one before it ended."""
    events: list[Event] = []
    after = -1
    while True:
        page = await log.read(run_id, after, limit=limit, max_bytes=max_bytes)
        begin = max(after + 1, page.run.first_index)
        assert [event.index for event in page.events] == list(range(begin, begin + len(page.events)))
        assert len(page.events) <= limit
        assert len(page.events) <= 1 or sum(len(event.data) for event in page.events) <= max_bytes
        if page.last is None:
            assert begin >= page.run.next_index
            return page.run, events
        events += page.events
        assert page.last > after
        after = page.last


names = st.sampled_from(NAMES)
leases = st.sampled_from((LONG, SHORT))
ticks = st.one_of(st.none(), st.none(), st.integers(0, 6))
statuses = st.sampled_from((*[None] * 6, RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.COMPLETED))
sizes = st.sampled_from((0, 1, 1, 2, 3, 40))
openings = st.integers(0, 1)


class LogMachine(RuleBasedStateMachine):
    """One log, or two openings of one storage, beside the model."""

    backend: ClassVar[str] = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal: BlockingPortal = self.stack.enter_context(start_blocking_portal(self.backend))
        self.model = Model()
        self.logs: list[EventLog] = []
        self.contexts: list[AbstractContextManager[EventLog]] = []
        self.wrote: dict[str, int] = {}  # by run, the opening that changed it last
        self.serial = 0
        self.touched: set[str] = set()

    def fresh(self) -> EventLog:
        raise AssertionError("a machine names its backend")

    def again(self) -> EventLog | None:
        """A second opening of the same storage, for a backend that has one."""
        return None

    # -------------------------------------------------------------------------------------------- opening, closing

    def enter(self, log: EventLog) -> None:
        context: Any = self.portal.wrap_async_context_manager(log)
        context.__enter__()
        self.contexts.append(context)
        self.logs.append(log)

    def leave(self) -> None:
        while self.contexts:
            self.contexts.pop().__exit__(None, None, None)
        self.logs.clear()

    @initialize(owners=st.tuples(*[st.sampled_from(OWNERS)] * len(NAMES)), lease=leases)
    def open(self, owners: tuple[str | None, ...], lease: float) -> None:
        self.enter(self.fresh())
        for run_id, owner in zip(NAMES, owners, strict=True):
            self.create(0, None, run_id, owner, run_id == NAMES[0], lease, 1 + len(run_id) % 3)

    def teardown(self) -> None:
        try:
            if self.logs:
                self.portal.call(self.compare_all)
                for log in self.logs:
                    assert log.stats()["waiters"] == 0
        finally:
            try:
                self.leave()
            finally:
                self.stack.close()

    # -------------------------------------------------------------------------------------------- calling, comparing

    def do(
        self,
        via: int,
        cut: int | None,
        run_ids: Sequence[str],
        call: Callable[[EventLog], Awaitable[object]],
        predict: Callable[[Model], object],
    ) -> None:
        """Make a call and hold its outcome, and what it left behind, against the model."""
        opening = via % len(self.logs)
        log = self.logs[opening]
        after = copy.deepcopy(self.model)
        wanted = predicted(lambda: predict(after))
        outcome = self.portal.call(outcome_of, lambda: call(log), cut)
        if outcome is CUT:
            self.portal.call(self.settle, log)
            if not self.portal.call(self.same_on, log, self.model, run_ids):
                self.model = after
        else:
            assert outcome == wanted, f"{outcome!r} instead of {wanted!r}"
            self.model = after
        for run_id in run_ids:
            self.wrote[run_id] = opening
        self.touched.update(run_ids)

    async def settle(self, log: EventLog) -> None:
        """Return when what was called before is decided: writes of one opening are done in their order."""
        with anyio.fail_after(PATIENCE):
            await log.delete("never-there")

    async def same_on(self, log: EventLog, model: Model, run_ids: Sequence[str], *, limit: int = 1000) -> bool:
        """Whether these runs look in ``log`` as they do in ``model``."""
        intents = set((await log.intents()).run_ids)
        for run_id in run_ids:
            if (run_id in intents) != (run_id in model.intents):
                return False
            kept = model.runs.get(run_id)
            try:
                run, events = await all_events(log, run_id, limit, 2_000)
                whole = await log.get(run_id)
            except RunNotFound:
                if kept is not None:
                    return False
                continue
            if kept is None or seen_of(whole) != kept.seen:
                return False
            if (run.version, run.next_index, run.status) != (whole.version, whole.next_index, whole.status):
                return False
            if events != [Event(index, *one) for index, one in enumerate(kept.events)][kept.first :]:
                return False
        return True

    async def compare(self, run_ids: Sequence[str]) -> None:
        """The opening that changed a run sees it at once, another one within its polling interval."""
        for run_id in run_ids:
            for opening, log in enumerate(self.logs):
                if self.wrote.get(run_id, opening) == opening:
                    if not await self.same_on(log, self.model, [run_id]):
                        raise AssertionError(await self.difference(log, run_id))
                    continue
                with anyio.move_on_after(PATIENCE):
                    while not await self.same_on(log, self.model, [run_id]):  # noqa: ASYNC110 - it waits for a poll
                        await anyio.sleep(0.002)
                    continue
                raise AssertionError("another opening: " + await self.difference(log, run_id))

    async def difference(self, log: EventLog, run_id: str) -> str:
        kept = self.model.runs.get(run_id)
        try:
            run, events = await all_events(log, run_id, 1000, 2_000)
            whole = await log.get(run_id)
        except RunNotFound:
            return f"{run_id} is not there; the model has {kept}"
        intents = f"{(await log.intents()).run_ids}, in the model {self.model.intents}"
        return f"{run_id} reads as {run} with {events}, get gives {whole}; the model has {kept}; intents are {intents}"

    async def compare_all(self) -> None:
        await self.compare(NAMES)
        for log in self.logs:
            listed = await log.list()
            assert sorted(run.run_id for run in listed) == sorted(self.model.runs)
            assert [run.created_at for run in listed] == sorted((run.created_at for run in listed), reverse=True)

    @invariant()
    def what_was_touched_is_as_the_model_has_it(self) -> None:
        touched, self.touched = sorted(self.touched), set()
        if touched:
            self.portal.call(self.compare, touched)

    def batch(self, size: int) -> list[EncodedEvent]:
        self.serial += 1
        return [EncodedEvent(f"Type{size}", f'{{"n":"{self.serial}-{part}"}}'.encode()) for part in range(size)]

    def generation(self, run_id: str, offset: int) -> int:
        kept = self.model.runs.get(run_id)
        return (kept.generation if kept is not None else 1) + offset

    # -------------------------------------------------------------------------------------------- rules: writing

    @rule(
        via=openings,
        cut=ticks,
        run_id=names,
        owner=st.sampled_from(OWNERS),
        keyed=st.booleans(),
        lease=leases,
        most=st.sampled_from((1, 1, 2, 4)),
    )
    def create(
        self, via: int, cut: int | None, run_id: str, owner: str | None, keyed: bool, lease: float, most: int
    ) -> None:
        new = NewRun(
            run_id,
            component_id="c" if keyed else None,
            session_id="s" if keyed else None,
            user_id=owner,
            idempotency_key="key" if keyed else None,
            input=b'{"i":1}' if keyed else None,
            metadata=None if keyed else b"{}",
            options=b'{"o":1}' if most > 1 else None,
            max_attempts=most,
        )

        async def call(log: EventLog) -> object:
            return seen_of(await log.create(new, lease=lease))

        self.do(via, cut, [run_id], call, lambda model: model.create(new, lease))

    @rule(
        via=openings,
        cut=ticks,
        run_id=names,
        lease=leases,
        offset=st.sampled_from((None, None, -1, 0, 1, 5)),
        floor=st.sampled_from((None, None, 0, 1, 2, 5, 60, 300)),
    )
    def claim(
        self, via: int, cut: int | None, run_id: str, lease: float, offset: int | None, floor: int | None
    ) -> None:
        generation = None if offset is None else self.generation(run_id, offset)

        async def call(log: EventLog) -> object:
            return seen_of(await log.claim(run_id, lease=lease, generation=generation, floor=floor))

        self.do(via, cut, [run_id], call, lambda model: model.claim(run_id, lease, generation, floor))

    @rule(
        via=openings,
        cut=ticks,
        run_id=names,
        offset=st.sampled_from((0, 0, 0, 0, 0, -1)),
        size=sizes,
        status=statuses,
        told=st.booleans(),
    )
    def append(
        self, via: int, cut: int | None, run_id: str, offset: int, size: int, status: RunStatus | None, told: bool
    ) -> None:
        kept = self.model.runs.get(run_id)
        if status is RunStatus.RUNNING and kept is not None and kept.status is RunStatus.PAUSED:
            status = None  # a resting run goes on by a claim
        events = self.batch(size)
        generation = self.generation(run_id, offset)
        transcript = events[0].data if told and events else None

        async def call(log: EventLog) -> object:
            return await log.append(run_id, generation, events, status=status, transcript=transcript)

        self.do(via, cut, [run_id], call, lambda model: model.append(run_id, generation, events, status, transcript))

    @rule(via=openings, run_id=names, size=sizes)
    def append_what_will_be_stored(self, via: int, run_id: str, size: int) -> None:
        self.append(via, None, run_id, 0, size, None, False)

    @rule(via=openings, run_id=names, crowd=st.lists(st.tuples(st.integers(1, 3), ticks), min_size=2, max_size=8))
    def append_many_at_once(self, via: int, run_id: str, crowd: list[tuple[int, int | None]]) -> None:
        """Each is stored wholly or, if it was cut, perhaps not at all; in the order called."""
        opening = via % len(self.logs)
        log = self.logs[opening]
        generation = self.generation(run_id, 0)
        batches = [(self.batch(size), cut) for size, cut in crowd]
        called: list[list[EncodedEvent]] = []
        outcomes: dict[int, object] = {}

        async def one(number: int, events: list[EncodedEvent], cut: int | None) -> None:
            async def call() -> object:
                called.append(events)
                return await log.append(run_id, generation, events)

            outcomes[number] = await outcome_of(call, cut)

        async def all_of_them() -> list[Event]:
            async with anyio.create_task_group() as group:
                for number, (events, cut) in enumerate(batches):
                    group.start_soon(one, number, events, cut)
            await self.settle(log)
            try:
                return (await all_events(log, run_id, 1000, 100_000))[1]
            except RunNotFound:
                return []

        stored = {event.data: event.index for event in self.portal.call(all_of_them)}
        for number, (events, _) in enumerate(batches):
            outcome = outcomes[number]
            if isinstance(outcome, int):
                assert stored.get(events[-1].data) == outcome - 1
            elif outcome is not CUT:
                after = copy.deepcopy(self.model)
                assert outcome == predicted(partial(after.append, run_id, generation, events, None, None))
                assert events[0].data not in stored
        for events in called:
            if events[0].data in stored:
                self.model.append(run_id, generation, events, None, None)
        self.wrote[run_id] = opening
        self.touched.add(run_id)

    @rule(via=openings, cut=ticks, held=st.lists(st.tuples(names, st.sampled_from((0, 0, -1)))), lease=leases)
    def renew(self, via: int, cut: int | None, held: list[tuple[str, int]], lease: float) -> None:
        claims = [(run_id, self.generation(run_id, offset)) for run_id, offset in dict(held).items()]

        async def call(log: EventLog) -> object:
            return sorted(await log.renew(claims, lease=lease))

        self.do(via, cut, [run_id for run_id, _ in claims], call, lambda model: model.renew(claims, lease))

    @rule(via=openings, cut=ticks, run_id=names)
    def request_cancel(self, via: int, cut: int | None, run_id: str) -> None:
        async def call(log: EventLog) -> object:
            return seen_of(await log.request_cancel(run_id))

        self.do(via, cut, [run_id], call, lambda model: model.request_cancel(run_id))

    @rule(via=openings, cut=ticks, run_id=names, ttl=st.sampled_from((LONG, LONG, 0.0)))
    def intend_cancel(self, via: int, cut: int | None, run_id: str, ttl: float) -> None:
        self.do(
            via,
            cut,
            [run_id],
            lambda log: log.intend_cancel(run_id, ttl=ttl),
            lambda model: model.intend_cancel(run_id, ttl),
        )

    @rule(via=openings, cut=ticks, run_id=names)
    def drop_intent(self, via: int, cut: int | None, run_id: str) -> None:
        self.do(via, cut, [run_id], lambda log: log.drop_intent(run_id), lambda model: model.drop_intent(run_id))

    @rule(via=openings, cut=ticks, run_id=names, before=st.sampled_from((0, 1, 2, 5, 45, 10_000)))
    def trim(self, via: int, cut: int | None, run_id: str, before: int) -> None:
        self.do(via, cut, [run_id], lambda log: log.trim(run_id, before=before), lambda m: m.trim(run_id, before))

    @rule(
        via=openings,
        cut=ticks,
        run_id=names,
        sure=st.integers(0, 2),
        anew=st.booleans(),
        owner=st.sampled_from(OWNERS),
        keyed=st.booleans(),
    )
    def delete(
        self, via: int, cut: int | None, run_id: str, sure: int, anew: bool, owner: str | None, keyed: bool
    ) -> None:
        if sure:  # rules are drawn evenly, and where runs live short lives nothing happens to them
            return
        self.do(via, cut, [run_id], lambda log: log.delete(run_id), lambda model: model.delete(run_id))
        if anew:
            self.create(via, None, run_id, owner, keyed, LONG, 1)

    @rule(via=openings, cut=ticks)
    def prune(self, via: int, cut: int | None) -> None:
        async def call(log: EventLog) -> object:
            return await log.prune(finished_before=await log.now() + 1.0)

        self.do(via, cut, NAMES, call, lambda model: model.prune())

    @rule(via=openings, cut=ticks, lease=leases, serves=st.sampled_from(((), ("agent:c",))))
    def expire(self, via: int, cut: int | None, lease: float, serves: Sequence[str]) -> None:
        async def over() -> None:
            log = self.logs[0]
            with anyio.fail_after(PATIENCE):
                until = await log.now() + SHORT
                while await log.now() <= until:  # noqa: ASYNC110 - a store tells nobody that its clock has moved
                    await anyio.sleep(SHORT)

        async def call(log: EventLog) -> object:
            found = await log.expire(lease=lease, serves=serves, patience=LONG)
            assert all((run.input, run.metadata, run.options, run.transcript) == (None,) * 4 for run in found)
            return sorted((run.run_id, run.generation) for run in found)

        self.portal.call(over)
        self.do(via, cut, NAMES, call, lambda model: model.expire(lease, serves))

    # -------------------------------------------------------------------------------------------- rules: reading

    @rule(
        via=openings,
        run_id=names,
        after=st.sampled_from((-1, 0, 3, 50, 9_999)),
        limit=st.sampled_from((0, 1, 7, 1024)),
        max_bytes=st.sampled_from((0, 60, 262_144)),
        cut=ticks,
    )
    def read(self, via: int, run_id: str, after: int, limit: int, max_bytes: int, cut: int | None) -> None:
        log = self.logs[via % len(self.logs)]
        kept = self.model.runs.get(run_id)
        outcome = self.portal.call(outcome_of, lambda: log.read(run_id, after, limit=limit, max_bytes=max_bytes), cut)
        if outcome is CUT:
            return
        if kept is None:
            assert outcome == predicted(lambda: self.model.find(run_id))
            return
        page: Any = outcome
        wanted = [Event(index, *one) for index, one in enumerate(kept.events)][max(after + 1, kept.first) :]
        assert page.events == wanted[: len(page.events)]
        assert len(page.events) <= limit
        assert len(page.events) <= 1 or sum(len(event.data) for event in page.events) <= max_bytes
        assert bool(page.events) == bool(wanted and limit)
        assert (page.run.first_index, page.run.next_index) == (kept.first, len(kept.events))

    @rule(
        via=openings,
        status=st.sampled_from((None, *RunStatus)),
        owner=st.sampled_from(OWNERS),
        session=st.sampled_from((None, "s")),
        limit=st.sampled_from((0, 1, 100)),
    )
    def list(self, via: int, status: RunStatus | None, owner: str | None, session: str | None, limit: int) -> None:
        self.portal.call(self.compare, NAMES)
        log = self.logs[via % len(self.logs)]

        async def call() -> Sequence[Run]:
            return await log.list(status=status, user_id=owner, session_id=session, limit=limit)

        wanted = {
            run_id
            for run_id, kept in self.model.runs.items()
            if status in (None, kept.status)
            and owner in (None, kept.new.user_id)
            and session in (None, kept.new.session_id)
        }
        found = [run.run_id for run in self.portal.call(call)]
        assert set(found) <= wanted
        assert len(found) == min(limit, len(wanted))

    # -------------------------------------------------------------------------------------------- rules: waiting

    @rule(
        via=openings,
        other=openings,
        run_id=names,
        change=st.sampled_from(("append", "cancel", "trim", "delete")),
        early=st.booleans(),
    )
    def a_change_ends_a_wait(self, via: int, other: int, run_id: str, change: str, early: bool) -> None:
        """A waiter that has read the run is woken by what any opening does to it, also if that comes before it."""
        if run_id not in self.model.runs:
            return
        waiting = self.logs[via % len(self.logs)]
        opening = other % len(self.logs)
        writing = self.logs[opening]
        after = copy.deepcopy(self.model)
        generation = self.generation(run_id, 0)
        events = self.batch(1)
        calls: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], object]]] = {
            "append": (
                lambda: writing.append(run_id, generation, events),
                lambda: after.append(run_id, generation, events, None, None),
            ),
            "cancel": (lambda: writing.request_cancel(run_id), lambda: after.request_cancel(run_id)),
            "trim": (lambda: writing.trim(run_id, before=10_000), lambda: after.trim(run_id, 10_000)),
            "delete": (lambda: writing.delete(run_id), lambda: after.delete(run_id)),
        }
        call, predict = calls[change]
        kept = self.model.runs[run_id]
        before = kept.seen
        predicted(predict)
        changes = run_id not in after.runs or after.runs[run_id].seen != before

        async def wait_and_change() -> None:
            run = (await waiting.read(run_id, limit=0)).run
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda: waiting.wait(run_id, run.version, timeout=3600.0))
                    while not early and not waiting.stats()["waiters"]:
                        await anyio.lowlevel.checkpoint()
                    try:
                        await call()
                    except ResumableError:
                        assert not changes
                    if not changes:
                        group.cancel_scope.cancel()

        self.portal.call(wait_and_change)
        self.model = after
        self.wrote[run_id] = opening
        self.touched.add(run_id)

    @rule(via=openings, run_id=names, cut=st.integers(0, 6))
    def wait_in_vain(self, via: int, run_id: str, cut: int) -> None:
        log = self.logs[via % len(self.logs)]
        self.portal.call(outcome_of, lambda: log.wait(run_id, 1_000_000, timeout=3600.0), cut)

    @rule(via=openings, other=openings, run_id=names, drop=st.booleans(), early=st.booleans())
    def an_intent_ends_a_wait(self, via: int, other: int, run_id: str, drop: bool, early: bool) -> None:
        """Whoever waits for the intents sees what any opening does to them, also if that comes before it."""
        waiting = self.logs[via % len(self.logs)]
        writing = self.logs[other % len(self.logs)]
        drop = drop and run_id in self.model.intents

        async def wait(version: int) -> None:
            while (await waiting.intents(version, timeout=3600.0)).version == version:
                pass

        async def wait_and_change() -> None:
            await self.compare([run_id])
            version = (await waiting.intents()).version
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(wait, version)
                    while not early and not waiting.stats()["waiters"]:
                        await anyio.lowlevel.checkpoint()
                    await (writing.drop_intent(run_id) if drop else writing.intend_cancel(run_id, ttl=LONG))

        self.portal.call(wait_and_change)
        if drop:
            self.model.intents.discard(run_id)
        else:
            self.model.intents.add(run_id)
        self.wrote[run_id] = other % len(self.logs)
        self.touched.add(run_id)

    @rule(via=openings, run_id=names)
    def wait_cancel(self, via: int, run_id: str) -> None:
        log = self.logs[via % len(self.logs)]
        kept = self.model.runs.get(run_id)
        asked: bool = self.portal.call(lambda: log.wait_cancel(run_id, timeout=0.0))
        assert asked == (kept is None or kept.asked)


class MemoryMachine(LogMachine):
    def fresh(self) -> EventLog:
        return MemoryEventLog()


class SQLiteMachine(LogMachine):
    """Two openings of one file, and the file closed and opened again."""

    def __init__(self) -> None:
        super().__init__()
        self.path = os.path.join(self.stack.enter_context(tempfile.TemporaryDirectory()), "runs.db")

    def fresh(self) -> EventLog:
        return SQLiteEventLog(self.path, synchronous="normal", poll_interval=0.004)

    @rule()
    @precondition(lambda self: len(self.logs) == 1)
    def open_a_second_time(self) -> None:
        self.enter(self.fresh())
        self.touched.update(NAMES)

    @rule(both=st.booleans())
    def close_and_open(self, both: bool) -> None:
        self.portal.call(self.compare_all)
        two = len(self.logs) == 2 and both
        self.leave()
        self.wrote.clear()
        self.enter(self.fresh())
        if two:
            self.enter(self.fresh())
        self.touched.update(NAMES)


class PostgresMachine(LogMachine):
    """Two openings of one schema; closed and opened again, with another process's words and without."""

    server: ClassVar[PostgresServer]

    def __init__(self) -> None:
        super().__init__()
        self.schema = self.server.schema()

    def fresh(self) -> EventLog:
        listening = self.serial % 2 == 0
        return PostgresEventLog(self.server.url, schema=self.schema, listen=listening, poll_interval=0.01)

    @rule()
    @precondition(lambda self: len(self.logs) == 1)
    def open_a_second_time(self) -> None:
        self.enter(self.fresh())
        self.touched.update(NAMES)

    @rule(often=st.integers(0, 3))
    def close_and_open(self, often: int) -> None:
        if often:
            return
        self.portal.call(self.compare_all)
        openings = len(self.logs)
        self.leave()
        self.wrote.clear()
        for _ in range(openings):
            self.enter(self.fresh())
        self.touched.update(NAMES)


class RedisMachine(LogMachine):
    """Two openings of one prefix, over one slot or several; closed and opened again."""

    url: ClassVar[str]
    made: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        RedisMachine.made += 1
        self.prefix = f"machine-{RedisMachine.made}"

    def fresh(self) -> EventLog:
        return RedisEventLog(self.url, prefix=self.prefix, partitions=1 + RedisMachine.made % 3, timeout=60.0)

    @rule()
    @precondition(lambda self: len(self.logs) == 1)
    def open_a_second_time(self) -> None:
        self.enter(self.fresh())
        self.touched.update(NAMES)

    @rule(often=st.integers(0, 3))
    def close_and_open(self, often: int) -> None:
        if often:
            return
        self.portal.call(self.compare_all)
        openings = len(self.logs)
        self.leave()
        self.wrote.clear()
        for _ in range(openings):
            self.enter(self.fresh())
        self.touched.update(NAMES)


def examples(usual: int) -> int:
    """How many sequences to try, as the environment asks."""
    if os.environ.get("AGNO_RESUMABLE_LONG"):
        return usual * 40
    return max(usual // 8, 1) if os.environ.get("AGNO_RESUMABLE_SHORT") else usual


def drive(machine: type[LogMachine], backend: str, *, usual: int, seeded_fault: bool = False) -> None:
    run_state_machine_as_test(
        type(f"{machine.__name__}_{backend}", (machine,), {"backend": backend}),
        settings=settings(
            max_examples=examples(usual),
            stateful_step_count=80 if os.environ.get("AGNO_RESUMABLE_LONG") else 40,
            deadline=None,
            database=None,
            derandomize=seeded_fault,
            report_multiple_bugs=not seeded_fault,
            phases=[Phase.generate] if seeded_fault else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("machine", [MemoryMachine, SQLiteMachine])
def test_any_sequence_of_calls_agrees_with_the_model(machine: type[LogMachine], backend: str) -> None:
    drive(machine, backend, usual=48)


def test_any_sequence_of_calls_on_postgres_agrees_with_the_model(postgres: PostgresServer) -> None:
    PostgresMachine.server = postgres
    drive(PostgresMachine, "asyncio", usual=16)


def test_any_sequence_of_calls_on_redis_agrees_with_the_model(redis_server: RedisServer) -> None:
    RedisMachine.url = redis_server.url
    drive(RedisMachine, "asyncio", usual=48)


@pytest.mark.parametrize(
    "mutant",
    [
        broken.HalfABatchWhenCancelled,
        broken.IgnoresTheFence,
        broken.KeepsEventsUnderTheFloor,
        broken.KeepsIntentsForEver,
        broken.OverfillsPages,
        broken.ReusesAnIndex,
        broken.SharesKeysBetweenOwners,
        broken.TakesTheFloorForTheIndex,
        broken.TrimsSilently,
    ],
)
def test_the_machine_catches_a_log_that(mutant: type[broken.Wrapped]) -> None:
    class Machine(LogMachine):
        def fresh(self) -> EventLog:
            return mutant()

    with pytest.raises(AssertionError):
        drive(Machine, "asyncio", usual=200, seeded_fault=True)
