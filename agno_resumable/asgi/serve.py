"""From a request to the right answer: a stream, 204, or an error that its client understands."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..dialects.native import Native
from ..errors import (
    CursorInvalid,
    Draining,
    LogUnavailable,
    ResumableError,
    RunExists,
    RunFinished,
    RunIdInvalid,
    RunNotFound,
    StaleGeneration,
)
from ..log.protocol import EventLog
from ..model import Run, check_run_id, parse_cursor
from ..sse import Identity, error_event
from .auth import Access
from .response import STREAM_HEADERS, EventStreamResponse

if TYPE_CHECKING:
    from ..stream import ResumableStream

__all__ = ["cursor_of", "error_response", "events_response", "names_of", "nothing_left", "start_response"]

logger: logging.Logger = logging.getLogger("agno_resumable.serve")

_STATUS: tuple[tuple[type[ResumableError], int], ...] = (
    (RunNotFound, 404),
    (CursorInvalid, 400),
    (RunIdInvalid, 400),
    (RunExists, 409),
    (RunFinished, 409),
    (StaleGeneration, 409),
    (Draining, 503),
    (LogUnavailable, 503),
)


def error_response(error: ResumableError) -> Response:
    """An error of the library as a JSON answer: ``{"detail": …, "error_type": …}``."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 409)
    headers = {"Cache-Control": "no-store"}
    if status == 503:
        headers["Retry-After"] = "1"
    detail = str(error)
    if isinstance(error, RunNotFound):
        detail = "Run not found"  # word for word the same for a foreign run, and for an id that could never be one
    return JSONResponse({"detail": detail, "error_type": type(error).__name__}, status, headers)


def cursor_of(request: Request, run_id: str) -> int:
    """The cursor of a request: ``Last-Event-ID``, else ``?last_event_id=``, else ``?since_id=``, else -1.

    The header comes first: a browser that reconnects keeps the URL, and says in the header how far it got since.

    Raises:
        CursorInvalid: It is no cursor of this run.
    """
    given = request.headers.get("last-event-id")
    if given is None:
        given = request.query_params.get("last_event_id", request.query_params.get("since_id", ""))
    return parse_cursor(given, run_id)


async def events_response(
    stream: ResumableStream,
    request: Request,
    run_id: str,
    *,
    after: int | None = None,
    access: Access | None = None,
) -> Response:
    """Answer a ``GET`` of a run's events; ``after`` instead of the request's own cursor."""
    try:
        check_run_id(run_id)
        if after is None:
            after = cursor_of(request, run_id)
        dialect = Native(types=names_of(request, "types"), exclude=names_of(request, "exclude") or ())
        log = await stream.log()
        run = await visible_run(stream, request, run_id, access)
        if run.status.finished and await nothing_left(log, run, after, dialect):
            return Response(status_code=204, headers={"Cache-Control": "no-store", "X-Run-Id": run_id})
    except RunIdInvalid:
        return error_response(RunNotFound(run_id))
    except LogUnavailable as error:
        return _come_again(request, error)
    except ResumableError as error:
        return error_response(error)
    return EventStreamResponse(
        log,
        run_id,
        after,
        persistent=request.method in ("GET", "HEAD"),
        dialect=dialect,
        run=run,
        reading=stream.readers.reading(run_id),
    )


async def start_response(
    stream: ResumableStream, request: Request, input: Any, *, access: Access | None = None, **options: Any
) -> Response:
    """Start a run, or find the one that this request has started before, and stream it."""
    try:
        run_id, after = _repeated(request)
        if run_id is not None:
            run = await visible_run(stream, request, run_id, access)
        else:
            options.setdefault("idempotency_key", idempotency_key(request))
            run, after = await stream.start(input, **options), -1
        log = await stream.log()
    except RunNotFound as error:
        return _gone(stream, error)
    except ResumableError as error:
        return error_response(error)
    headers = location(request, run.run_id)
    if run.status.finished and after == run.last_index:
        return Response(status_code=204, headers={"Cache-Control": "no-store", **headers})
    return EventStreamResponse(
        log,
        run.run_id,
        after,
        persistent=False,
        headers=headers,
        run=run,
        reading=stream.readers.reading(run.run_id),
    )


async def visible_run(stream: ResumableStream, request: Request, run_id: str, access: Access | None) -> Run:
    """The run, if it is this component's and the request may touch it; else ``RunNotFound``, whichever it is."""
    run = (await (await stream.log()).read(check_run_id(run_id), limit=0)).run
    if run.component_id != stream.component_id or run.family is not stream.family:
        raise RunNotFound(run_id)
    if access is not None and not await access.allows(request, run):
        raise RunNotFound(run_id)
    return run


def idempotency_key(request: Request) -> str | None:
    """The ``Idempotency-Key`` of the request.

    Raises:
        CursorInvalid: It is longer than 255 characters.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > 255:
        raise CursorInvalid("The Idempotency-Key is longer than 255 characters.")
    return key or None


def location(request: Request, run_id: str) -> dict[str, str]:
    """Where a started run is read: some clients reconnect to the ``Location`` of the answer to their POST."""
    return {"Location": f"{request.url.path.rstrip('/')}/{run_id}/events", "X-Run-Id": run_id}


def _repeated(request: Request) -> tuple[str | None, int]:
    """The run and cursor of a POST that a client library repeats after a cut.

    Such a library sends the id of the last frame and nothing else that is new. Here the cursor names the run, because
    nothing else does; it opens no door, for the run is authorised like in any other request.
    """
    last = (request.headers.get("last-event-id") or "").rpartition(",")[2].strip()
    run_id, colon, _ = last.rpartition(":")
    if not colon:
        return None, -1
    return check_run_id(run_id), parse_cursor(last, run_id)


def names_of(request: Request, parameter: str) -> Collection[str] | None:
    """The event names in a query parameter, which may be given more than once; ``None`` without any."""
    given = request.query_params.getlist(parameter)
    return frozenset(name.strip() for value in given for name in value.split(",") if name.strip()) if given else None


async def nothing_left(log: EventLog, run: Run, after: int, dialect: Native) -> bool:
    """Whether a finished run has no event left for this reader. Then 204, which ends an EventSource for good."""
    if after == run.last_index:
        return True
    if not dialect.filters or after > run.last_index or after + 1 < run.first_index:
        return False
    # With a filter the reader's cursor stays on the last event that passed it, before the end: without a look at
    # what is left it would reconnect for ever.
    while after < run.last_index:
        page = await log.read(run.run_id, after)
        for batch in page.batches:
            if any(dialect.wants(event.type) for event in batch.events):
                return False
            after = batch.last
        if not page.batches:
            break
    return True


def _come_again(request: Request, error: LogUnavailable) -> Response:
    """The store is away. Any status but 200 would end an EventSource for good, so it is told to come again."""
    logger.warning("a stream could not begin because the log is away", extra={"error_type": type(error).__name__})
    if request.method != "GET":
        return error_response(error)
    goodbye = b"retry: 2000\n\n" + Native().leaving("unavailable", 2000)
    return Response(goodbye, 200, STREAM_HEADERS, "text/event-stream")


def _gone(stream: ResumableStream, error: RunNotFound) -> Response:
    """A repeated POST whose run is gone: libraries that repeat POSTs stop at an event stream with an error in it, and
    would try a JSON answer again for ever."""
    frame = error_event(stream.family, str(error), error_type="run_not_found", identity=Identity(run_id=error.run_id))
    body = b"event: %b\ndata: %b\n\n" % (frame.type.encode(), frame.data)
    return Response(body, 404, STREAM_HEADERS, "text/event-stream")
