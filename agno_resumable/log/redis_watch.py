"""What a process knows of the runs in Redis, from the wake-ups that every change leaves in a stream.

As long as the stream is followed without a break, the newest version of a run that it has named is known, so that a
reader may wait without looking at the run again. Behind a break nothing is known, and everybody looks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import anyio.lowlevel

from ..model import Batch, Run, RunStatus, changed_run
from .hot import HotTail
from .rows import unpack
from .watch import Watch

__all__ = ["RedisWatch"]

_REMEMBERED = 65_536  # runs whose newest version is remembered, about 10 MB
_FOLLOWED = 8_192  # runs whose newest events are kept, this process's own included, before more are followed
_GONE = 1 << 62


class RedisWatch(Watch):
    """The waiters of a log, its hot tail, and what the wake-ups told of each run."""

    def __init__(self, hot: HotTail) -> None:
        super().__init__(hot)
        self._newest: OrderedDict[str, int] = OrderedDict()
        # What others have told since the commits began that are in flight, or are being settled: their replies may be
        # older than that.
        self._since_commit: dict[str, int] = {}
        self._before_that: dict[str, int] = {}
        self._in_flight = 0
        self._commit_epoch = 0
        self.following: bool = False
        """Whether the wake-ups are followed at the moment."""

    def __repr__(self) -> str:
        return f"RedisWatch(following={self.following})"

    def commit_begins(self) -> None:
        """A group of operations is about to be sent."""
        self._in_flight += 1
        self._commit_epoch = self.hot.epoch
        self._before_that, self._since_commit = self._since_commit, {}

    def commit_ended(self) -> None:
        """Its operations are settled."""
        self._in_flight -= 1
        if not self._in_flight:
            self._before_that, self._since_commit = {}, {}

    def committed(self, run: Run, batches: Sequence[Batch] = ()) -> None:
        if (run.input, run.metadata, run.options, run.transcript) != (None, None, None, None):
            run = replace(run, input=None, metadata=None, options=None, transcript=None)  # a page comes without them
        self.hot.publish(run, batches, self._commit_epoch)  # what came into doubt since then stays so
        self.saw(run)
        self._remember(run.run_id, run.version)
        others = max(self._since_commit.get(run.run_id, 0), self._before_that.get(run.run_id, 0))
        if others > run.version:
            self.hot.forget(run.run_id)
            self._newest.pop(run.run_id, None)

    def gone(self, run_id: str) -> None:
        super().gone(run_id)
        self._remember(run_id, _GONE)  # a read that is still on its way may show it as it was

    def told(self, run_id: str, version: int, flag: str, events: bytes | None = None) -> None:
        """Somebody else has changed the run: ``c`` by a cancel request, ``g`` by removing it.

        ``events`` is what was appended, where that is small and all that has changed; behind a first line with the
        next index, how many there are, when it was, and the first index.
        """
        if self._in_flight:
            self._since_commit[run_id] = _GONE if flag == "g" else max(version, self._since_commit.get(run_id, 0))
        if flag == "g":
            self.gone(run_id)
            return
        known = self.hot.known(run_id)
        if known is not None and known.version < version:
            if events is not None and known.version == version - 1:
                self.hot.publish(*_appended(known, version, events), self.hot.epoch, own=False)
            else:
                self.hot.forget(run_id)
        self._remember(run_id, version if known is None else max(version, known.version))
        if self._seen.get(run_id, version) < version:
            self._wake(run_id)
        if flag == "c":
            self._cancelled.set(run_id)

    def followed(self, run: Run, epoch: int) -> None:
        """Somebody has read this run to its end, and will want what comes next: keep that when it is told.

        ``epoch`` is that of the hot tail when the read began.
        """
        if (
            self.following
            and run.status is RunStatus.RUNNING
            and epoch == self.hot.epoch
            and self._newest.get(run.run_id, 0) <= run.version
            and len(self.hot) < _FOLLOWED
        ):
            self.hot.begin(run)
            self._remember(run.run_id, run.version)

    def take_unsure(self) -> list[str]:
        """The runs to look at now; who begins to wait from here on is unsure again."""
        unsure = list({*self._unsure})
        self._unsure.clear()
        return unsure

    def doubt(self, run_ids: Iterable[str]) -> None:
        """These could not be looked at."""
        self._unsure.extend(run_ids)

    def looked(self, asked: Iterable[str], found: Mapping[str, tuple[int, bool]]) -> None:
        """What a look at these runs has found: the version of each, and whether a cancel was requested."""
        for run_id, (version, cancelled) in found.items():
            if self._newest.get(run_id, _GONE) == _GONE:
                self._remember(run_id, version)
            self._changed_to(run_id, version)
            if cancelled:
                self._cancelled.set(run_id)
        for run_id in {*asked}.difference(found):
            self.gone(run_id)

    def follows(self, following: bool) -> None:
        """The wake-ups are followed from now on, or not any more: what was known is in doubt either way."""
        self.following = following
        self._newest.clear()
        self.hot.doubt()
        self._unsure.extend({*self._seen, *self._cancelled.keys})

    def _changed_to(self, run_id: str, version: int) -> None:
        seen = self._seen.get(run_id)
        if seen is not None and seen != version:  # a lower one is that of a run made anew under the same id
            self._wake(run_id)

    def _remember(self, run_id: str, version: int) -> None:
        if not self.following:
            return
        self._newest[run_id] = version
        self._newest.move_to_end(run_id)
        if len(self._newest) > _REMEMBERED:
            self._newest.popitem(last=False)

    def _known(self, run_id: str) -> int | None:
        """The newest version that was told; of a run that went, nothing: it may have been made anew since."""
        newest = self._newest.get(run_id)
        return None if newest == _GONE else newest

    async def wait(self, run_id: str, version: int, timeout: float, nudge: Callable[[], None]) -> None:
        """See ``EventLog.wait``. ``nudge`` has the backend look at what is ``unsure``."""
        newest = self._known(run_id)
        if newest is None:
            newest = self.hot.known_version(run_id)
        if newest is not None and newest > version:
            await anyio.lowlevel.checkpoint()  # a caller that reads from memory would never let anybody else work
            return
        seen = self._seen.get(run_id)
        if seen is not None and version < seen:
            await anyio.lowlevel.checkpoint()
            return  # another waiter has already seen more
        if seen is not None and version > seen:
            self._wake(run_id)  # those who wait with an older version have something to read
        self._seen[run_id] = version
        unsure = newest is None and seen != version
        if unsure:
            self._unsure.append(run_id)
        try:
            await self._changed.wait(run_id, timeout, nudge if unsure else None)
        finally:
            if run_id not in self._changed.keys:
                self._seen.pop(run_id, None)

    async def wait_cancel(self, run_id: str, version: int, timeout: float, nudge: Callable[[], None]) -> None:
        newest = self._known(run_id)
        if newest is not None and newest > version:
            await anyio.lowlevel.checkpoint()
            return
        if newest is None:
            self._unsure.append(run_id)
        await self._cancelled.wait(run_id, timeout, nudge if newest is None else None)


def _appended(run: Run, version: int, told: bytes) -> tuple[Run, list[Batch]]:
    """The run and its new events as a wake-up has told them."""
    head, _, blob = told.partition(b"\n")
    next_index, count, updated, first = map(int, head.split())
    run = changed_run(run, first_index=first, next_index=next_index, version=version, updated_at=updated / 1e6)
    return run, [Batch(run.run_id, next_index - count, unpack(blob))]
