"""The owner of all that runs beside the requests: producers, their leases, the sweep for dead runs, retention, drain.

One for each log and event loop. It lives in a task of its own, because a run must outlive the request that started it
and a mounted application gets no lifespan that could hold it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import anyio.abc
from anyio.lowlevel import RunVar

from .errors import Draining, LogClosed, LogUnavailable, ResumableError
from .log.open import open_log
from .log.protocol import Claim, EventLog
from .model import Family, Run, RunStatus
from .producer import Producer
from .shutdown import Drain, current_drain
from .sse import Identity, cancelled_event, error_event
from .transcript import Transcript

__all__ = ["Holder", "Policy", "Supervisor"]

logger: logging.Logger = logging.getLogger("agno_resumable.supervisor")


@dataclass(frozen=True)
class Policy:
    """How a supervisor looks after its runs. All in seconds.

    Attributes:
        lease: How long a producer is believed alive without renewing; renewed at a third of it.
        sweep_interval: How often runs whose lease ran out are looked for.
        retention: How long finished runs are kept; ``None`` keeps them for ever.
        drain_grace: How long active runs may go on after the stop signal.
    """

    lease: float = 15.0
    sweep_interval: float = 5.0
    retention: float | None = 86_400.0
    drain_grace: float = 10.0


class Holder(Protocol):
    """Somebody in this process who holds a run, and whose lease has to be renewed."""

    claim: Claim
    done: anyio.Event

    def lose(self) -> None:
        """Another has the run, or it is gone."""
        ...


# Seconds that a run which may be run again waits for a process that can, before any other ends it; and how long that
# other must have been there itself, because after a failure of everything it may be the first that is back.
_PATIENCE = 300.0

Rescuer = Callable[[Run], Awaitable[None]]

_supervisors: RunVar[dict[object, Supervisor]] = RunVar("agno_resumable_supervisors")


class Supervisor:
    """Produces and looks after runs; made and shared by ``Supervisor.acquire``."""

    def __init__(self, log: EventLog, policy: Policy, key: object) -> None:
        self.log = log
        self.policy = policy
        self.drain: Drain = current_drain()
        self._key = key
        self._users = 0
        self._attending = 0  # of the users, those that will release it at the end of the process
        self._closing = False
        self._rested = False
        self._rests_until: float | None = None
        self._producers: dict[str, Producer] = {}
        self._holders: set[Holder] = set()  # those whose runs are not for this supervisor to end
        self._mourners: list[Callable[[Run], Awaitable[None]]] = []
        self._rescuers: dict[str, Rescuer] = {}  # by family and component
        self._places: dict[object, anyio.Semaphore] = {}
        self._since = anyio.current_time()
        self._tasks: anyio.abc.TaskGroup
        self._owner: object = None  # the task; held, because an event loop holds tasks only weakly
        self._ready = anyio.Event()
        self._stop = anyio.Event()
        self._ended = anyio.Event()
        self._failed: BaseException | None = None

    @classmethod
    async def acquire(cls, log: EventLog | str, policy: Policy) -> Supervisor:
        """The supervisor of this log in the running event loop, started; each ``acquire`` needs a ``release``.

        A log that is not open yet, and one that is named by its URL, is opened here and closed with the last
        ``release``. The policy of the first to come is the one that holds.

        Raises:
            LogUnavailable: The log could not be opened.
        """
        try:
            known = _supervisors.get()
        except LookupError:
            _supervisors.set(known := {})
        key: object = _key(log)
        supervisor = known.get(key)
        while supervisor is not None and supervisor._closing:
            await supervisor._ended.wait()
            supervisor = known.get(key)
        if supervisor is None:
            supervisor = known[key] = cls(open_log(log) if isinstance(log, str) else log, policy, key)
            supervisor._owner = _spawn(supervisor._main)
        supervisor._users += 1
        try:
            await supervisor._ready.wait()
        except BaseException:
            supervisor._users -= 1
            raise
        if supervisor._failed is not None:
            supervisor._users -= 1
            raise supervisor._failed
        return supervisor

    def attend(self) -> None:
        """The user that has acquired it lives in a lifespan: it will release it when the server stops."""
        self._attending += 1

    async def release(self, *, attending: bool = False) -> None:
        """One user less; with the last one the active runs get their grace, and everything ends."""
        self._users -= 1
        self._attending -= attending
        if self._users:
            return
        self._closing = True
        with anyio.CancelScope(shield=True):
            await self.rest()
            self._stop.set()
            await self._ended.wait()

    @property
    def active(self) -> int:
        """How many runs this process produces at the moment."""
        return len(self._producers)

    def transcript(self, run_id: str) -> Transcript | None:
        """The transcript so far of a run that this process produces."""
        producer = self._producers.get(run_id)
        return None if producer is None else producer.transcript

    @property
    def ended(self) -> bool:
        """Whether it is over, so that another has to be acquired."""
        return self._ended.is_set()

    def watch(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``job`` beside the producers; it must end by itself."""
        self._tasks.start_soon(job)

    def hold(self, holder: Holder) -> Callable[[], None]:
        """Renew the lease of a run that somebody else produces and ends; returns what takes that back."""
        self._holders.add(holder)
        return lambda: self._holders.discard(holder)

    def mourn(self, mourner: Callable[[Run], Awaitable[None]]) -> Callable[[], None]:
        """Call ``mourner`` for each run that is ended here because its producer was lost; returns what takes that back.

        It gets the run as it was found, still active.
        """
        self._mourners.append(mourner)

        def withdraw() -> None:
            if mourner in self._mourners:
                self._mourners.remove(mourner)

        return withdraw

    def rescue(self, family: Family, component_id: str, rescuer: Rescuer) -> Callable[[], None]:
        """Hand runs of this component whose producer was lost, and that may be run again, to ``rescuer``.

        It gets the run claimed and without its input, and produces it. Returns what takes that back.
        """
        name = f"{family.value}:{component_id}"
        self._rescuers[name] = rescuer

        def withdraw() -> None:
            if self._rescuers.get(name) is rescuer:
                del self._rescuers[name]

        return withdraw

    def places(self, owner: object, count: int) -> anyio.Semaphore:
        """``count`` places that the producers of ``owner`` share; the same at each call."""
        if owner not in self._places:
            self._places[owner] = anyio.Semaphore(count)
        return self._places[owner]

    def check_accepting(self) -> None:
        """Raise ``Draining`` if no run may be started any more."""
        if self.drain.begun or self._closing:
            raise Draining

    def produce(self, producer: Producer) -> None:
        """Run the producer to its end, in a task of this supervisor. It inherits the context of the caller."""
        self.drain.listen()  # there may be no lifespan, and no stream either
        earlier = self._producers.get(producer.run.run_id)
        if earlier is not None:
            earlier.lose()  # it stood still for longer than its lease, and this one has the run now
        self._producers[producer.run.run_id] = producer
        self._tasks.start_soon(self._produce, producer, name=f"run {producer.run.run_id}")

    async def rest(self) -> None:
        """Give the active runs their grace, then end what is left, and return when all of them have their end.

        What may be run again is left to other processes: at once where it has not begun, else after the grace, which
        counts from the first call: at a signal, and not again when the lifespan ends.
        """
        if self._rests_until is None:
            self._rests_until = anyio.current_time() + self.policy.drain_grace
        async with anyio.create_task_group() as tasks:
            for producer in list(self._producers.values()):
                if producer.waits and producer.can_be_left:
                    tasks.start_soon(producer.leave)
            with anyio.CancelScope(deadline=self._rests_until):
                for producer in list(self._producers.values()):
                    await producer.done.wait()
        async with anyio.create_task_group() as tasks:
            for producer in list(self._producers.values()):
                if producer.can_be_left:
                    tasks.start_soon(producer.leave)
                else:
                    # half a second for agno to stop by itself and to save its row
                    tasks.start_soon(producer.cancel, "The server is shutting down.", 0.5)
        with anyio.move_on_after(5.0):
            for producer in list(self._producers.values()):
                await producer.done.wait()

    # ---------------------------------------------------------------- the owner's task

    async def _main(self) -> None:
        opened = not self.log.is_open
        try:
            if opened:
                await self.log.__aenter__()
        except BaseException as error:  # told to whoever waits in acquire()
            self._failed = error
            self._forget()
            self._ready.set()
            self._ended.set()
            if not isinstance(error, Exception):
                raise
            return
        # An event and not the work itself: a signal arrives outside of any task
        drained = anyio.Event()
        unsubscribe = self.drain.subscribe(drained.set)
        withdraw = self.drain.delay(self._has_to_rest)
        self.drain.longest_delay = max(self.drain.longest_delay, self.policy.drain_grace + 10.0)
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._rest_after, drained)
                self._tasks.start_soon(self._every, self._sweep, lambda: self.policy.sweep_interval)
                self._tasks.start_soon(self._every, self._renew, lambda: self.policy.lease / 3)
                if self.policy.retention is not None:
                    self._tasks.start_soon(self._every, self._prune, lambda: 60.0)
                self._ready.set()
                await self._stop.wait()
                self._tasks.cancel_scope.cancel()
        finally:
            unsubscribe()
            withdraw()
            self._forget()
            if not _supervisors.get():
                self.drain.unlisten()
            try:
                with anyio.CancelScope(shield=True):
                    for producer in list(self._producers.values()):  # asyncio.run was quicker than their first step
                        await producer.abandon()
                    if opened:
                        await self.log.__aexit__(None, None, None)
            except Exception:  # of a log; whoever waits for the end must not wait for ever
                logger.exception("the log could not be closed")
            finally:
                self._ended.set()

    def _forget(self) -> None:
        known = _supervisors.get()
        if known.get(self._key) is self:
            del known[self._key]

    async def _rest_after(self, drained: anyio.Event) -> None:
        await drained.wait()
        await self.rest()
        self._rested = True
        self.drain.settle()

    def _has_to_rest(self, fatal: bool) -> bool:
        """Whether the process would end before its runs, if it went on ending now."""
        unattended = fatal or self._attending < self._users
        return unattended and bool(self._producers) and not self._rested

    async def _produce(self, producer: Producer) -> None:
        try:
            await producer.produce()
        except Exception:  # a bug of ours must not take the other runs along; the lease ends this one
            logger.exception("a producer failed", extra={"run_id": producer.run.run_id})
        finally:
            if self._producers.get(producer.run.run_id) is producer:
                del self._producers[producer.run.run_id]

    async def _every(self, job: Callable[[], Coroutine[Any, Any, None]], interval: Callable[[], float]) -> None:
        while True:
            try:
                await job()
            except LogClosed:
                return
            except ResumableError as error:
                # A store that is away is asked again; runs that could not be renewed are fenced by the log itself.
                logger.warning(
                    "the log did not answer", extra={"job": job.__name__, "error_type": type(error).__name__}
                )
            await anyio.sleep(interval())

    async def _renew(self) -> None:
        current: dict[str, Holder] = {}
        for holder in [*self._producers.values(), *self._holders]:
            if not holder.done.is_set():
                # Of two that hold one run in this process the later has taken it from the earlier
                earlier, later = sorted((current.get(holder.claim[0], holder), holder), key=lambda each: each.claim[1])
                if earlier is not later:
                    earlier.lose()
                current[holder.claim[0]] = later
        if not current:
            return
        for run_id in await self.log.renew([holder.claim for holder in current.values()], lease=self.policy.lease):
            if not current[run_id].done.is_set():
                current[run_id].lose()

    async def _sweep(self) -> None:
        """End the runs whose producer is gone: whoever notices first has them."""
        # This process's own come first: where something has blocked the event loop for longer than the lease, they
        # are as alive as the loop is now, and nobody else may have noticed.
        await self._renew()
        ends = self.drain.begun or self._closing
        patience = _PATIENCE if anyio.current_time() - self._since > _PATIENCE else 1e9
        for run in await self.log.expire(
            lease=self.policy.lease, serves=() if ends else list(self._rescuers), patience=patience
        ):
            if not await self._rescued(run):
                await self._bury(run)

    async def _rescued(self, run: Run) -> bool:
        """Have the run begun anew, if it may be and somebody here can."""
        rescuer = self._rescuers.get(f"{run.family.value}:{run.component_id}")
        # This claim is one of the attempts already
        if rescuer is None or run.attempts > run.max_attempts or run.cancel_requested_at is not None:
            return False
        extra = {"run_id": run.run_id, "family": run.family.value, "attempt": run.attempts}
        try:
            await rescuer(run)
        except LogUnavailable:
            raise
        except Exception:  # whatever it is, the run must have its end
            logger.exception("a run that lost its producer could not be begun anew", extra=extra)
            return False
        logger.warning("a run lost its producer, and is begun anew", extra=extra)
        return True

    async def _bury(self, run: Run) -> None:
        logger.warning("a run lost its producer", extra={"run_id": run.run_id, "family": run.family.value})
        transcript = await Transcript.of_log(self.log, run)
        identity = Identity(run_id=run.run_id, session_id=run.session_id, component_id=run.component_id)
        if run.cancel_requested_at is not None:  # it has what was asked for, though not from its producer
            status = RunStatus.CANCELLED
            frame = cancelled_event(run.family, "The run was cancelled.", identity=identity)
        else:
            status = RunStatus.ERROR
            ended = "The process that ran this was lost before it ended."
            frame = error_event(run.family, ended, error_type="producer_lost", identity=identity)
        transcript.fold([frame])
        try:
            await self.log.append(
                run.run_id,
                run.generation,
                [frame],
                status=status,
                transcript=transcript.dump(status),
            )
        except LogUnavailable:
            raise
        except ResumableError:  # claimed again by another, or deleted: it is somebody else's now
            logger.info("another process ended the run first", extra={"run_id": run.run_id})
            return
        for mourner in list(self._mourners):
            try:
                await mourner(run)
            except Exception:  # the run has its end; whoever wanted to be told must not keep the others from theirs
                logger.exception("what follows the end of a lost run failed", extra={"run_id": run.run_id})

    async def _prune(self) -> None:
        if self.policy.retention is not None:
            await self.log.prune(finished_before=await self.log.now() - self.policy.retention)


def _key(log: EventLog | str) -> object:
    if not isinstance(log, str):
        return id(log)
    scheme, colon, rest = log.partition(":///")
    if scheme == "sqlite" and colon and not rest.startswith("/"):
        return f"sqlite:////{os.path.abspath(rest)}"  # one connection that writes a process, however it is named
    return log


def _spawn(main: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Start ``main`` beside all tasks, in an empty context: it must not inherit one request's."""
    context = contextvars.Context()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # only on trio, which is then imported already

        return context.run(trio.lowlevel.spawn_system_task, main)
    return context.run(loop.create_task, main())
