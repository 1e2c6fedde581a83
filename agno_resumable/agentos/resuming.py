"""Coming back into a run: ``GET …/events`` and ``POST …/resume``.

Both are agno's own ``POST …/resume`` inside, so that its authentication, scopes and isolation decide. As soon as they
have, a run of the log is served from the log. One that agno alone knows is served from what agno says.
"""

from __future__ import annotations

import logging
from urllib.parse import urlencode

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..asgi.response import STREAM_HEADERS, EventStreamResponse
from ..asgi.serve import cursor_of, error_response, names_of, nothing_left as has_everything
from ..dialects import Dialect
from ..dialects.agno import AgnoResume
from ..dialects.native import Native
from ..errors import CursorInvalid, LogUnavailable, ResumableError, RunIdInvalid, RunNotFound, StreamBroken
from ..model import check_run_id
from ..sse import Identity, error_event
from .following import Followed, come_again, missing, nothing_left
from .inside import Incoming, Inside, Written, inner_scope, is_event_stream
from .outgoing import Client, jittered, kept
from .paths import Action, Target
from .refusal import may_read
from .replaying import Replayed
from .settings import Result, Settings, event_frame

__all__ = ["Resuming"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

_MAX_FORM = 65_536  # bytes; agno wants a number and an id
_MAX_INDEX = 10**12 - 1  # no log is that long, and no store takes any number


class Resuming:
    """One request to come back into a run."""

    def __init__(
        self, app: ASGIApp, settings: Settings, target: Target, scope: Scope, receive: Receive, send: Send
    ) -> None:
        assert target.run_id is not None
        self._app = app
        self._settings = settings
        self._target = target
        self._run_id: str = target.run_id
        self._scope = scope
        self._receive = receive
        self._send = send
        self._persistent = target.action is Action.EVENTS
        self._after = -1
        self._native = Native()
        self._dialect: Dialect = self._native
        self._session_id: str | None = None
        self._as_posted: bytes | None = None
        self._repeated = False
        self._read = False  # whether the answer is ours to give
        self._asked: list[Inside] = []
        self._inner: Scope = scope

    async def repeat(self, after: int, session_id: str | None) -> None:
        """Answer a start that its client has repeated, with the id of the last frame that it has: it wants the rest of
        the run, and would have it run twice."""
        self._repeated = True
        self._after = after
        self._session_id = session_id
        await self._ask_and_answer()

    async def serve(self) -> None:
        """Answer."""
        refusal = self._read_get() if self._persistent else await self._read_post()
        if refusal is not None:
            await refusal(self._scope, self._receive, self._send)
            return
        await self._ask_and_answer()

    def _read_get(self) -> Response | None:
        request = Request(self._scope)
        try:
            check_run_id(self._run_id)
            self._after = cursor_of(request, self._run_id)
        except RunIdInvalid:
            return missing()
        except CursorInvalid as error:
            return error_response(error)
        self._native = Native(types=names_of(request, "types"), exclude=names_of(request, "exclude") or ())
        self._dialect = self._native
        self._session_id = request.query_params.get("session_id")
        return None

    async def _read_post(self) -> Response | None:
        body, more = b"", True
        while more:
            message = await self._receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _MAX_FORM:
                return JSONResponse({"detail": f"The body is larger than {_MAX_FORM} bytes."}, 413)
        requested: int | None = None
        try:  # what cannot be read here is agno's to refuse
            async with Request(self._scope, Written(body).receive).form(max_fields=32, max_files=0) as form:
                self._session_id = str(form.get("session_id") or "")
                requested = int(str(form.get("last_event_index")))
        except Exception as error:
            logger.debug("no cursor in the form", extra={"error_type": type(error).__name__})
        self._after = -1 if requested is None else min(max(requested, -1), _MAX_INDEX)
        self._dialect = AgnoResume(requested)
        self._as_posted = body
        return None

    def _question(self, after: int) -> tuple[Scope, Written]:
        """What agno is asked: the client's own form the first time, where it has posted one for this."""
        if self._as_posted is not None:
            body, self._as_posted = self._as_posted, None
            return inner_scope(self._scope), Written(body)
        form = {} if after < 0 else {"last_event_index": str(after)}
        if self._session_id:
            form["session_id"] = self._session_id
        body = urlencode(form).encode()
        return inner_scope(self._scope, moved=self._moved, body=body), Written(body)

    def _moved(self, path: str) -> str:
        path = path.rstrip("/")
        return f"{path}/{self._run_id}/resume" if self._repeated else path.rpartition("/")[0] + "/resume"

    async def _ask_and_answer(self) -> None:
        response: Response | None = None
        result = Result.CLEAN
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            try:
                response, result = await self._answer(tasks)
            except Exception as error:  # raised outside of the task group, which would wrap it
                failure = error
            for inside in self._asked:
                inside.cancel()
                while not inside.ended:
                    inside.wake.clear()
                    await inside.wake.wait()
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if response is not None:
            await response(self._scope, self._receive, self._send)
        elif result is Result.BROKEN:
            raise StreamBroken("A stream was broken off, so that its client comes back.", run_id=self._run_id)
        for inside in self._asked:
            if self._read:
                inside.say_error(run_id=self._run_id)
            elif inside.error is not None:
                raise inside.error

    def _ask(self, tasks: anyio.abc.TaskGroup, after: int) -> Inside:
        scope, body = self._question(after)
        self._inner = scope  # where agno leaves what it has found out about the caller
        inside = Inside(body)
        self._asked.append(inside)

        async def app(send: Send) -> None:
            await self._app(scope, body.receive, send)

        async def work() -> None:
            await inside.run(app, tasks.cancel_scope)

        tasks.start_soon(work)
        return inside

    async def _answer(self, tasks: anyio.abc.TaskGroup) -> tuple[Response | None, Result]:
        inside = self._ask(tasks, self._after)
        if not await inside.begun():
            return None, Result.CLEAN
        start = inside.start
        assert start is not None
        if not is_event_stream(start):
            if self._repeated and start["status"] in (400, 404):
                self._read = True
                return self._gone(), Result.CLEAN
            inside.forward(_without_body(self._send) if self._scope["method"] == "HEAD" else self._send)
            while not inside.ended:
                inside.wake.clear()
                await inside.wake.wait()
            return None, Result.CLEAN
        self._read = True
        response = await self._from_log()
        result = Result.CLEAN
        if response is None:
            response, result = await self._from_agno(inside, start, tasks)
        if response is not None:
            if self._repeated and response.status_code == 404:
                response = self._gone()
            headers = MutableHeaders(raw=response.raw_headers)
            for name, value in kept(start["headers"]):
                headers.append(name.decode("latin-1"), value.decode("latin-1"))
        return response, result

    async def _from_log(self) -> Response | None:
        """agno has let the client in: the answer from the log, or ``None`` if the log does not know the run."""
        stream, settings = self._settings.stream, self._settings
        if stream is None:
            return None
        try:
            log = await stream.log()
            run = (await log.read(check_run_id(self._run_id), limit=0)).run
            if run.family is not self._target.family or run.component_id not in (None, self._target.component_id):
                return missing()
            if not may_read(run, self._inner):
                return missing()
            may_stop = self._persistent or self._repeated
            if may_stop and run.status.finished and await has_everything(log, run, self._after, self._native):
                return nothing_left(self._run_id)
        except (RunNotFound, RunIdInvalid):
            return None
        except LogUnavailable as error:
            extra = {"run_id": self._run_id, "error_type": type(error).__name__}
            logger.warning("a stream could not begin because the log is away", extra=extra)
            if not self._persistent:
                return error_response(error)
            return come_again(self._run_id, jittered(settings.retry_ms))
        except ResumableError as error:
            return error_response(error)
        return EventStreamResponse(
            log,
            self._run_id,
            self._after,
            persistent=self._persistent,
            dialect=self._dialect,
            heartbeat=settings.heartbeat,
            max_age=settings.max_age,
            send_timeout=settings.send_timeout,
            retry_ms=settings.retry_ms,
            run=run,
        )

    def _gone(self) -> Response:
        """Libraries that repeat POSTs stop at an event stream with an error in it, and would try a JSON answer again
        for ever."""
        message = f"Run {self._run_id!r} was not found."
        identity = Identity(run_id=self._run_id, component_id=self._target.component_id)
        frame = event_frame(error_event(self._target.family, message, error_type="run_not_found", identity=identity))
        return Response(frame, 404, STREAM_HEADERS, "text/event-stream")

    async def _from_agno(
        self, inside: Inside, start: Message, tasks: anyio.abc.TaskGroup
    ) -> tuple[Response | None, Result]:
        """A run that agno alone knows: what its own event stream, or its database, has of it."""
        incoming = Incoming(self._receive, read=True)
        client = Client(self._receive, self._send, send_timeout=self._settings.send_timeout)

        async def again(after: int) -> Inside:
            return self._ask(tasks, after)

        answer = (Replayed if self._persistent else Followed)(
            self._settings,
            self._target,
            inside,
            incoming,
            client,
            start=start,
            after=self._after,
            native=self._native,
            again=again,
            head_only=self._scope["method"] == "HEAD",
            plain=self._repeated,
        )
        watching = anyio.CancelScope()

        async def watch() -> None:
            with watching:
                await incoming.watch(answer.hurry)

        tasks.start_soon(watch)
        try:
            return await answer.run()
        finally:
            watching.cancel()


def _without_body(send: Send) -> Send:
    async def head_only(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
        await send(message)

    return head_only
