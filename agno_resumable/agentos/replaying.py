"""``GET`` of a run that agno alone knows: from agno's own event stream, or its database."""

from __future__ import annotations

from starlette.responses import Response

from ..dialects.native import control_frame
from ..model import RunStatus
from ..reader import Gap
from .following import META, NOT_FOUND, FromAgno, come_again, missing, nothing_left, status_of
from .settings import HEARTBEAT, Leaving
from .splitting import Piece, event_index, event_name, with_id

__all__ = ["Replayed"]


class Replayed(FromAgno):
    """``GET``: the native wire, its status decided by agno's first frame."""

    persistent = True
    _from_database = False

    async def _serve(self) -> Response | None:
        data = await self._first()
        kind = None if data is None else data.get("event")
        if data is None or kind == "error":
            if data is not None and NOT_FOUND in str(data.get("error")):
                return missing()
            await self._is_broken()
            return come_again(self._run_id, self._retry_ms)
        if kind != "replay":
            await self._begin(b"")
            await self._deliver(self._after)
            return await self._end_live()
        status = status_of(data)
        self._from_database = "total_buffered" not in data
        if self._from_database and self._after >= 0:
            # The terminal event was stored without its index: only behind all the others can it be numbered
            await self._ask(-1)
        delivered = await self._deliver(self._after)
        if await self._is_broken():
            raise Leaving("unavailable")
        if not delivered and status is not None and status.finished:
            if await self._has_everything():
                return nothing_left(self._run_id)
            await self._ask(-1)
            ahead, self._after, self._last = self._after, -1, -1
            await self._deliver(-1, ahead=ahead)
        return await self._end(status)

    async def _deliver(self, after: int, *, ahead: int | None = None) -> bool:
        """Send what lies behind ``after`` as it comes, to the end of agno's answer; whether there was any event in it
        that the client wants.

        A hole in the indices is told, with the next event: agno's buffer forgets, and its database has no deltas.
        """
        delivered = False
        gap = b""
        while (frames := await self._frames()) is not None:
            out: list[bytes] = []
            for frame in frames:
                if type(frame) is Piece:
                    out.append(frame)
                    continue
                name = event_name(frame)
                if name in META:
                    if name == "error":
                        raise Leaving("unavailable")
                    continue
                index = event_index(frame)
                if index is None or (self._from_database and index <= self._last):
                    index = self._last + 1  # some versions of agno number the terminal event by its place in the row
                over = self._status is not None and self._status.finished
                self._watch(frame)
                if over or index <= after:  # agno says Completed after Cancelled
                    self._last = max(self._last, index)
                    continue
                expected = max(self._last, after) + 1
                if ahead is not None:
                    gap = self._native.gap(Gap(ahead + 1, index, "ahead"))
                    ahead = None
                elif index > expected:
                    gap = gap or self._native.gap(Gap(expected, index, "trimmed"))
                self._last = max(self._last, index)
                if self._native.wants(name):
                    delivered = True
                    out += [gap, with_id(frame, self._run_id, index)]
                    gap = b""
            if out:
                await self._send(b"".join(out))
        return delivered

    async def _has_everything(self) -> bool:
        """Whether the client, which nothing came for, has all there is; or else a cursor that is ahead of it."""
        if self._last >= self._after or self._after < 0:
            return True
        if self._from_database:
            return self._last < 0
        await self._ask(self._after - 1)
        await self._deliver(self._after)
        return self._last >= self._after

    async def _end_live(self) -> Response | None:
        """agno's live stream is over: the run has ended, or rests, or the stream has broken."""
        if await self._is_broken():
            raise Leaving("unavailable")
        status = self._status
        if status is None:
            status = status_of(await self._ask(max(self._last, self._after)))
        return await self._end(status)

    async def _end(self, status: RunStatus | None) -> Response | None:
        last = max(self._last, self._after)
        if status is None or status.active:
            if not self._client.begun:
                return come_again(self._run_id, self._retry_ms)
            raise Leaving("unavailable")
        if status is RunStatus.PAUSED:
            # It closes, so that EventSource asks again: nothing tells of the next leg here
            paused = control_frame("paused", status=status.value, last_event_index=last)
            if not self._client.begun:
                return come_again(self._run_id, self._retry_ms, paused)
            await self._send(paused)
            return None
        closing = b"" if self._status is not None else self._closing(status)
        await self._send(closing + control_frame("end", status=status.value, last_event_index=last))
        return None

    async def _beat(self) -> None:
        if self._client.begun:  # the status is not decided before
            await self._send(HEARTBEAT)
        else:
            self._client.quiet_since = self._client.now()
