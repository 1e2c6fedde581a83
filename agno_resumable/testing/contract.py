"""The machinery of the contract suite: checks, their registry, and the bench on which each of them works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from random import Random
from types import ModuleType
from typing import Literal, Protocol, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ..log.protocol import EventLog
from ..model import Durability, EncodedEvent, Event, Family, NewRun, Page, Run

__all__ = [
    "FOREVER",
    "LEASE",
    "Bench",
    "Check",
    "LimitedFactory",
    "LogFactory",
    "ReopenFactory",
    "check_page",
    "checks_of",
    "clause",
    "collect",
    "crowd",
    "event",
    "expect",
    "read_all",
    "refusal",
    "same",
    "start",
    "turns",
]

LogFactory = Callable[[], AbstractAsyncContextManager[EventLog]]
"""Gives a log on fresh storage, or a context manager that enters one and yields it."""

ReopenFactory = Callable[[EventLog], AbstractAsyncContextManager[EventLog]]
"""Gives a second log on the storage of the one that it is handed, which may be open or closed."""

LEASE = 600.0
"""A lease that does not run out while a check works, in seconds."""

FOREVER = 3600.0
"""A timeout that a check never sees the end of, in seconds."""

_E = TypeVar("_E", bound=BaseException)
_T = TypeVar("_T")


class LimitedFactory(Protocol):
    """Gives a log on fresh storage with limits of its own; a backend's class usually is one."""

    def __call__(self, *, max_run_bytes: int, max_event_bytes: int) -> AbstractAsyncContextManager[EventLog]: ...


@dataclass(frozen=True)
class Bench:
    """What a check works with.

    Attributes:
        log: An open log on storage of its own.
        patience: How long anything that should happen soon may take, in seconds.
        random: Seeded by the check, so that a failure repeats as far as the scheduler allows.
    """

    log: EventLog
    patience: float
    random: Random
    fresh: LogFactory = field(repr=False)
    """Another log on storage of its own, not entered yet."""
    _reopen: ReopenFactory | None = field(default=None, repr=False)
    _limited: LimitedFactory | None = field(default=None, repr=False)

    def reopen(self, log: EventLog) -> AbstractAsyncContextManager[EventLog]:
        """Another opening of the storage of ``log``, which may be closed by now."""
        assert self._reopen is not None
        return self._reopen(log)

    def again(self) -> AbstractAsyncContextManager[EventLog]:
        """A second opening of the log's storage, as another process would have it."""
        return self.reopen(self.log)

    def limited(
        self, *, max_run_bytes: int = 67_108_864, max_event_bytes: int = 8_388_608
    ) -> AbstractAsyncContextManager[EventLog]:
        """A log on fresh storage with these limits, in bytes of JSON."""
        assert self._limited is not None
        return self._limited(max_run_bytes=max_run_bytes, max_event_bytes=max_event_bytes)

    @contextmanager
    def soon(self, what: str) -> Iterator[None]:
        """Fail with ``what`` if the body does not end within ``patience``."""
        try:
            with anyio.fail_after(self.patience):
                yield
        except TimeoutError:
            raise AssertionError(f"{what}: not within {self.patience:g} s") from None

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Ask ``condition`` until it is true."""
        with self.soon(what):
            while not await condition():  # noqa: ASYNC110 - a store tells nobody that its clock has moved
                await anyio.sleep(0.005)

    async def waiters(self, count: int, log: EventLog | None = None) -> None:
        """Let the others work until exactly ``count`` calls wait."""
        counted = log or self.log

        async def reached() -> bool:
            return counted.stats()["waiters"] == count

        await self.until(f"stats()['waiters'] to be {count} (it is {counted.stats()['waiters']})", reached)


Body = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True)
class Check:
    """One clause of the contract.

    Attributes:
        name: What a test report shows.
        clause: The sentence that is checked.
        needs: ``"reopen"`` or ``"limited"`` if the check needs that factory, else ``None``.
    """

    name: str
    clause: str
    needs: Literal["reopen", "limited"] | None
    body: Body = field(repr=False)

    async def run(
        self,
        factory: LogFactory,
        *,
        reopen: ReopenFactory | None = None,
        limited: LimitedFactory | None = None,
        patience: float = 10.0,
    ) -> None:
        """Run the check on a fresh log.

        Raises:
            AssertionError: The log breaks the clause; the message names it and quotes what was seen.
            ValueError: The check needs a factory that was not given.
        """
        if {"reopen": reopen, "limited": limited}.get(self.needs or "", factory) is None:
            raise ValueError(f"The check {self.name!r} needs the argument {self.needs!r}.")
        try:
            with anyio.fail_after(patience * 6):
                async with _entered(factory) as log:
                    await self.body(Bench(log, patience, Random(self.name), factory, reopen, limited))  # noqa: S311
        except Exception as error:  # whatever it is, the author of a backend has to learn under which clause it came
            cause = _leaf(error)
            seen = str(cause) if isinstance(cause, AssertionError) else f"{type(cause).__name__}: {cause}"
            raise AssertionError(f"{self.name}: {self.clause}\n  seen: {seen}") from error


@asynccontextmanager
async def _entered(factory: LogFactory) -> AsyncIterator[EventLog]:
    async with factory() as log:
        missing = [name for name in dir(EventLog) if not name.startswith("_") and not hasattr(log, name)]
        expect(not missing, f"{type(log).__name__} lacks {', '.join(missing)}")
        expect(isinstance(log.durability, Durability), f"durability is {log.durability!r}")
        yield log


def _leaf(error: BaseException) -> BaseException:
    """The first error inside nested exception groups, which Python 3.10 knows only through a backport."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error


