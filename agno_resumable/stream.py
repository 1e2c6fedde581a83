"""``ResumableStream``: runs of one component that outlive their connections."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import anyio
import orjson
from typing_extensions import Self

from .attachment import Attachment
from .audience import Audience
from .errors import ResumableError, RunExists, RunFinished, RunNotFound, StaleGeneration
from .log.protocol import EventLog
from .model import Batch, Event, Family, NewRun, Run, RunStatus
from .producer import Producer
from .reader import follow
from .source import AgnoSource, CallableSource, make_source
from .sse import Identity, cancelled_event
from .supervisor import Policy, Supervisor
from .transcript import Transcript

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

__all__ = ["ResumableStream"]

logger: logging.Logger = logging.getLogger("agno_resumable.stream")


class ResumableStream:
    """Runs one agent, team, workflow or callable, and keeps its events in a log that clients read.

    A run starts in a task that belongs to the application, goes on when its client leaves, and can be followed from
    any index by any client, in any process that shares the log. It works as it is; entered (``async with``) or given
    to the application as ``lifespan=stream.lifespan``, it also drains when the server stops.

    Args:
        source: An agno ``Agent``, ``Team`` or ``Workflow``, a remote one, or a callable that takes the input (and
            ``run_id``, ``session_id``, ``user_id`` if it names them) and returns an async or sync iterator of events:
            agno's, dicts, strings, dataclasses or pydantic models.
        log: A log, or the URL of one (see ``open_log``). A log that is not open yet is opened and closed here.
        family: What error frames and endings look like; taken from the component, and agent for a callable.
        component_id: The id in URLs and in the log; the component's own, or made from its name.
        lease: Seconds that a producer is believed alive without renewing. A run whose process died is ended with its
            family's error frame within ``lease + sweep_interval``.
        sweep_interval: Seconds between two looks for such runs.
        retention: Seconds that finished runs are kept; ``None`` keeps them.
        cancel_grace: Seconds that a run may take to cancel itself before its task is cancelled.
        drain_grace: Seconds that active runs may go on after the stop signal.
        on_producer_lost: What becomes of a run whose process died. ``"error"``: it ends with its family's error frame.
            ``"restart"``: another process that serves this component, or this one when it is back, runs it again from
            its stored input, under the same id; readers get a ``restarted`` event, and indices go on. So a tool may
            be called twice for one run. A run whose input or options have no JSON (media, objects) runs once only.
        max_attempts: How often a run may be begun in all, with ``"restart"``.
        max_concurrent: How many runs of this stream this process works on at a time; others wait as PENDING, and can
            be cancelled. ``None`` for no limit.
        on_disconnect: ``"continue"``, or the seconds after which a run that nobody reads is cancelled. It counts the
            readers of this process: leave it at ``"continue"`` where several processes serve one log.
    """

    def __init__(
        self,
        source: Any,
        *,
        log: EventLog | str,
        family: Family | str | None = None,
        component_id: str | None = None,
        lease: float = 15.0,
        sweep_interval: float = 5.0,
        retention: float | None = 86_400.0,
        cancel_grace: float = 5.0,
        drain_grace: float = 10.0,
        on_producer_lost: Literal["error", "restart"] = "error",
        max_attempts: int = 3,
        max_concurrent: int | None = None,
        on_disconnect: str | float = "continue",
    ) -> None:
        if on_producer_lost not in ("error", "restart"):
            raise ValueError(f"on_producer_lost is 'error' or 'restart', not {on_producer_lost!r}.")
        if max_attempts < 1 or (max_concurrent is not None and max_concurrent < 1):
            raise ValueError("max_attempts and max_concurrent are numbers from 1.")
        if isinstance(on_disconnect, str) and on_disconnect != "continue":
            raise ValueError(f"on_disconnect is 'continue' or a number of seconds, not {on_disconnect!r}.")
        self._attachment = Attachment(log, Policy(lease, sweep_interval, retention, drain_grace))
        self.source: AgnoSource | CallableSource = make_source(
            source, family=Family(family) if family else None, component_id=component_id
        )
        self._cancel_grace = cancel_grace
        self._max_attempts = max_attempts if on_producer_lost == "restart" else 1
        self._max_concurrent = max_concurrent
        self._rescued: Supervisor | None = None  # who hands lost runs to this stream
        self._withdraw: Callable[[], None] = lambda: None
        self._abandon_after = None if isinstance(on_disconnect, str) else on_disconnect
        self.readers: Audience = Audience()

    def __repr__(self) -> str:
        return f"ResumableStream({self.source.family.value} {self.component_id!r})"

    @property
    def family(self) -> Family:
        """The family of the runs."""
        return self.source.family

    @property
    def component_id(self) -> str:
        """The component's id, as in URLs and in the log."""
        return self.source.component_id

    # ---------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        await self._attachment.attend()
        await self.supervisor()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """A Starlette or FastAPI lifespan: ``Starlette(lifespan=stream.lifespan)``."""
        async with self:
            yield

    async def aclose(self) -> None:
        """Give the active runs their grace, end what is left honestly, and close what was opened here."""
        self._withdraw()
        self._rescued = None
        await self._attachment.detach()

    async def supervisor(self) -> Supervisor:
        """The owner of this stream's tasks, started at the first call.

        Raises:
            LogUnavailable: The log could not be opened.
        """
        supervisor = await self._attachment.supervisor()
        if self._max_attempts > 1 and self._rescued is not supervisor:
            self._rescued = supervisor
            self._withdraw = supervisor.rescue(self.family, self.component_id, self._restart)
        return supervisor

    async def log(self) -> EventLog:
        """The log, open."""
        return (await self.supervisor()).log

    def stats(self) -> Mapping[str, int]:
        """What goes on in this process at the moment, beside the counters of ``EventLog.stats``.

        ``active``: the runs that it produces, those of other streams on the same log included. ``readers``: who
        follows runs of this stream, over HTTP or by ``events`` and ``wait``.
        """
        return {"active": self._attachment.active, "readers": self.readers.total}

    # ---------------------------------------------------------------- runs

    async def start(
        self,
        input: Any,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        run_id: str | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Run:
        """Start a run and return it, before its first event.

        Args:
            input: What the component's ``arun`` takes as its input.
            session_id: agno's session; a new one if not given.
            user_id: The owner: with the default authorisation only this user reads and cancels the run over HTTP.
            run_id: An id that is not in the log yet; a fresh UUID if not given.
            idempotency_key: A second start by the same owner with the same key starts nothing and returns the run
                of the first.
            metadata: Kept with the run and handed to the component, as JSON.
            options: Handed to ``arun``, or to the callable.

        Raises:
            RunExists: The run id is taken, or the owner has used the key for another component.
            Draining: The process is shutting down.
            LogUnavailable: The log could not be written.
        """
        supervisor = await self.supervisor()
        supervisor.check_accepting()
        stored = [_json(value) for value in (input, options, metadata)]
        max_attempts = self._max_attempts
        if max_attempts > 1 and not all(map(_is_same, (input, options, metadata), stored)):
            max_attempts = 1
            logger.info("a run can be run once only: its input or options have no JSON", extra={"run_id": run_id})
        if metadata is not None:
            options["metadata"] = dict(metadata)
        new = NewRun(
            run_id=run_id or str(uuid.uuid4()),
            family=self.family,
            component_id=self.component_id,
            session_id=session_id or str(uuid.uuid4()),
            user_id=user_id,
            idempotency_key=idempotency_key,
            input=stored[0],
            metadata=stored[2],
            options=stored[1] if max_attempts > 1 and stored[1] != b"{}" else None,
            max_attempts=max_attempts,
        )
        # From its creation the run has to have a producer, even if whoever asked for it leaves at this very moment.
        with anyio.CancelScope(shield=True):
            try:
                run = await supervisor.log.create(new, lease=self._attachment.policy.lease)
            except RunExists as taken:
                if taken.idempotency_key is None or taken.run_id is None:
                    raise
                run = await supervisor.log.get(taken.run_id)
                if run.component_id != self.component_id or run.family is not self.family:
                    raise  # the key was used for another component, whose run is no answer to this request
                return run
            self._produce(
                supervisor,
                run,
                lambda: self.source.start(
                    input, run_id=run.run_id, session_id=run.session_id, user_id=user_id, options=options
                ),
            )
        return run

    async def continue_run(self, run_id: str, **options: Any) -> Run:
        """Continue a paused run with ``acontinue_run(run_id=…, **options)``: same run, same log, indices that go on.

        Args:
            run_id: The paused run.
            options: What agno's ``acontinue_run`` takes: ``updated_tools`` or ``requirements`` with the answers.

        Raises:
            RunNotFound: There is no such run of this component.
            RunFinished: The run has its end.
            ResumableError: The run is not paused, or is a callable's.
            StaleGeneration: Somebody else has continued it first.
            Draining: The process is shutting down.
        """
        supervisor = await self.supervisor()
        supervisor.check_accepting()
        run = await self.get(run_id)
        if run.status.finished:
            raise RunFinished(run_id, run.status.value)
        if run.status is not RunStatus.PAUSED or not self.source.speaks_agno:
            raise ResumableError(f"Run {run_id!r} is {run.status.value}; only a paused one can be continued.")
        so_far = await Transcript.of_log(supervisor.log, run)
        with anyio.CancelScope(shield=True):
            lease = self._attachment.policy.lease
            claimed = await supervisor.log.claim(run_id, lease=lease, generation=run.generation + 1)
            self._produce(
                supervisor,
                claimed,
                lambda: self.source.resume(
                    run_id=run_id, session_id=run.session_id, user_id=run.user_id, options=options
                ),
                so_far,
            )
        return claimed

    async def get(self, run_id: str) -> Run:
        """The run with its input, metadata and transcript.

        Raises:
            RunNotFound: There is no such run of this component.
        """
        run = await (await self.log()).get(run_id)
        if run.component_id != self.component_id or run.family is not self.family:
            raise RunNotFound(run_id)
        return run

    async def cancel(self, run_id: str) -> Run:
        """Ask for the run to be cancelled, wherever it is produced; a paused one is cancelled here and now.

        Raises:
            RunNotFound: There is no such run of this component.
        """
        await self.get(run_id)
        log = await self.log()
        run = await log.request_cancel(run_id)
        if run.status is RunStatus.PAUSED:
            try:
                claimed = await log.claim(run_id, lease=self._attachment.policy.lease, generation=run.generation + 1)
                identity = Identity(run_id=run_id, session_id=run.session_id, component_id=run.component_id)
                frame = cancelled_event(self.family, "The run was cancelled while it was paused.", identity=identity)
                transcript = await Transcript.of_log(log, claimed)
                transcript.fold([frame])
                await log.append(
                    run_id,
                    claimed.generation,
                    [frame],
                    status=RunStatus.CANCELLED,
                    transcript=transcript.dump(RunStatus.CANCELLED),
                )
            except (StaleGeneration, RunFinished):
                pass  # continued or ended by somebody else, whose producer sees the request
        return await log.get(run_id)

    async def events(self, run_id: str, after: int = -1) -> AsyncIterator[Event]:
        """The events of a run behind the cursor ``after``, until it has finished or rests.

        Raises:
            RunNotFound: There is no such run of this component.
        """
        await self.get(run_id)
        with self.readers.reading(run_id):
            async for item in follow(await self.log(), run_id, after, stop_when_paused=True):
                if isinstance(item, Batch):
                    for event in item:
                        yield event

    async def wait(self, run_id: str) -> Run:
        """Wait until the run has finished or rests; return it with its transcript.

        Raises:
            RunNotFound: There is no such run of this component, or it was deleted meanwhile.
        """
        log = await self.log()
        run = await self.get(run_id)
        with self.readers.reading(run_id):  # who waits for the result has not left
            while run.status.active:
                await log.wait(run_id, run.version, timeout=60.0)
                run = (await log.read(run_id, limit=0)).run
        return await log.get(run_id)

    async def transcript(self, run_id: str) -> dict[str, Any]:
        """What was said and done in the run so far, see ``Transcript``; also while it is being produced.

        Raises:
            RunNotFound: There is no such run of this component.
        """
        run = await self.get(run_id)
        if run.transcript is not None and not run.status.active:  # a later leg has more to tell than the pause before
            stored: dict[str, Any] = orjson.loads(run.transcript)
            return stored
        supervisor = await self.supervisor()
        local = supervisor.transcript(run_id)
        folded = local or await Transcript.of_log(supervisor.log, run)
        return folded.to_dict(run.status)

    async def _restart(self, claimed: Run) -> None:
        """Run a run again, whose producer was lost and which the supervisor has claimed."""
        supervisor = await self.supervisor()
        run = await supervisor.log.get(claimed.run_id)
        if run.generation != claimed.generation:
            return  # somebody was quicker still
        given, options, metadata = [
            None if stored is None else orjson.loads(stored) for stored in (run.input, run.options, run.metadata)
        ]
        options = {**(options or {}), **({} if metadata is None else {"metadata": metadata})}
        self._produce(
            supervisor,
            run,
            lambda: self.source.start(
                given, run_id=run.run_id, session_id=run.session_id, user_id=run.user_id, options=options
            ),
            anew=True,
        )

    def _produce(
        self,
        supervisor: Supervisor,
        run: Run,
        events: Callable[[], AsyncIterator[Any]],
        so_far: Transcript | None = None,
        *,
        anew: bool = False,
    ) -> None:
        producer = Producer(
            supervisor.log,
            self.source,
            run,
            events,
            transcript=so_far,
            cancel_grace=self._cancel_grace,
            places=None if self._max_concurrent is None else supervisor.places(self, self._max_concurrent),
            anew=anew,
        )
        supervisor.produce(producer)
        if self._abandon_after is not None:
            supervisor.watch(lambda: self._abandon(producer))

    async def _abandon(self, producer: Producer) -> None:
        """Cancel the run once nobody in this process has read it for the grace of ``on_disconnect``."""
        assert self._abandon_after is not None
        run_id = producer.run.run_id
        try:
            while not producer.done.is_set():
                with anyio.move_on_after(self._abandon_after):
                    await self.readers.wait_read(run_id)
                if self.readers.count(run_id):
                    await self.readers.wait_unread(run_id)
                elif not producer.done.is_set():
                    await producer.cancel("Nobody was reading the run.")
                    return
        finally:
            self.readers.forget(run_id)

    # ---------------------------------------------------------------- HTTP

    async def response(self, request: Request, run_id: str, *, after: int | None = None) -> Response:
        """The answer to a ``GET`` of the run's events: 200 with the stream, 204 at its end, 404, or 400.

        The cursor is ``after`` if given, else the request's ``Last-Event-ID`` or ``last_event_id``. Authorise the
        request first, or serve ``routes()``, which do.
        """
        from .asgi.serve import events_response

        return await events_response(self, request, run_id, after=after)

    async def start_response(self, request: Request, input: Any, **options: Any) -> Response:
        """Start a run and answer with its stream: a route of your own in one line.

        ``options`` go to ``start``. A repeated request (the same ``Idempotency-Key``, or a ``Last-Event-ID``, which
        client libraries send when they repeat a POST) follows the run that it started the first time.
        """
        from .asgi.serve import start_response

        return await start_response(self, request, input, **options)

    def routes(
        self,
        *,
        authorize: Callable[[Request, Run | None], bool | Awaitable[bool]] | None = None,
        owner: Callable[[Request], str | None] | None = None,
    ) -> list[BaseRoute]:
        """The routes below ``/{kind}/{id}``, to be mounted where you like: ``/runs``, ``/runs/{run_id}/events``, ….

        Args:
            authorize: Decides whether the request may touch the run (``None``: may start and list runs). The default
                lets the owner in where there is authentication, and everybody where there is none.
            owner: Names the user of a request. The default is the authenticated user.
        """
        from .asgi.routes import component_routes

        return component_routes(self, authorize=authorize, owner=owner)


def _is_same(value: Any, stored: bytes | None) -> bool:
    """Whether what was stored is the value, and not something like it."""
    return value is None if stored is None else bool(orjson.loads(stored) == value)


def _json(value: Any) -> bytes | None:
    """``value`` as JSON for the log, or ``None`` where it has no JSON: then only this process could run it again."""
    if value is None:
        return None
    try:
        return orjson.dumps(value)
    except TypeError:
        return None
