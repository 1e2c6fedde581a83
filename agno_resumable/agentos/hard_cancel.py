"""Cancelling the tasks of a cancelled run that does not poll, and none that is about something else.

A task that has polled for a run may since have gone on to something else: the consumer of an abandoned generator, a
request that waits for its client. Only what it waits for at this moment tells.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

from .executing import Executing, ExecutingRun, Task

__all__ = ["HardCancel", "is_inside"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

# What an asynchronous generator, or an object's `__await__`, is awaited through. They say nothing of what is behind
# them, but the garbage collector knows.
_WRAPPERS = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper", "anext_awaitable")
_DEEPEST = 1_000


class HardCancel:
    """Timers for the cancelled runs of this process, in one event loop.

    Args:
        executing: The runs.
        is_cancelled: Whether a run is cancelled still.
        grace: Seconds that a run has to end by itself. One whose members are about to end has twice as long.
    """

    def __init__(self, executing: Executing, is_cancelled: Callable[[str], bool], grace: float) -> None:
        self._executing = executing
        self._is_cancelled = is_cancelled
        self._grace = grace
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def watch(self, run_id: str) -> None:
        """The run was cancelled. Call it in the event loop."""
        self._arm(run_id, self._grace, asyncio.get_running_loop().time() + 2 * self._grace)

    def stop(self) -> None:
        """Leave everything alone from now on."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _arm(self, run_id: str, delay: float, patience: float) -> None:
        run = self._executing.runs.get(run_id)
        if run is not None and run_id not in self._timers:
            self._timers[run_id] = asyncio.get_running_loop().call_later(delay, self._end, run_id, run, patience)

    def _end(self, run_id: str, run: ExecutingRun, patience: float) -> None:
        self._timers.pop(run_id, None)
        if not self._is_cancelled(run_id):
            return
        if self._executing.runs.get(run_id) is not run:
            self.watch(run_id)  # that run has ended; another leg of it has a grace of its own
            return
        here = asyncio.get_running_loop()
        if self._executing.members_of(run_id) & self._executing.runs.keys() and here.time() < patience:
            self._arm(run_id, min(0.1, self._grace), patience)  # a run whose members end may end by itself
            return
        tasks = self._executing.unaware(run)
        for task in tasks:
            loop = task.get_loop()
            if loop is here:
                self._cancel(run_id, run, task)
            elif loop.is_running():
                loop.call_soon_threadsafe(self._cancel, run_id, run, task)
        if tasks:  # one that is not inside of the run at this moment may come back to it
            self._arm(run_id, self._grace, patience)

    def _cancel(self, run_id: str, run: ExecutingRun, task: Task) -> None:
        """In the task's own loop."""
        if self._executing.runs.get(run_id) is run and not task.done() and is_inside(task, run_id):
            self._executing.is_stopped(task)
            logger.info("a cancelled run did not end by itself", extra={"run_id": run_id})
            task.cancel()


def is_inside(task: Task, run_id: str) -> bool:
    """Whether ``task``, which is suspended, executes code of agno's for this run. Call it in the task's loop."""
    return any(_concerns(frame, run_id) for frame in _frames(task.get_coro()))


def _frames(awaited: Any) -> Iterator[FrameType]:
    """The frames of a suspended coroutine and of all that it waits for, from the outside in."""
    for _ in range(_DEEPEST):
        if isinstance(awaited, CoroutineType):
            frame, inner = awaited.cr_frame, awaited.cr_await
        elif isinstance(awaited, AsyncGeneratorType):
            frame, inner = awaited.ag_frame, awaited.ag_await
        elif isinstance(awaited, GeneratorType):
            frame, inner = awaited.gi_frame, awaited.gi_yieldfrom
        elif type(awaited).__name__ in _WRAPPERS:
            frame, inner = None, next(filter(_is_awaited, gc.get_referents(awaited)), None)
        else:
            return  # a future: another task's business
        if frame is not None:
            yield frame
        awaited = inner


def _is_awaited(found: object) -> bool:
    return isinstance(found, (CoroutineType, AsyncGeneratorType, GeneratorType)) or type(found).__name__ in _WRAPPERS


def _concerns(frame: FrameType, run_id: str) -> bool:
    module = frame.f_globals.get("__name__") or ""
    # AgentOS's own frames know the run as well while nothing but the response to its client is going on
    if not module.startswith("agno.") or module.startswith("agno.os."):
        return False
    return any(
        value == run_id if type(value) is str else _is_of_agno(value) and getattr(value, "run_id", None) == run_id
        for value in frame.f_locals.values()
    )


def _is_of_agno(value: object) -> bool:
    return type(value).__module__.startswith("agno.")
