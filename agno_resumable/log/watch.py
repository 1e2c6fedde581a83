"""Who waits for which run, and what this process knows of it: shared by the backends that other processes write to.

It answers one question: may something have happened to a run since a reader last looked? A commit of this process is
reported by ``saw``; for those of others the backend reads the runs that ``due`` names and reports them by ``refresh``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

import anyio

from ..errors import RunNotFound
from ..model import Batch, Page, Run
from .hot import HotTail
from .signals import Signals

__all__ = ["IntentWatch", "Watch", "cancel_seen"]


async def cancel_seen(
    read: Callable[[], Awaitable[Page]], wait: Callable[[int, float], Awaitable[None]], timeout: float
) -> bool:
    """See ``EventLog.wait_cancel``. ``wait``, which may return early, gets the version read and the seconds left."""
    deadline = anyio.current_time() + timeout
    while True:
        try:
            run = (await read()).run
        except RunNotFound:
            return True
        left = deadline - anyio.current_time()
        if run.cancel_requested_at is not None or left <= 0:
            return run.cancel_requested_at is not None
        await wait(run.version, left)


class Watch:
    """The waiters of a log, and its hot tail, kept right about the commits of other processes."""

    def __init__(self, hot: HotTail) -> None:
        self.hot = hot
        self._changed = Signals()
        self._cancelled = Signals()
        self._seen: dict[str, int] = {}  # by run, the newest version that a waiter has seen
        # Runs to look at once, because a change may lie between a read and its wait. A deque: the event loop adds to
        # it and another thread takes from it, and neither may lose what the other does.
        self._unsure: deque[str] = deque()

    @property
    def waiters(self) -> int:
        """How many tasks wait at this moment."""
        return self._changed.waiters + self._cancelled.waiters

    @property
    def busy(self) -> bool:
        """Whether the commits of other processes concern anybody. Safe to ask from any thread."""
        return bool(self._seen or self._cancelled.keys or len(self.hot))

    @property
    def unsure(self) -> bool:
        """Whether some run has to be looked at even if nobody else has committed. Safe to ask from any thread."""
        return bool(self._unsure)

    def due(self) -> list[str]:
        """The runs that somebody waits for. ``looked_at`` says that the look has succeeded."""
        return list({*self._seen, *self._cancelled.keys, *self._unsure})

    def doubted(self) -> list[str]:
        """Those of the runs that are ``due`` for which ``unsure`` says so."""
        return list({*self._unsure})

    def concerns(self, run_id: str) -> bool:
        """Whether a commit of another process to this run concerns anybody."""
        return run_id in self.hot or run_id in self._seen or run_id in self._cancelled.keys

    def looked_at(self, names: Sequence[str]) -> None:
        """These runs were looked at, so that they are unsure no more; in the thread that looks."""
        found = set(names)
        for _ in range(len(self._unsure)):
            name = self._unsure.popleft()
            if name not in found:
                self._unsure.append(name)

    def saw(self, run: Run) -> None:
        """This state of the run is committed."""
        seen = self._seen.get(run.run_id)
        if seen is not None and run.version != seen:  # a lower one is that of a run made anew under the same id
            self._wake(run.run_id)
        if run.cancel_requested_at is not None:
            self._cancelled.set(run.run_id)

    def committed(self, run: Run, batches: Sequence[Batch] = ()) -> None:
        """This process has committed this state of the run, and with it these events; in the order of commits."""
        if (run.input, run.metadata, run.options, run.transcript) != (None, None, None, None):
            run = replace(run, input=None, metadata=None, options=None, transcript=None)  # a page comes without them
        self.hot.publish(run, batches)
        self.saw(run)

    def all_committed(self, runs: Sequence[Run]) -> None:
        """``committed`` for each of ``runs``."""
        for run in runs:
            self.committed(run)

    def all_gone(self, run_ids: Sequence[str]) -> None:
        """``gone`` for each of ``run_ids``."""
        for run_id in run_ids:
            self.gone(run_id)

    def gone(self, run_id: str) -> None:
        """The run is deleted."""
        self.hot.forget(run_id)
        self._wake(run_id)
        self._cancelled.set(run_id)

    def refresh(self, asked: Iterable[str], found: Sequence[Run], *, foreign: bool) -> None:
        """What a look at the store found of the runs that were ``due``; ``foreign`` if another process has written.

        ``unsure`` is true afterwards if somebody has begun to wait since then for a run that was not looked at.
        """
        if foreign:
            self.hot.doubt()
            self._unsure.extend({*self._seen, *self._cancelled.keys}.difference(asked))
        for run in found:
            self.hot.confirm(run, self.hot.epoch)
            self.saw(run)
        for run_id in {*asked}.difference(run.run_id for run in found):
            self.gone(run_id)

    def _wake(self, run_id: str) -> None:
        # With the waiters goes what they had seen: one that comes next must not trust a look made before it came.
        self._seen.pop(run_id, None)
        self._changed.set(run_id)

    def close(self) -> None:
        """Wake everybody."""
        self._changed.set_all()
        self._cancelled.set_all()

    async def wait(self, run_id: str, version: int, timeout: float, nudge: Callable[[], None]) -> None:
        """See ``EventLog.wait``. ``nudge`` has the backend look at what is ``unsure``."""
        known = self.hot.known_version(run_id)
        if known is not None and known > version:
            return
        seen = self._seen.get(run_id)
        if seen is not None and version < seen:
            return  # another waiter has already seen more
        if seen is not None and version > seen:
            self._wake(run_id)  # those who wait with an older version have something to read
        self._seen[run_id] = version
        unsure = known is None and seen != version
        if unsure:
            self._unsure.append(run_id)
        try:
            await self._changed.wait(run_id, timeout, nudge if unsure else None)
        finally:
            if run_id not in self._changed.keys:
                self._seen.pop(run_id, None)

    async def wait_cancel(self, run_id: str, version: int, timeout: float, nudge: Callable[[], None]) -> None:
        """Return when a cancel has been seen since ``version``, when the run is gone, or after ``timeout`` seconds."""
        unsure = self.hot.known_version(run_id) != version
        if unsure:
            self._unsure.append(run_id)
        await self._cancelled.wait(run_id, timeout, nudge if unsure else None)


class IntentWatch:
    """Who waits for a change of the cancel intents, beside ``Watch``."""

    def __init__(self) -> None:
        self._changed = Signals()
        self._version = -1  # the newest that a commit of this process, a read or a look has shown
        self._unsure = False

    @property
    def waiters(self) -> int:
        """How many tasks wait at this moment."""
        return self._changed.waiters

    @property
    def busy(self) -> bool:
        """Whether the commits of other processes concern anybody. Safe to ask from any thread."""
        return bool(self._changed.keys)

    @property
    def unsure(self) -> bool:
        """Whether to look even if nobody else has committed: a change may lie between a read and its wait."""
        return self._unsure

    def saw(self, version: int) -> None:
        """This version is committed."""
        if version > self._version:
            self._version = version
            self._changed.set_all()

    def looked_at(self) -> None:
        """In the thread that looks, before it does: who begins to wait from here on is unsure again."""
        self._unsure = False

    def doubt(self) -> None:
        """In the thread that looks: it could not."""
        self._unsure = True

    async def wait(self, version: int, timeout: float, nudge: Callable[[], None]) -> None:
        """Return when another version than ``version`` has been seen, or early, or after ``timeout`` seconds."""
        if self._version > version:
            return

        def look() -> None:
            self._unsure = True
            nudge()

        await self._changed.wait("", timeout, look)

    def close(self) -> None:
        """Wake everybody."""
        self._changed.set_all()
