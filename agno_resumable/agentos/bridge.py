"""``AgentOSBridge``: an ASGI middleware around AgentOS, for what AgentOS itself lacks."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import CursorInvalid, LogUnavailable, RunIdInvalid, StreamBroken
from ..log.protocol import EventLog
from ..model import check_run_id, parse_cursor
from ..shutdown import current_drain
from .inside import Incoming, Inside, inner_scope, is_event_stream
from .lifespan import serve_lifespan
from .outgoing import Client
from .ownership import RUN_OF_REQUEST, RequestOwner, request_owner
from .passing import Passing
from .paths import Action, Target, has_own_route, target_of
from .promotion import promotable
from .refusal import Claim, Refused, refuse_reused
from .resuming import Resuming
from .settings import Result, Settings
from .uploads import FormWatch

if TYPE_CHECKING:
    from .cancellation import LogCancellationManager
    from .events import LogEventStream

__all__ = ["AgentOSBridge"]


class AgentOSBridge:
    """Serve ``AgentOSBridge(agent_os.get_app(), agent_os=agent_os, stream=…)`` in the place of AgentOS's application.

    - ``GET …/runs/{run_id}/events`` (and ``…/resume``) for EventSource: a run from behind ``Last-Event-ID`` or
      ``?last_event_id=``; authenticated and authorised by AgentOS as its own ``POST …/resume``.
    - Every frame with an index gets an ``id:``, every stream heartbeats, ``X-Run-Id`` and headers against buffering.
    - Clients of a start or a continue see an event when the log has it, and not before.
    - No stream ends without its run's end, but at drain, where it says ``disconnecting``.

    Without ``stream`` the runs are those of agno's own event stream; then nothing is durable, and the rest holds.

    Args:
        app: What ``get_app()`` gives, or an application that mounts it.
        agent_os: The AgentOS; without it nothing is promoted.
        stream: The event stream that the AgentOS was given; opened and closed in the lifespan.
        cancellation: The cancellation manager that was set; opened and closed in the lifespan.
        promote_inline: Run streaming starts and continues in the background where the client does not say, so that
            they outlive it.
        prefix: Where ``app`` mounts the AgentOS, as in ``/api``, if it is not the AgentOS itself.
        heartbeat: Seconds of silence after which a stream gets a heartbeat.
        max_age: Seconds that a GET stream lives before its client is told to come again, ± 20 %.
        send_timeout: Seconds that one ``send`` may be blocked by a client that does not read.
        retry_ms: The largest delay, in milliseconds, that EventSource is told to reconnect with.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        agent_os: Any = None,
        stream: LogEventStream | None = None,
        cancellation: LogCancellationManager | None = None,
        promote_inline: bool = True,
        prefix: str = "",
        heartbeat: float = 15.0,
        max_age: float = 300.0,
        send_timeout: float = 30.0,
        retry_ms: int = 3000,
    ) -> None:
        self.app: ASGIApp = app
        self._agent_os = agent_os
        self._promote_inline = promote_inline
        self._prefix = prefix
        self._settings = Settings(stream, cancellation, heartbeat, max_age, send_timeout, retry_ms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            settings = self._settings
            resources: list[AbstractAsyncContextManager[Any]] = [
                resource for resource in (settings.stream, settings.cancellation) if resource is not None
            ]
            await serve_lifespan(self.app, scope, receive, send, resources)
            return
        target = target_of(scope, self._prefix)
        if (
            target is None
            or target.action in (Action.OTHER, Action.CANCEL)
            or has_own_route(self.app, scope, self._prefix)
        ):
            await self.app(scope, receive, send)
        elif target.action in (Action.RESUME, Action.EVENTS):
            await Resuming(self.app, self._settings, target, scope, receive, send).serve()
        elif target.action is Action.START and (repeated := _repeated(scope)) is not None:
            await self._repeat(target, *repeated, scope, receive, send)
        else:
            await self._primary(target, scope, receive, send)

    async def _repeat(
        self, target: Target, run_id: str, after: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """A start that a client has repeated because its stream broke: the rest of that run."""
        watch = FormWatch(scope, receive, promote=False)
        while not watch.done:
            if (await watch.receive())["type"] == "http.disconnect":
                return
        target = target._replace(action=Action.RESUME, run_id=run_id)
        resuming = Resuming(self.app, self._settings, target, scope, receive, send)
        await resuming.repeat(after, watch.fields.get("session_id"))

    async def _primary(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """A start or a continue."""

        async def check(run_id: str) -> Claim:
            return await refuse_reused(
                run_id,
                target=target,
                scope=watch.scope,
                fields=watch.fields,
                agent_os=self._agent_os,
                log=await self._log(),
            )

        promote = self._promote_inline and await promotable(self._agent_os, target)
        incoming = Incoming(receive)
        watch = FormWatch(
            inner_scope(scope),
            incoming.receive,
            promote=promote,
            on_run_id=check if target.action is Action.START else None,
        )
        owner = RequestOwner(target.family, target.component_id, watch.fields, watch.scope["state"])
        token = request_owner.set(owner)
        try:
            await _Primary(self.app, self._settings, target, watch, incoming, receive, send).serve()
        finally:
            request_owner.reset(token)

    async def _log(self) -> EventLog | None:
        stream = self._settings.stream
        if stream is None:
            return None
        try:
            return await stream.log()
        except LogUnavailable as error:
            raise Refused(error) from error


def _repeated(scope: Scope) -> tuple[str, int] | None:
    """The run and the index in ``Last-Event-ID``, as libraries send it that repeat a POST; ``None`` without one."""
    given = Headers(scope=scope).get("last-event-id", "")
    run_id, colon, _ = given.rpartition(",")[2].strip().rpartition(":")
    try:
        return (check_run_id(run_id), parse_cursor(given, run_id)) if colon else None
    except (CursorInvalid, RunIdInvalid):
        return None  # not of ours


class _Primary:
    """The answer to a start or a continue: a stream that is passed on frame by frame, or anything else as it is."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        target: Target,
        watch: FormWatch,
        incoming: Incoming,
        receive: Receive,
        send: Send,
    ) -> None:
        self._app = app
        self._settings = settings
        self._target = target
        self._watch = watch
        self._incoming = incoming
        self._inside = Inside(incoming)
        self._client = Client(receive, send, send_timeout=settings.send_timeout)
        self._send = send
        self._detached = False
        self._passing: Passing | None = None
        self._answered = False

    async def serve(self) -> None:
        inside, result, failure = self._inside, Result.CLEAN, None
        watching = anyio.CancelScope()

        async def watch_client() -> None:
            with watching:
                await self._incoming.watch(self._gone)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(inside.run, self._answer, tasks.cancel_scope)
            tasks.start_soon(watch_client)
            try:
                result = await self._respond()
            except Exception as error:  # raised outside of the task group, which would wrap it
                failure = error
            if failure is not None or result is Result.BROKEN:
                inside.cancel()
            elif result is Result.GONE:
                await self._let_finish()
            while not inside.ended:
                inside.wake.clear()
                await inside.wake.wait()
            watching.cancel()
        if self._passing is not None:  # the client has had its answer
            inside.say_error(run_id=self._target.run_id, family=self._target.family.value)
        if failure is not None:
            raise failure
        if result is Result.BROKEN:
            raise StreamBroken("A stream was broken off, so that its client comes back.")
        if self._passing is None and inside.error is not None and not self._answered:
            raise inside.error

    async def _answer(self, send: Send) -> None:
        await self._watch.run(self._app, send)

    async def _respond(self) -> Result:
        if not await self._inside.begun():
            return Result.CLEAN  # nothing but an exception, or nothing at all, which is the server's to say
        start = self._inside.start
        assert start is not None
        if not is_event_stream(start):
            if start["status"] == 500 and await self._answer_cancelled():
                self._inside.discard()
            else:
                self._inside.forward(self._send)
            return Result.CLEAN
        self._detached = self._watch.background
        self._passing = Passing(
            self._settings,
            self._target,
            self._inside,
            self._incoming,
            self._client,
            detached=self._detached,
            start=start,
            named=self._named,
        )
        return await self._passing.run()

    def _named(self) -> str | None:
        """The run of this request, as far as anybody has named it: agno, or the client."""
        return self._watch.scope["state"].get(RUN_OF_REQUEST) or self._watch.fields.get("run_id")

    async def _answer_cancelled(self) -> bool:
        """A run without a stream that did not notice its cancel was cancelled hard, and its request with it."""
        run_id, cancellation = self._named(), self._settings.cancellation
        if run_id is None or cancellation is None or not cancellation.was_cancelled(run_id):
            return False
        answer = {"run_id": run_id, "session_id": self._watch.fields.get("session_id"), "status": "CANCELLED"}
        await JSONResponse(answer)(self._watch.scope, self._incoming.receive, self._send)
        self._answered = True
        return True

    def _gone(self) -> None:
        """The client has left. A run in the background needs not know; any other ends, as it always did."""
        if not self._watch.background:
            self._inside.tell()
        if self._passing is not None:
            self._passing.hurry()

    async def _let_finish(self) -> None:
        """Nobody reads any more: agno gets to its end, and to what it does behind it; but it does not hold the server
        up where the run goes on without this request."""
        inside, drain = self._inside, current_drain()
        inside.discard()
        if not self._detached:
            inside.tell()
            return
        unsubscribe = drain.subscribe(inside.wake.set)
        try:
            while not inside.ended:
                if drain.begun:
                    inside.cancel()
                inside.wake.clear()
                await inside.wake.wait()
        finally:
            unsubscribe()
