"""Runs that agno alone knows, to clients that come back; ``POST …/resume`` among them."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message

from ..asgi.response import STREAM_HEADERS
from ..dialects.native import Native
from ..ending import Ending
from ..model import RunStatus
from ..shutdown import current_drain
from ..sse import Identity, cancelled_event, completed_event, error_event
from .inside import Incoming, Inside
from .outgoing import Alarm, Client, Stalled, jittered, stream_head
from .paths import Target
from .settings import HEARTBEAT, Leaving, Result, Settings, event_frame
from .splitting import Piece, event_index, event_name, is_comment, payload, with_id

__all__ = [
    "META",
    "NOT_FOUND",
    "Followed",
    "FromAgno",
    "come_again",
    "missing",
    "nothing_left",
    "status_of",
]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

Ask = Callable[[int], Awaitable[Inside]]
"""Ask agno for the run once more, from behind another cursor."""

NOT_FOUND = "not found in buffer or database"
META = frozenset(["replay", "catch_up", "subscribed", "error"])


def missing() -> Response:
    """A run that is not there, or is somebody else's."""
    return JSONResponse({"detail": "Run not found", "error_type": "RunNotFound"}, 404, {"Cache-Control": "no-store"})


def nothing_left(run_id: str) -> Response:
    """204, which ends an EventSource for good."""
    return Response(status_code=204, headers={"Cache-Control": "no-store", "X-Run-Id": run_id})


def come_again(run_id: str, retry_ms: int, last: bytes | None = None) -> Response:
    """Any status but 200 would end an EventSource for good, so it is told to come again."""
    if last is None:
        last = Native().leaving("unavailable", retry_ms)
    body = b"retry: %d\n\n" % retry_ms + last
    return Response(body, 200, {**STREAM_HEADERS, "X-Run-Id": run_id}, "text/event-stream")


