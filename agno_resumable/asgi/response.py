"""``EventStreamResponse``: one reader of a run, over one HTTP response."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum

import anyio
import anyio.lowlevel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..dialects import Dialect, LeaveReason
from ..dialects.native import Native
from ..errors import LogUnavailable, RunNotFound, StreamBroken
from ..log.protocol import EventLog
from ..model import Batch, Run
from ..reader import End, Gap, Idle, Paused, follow
from ..shutdown import current_drain

__all__ = ["EventStreamResponse"]

logger: logging.Logger = logging.getLogger("agno_resumable.response")

STREAM_HEADERS = {
    "Cache-Control": "no-store, no-transform",  # no-transform: a proxy that compresses also buffers
    "X-Accel-Buffering": "no",  # nginx passes each event on at once
}

# Seconds: a server that stops has no time for a client that does not read
_DRAIN_SEND_TIMEOUT = 1.0


class _Ending(Enum):
    CLEAN = 1
    BROKEN = 2
    GONE = 3
    STALLED = 4


class EventStreamResponse(Response):
    """Streams a run from behind a cursor, one ``send`` a page, until its end.

    Args:
        log: The log, open.
        run_id: The run. Whether the client may read it is decided before.
        after: The cursor: the last index that the client has.
        persistent: The client comes back by itself when the body ends cleanly (EventSource, by GET): the connection
            is cycled, stays when the run pauses, and ends cleanly at drain. To other clients a clean end means that
            all is said, so theirs is broken off instead (``StreamBroken`` is raised for the server to see).
        dialect: The wire.
        heartbeat: Seconds of silence after which a heartbeat is sent.
        max_age: Seconds that a persistent connection lives, ± 20 %: a silent cut of the network goes unnoticed
            otherwise.
        send_timeout: Seconds that one ``send`` may be blocked by a client that does not read.
        retry_ms: The largest delay, in milliseconds, that EventSource is told to reconnect with; jittered down to a
            third of it.
        headers: Further headers.
        run: The run, if it has just been read; it is read once more otherwise.
        reading: Entered while the client is connected.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        log: EventLog,
        run_id: str,
        after: int = -1,
        *,
        persistent: bool = True,
        dialect: Dialect | None = None,
        heartbeat: float = 15.0,
        max_age: float = 300.0,
        send_timeout: float = 30.0,
        retry_ms: int = 3000,
        headers: Mapping[str, str] | None = None,
        run: Run | None = None,
        reading: AbstractContextManager[None] | None = None,
    ) -> None:
        # The type comes first: Chromium takes a head that is cut off before it for a whole one, and closes an
        # EventSource for good where it would come back.
        first = {"Content-Type": f"{self.media_type}; charset=utf-8"}
        super().__init__(headers={**first, **STREAM_HEADERS, "X-Run-Id": run_id, **(headers or {})})
        del self.headers["content-length"]  # Starlette counted the empty body
        self._log = log
        self._run_id = run_id
        self._after = after
        self._run = run
        self._persistent = persistent
        self._dialect: Dialect = dialect or Native()
        self._heartbeat = heartbeat
        self._max_age = max_age * random.uniform(0.8, 1.2)  # noqa: S311  # spreads reconnects, guards nothing
        self._send_timeout = send_timeout
        self._retry_ms = random.randint(retry_ms // 3, retry_ms)  # noqa: S311
        self._reading: AbstractContextManager[None] = reading or nullcontext()
        self._waiting: anyio.CancelScope | None = None
        self._sending: anyio.CancelScope | None = None
        self._sending_until = 0.0  # how long the send in flight may last, if the drain begins now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The headers go out before anything is read: a browser repeats a POST whose socket dies before them.
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        ending = _Ending.GONE
        if scope["method"] == "HEAD":
            ending = _Ending.CLEAN
        else:
            with self._reading:
                async with anyio.create_task_group() as tasks:
                    # Servers that drop what is sent after a disconnect do not tell; Starlette does not listen either
                    tasks.start_soon(_until_disconnect, receive, tasks.cancel_scope)
                    ending = await self._deliver(send)
                    tasks.cancel_scope.cancel()
        if ending is _Ending.CLEAN:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif ending is _Ending.BROKEN:
            raise StreamBroken(
                f"The stream of run {self._run_id!r} was broken off, so that its client comes back.",
                run_id=self._run_id,
            )
        elif ending is _Ending.STALLED:
            _abort(receive)

    async def _deliver(self, send: Send) -> _Ending:
        drain = current_drain()
        drain.listen()
        unsubscribe = drain.subscribe(self._hurry)
        cycle_at = anyio.current_time() + self._max_age if self._persistent else float("inf")
        dialect = self._dialect
        items = follow(
            self._log,
            self._run_id,
            self._after,
            stop_when_paused=not self._persistent,
            idle_after=self._heartbeat,
        )
        try:
            run = self._run or (await self._log.read(self._run_id, self._after, limit=0)).run
            await self._send(send, b"retry: %d\n\n" % self._retry_ms + dialect.opening(run, self._after))
            while True:
                if drain.begun:
                    return await self._leave(send, "drain")
                if anyio.current_time() >= cycle_at:
                    return await self._leave(send, "cycle")
                with anyio.CancelScope(deadline=cycle_at) as self._waiting:
                    item = await items.__anext__()
                if self._waiting.cancelled_caught:
                    return await self._leave(send, "drain" if drain.begun else "cycle")
                self._waiting = None
                payload: bytes
                if isinstance(item, Batch):
                    payload = dialect.batch(item)
                elif isinstance(item, Idle):
                    payload = dialect.idle()
                elif isinstance(item, Gap):
                    payload = dialect.gap(item)
                elif isinstance(item, Paused):
                    payload = dialect.paused(item.run)
                else:
                    payload = dialect.end(item.run)
                if payload:
                    await self._send(send, payload)
                if isinstance(item, End) or (isinstance(item, Paused) and not self._persistent):
                    return _Ending.CLEAN
                # A send that the transport takes at once never yields, and a long replay would keep the loop
                await anyio.lowlevel.checkpoint()
        except (StopAsyncIteration, RunNotFound):
            return _Ending.CLEAN  # the run was deleted: the client was told, and a reconnect gets a 404
        except LogUnavailable as error:
            logger.warning(
                "a stream ended because the log is away",
                extra={"run_id": self._run_id, "error_type": type(error.__cause__ or error).__name__},
            )
            return await self._leave(send, "unavailable")
        except _Stalled:
            logger.info("a client stopped reading", extra={"run_id": self._run_id})
            return _Ending.STALLED
        finally:
            unsubscribe()
            await items.aclose()

    async def _leave(self, send: Send, reason: LeaveReason) -> _Ending:
        payload = self._dialect.leaving(reason, self._retry_ms)
        if payload:
            try:
                await self._send(send, payload)
            except _Stalled:
                return _Ending.STALLED
        return _Ending.CLEAN if self._persistent else _Ending.BROKEN

    async def _send(self, send: Send, payload: bytes) -> None:
        timeout = _DRAIN_SEND_TIMEOUT if current_drain().begun else self._send_timeout
        with anyio.move_on_after(timeout) as self._sending:
            self._sending_until = anyio.current_time() + _DRAIN_SEND_TIMEOUT
            await send({"type": "http.response.body", "body": payload, "more_body": True})
        stalled = self._sending.cancelled_caught
        self._sending = None
        if stalled:
            raise _Stalled

    def _hurry(self) -> None:
        """The drain has begun: stop waiting for events, and for a client that does not read.

        A signal calls this outside of any task, where anyio tells no time.
        """
        if self._waiting is not None:
            self._waiting.cancel()
        if self._sending is not None:
            self._sending.deadline = min(self._sending.deadline, self._sending_until)


class _Stalled(Exception):
    """The client does not read."""


def _abort(receive: Receive) -> None:
    """Reset the connection of a client that does not read, where the server's objects let us reach it.

    ASGI has no word for it, and a close waits until the client has taken what is buffered: uvicorn would keep the
    socket as long as the client likes, and not exit before.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    abort = getattr(transport, "abort", None)
    if callable(abort):
        abort()


async def _until_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