def clause(needs: Literal["reopen", "limited"] | None = None) -> Callable[[Body], Check]:
    """Make a check of a function: named as it is, on the clause that its docstring quotes."""

    def check(body: Body) -> Check:
        name = getattr(body, "__name__", repr(body))
        return Check(name, " ".join((body.__doc__ or name).split()), needs, body)

    return check


def checks_of(module: ModuleType) -> Sequence[Check]:
    """The checks that ``module`` defines, in order."""
    return [value for value in vars(module).values() if isinstance(value, Check)]


def expect(condition: object, seen: str) -> None:
    """Fail with what was seen; unlike ``assert``, also under ``python -O``."""
    if not condition:
        raise AssertionError(seen)


def same(what: str, got: object, wanted: object) -> None:
    """Fail if ``got`` is not equal to ``wanted``, quoting both."""
    if got != wanted:
        shown = [text if len(text) < 600 else f"{text[:600]}…" for text in (repr(got), repr(wanted))]
        raise AssertionError(f"{what} is {shown[0]}, not {shown[1]}")


async def refusal(what: str, call: Awaitable[object], *errors: type[_E]) -> _E:
    """Await ``call`` and return the error it must raise."""
    names = " or ".join(error.__name__ for error in errors)
    try:
        value = await call
    except errors as refused:
        return refused
    except Exception as other:  # quoted, whatever it is
        raise AssertionError(f"{what} raised {other!r} instead of {names}") from other
    raise AssertionError(f"{what} returned {value!r} instead of raising {names}")


async def turns(count: int) -> None:
    """Let the others run for ``count`` turns of the event loop."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def event(label: object, *, type: str = "RunContent", pad: int = 0) -> EncodedEvent:
    """An event that can be told from others; ``label`` is a number or plain ASCII."""
    return EncodedEvent(type, f'{{"label":"{label}","pad":"{"x" * pad}"}}'.encode())


async def start(log: EventLog, run_id: str = "run", *events: EncodedEvent, lease: float = LEASE) -> Run:
    """Create a run, append ``events`` to it, and read it."""
    run = await log.create(NewRun(run_id, Family.AGENT), lease=lease)
    if events:
        await log.append(run_id, run.generation, events)
    return await log.get(run_id)


def check_page(page: Page, run_id: str, after: int, *, limit: int = 1024, max_bytes: int = 262_144) -> None:
    """Everything that holds for any page."""
    run, events = page.run, page.events
    same("the page's run", run.run_id, run_id)
    expect(
        run.input is None and run.metadata is None and run.transcript is None,
        f"the run of a page carries input, metadata or transcript: {run.input!r}, {run.metadata!r}, {run.transcript!r}",
    )
    expect(0 <= run.first_index <= run.next_index, f"first_index {run.first_index}, next_index {run.next_index}")
    for batch in page.batches:
        same("the run_id of a batch", batch.run_id, run_id)
        expect(len(batch) > 0, f"an empty batch at {batch.first} in the page behind {after}")
    if not events:
        left = max(after + 1, run.first_index) < run.next_index
        expect(
            limit <= 0 or not left, f"an empty page behind {after} of a run from {run.first_index} to {run.last_index}"
        )
        same("last of an empty page", page.last, None)
        return
    begin = max(after + 1, run.first_index)
    indices = [stored.index for stored in events]
    same(f"the indices of the page behind {after}", indices, list(range(begin, begin + len(events))))
    expect(indices[-1] <= run.last_index, f"the page ends at {indices[-1]}, its run at {run.last_index}")
    expect(len(events) <= limit, f"{len(events)} events in a page with limit={limit}")
    size = sum(len(stored.data) for stored in events)
    expect(len(events) == 1 or size <= max_bytes, f"{len(events)} events of {size} bytes with max_bytes={max_bytes}")


async def read_all(
    log: EventLog, run_id: str = "run", after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144
) -> tuple[Run, list[Event]]:
    """The run and all events behind ``after``, page by page, each page checked."""
    found: list[Event] = []
    while True:
        page = await log.read(run_id, after, limit=limit, max_bytes=max_bytes)
        check_page(page, run_id, after, limit=limit, max_bytes=max_bytes)
        if page.last is None:
            return page.run, found
        found += page.events
        after = page.last


@asynccontextmanager
async def crowd() -> AsyncIterator[TaskGroup]:
    """A task group. anyio's own may swallow an error as far as pyright knows, and what is bound inside be unbound."""
    async with anyio.create_task_group() as group:
        yield group


def collect(group: TaskGroup, *calls: Callable[[], Awaitable[_T]]) -> list[_T | Exception]:
    """Start ``calls`` at once; the list has each one's result, or its error, when the group is left."""
    results: list[_T | Exception] = []

    async def run(call: Callable[[], Awaitable[_T]]) -> None:
        try:
            results.append(await call())
        except Exception as error:  # an outcome like any other here: the check looks at it
            results.append(error)

    for call in calls:
        group.start_soon(run, call)
    return results