class FromAgno:
    """One answer of agno's on its way to a client that has come back."""

    persistent = False

    def __init__(
        self,
        settings: Settings,
        target: Target,
        inside: Inside,
        incoming: Incoming,
        client: Client,
        *,
        start: Message,
        after: int,
        native: Native,
        again: Ask,
        head_only: bool,
        plain: bool = False,
    ) -> None:
        assert target.run_id is not None
        self._settings = settings
        self._target = target
        self._run_id: str = target.run_id
        self._inside = inside
        self._incoming = incoming
        self._client = client
        self._start = start
        self._after = after
        self._native = native
        self._again = again
        self._head_only = head_only
        self._plain = plain  # without agno's frames about the resuming itself
        self._last = -1  # the last index that has come, whether it went out or not
        self._ending = Ending(self._run_id, target.family)
        self._status: RunStatus | None = None  # what the run's own ending was
        self._retry_ms = jittered(settings.retry_ms)
        self._drain = current_drain()
        age = settings.max_age * random.uniform(0.8, 1.2)  # noqa: S311  # spreads reconnects, guards nothing
        self._cycle_at = client.now() + age if self.persistent else float("inf")

    async def run(self) -> tuple[Response | None, Result]:
        """Answer; or give the response to answer with, where nothing has been sent."""
        self._drain.listen()
        unsubscribe = self._drain.subscribe(self.hurry)
        alarm = Alarm(lambda: min(self._beat_at(), self._cycle_at), self.hurry)
        self._inside.read()
        try:
            with self._client:
                return await self._respond()
        except Stalled:
            logger.info("a client stopped reading", extra={"run_id": self._run_id})
            self._client.abort()
        finally:
            alarm.stop()
            unsubscribe()
        return None, Result.GONE

    async def _respond(self) -> tuple[Response | None, Result]:
        try:
            response = await self._serve()
            if response is None:
                await self._begin(b"")
                await self._client.end()
        except Leaving as leaving:
            last = self._native.leaving(leaving.reason, self._retry_ms)
            if not self.persistent:
                await self._send(last)
                return None, Result.BROKEN
            if not self._client.begun:
                return come_again(self._run_id, self._retry_ms, last), Result.CLEAN
            await self._send(last)
            await self._client.end()
        except Gone:
            return None, Result.GONE
        except HeadOnly:
            await self._client.end()
        else:
            return response, Result.CLEAN
        return None, Result.CLEAN

    def hurry(self) -> None:
        """Something is to be done besides waiting: the drain has begun, say, or the client has left."""
        self._inside.wake.set()
        if self._drain.begun:
            self._client.hurry()

    async def _serve(self) -> Response | None:
        raise NotImplementedError

    async def _frames(self) -> list[bytes] | None:
        """What comes next, without comments; ``None`` at the end. Heartbeats go out meanwhile."""
        while True:
            if self._incoming.left:
                raise Gone
            if self._drain.begun:
                raise Leaving("drain")
            if self._client.now() >= self._cycle_at:
                raise Leaving("cycle")
            frames = await self._inside.frames()
            if frames is None:
                return None
            frames = [frame for frame in frames if not is_comment(frame)]
            if frames:
                return frames
            if self._client.now() >= self._beat_at() and not self._inside.splitter.midway:
                await self._beat()

    def _beat_at(self) -> float:
        return self._client.quiet_since + self._settings.heartbeat

    async def _beat(self) -> None:
        await self._send(HEARTBEAT)

    def _watch(self, frame: bytes) -> None:
        """Notice the run's own ending."""
        name = event_name(frame)
        if self._status is not None and self._status.finished:
            return
        if name.endswith(("Completed", "Error", "Cancelled", "Paused")):  # a run that paused may have gone on
            self._status = self._ending.of(name, payload(frame)) or self._status

    async def _ask(self, after: int) -> dict[str, Any] | None:
        """Ask agno once more, and return the data of its first frame; ``frames`` are then those of this answer."""
        self._inside.cancel()
        self._inside = await self._again(after)
        if not await self._inside.begun():
            return None
        self._inside.read()
        return await self._first()

    async def _first(self) -> dict[str, Any] | None:
        """The first frame of agno's answer, which says what it is; what came with it is put back."""
        frames = await self._frames()
        if not frames:
            return None
        self._inside.put_back(frames[1:])
        return payload(frames[0]) if event_name(frames[0]) in META else None

    def _closing(self, status: RunStatus) -> bytes:
        """The family's own event of this ending, for a run whose events do not say it."""
        family = self._target.family
        identity = Identity(run_id=self._run_id, component_id=self._target.component_id)
        if status is RunStatus.COMPLETED:
            event = completed_event(family, identity=identity)
        elif status is RunStatus.CANCELLED:
            event = cancelled_event(family, "The run was cancelled.", identity=identity)
        else:
            message = "The run failed without an event that says why."
            event = error_event(family, message, error_type="run_failed", identity=identity)
        return event_frame(event) if self._native.wants(event.type) else b""

    async def _is_broken(self) -> bool:
        """Whether agno's answer, which is over, has broken."""
        await self._inside.settled()
        return self._inside.say_error(run_id=self._run_id)

    async def _send(self, payload: bytes) -> None:
        if self._client.begun:
            await self._client.send(payload)
        else:
            await self._begin(payload)

    async def _begin(self, payload: bytes) -> None:
        if self._client.begun:
            return
        await self._client.begin(200, stream_head(self._start["headers"], self._run_id))
        if self._head_only:
            raise HeadOnly
        await self._client.send(b"retry: %d\n\n" % self._retry_ms + payload)


class Followed(FromAgno):
    """``POST …/resume``: agno's own wire, with ids."""

    async def _serve(self) -> Response | None:
        live = broken = False
        while (frames := await self._frames()) is not None:
            out: list[bytes] = []
            for frame in frames:
                if type(frame) is not Piece:
                    name = event_name(frame)
                    live = live or name == "subscribed"
                    broken = broken or name == "error"
                    if self._plain and name in META:
                        if NOT_FOUND in str((payload(frame) or {}).get("error")):
                            return missing()
                        continue
                    index = event_index(frame)
                    if index is not None and index >= 0:
                        self._last = max(self._last, index)
                        frame = with_id(frame, self._run_id, index)
                    self._watch(frame)
                out.append(frame)
            if out:
                await self._send(b"".join(out))
        if await self._is_broken():
            message = "The stream of this run broke off before its end: resume it once more."
            identity = Identity(run_id=self._run_id, component_id=self._target.component_id)
            event = error_event(self._target.family, message, error_type="stream_broken", identity=identity)
            await self._send(event_frame(event))
        elif live and not broken and self._status is None:
            status = status_of(await self._ask(max(self._last, self._after)))
            if status is None or status.active:
                raise Leaving("unavailable")
            if status.finished:
                await self._send(self._closing(status))
        return None


class Gone(Exception):
    """The client has left."""


class HeadOnly(Exception):
    """The head is all that was asked for."""


def status_of(data: dict[str, Any] | None) -> RunStatus | None:
    """The status in the data of one of agno's first frames."""
    try:
        return RunStatus(str((data or {}).get("status")).upper())
    except ValueError:
        return None
