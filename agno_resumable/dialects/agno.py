"""The wire of AgentOS's ``POST …/resume``, meta frames included, from our log.

The names and fields of the meta frames are those of agno's own routers (agno/os/routers/agents/router.py, 3.1.10).
"""

from __future__ import annotations

import orjson

from ..model import Batch, Run
from ..reader import Gap
from . import LeaveReason
from .native import Native

__all__ = ["AgnoResume", "not_found"]


def _meta(event: str, **data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps({"event": event, **data}))


def not_found(run_id: str) -> bytes:
    """What AgentOS answers for a run that it does not know, with status 200."""
    return _meta("error", error=f"Run {run_id} not found in buffer or database")


class AgnoResume:
    """``replay`` for a run that rests or has finished; ``catch_up`` and ``subscribed`` for an active one."""

    def __init__(self, requested: int | None) -> None:
        self._requested = requested
        self._native = Native()
        self._live_from: int | None = None  # the last index of the catch-up, until "subscribed" has been said
        self._run: Run | None = None

    def opening(self, run: Run, after: int) -> bytes:
        self._run = run
        missed = max(0, run.last_index - max(after, run.first_index - 1))
        if not run.status.active:
            return _meta(
                "replay",
                run_id=run.run_id,
                status=run.status.value,
                total_events=missed,
                total_buffered=run.next_index,
                last_event_index_requested=-1 if self._requested is None else self._requested,
                message=f"Run {run.status.value}. Replaying {missed} missed events (of {run.next_index} total).",
            )
        if not missed:
            return self._subscribed(run)
        self._live_from = run.last_index
        return _meta(
            "catch_up",
            run_id=run.run_id,
            status="running",
            missed_events=missed,
            current_event_count=run.next_index,
            message=f"Catching up on {missed} missed events.",
        )

    def batch(self, batch: Batch) -> bytes:
        if self._live_from is None or batch.last < self._live_from or self._run is None:
            return batch.frames
        behind, self._live_from = self._live_from, None
        missed = batch.slice(-1, behind + 1 - batch.first)
        live = batch.slice(behind)
        return missed.frames + self._subscribed(self._run) + live.frames

    def gap(self, gap: Gap) -> bytes:
        return self._native.gap(gap)

    def idle(self) -> bytes:
        return b": heartbeat\n"

    def paused(self, run: Run) -> bytes:
        return b""

    def end(self, run: Run) -> bytes:
        return b""

    def leaving(self, reason: LeaveReason, retry_ms: int) -> bytes:
        return self._native.leaving(reason, retry_ms)

    def _subscribed(self, run: Run) -> bytes:
        return _meta(
            "subscribed",
            run_id=run.run_id,
            status="running",
            current_event_count=run.next_index,
            message=f"Subscribed to {run.family.value} run. Receiving live events.",
        )
