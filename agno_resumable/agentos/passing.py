"""The stream of a start or a continue: agno's frames on their way to the client that asked for the run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from starlette.types import Message

from ..dialects.native import Native
from ..ending import Ending
from ..errors import LogUnavailable, ResumableError, RunIdInvalid, RunNotFound
from ..model import Batch, Family, RunStatus, check_run_id
from ..reader import End, Gap, Idle, Paused, follow
from ..shutdown import current_drain
from ..sse import Identity, cancelled_event, error_event
from .inside import Incoming, Inside
from .outgoing import Alarm, Client, Stalled, jittered, stream_head
from .paths import Action, Target
from .settings import HEARTBEAT, Leaving, Result, Settings, event_frame
from .splitting import Piece, event_index, event_name, is_comment, payload, with_id

if TYPE_CHECKING:
    from .events import LogEventStream

__all__ = ["Passing"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

# Seconds between two sends of a stream whose frames come quickly
_PACE = 0.002
# Seconds that a stream which has not begun may still take to begin when the server stops
_FIRST_FRAME = 1.0
# With stream_events=False agno sends nothing but these, and no terminal event
_CONTENT = frozenset(["RunContent", "RunIntermediateContent", "TeamRunContent", "TeamRunIntermediateContent"])
# What agno says when its stream ends, but not the run
_COME_BACK = ("error", "stream_expired")


class Passing:
    """Passes the frames of one start or continue on, until the end of the run's leg.

    A frame with an index goes out when the log has its event, with an ``id:``. What agno's stream does not say of the
    run's end, because it broke, is taken from the log, or else said here.

    Args:
        detached: The run goes on without this client, which may come back: it has no need to know of a disconnect,
            and at drain it is told to come again.
        named: Tells the run's id, as far as it is known without a frame.
    """

    def __init__(
        self,
        settings: Settings,
        target: Target,
        inside: Inside,
        incoming: Incoming,
        client: Client,
        *,
        detached: bool,
        start: Message,
        named: Callable[[], str | None],
    ) -> None:
        self._settings = settings
        self._stream = settings.stream
        self._target = target
        self._family: Family = target.family
        self._inside = inside
        self._incoming = incoming
        self._client = client
        self._detached = detached
        self._start = start
        self._named_run = named
        self._run_id: str | None = None  # once the first frame has said it
        self._session_id: str | None = None
        self._named = False  # whether the run's id can stand in an `id:`
        self._resumable = False  # whether agno gives this run's events indices
        self._held = False  # whether the log has this run
        self._last = -1
        self._status: RunStatus | None = None  # what the run's own ending was
        self._content_only = True
        self._come_back = False
        self._ending: Ending | None = None
        self._storing: anyio.CancelScope | None = None
        self._following: anyio.CancelScope | None = None
        self._retry_ms = jittered(settings.retry_ms)
        self._drain = current_drain()

    async def run(self) -> Result:
        """Pass everything on."""
        self._drain.listen()
        unsubscribe = self._drain.subscribe(self.hurry)
        alarm = Alarm(self._beat_at, self._ring)
        self._inside.read()
        try:
            with self._client:
                try:
                    if await self._pass_on() and (self._status is not None or await self._settle()):
                        await self._begin(b"")
                        await self._client.end()
                        return Result.CLEAN
                except Leaving as leaving:
                    await self._send(Native().leaving(leaving.reason, self._retry_ms))
                    return Result.BROKEN
        except Stalled:
            logger.info("a client stopped reading", extra={"run_id": self._run_id})
            self._client.abort()
        finally:
            alarm.stop()
            unsubscribe()
        return Result.GONE

    def hurry(self) -> None:
        """The drain has begun, or the client has left: stop waiting. A signal calls this outside of any task."""
        if self._drain.begun:
            self._client.hurry()
        if self._incoming.left or self._detached:
            self._ring()
            if self._following is not None:
                self._following.cancel()

    def _ring(self) -> None:
        """Something is to be done besides waiting."""
        self._inside.wake.set()
        if self._storing is not None:
            self._storing.cancel()

    def _beat_at(self) -> float:
        return self._client.quiet_since + self._settings.heartbeat

    # ---------------------------------------------------------------- agno's frames

    async def _pass_on(self) -> bool:
        """Pass agno's frames on to the end of its body; False if the client has gone before."""
        patience: asyncio.TimerHandle | None = None
        while True:
            if self._incoming.left:
                return False
            if self._detached and self._drain.begun:
                # A client that has not heard of its run yet could not come back to it
                if self._run_id is not None or (patience is not None and self._client.now() >= patience.when()):
                    raise Leaving("drain")
                patience = patience or asyncio.get_running_loop().call_later(_FIRST_FRAME, self._ring)
            pace = self._client.quiet_since + _PACE - self._client.now() if self._client.begun else 0.0
            if pace > 0.0:
                # A frame after a pause goes out at once; what comes quickly behind it goes out together
                await asyncio.sleep(pace)
            frames = await self._inside.frames()
            if frames is None:
                rest = self._inside.splitter.rest()
                if rest and self._inside.splitter.midway:
                    await self._send(rest + b"\n\n")  # what follows must not become a part of it
                return not self._incoming.left
            if frames:
                await self._deliver(frames)
            else:
                await self._beat()

    async def _beat(self) -> None:
        """Send a heartbeat, if it is time."""
        if self._client.now() >= self._beat_at() and not self._inside.splitter.midway:
            await self._send(HEARTBEAT)

    async def _deliver(self, frames: list[bytes]) -> None:
        out: list[bytes] = []
        last = -1
        for frame in frames:
            if type(frame) is Piece:
                out.append(frame)
                continue
            if self._run_id is None and not self._identify(frame):
                if not is_comment(frame):
                    out.append(frame)
                continue
            index = event_index(frame)
            if index is None:
                if is_comment(frame):
                    continue  # agno's keepalive: some clients take it for a message, and ours comes in time
                if self._status is not None and self._status.finished:
                    continue  # agno says Completed after Cancelled
            elif index < 0:
                continue  # refused: the log has the run's end already
            else:
                self._resumable = True
                last = index
                if self._named:
                    frame = with_id(frame, self._run_id or "", index)
            self._watch(frame)
            out.append(frame)
        if last >= 0 and self._stream is not None and not await self._wait_stored(self._stream, last):
            return
        if last > self._last:
            self._last = last
        if out:
            await self._send(b"".join(out))

    def _identify(self, frame: bytes) -> bool:
        """Learn from the first frame with JSON in it which run this is."""
        data = payload(frame)
        if data is None:
            return False
        run_id = data.get("run_id")
        if not isinstance(run_id, str) or data.get("parent_run_id") or data.get("workflow_run_id"):
            run_id = self._target.run_id  # a continue may begin with an event of a member, or of a step
        elif self._target.action is Action.CONTINUE and data.get("nested_depth"):
            run_id = self._target.run_id
        if run_id is None:
            return False
        self._run_id = run_id
        session_id = data.get("session_id")
        self._session_id = session_id if isinstance(session_id, str) else None
        self._ending = Ending(run_id, self._family)
        try:
            check_run_id(run_id)
            self._named = True
        except RunIdInvalid:
            logger.info("the run's id cannot stand in an event's id", extra={"run_id": run_id})
        return True

    def _watch(self, frame: bytes) -> None:
        """Notice the run's own ending."""
        name = event_name(frame)
        if name not in _CONTENT:
            self._content_only = False
            self._come_back = name in _COME_BACK
            if name.endswith(("Completed", "Error", "Cancelled", "Paused")) and self._ending is not None:
                status = self._ending.of(name, payload(frame))
                self._status = self._status or status

    async def _wait_stored(self, stream: LogEventStream, index: int) -> bool:
        """Wait until the log has the event; False if nobody waits for it any more."""
        run_id = self._run_id or ""
        while True:
            if self._incoming.left:
                return False
            if self._detached and self._drain.begun:
                raise Leaving("drain")
            stored: bool | None = None
            with anyio.CancelScope() as self._storing:
                try:
                    stored = await stream.stored(run_id, index)
                except LogUnavailable:
                    stored = False
            self._storing = None
            if stored:
                self._held = True
                return True
            if stored is None:
                await self._beat()
                continue
            if not self._held and await self._is_anothers(stream, run_id):
                self._stream = None  # a remote component: its events are in its own server's log
                return True
            logger.warning("events of a run could not be stored", extra={"run_id": run_id, "event_index": index})
            raise Leaving("unavailable")

    async def _is_anothers(self, stream: LogEventStream, run_id: str) -> bool:
        try:
            await (await stream.log()).read(run_id, limit=0)
        except RunNotFound:
            return True
        except ResumableError:
            return False
        return False

    # ---------------------------------------------------------------- the end

    async def _settle(self) -> bool:
        """agno's stream is over without the run's end: find out what has become of it, and say that."""
        await self._inside.settled()
        broken = self._inside.say_error(run_id=self._run_id, family=self._family.value)
        if self._run_id is None and (run_id := self._named_run()) is not None:
            # It ended before its first event, perhaps because it was cancelled while it waited for its turn
            self._run_id = run_id
            self._held = self._stream is not None and not await self._is_anothers(self._stream, run_id)
        if self._stream is not None and self._held and self._run_id is not None:
            return await self._follow(self._stream, self._run_id)
        if self._come_back:
            raise Leaving("unavailable")
        if not broken and not self._inside.cancelled and self._run_id is not None and self._content_only:
            return True  # a client that asked for content only gets nothing else
        await self._send(self._last_words())
        return True

    async def _follow(self, stream: LogEventStream, run_id: str) -> bool:
        """The rest from the log; it may be there already, or the run goes on without a word to this stream."""
        native = Native()
        items = follow(
            await stream.log(), run_id, self._last, stop_when_paused=True, idle_after=self._settings.heartbeat
        )
        try:
            while True:
                if self._incoming.left:
                    return False
                if self._detached and self._drain.begun:
                    raise Leaving("drain")
                item: Any = None
                with anyio.CancelScope() as self._following:
                    item = await items.__anext__()
                self._following = None
                if isinstance(item, Batch):
                    await self._send(item.frames)
                elif isinstance(item, Gap):
                    await self._send(native.gap(item))
                elif isinstance(item, Idle):
                    await self._send(HEARTBEAT)
                elif isinstance(item, (End, Paused)):
                    return True
                await anyio.lowlevel.checkpoint()
        except (StopAsyncIteration, RunNotFound):
            return True  # deleted: the gap said it
        except LogUnavailable:
            raise Leaving("unavailable") from None
        finally:
            await items.aclose()

    def _last_words(self) -> bytes:
        identity = Identity(
            run_id=self._run_id or self._target.run_id,
            session_id=self._session_id,
            component_id=self._target.component_id,
        )
        if self._inside.cancelled or self._was_cancelled(identity.run_id):
            return event_frame(cancelled_event(self._family, "The run was cancelled.", identity=identity))
        message = "The stream of this run broke off before its end: read the run for what has become of it."
        return event_frame(error_event(self._family, message, error_type="stream_broken", identity=identity))

    def _was_cancelled(self, run_id: str | None) -> bool:
        cancellation = self._settings.cancellation
        return cancellation is not None and run_id is not None and cancellation.was_cancelled(run_id)

    # ---------------------------------------------------------------- the client

    async def _send(self, payload: bytes) -> None:
        if not self._client.begun:
            await self._begin(payload)
        else:
            await self._client.send(payload)

    async def _begin(self, payload: bytes) -> None:
        """The head goes out with the first frame, which says the run's id, or with the first heartbeat."""
        if self._client.begun:
            return
        run_id = self._run_id or self._target.run_id or self._named_run()
        await self._client.begin(200, stream_head(self._start["headers"], run_id))
        if self._resumable or self._detached:
            payload = b"retry: %d\n\n" % self._retry_ms + payload
        if payload:
            await self._client.send(payload)
