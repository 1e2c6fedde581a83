"""The runs of agno that execute in this process, who polls for them, and which belong to which."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet, ref

__all__ = ["Executing", "ExecutingRun"]

_FORGOTTEN = 86_400.0  # seconds after which a run that agno never cleaned up is no longer believed to execute
_ENDED = 4_096

Task = asyncio.Task[Any]


class ExecutingRun:
    """One run, and the tasks that have polled for it."""

    __slots__ = ("expires", "latest", "polled", "stopped")

    def __init__(self, expires: float) -> None:
        self.expires: float = expires
        self.latest: Callable[[], Task | None] = _no_task
        self.polled: WeakSet[Task] = WeakSet()
        self.stopped: WeakSet[Task] = WeakSet()
        """Those that have been told: they end by themselves, or were cancelled hard already."""


def _no_task() -> None:
    return None


class Executing:
    """Runs from their registration to their cleanup; from any thread. What agno never cleans up goes after a day."""

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.runs: OrderedDict[str, ExecutingRun] = OrderedDict()
        self.cascaded: set[str] = set()
        """Members of cancelled runs; a member stays until it ends, or the run that it belongs to."""
        self._members: OrderedDict[str, tuple[set[str], float]] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def register(self, run_id: str) -> None:
        """The run begins."""
        now = time.monotonic()
        with self.lock:
            while self.runs and next(iter(self.runs.values())).expires <= now:
                self.runs.popitem(last=False)
            if run_id not in self.runs:
                self.runs[run_id] = ExecutingRun(now + _FORGOTTEN)
            self._ended.pop(run_id, None)

    def forget(self, run_id: str, *, cancelled: bool) -> None:
        """The run has ended."""
        with self.lock:
            self.runs.pop(run_id, None)
            self.cascaded.discard(run_id)
            self._let_go_of(self._members.get(run_id))
            if cancelled:
                self._ended[run_id] = None
                if len(self._ended) > _ENDED:
                    self._ended.popitem(last=False)

    def has_ended_cancelled(self, run_id: str) -> bool:
        """Whether the run was cancelled, has ended, and was not begun again; of the last few thousand."""
        return run_id in self._ended

    def polls(self, run: ExecutingRun) -> Task | None:
        """The current task polls for the run; returns it, or ``None`` in a thread without an event loop."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return None
        if task is not None and run.latest() is not task:
            run.latest = ref(task)
            with self.lock:
                run.polled.add(task)
        return task

    def unaware(self, run: ExecutingRun) -> list[Task]:
        """The tasks that have polled for the run, still go on, and have not been told that it is cancelled."""
        with self.lock:
            return [task for task in run.polled if not task.done() and task not in run.stopped]

    def is_stopped(self, task: Task) -> None:
        """The task was cancelled: nobody shall do it again while it ends, whichever of its runs that is for."""
        with self.lock:
            for run in self.runs.values():  # a workflow and the agent of its step share a task
                if task in run.polled:
                    run.stopped.add(task)

    # ---------------------------------------------------------------- members

    def add_member(self, run_id: str, member: str) -> None:
        """The member's run belongs to the run."""
        now = time.monotonic()
        with self.lock:
            while self._members and next(iter(self._members.values()))[1] <= now:
                self._members.popitem(last=False)
            members, _ = self._members.pop(run_id, (set(), 0.0))
            members.add(member)
            self._members[run_id] = members, now + _FORGOTTEN

    def members_of(self, run_id: str) -> set[str]:
        """Those that were added, a copy."""
        with self.lock:
            members = self._members.get(run_id)
            return set() if members is None else set(members[0])

    def drop_members(self, run_id: str) -> None:
        """The run is over, and with it what its members were."""
        with self.lock:
            self._let_go_of(self._members.pop(run_id, None))

    def cascade(self, run_ids: Sequence[str]) -> list[str]:
        """Cancel the members of cancelled runs, and theirs; returns which of all these execute here."""
        with self.lock:
            reached = set(run_ids)
            found = list(run_ids)
            while found:
                members, _ = self._members.get(found.pop(), ((), 0.0))
                new = set(members) - reached
                self.cascaded |= new
                reached |= new
                found += new
            return [run_id for run_id in reached if run_id in self.runs]

    def _let_go_of(self, members: tuple[set[str], float] | None) -> None:
        if members is not None:  # those that have not begun will not
            self.cascaded.difference_update(members[0] - self.runs.keys())
