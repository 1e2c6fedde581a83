"""The newest events of the runs that this process writes, in memory: a thousand local readers cost no read at all.

A hot tail is only a cache of what is committed. It holds what this process appended, in commit order, bounded in
bytes; a read that it cannot answer wholly goes to the store.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

from ..model import Batch, EncodedEvent, Page, Run

__all__ = ["HotTail", "batches_of", "take"]

# A tail may hold nothing yet, and then weighs nothing in bytes.
_MOST_TAILS = 16_384


def take(batches: Sequence[Batch], after: int, limit: int, max_bytes: int) -> list[Batch]:
    """A page's worth of ``batches``, which are consecutive and ascending, from behind ``after``.

    A batch is shared whole wherever it can be: the page ends before the batch that would overfill it, and only a
    first batch that is too large by itself is cut.
    """
    taken: list[Batch] = []
    if limit <= 0:
        return taken
    start = bisect_left(batches, after + 1, key=lambda batch: batch.last)
    size = 0
    for position in range(start, len(batches)):
        batch = batches[position].slice(after, limit)
        if size + batch.size > max_bytes:
            if not taken:
                taken.append(batch.slice(after, _fitting(batch, max_bytes)))
            break
        taken.append(batch)
        size += batch.size
        limit -= len(batch)
        if limit <= 0:
            break
    return taken


def _fitting(batch: Batch, max_bytes: int) -> int:
    """How many events from the start of ``batch`` stay within ``max_bytes``; at least one."""
    size = 0
    for count, (_, data) in enumerate(batch.events):
        size += len(data)
        if size > max_bytes:
            return max(count, 1)
    return len(batch)


def batches_of(run_id: str, first: int, parts: Sequence[Sequence[EncodedEvent]], size: int) -> list[Batch]:
    """What one append has stored, in ``parts`` from the index ``first`` on; ``size`` is the JSON of all, in bytes."""
    if len(parts) == 1:
        return [Batch(run_id, first, parts[0], size)]
    batches = []
    for part in parts:
        batches.append(Batch(run_id, first, part))
        first += len(part)
    return batches


class _Tail:
    __slots__ = ("batches", "epoch", "own", "run", "size")

    def __init__(self, run: Run, epoch: int) -> None:
        self.run = run
        self.batches: list[Batch] = []
        self.size: int = 0
        self.epoch = epoch
        # Whether this process has appended last: as long as it holds the run, nobody else ends it.
        self.own: bool = False


class HotTail:
    """The tails of many runs, the least recently written leaving first.

    Args:
        max_bytes: The JSON that all tails hold together, in bytes.
        max_run_bytes: The JSON that one run's tail holds, in bytes.
    """

    def __init__(self, *, max_bytes: int = 67_108_864, max_run_bytes: int = 4_194_304) -> None:
        self._max_bytes = max_bytes
        self._max_run_bytes = min(max_run_bytes, max_bytes)
        self._tails: OrderedDict[str, _Tail] = OrderedDict()
        self._epoch = 0
        self.size: int = 0

    def __len__(self) -> int:
        return len(self._tails)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._tails

    def doubt(self) -> None:
        """Another process has written: no tail answers a read until ``confirm`` has seen its run again."""
        self._epoch += 1

    @property
    def epoch(self) -> int:
        """Raised by ``doubt``: a read remembers it from its start and gives it to ``confirm``."""
        return self._epoch

    def known(self, run_id: str) -> Run | None:
        """The run, if this process surely knows its newest state; else ``None``."""
        tail = self._tails.get(run_id)
        return None if tail is None or tail.epoch != self._epoch else tail.run

    def begin(self, run: Run) -> None:
        """Keep what is published of this run from now on; it was just read, and is not written here."""
        if run.run_id not in self._tails:
            self._tails[run.run_id] = _Tail(run, self._epoch)

    def known_version(self, run_id: str) -> int | None:
        """The version of the run, if this process surely knows its newest; else ``None``."""
        tail = self._tails.get(run_id)
        return None if tail is None or tail.epoch != self._epoch else tail.run.version

    def confirm(self, run: Run, epoch: int) -> None:
        """``run`` was read from the store by a read that began at ``epoch``."""
        tail = self._tails.get(run.run_id)
        if tail is None:
            return
        if run.created_at != tail.run.created_at:
            self.forget(run.run_id)  # deleted and made anew under the same id: versions and indices began again
            return
        if run.version < tail.run.version:
            return  # the read was overtaken by a commit of this process, which is in the tail already
        if run.generation != tail.run.generation:
            self.forget(run.run_id)  # another producer goes on with the run: the tail would never grow again
            return
        tail.own = tail.own and run.version == tail.run.version
        tail.run = run
        tail.epoch = max(tail.epoch, epoch)

    def publish(self, run: Run, batches: Sequence[Batch], epoch: int | None = None, *, own: bool = True) -> None:
        """``run`` with the new ``batches`` was just committed, by this process if ``own``; in the order of commits.

        ``epoch`` is that at which the commit began. Where the commit follows on what the tail knows, nobody else has
        changed the run up to then, and the tail is as sure as after a read.
        """
        tail = self._tails.get(run.run_id)
        if tail is not None and run.created_at != tail.run.created_at:
            self.forget(run.run_id)
            tail = None
        if tail is None:
            if not batches:
                return
            tail = self._tails[run.run_id] = _Tail(run, self._epoch if epoch is None else epoch)
        elif batches and tail.batches and tail.batches[-1].last + 1 != batches[0].first:
            self._drop(tail, len(tail.batches))  # another process wrote in between: begin anew, dense
        if epoch is not None and run.version == tail.run.version + 1:
            tail.epoch = max(tail.epoch, epoch)
        if run.version >= tail.run.version:  # a read may have seen a later commit, of another process, before this
            tail.run = run
            # Who only asks for a cancel, or claims a run that another may still end, does not produce it
            tail.own = own and (bool(batches) or run.status.finished)
        self._extend(tail, batches)

    def absorb(self, page: Page, after: int, epoch: int) -> None:
        """``page`` was read from the store behind ``after`` by a read that began at ``epoch``.

        A page that reaches the end of an unfinished run begins a tail: its readers will want what comes next.
        """
        run, batches = page.run, page.batches
        tail = self._tails.get(run.run_id)
        if tail is not None and run.created_at != tail.run.created_at:
            self.forget(run.run_id)
            tail = None
        if tail is None:
            end = after if page.last is None else page.last
            if run.status.finished or end < run.last_index or not self._max_bytes:
                return
            tail = self._tails[run.run_id] = _Tail(run, epoch)
        elif run.version < tail.run.version:
            return
        if batches and not self._follows(tail, batches[0].first):
            self._drop(tail, len(tail.batches))
        if tail.batches:
            held = tail.batches[-1].last
            batches = [batch.slice(held) for batch in batches if batch.last > held]
        elif batches and batches[-1].last < run.last_index:
            batches = ()  # what lies behind it will not come by itself
        tail.own = tail.own and run.version == tail.run.version
        tail.run = run
        tail.epoch = max(tail.epoch, epoch)
        self._extend(tail, batches)

    def end_of(self, run_id: str) -> int | None:
        """The last index that the tail of the run holds, where the run's next events would follow it."""
        tail = self._tails.get(run_id)
        if tail is None:
            return None
        return tail.batches[-1].last if tail.batches else tail.run.last_index

    def forget(self, run_id: str) -> None:
        """The run is gone, or not this process's any more."""
        tail = self._tails.pop(run_id, None)
        if tail is not None:
            self.size -= tail.size

    def read(self, run_id: str, after: int, limit: int, max_bytes: int) -> Page | None:
        """The page, or ``None`` if the store has to answer.

        Of a run that another process commits to, its state alone (``limit=0``) is always the store's to tell: what has
        been heard of it is a moment old, and a client that has been told the end by that process may be here already.
        """
        tail = self._tails.get(run_id)
        if tail is None or tail.epoch != self._epoch or (limit <= 0 and not tail.own):
            return None
        run = tail.run
        if after > run.last_index:
            return None  # whoever is ahead of us knows of commits of another process
        if after == run.last_index or limit <= 0:
            return Page(run, ())
        first = max(after + 1, run.first_index)
        if first == run.next_index:
            return Page(run, ())
        if not tail.batches or not tail.batches[0].first <= first <= tail.batches[-1].last:
            return None
        return Page(run, take(tail.batches, first - 1, limit, max_bytes))

    @staticmethod
    def _follows(tail: _Tail, first: int) -> bool:
        return not tail.batches or first <= tail.batches[-1].last + 1

    def _extend(self, tail: _Tail, batches: Sequence[Batch]) -> None:
        if batches:
            added = batches[0].size if len(batches) == 1 else sum([batch.size for batch in batches])
            tail.batches += batches
            tail.size += added
            self.size += added
            self._tails.move_to_end(tail.run.run_id)
        self._shrink(tail)

    def _shrink(self, tail: _Tail) -> None:
        batches = tail.batches
        if batches and (tail.size > self._max_run_bytes or batches[0].first < tail.run.first_index):
            drop = 0
            size = tail.size
            while drop < len(batches) - 1 and size > self._max_run_bytes:
                size -= batches[drop].size
                drop += 1
            while drop < len(batches) and batches[drop].last < tail.run.first_index:
                drop += 1
            # A list moves all its rest when its head goes; an eighth at a time keeps that cost constant per batch.
            if drop * 8 >= len(batches):
                self._drop(tail, drop)
        while (self.size > self._max_bytes or len(self._tails) > _MOST_TAILS) and len(self._tails) > 1:
            _, oldest = self._tails.popitem(last=False)
            self.size -= oldest.size

    def _drop(self, tail: _Tail, count: int) -> None:
        dropped = sum(batch.size for batch in tail.batches[:count])
        del tail.batches[:count]
        tail.size -= dropped
        self.size -= dropped
