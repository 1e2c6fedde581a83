"""The cancel intents of the log, in memory: which runs shall stop, as far as this process knows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["IntentBook"]


@dataclass
class _Own:
    """An intent of this process that no read has shown yet."""

    expires: float
    confirmed: int | None = None
    """The read that was the newest to have begun when the log had confirmed it."""


class IntentBook:
    """What was cancelled here and what the log tells of others, put together; from any thread.

    Reads of the log overlap with the writes of this process. So reads are numbered as they begin: what a read shows
    counts for a run only if it began after the last write for that run was confirmed.

    Args:
        ttl: Seconds that an intent which the log does not know yet is kept.
    """

    def __init__(self, ttl: float) -> None:
        self.live: frozenset[str] = frozenset()
        """The runs that shall stop; replaced as a whole, so that a poll needs no lock."""
        self._ttl = ttl
        self._lock = threading.Lock()
        self._own: dict[str, _Own] = {}
        self._stored: set[str] = set()
        self._dropping: dict[str, float] = {}  # the same number; infinite while the log has not confirmed it
        self._unsent: dict[str, bool] = {}  # True: to be stored; False: to be dropped
        self._reads = 0

    def mark(self, run_id: str) -> None:
        """The run was cancelled in this process."""
        with self._lock:
            now = time.monotonic()
            for old in [old for old, own in self._own.items() if own.expires <= now]:
                del self._own[old]
            self._own[run_id] = _Own(now + self._ttl)
            self._dropping.pop(run_id, None)
            self._unsent.pop(run_id, None)
            self._refresh()

    def forget(self, run_id: str) -> bool:
        """The run has ended in this process; returns whether the log has to drop an intent."""
        with self._lock:
            self._unsent.pop(run_id, None)
            if run_id not in self.live:
                return False
            self._own.pop(run_id, None)
            self._stored.discard(run_id)
            self._dropping[run_id] = math.inf
            self._refresh()
            return True

    def is_own(self, run_id: str) -> bool:
        """Whether the run was cancelled here, and no read has shown it yet."""
        return run_id in self._own

    def stored(self, run_id: str) -> None:
        """The log has confirmed this process's intent."""
        with self._lock:
            own = self._own.get(run_id)
            if own is not None:
                own.confirmed = self._reads
            self._unsent.pop(run_id, None)

    def dropped(self, run_id: str) -> None:
        """The log has confirmed that there is no intent any more."""
        with self._lock:
            if run_id in self._dropping:
                self._dropping[run_id] = self._reads
            self._unsent.pop(run_id, None)

    def failed(self, run_id: str) -> None:
        """The log could not be told: it will be tried again."""
        with self._lock:
            if run_id in self._own:
                self._unsent[run_id] = True
            elif run_id in self._dropping:
                self._unsent[run_id] = False

    @property
    def unsent(self) -> dict[str, bool]:
        """What the log has not been told: the runs to cancel, and, with False, those whose intent is to be dropped."""
        with self._lock:
            return dict(self._unsent)

    def reading(self) -> int:
        """A read of the log begins; returns its number."""
        with self._lock:
            self._reads += 1
            return self._reads

    def read(self, number: int, run_ids: Iterable[str]) -> tuple[list[str], bool]:
        """What this read has shown; returns the runs that are new, and whether to read again at once."""
        again = False
        now = time.monotonic()
        with self._lock:
            found = set(run_ids)
            for run_id, since in list(self._dropping.items()):
                if number > since:
                    del self._dropping[run_id]
                elif run_id in found:
                    found.discard(run_id)
                    again = again or since != math.inf  # its own confirmation changes the log's version
            known = self.live
            for run_id, own in list(self._own.items()):
                if run_id in found or own.expires <= now:
                    del self._own[run_id]
                elif own.confirmed is not None:
                    if number > own.confirmed:
                        del self._own[run_id]  # another process has dropped it, or its time has run out
                    else:
                        again = True
            self._stored = found
            self._refresh()
            return sorted(self.live - known), again

    def _refresh(self) -> None:
        self.live = frozenset(self._stored.union(self._own))
