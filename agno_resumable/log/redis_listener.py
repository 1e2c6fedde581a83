"""How a process learns what others have changed in Redis: one blocking read per shard, and a look now and then.

The wake-ups are only a hint that saves looking. Every second, and at short intervals while they cannot be followed, the
runs that somebody waits for are looked at, so that losing the wake-ups costs time and never an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from ..errors import LogUnavailable
from .redis_keys import Keys
from .redis_link import Command, Lane, Topology
from .redis_reads import states
from .redis_watch import RedisWatch
from .watch import IntentWatch

__all__ = ["Listener"]

logger: logging.Logger = logging.getLogger("agno_resumable.log.redis")

_BLOCK_MS = 1_000
_LOOK_INTERVAL = 1.0
_LOOK_AT = 512  # runs in one exchange
# While only this process's own changes come back to it, they are fetched so much later, in seconds, and together: the
# first change of somebody else is late by that, and none that follows within a second.
_OWN_PAUSE = 0.02
_OTHERS_FOR = 1.0
_READER_TURNS = 3  # of the event loop, in which readers that were woken read, and send


class Listener:
    """Keeps a ``RedisWatch`` and an ``IntentWatch`` right about the changes of other processes.

    Args:
        own: Whether a change was told by this opening of the log, which then knows of it already.
        poll_interval: How often, in seconds, runs are looked at while the wake-ups cannot be followed.
        timeout: How long the server may take to answer, in seconds.
    """

    def __init__(
        self,
        topology: Topology,
        keys: Keys,
        watch: RedisWatch,
        own: Callable[[bytes], bool],
        *,
        shards: Sequence[Sequence[int]],
        poll_interval: float,
        timeout: float,
    ) -> None:
        self._topology = topology
        self._keys = keys
        self._watch = watch
        self._own = own
        self._poll_interval = poll_interval
        self._timeout = timeout
        self._following = dict.fromkeys(range(len(shards)), False)
        self._shards = shards
        self._begun = anyio.Event()
        self._tried: set[int] = set()
        self._nudged = anyio.Event()
        self._look_failed = False
        self._others_at = 0.0
        self.intents: IntentWatch = IntentWatch()
        self._intended = -1

    def nudge(self) -> None:
        """Somebody waits who is unsure."""
        self._nudged.set()

    async def begun(self) -> None:
        """Wait until every shard is followed, or has shown that it cannot be at the moment."""
        await self._begun.wait()

    def saw_intents(self, version: int) -> None:
        """The intents are at this version."""
        if version < self._intended:  # the server has lost what it knew: the count began again
            self.intents.close()
            self.intents = IntentWatch()
        self._intended = version
        self.intents.saw(version)

    # ---------------------------------------------------------------- following

    async def follow(self, shard: int) -> None:
        """Follow the wake-ups of a shard, for ever."""
        delay = 0.0
        while True:
            lane = Lane(self._topology, self._timeout)
            try:
                await self._follow(shard, lane)
            except LogUnavailable as error:
                if self._following[shard]:
                    delay = 0.0
                if not delay:
                    logger.warning(
                        "cannot follow what other processes write",
                        extra={"shard": shard, "error_type": type(error.__cause__ or error).__name__},
                    )
                self._follows(shard, False)
            finally:
                await lane.close()
            delay = min(delay * 2, 1.0) or 0.02
            await anyio.sleep(delay)

    async def _follow(self, shard: int, lane: Lane) -> None:
        partitions = self._shards[shard]
        names = [self._keys.wakes[partition] for partition in partitions]
        newest = [
            Command(self._keys.name(p, ""), ("XREVRANGE", self._keys.wakes[p], "+", "-", "COUNT", 1))
            for p in partitions
        ]
        places: dict[bytes, tuple[bytes, int]] = {}
        for name, reply in zip(names, await lane.look(newest), strict=True):
            places[name.encode()] = _place(reply)
        tag = self._keys.name(partitions[0], "")
        await lane.look([_xread(tag, places)])  # a user who may not do it at all must not count as following
        self._follows(shard, True)
        while True:
            (reply,) = await lane.look(
                [_xread(tag, places, "BLOCK", _BLOCK_MS)], timeout=_BLOCK_MS / 1000 + self._timeout
            )
            if reply:
                others = False
                for name, entries in reply.items() if isinstance(reply, dict) else reply:
                    others = self._read(shard, places, name, entries) or others
                await self._pause(others)
                continue
            for name, reply in zip(names, await lane.look(newest), strict=True):
                place = _place(reply)
                if _order(place[0]) < _order(places[name.encode()][0]):
                    # A stream that was lost and began again, by a clock that goes behind: nothing of it would ever be
                    # newer than what was read before
                    places[name.encode()] = place
                    self._follows(shard, True)

    async def _pause(self, others: bool) -> None:
        """Let those who were woken have what they waited for, before the server is asked again."""
        now = anyio.current_time()
        if others:
            self._others_at = now
        if now - self._others_at > _OTHERS_FOR:
            await anyio.sleep(_OWN_PAUSE)  # nothing but our own has come for a while: it may come in larger pieces
        else:
            for _ in range(_READER_TURNS):
                await asyncio.sleep(0)

    def _read(self, shard: int, places: dict[bytes, tuple[bytes, int]], name: bytes, entries: Sequence[Any]) -> bool:
        """Hand on what the wake-ups tell; return whether others than this process have told it."""
        others = False
        number = places[name][1]
        for _, (_, told, *more) in entries:
            count, version, flag, origin, run_id = told.split(b" ", 4)
            if int(count) != number + 1 and number >= 0:
                logger.info("some wake-ups were lost", extra={"shard": shard})
                self._follows(shard, True)
            number = int(count)
            if flag == b"i":
                self.saw_intents(int(version))
            elif not self._own(origin):
                others = True
                self._watch.told(run_id.decode(), int(version), flag.decode(), more[1] if more else None)
        places[name] = (entries[-1][0], number)
        return others

    def _follows(self, shard: int, following: bool) -> None:
        self._tried.add(shard)
        if following or self._following[shard]:
            self._following[shard] = following
            self._watch.follows(all(self._following.values()))
            self.nudge()
        if len(self._tried) == len(self._shards):
            self._begun.set()

    # ---------------------------------------------------------------- looking

    async def look(self) -> None:
        """Look at the runs that somebody waits for, for ever: at once at those that are unsure."""
        lane = Lane(self._topology, self._timeout)
        try:
            await self._look_on(lane)
        finally:
            await lane.close()

    async def _look_on(self, lane: Lane) -> None:
        due = 0.0
        while True:
            with anyio.move_on_after(max(due - anyio.current_time(), 0.001)):
                await self._nudged.wait()
            self._nudged = anyio.Event()
            asked = self._watch.take_unsure()
            intents = self.intents.unsure
            now = anyio.current_time()
            if now >= due:
                asked = list({*asked, *self._watch.due()})
                intents = intents or self.intents.busy
                due = now + _LOOK_INTERVAL
            if not self._watch.following:
                due = min(due, now + self._poll_interval)
            try:
                await self._look(lane, asked, intents)
                self._look_failed = False
            except LogUnavailable as error:
                if not self._look_failed:
                    logger.warning(
                        "could not look for what other processes write",
                        extra={"error_type": type(error.__cause__ or error).__name__},
                    )
                self._look_failed = True
                self._watch.doubt(asked)
                if intents:
                    self.intents.doubt()
                await anyio.sleep(self._poll_interval)

    async def _look(self, lane: Lane, asked: Sequence[str], intents: bool) -> None:
        for start in range(0, len(asked), _LOOK_AT):
            step = asked[start : start + _LOOK_AT]
            plan = states(self._keys, step)
            replies = await lane.look(next(plan))
            try:
                plan.send(replies)
            except StopIteration as found:
                self._watch.looked(step, found.value)
        if intents:
            self.intents.looked_at()
            (version,) = await lane.look([Command(self._keys.name(0, ""), ("GET", self._keys.name(0, "intended")))])
            self.saw_intents(int(version or 0))


def _xread(tag: str, places: Mapping[bytes, tuple[bytes, int]], *how: str | int) -> Command:
    ids = [id_ for id_, _ in places.values()]
    return Command(tag, ("XREAD", "COUNT", 1024, *how, "STREAMS", *places, *ids))


def _place(newest: Sequence[Any]) -> tuple[bytes, int]:
    """Where a stream ends: the id of its newest entry and the number it tells, or -1 where there is none."""
    if not newest:
        return b"0-0", -1
    id_, (_, told, *_) = newest[0]
    return id_, int(told.split(b" ", 1)[0])


def _order(id_: bytes) -> tuple[int, int]:
    milliseconds, _, number = id_.partition(b"-")
    return int(milliseconds), int(number)
