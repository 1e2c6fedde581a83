"""The log in Redis or Valkey, shared by every process that reaches it: one server, Sentinel's master, or a Cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Self

from ..errors import LogClosed, LogUnavailable
from ..model import Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus
from . import redis_lives as lives, redis_ops as ops, redis_reads as reads
from .checks import MAX_EVENT_BYTES, MAX_RUN_BYTES, check_events, check_intended, check_new_run, chunks
from .hot import batches_of, take
from .protocol import Claim
from .redis_store import RedisSettings, RedisStore
from .redis_topology import Servers, topology_of
from .redis_url import log_options, servers_of
from .watch import cancel_seen

__all__ = ["RedisEventLog"]

logger: logging.Logger = logging.getLogger("agno_resumable.log.redis")

_PRUNE_STEP = 64
# A reader that comes back wants the end of what one append has stored, and the server gives whole entries.
_ENTRY_EVENTS, _ENTRY_BYTES = 64, 16_384


class RedisEventLog:
    """An ``EventLog`` in Redis 6.2 or later, or Valkey; with asyncio only.

    Args:
        client: A URL (see ``open_log``), or a client of ``redis.asyncio``: a ``Redis``, one that Sentinel gives, or a
            ``RedisCluster``. Of a client only its way of connecting is used, and it is not closed.
        prefix: What the names of all keys begin with. Logs with different prefixes have nothing to do with each other.
        partitions: Over how many slots of a Cluster a new log is spread; 1 elsewhere. A log keeps the number that it
            was made with.
        poll_interval: How often, in seconds, runs are looked at while the server's wake-ups cannot be followed.
        timeout: How long the server may take to answer, in seconds.
        finished_ttl: Seconds after its end at which Redis itself drops a run that nobody has pruned; ``None`` for
            never. Until then ``prune`` is what removes it.
        max_run_bytes: The JSON of one run's events, in bytes, beyond which the oldest are trimmed.
        max_event_bytes: The JSON of the largest single event, in bytes.
        hot_bytes: The JSON of the newest events that is kept in memory for local readers, in bytes.
        allow_eviction: Open the log also on a server that may evict runs while they run; it is then only warned about.

    Raises:
        UnsupportedLogURL: The URL names no server, or ``client`` is none.
        LogUnavailable: redis-py is missing.
    """

    def __init__(
        self,
        client: Any,
        *,
        prefix: str = "agno-resumable",
        partitions: int | None = None,
        poll_interval: float = 0.05,
        timeout: float = 5.0,
        finished_ttl: float | None = 2_592_000.0,
        max_run_bytes: int = MAX_RUN_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
        hot_bytes: int = 67_108_864,
        allow_eviction: bool = False,
    ) -> None:
        self._servers: Callable[[], Servers]
        options: dict[str, Any] = {}
        if isinstance(client, str):
            client, options = log_options(client)
            self._servers = partial(servers_of, client, timeout)
            self._name = urlsplit(client).scheme
        else:
            self._servers = partial(topology_of, client)
            self._name = type(client).__name__
        self._servers()  # what leads to no server is told here, and not when the log is opened
        settings = RedisSettings(
            **{
                "prefix": prefix,
                "partitions": partitions,
                "poll_interval": poll_interval,
                "timeout": timeout,
                "finished_ttl": finished_ttl,
                "max_run_bytes": max_run_bytes,
                "max_event_bytes": max_event_bytes,
                "hot_bytes": hot_bytes,
                "allow_eviction": allow_eviction,
                **options,
            }
        )
        self.settings: RedisSettings = settings
        self._opened: RedisStore | None = None
        self._appends = self._events = 0

    def __repr__(self) -> str:
        return f"RedisEventLog({self._name!r}, prefix={self.settings.prefix!r})"

    @property
    def durability(self) -> Durability:
        """What an acknowledged append survives; known once the log is open."""
        return self._store.durability

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def _store(self) -> RedisStore:
        if self._opened is None:
            raise LogClosed
        return self._opened

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise LogClosed("This log is open already: enter it once and share it.")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise LogUnavailable("The Redis log works on asyncio only: redis-py knows no other event loop.") from None
        store = RedisStore(self._servers(), self.settings)
        await store.open()
        self._opened = store
        self._appends = self._events = 0  # `stats()` counts since the opening
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        store, self._opened = self._opened, None  # from here on every call raises LogClosed
        if store is not None:
            await store.close()

    def stats(self) -> Mapping[str, int]:
        """See ``EventLog.stats``; also ``hot_bytes``, the JSON in memory, and ``following``, 1 if Redis wakes us."""
        store = self._opened
        return {
            "commits": store.lanes.commits.commits if store else 0,
            "appends": self._appends,
            "events": self._events,
            "waiters": store.watch.waiters + store.listener.intents.waiters if store else 0,
            "hot_bytes": store.watch.hot.size if store else 0,
            "following": int(store.watch.following) if store else 0,
        }

    # ---------------------------------------------------------------- writes

    async def create(self, run: NewRun, *, lease: float) -> Run:
        check_new_run(run)
        store = self._store
        return await store.lanes.write(lambda: lives.create(store.writer, run, lease), store.watch.committed)

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        store = self._store
        return await store.lanes.write(
            lambda: ops.claim(store.writer, run_id, lease, generation, floor, reopen), store.watch.committed
        )

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        store = self._store
        size = check_events(run_id, events, self.settings.max_event_bytes)
        parts = chunks(events, size, most=_ENTRY_EVENTS, most_bytes=_ENTRY_BYTES)

        def committed(appended: ops.Appended) -> None:
            self._appends += 1
            self._events += len(events)
            store.watch.committed(appended.run, batches_of(run_id, appended.first, parts, size))

        appended = await store.lanes.write(
            lambda: ops.append(
                store.writer,
                run_id,
                generation,
                parts,
                status,
                transcript,
                self.settings.max_run_bytes,
                self.settings.finished_ttl,
            ),
            committed,
        )
        return appended.run.next_index

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        store = self._store
        return await store.lanes.write(lambda: ops.renew(store.writer, claims, lease), _nothing)

    async def request_cancel(self, run_id: str) -> Run:
        store = self._store
        return await store.lanes.write(lambda: ops.request_cancel(store.writer, run_id), store.watch.committed)

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        check_intended(run_id)
        store = self._store
        await store.lanes.write(lambda: ops.intend_cancel(store.writer, run_id, ttl), store.listener.saw_intents)

    async def drop_intent(self, run_id: str) -> None:
        store = self._store
        await store.lanes.write(lambda: ops.drop_intent(store.writer, run_id), store.listener.saw_intents)

    async def trim(self, run_id: str, *, before: int) -> None:
        store = self._store
        await store.lanes.write(lambda: ops.trim(store.writer, run_id, before), store.watch.committed)

    async def delete(self, run_id: str) -> None:
        store = self._store
        await store.lanes.write(lambda: lives.delete(store.writer, run_id), store.watch.all_gone)

    async def prune(self, *, finished_before: float) -> int:
        pruned, more = 0, True
        while more:
            store = self._store
            removed, more = await store.lanes.write(
                lambda: lives.prune(store.writer, finished_before, _PRUNE_STEP),  # noqa: B023 - called before it changes
                lambda pruned: store.watch.all_gone(pruned[0]),  # noqa: B023
            )
            pruned += len(removed)
        return pruned

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        store = self._store
        return await store.lanes.write(
            lambda: ops.expire(store.writer, lease, serves, patience), store.watch.all_committed
        )

    # ---------------------------------------------------------------- reads

    async def now(self) -> float:
        store = self._store
        return await store.lanes.look(lambda: reads.now(store.keys))

    async def get(self, run_id: str) -> Run:
        store = self._store
        return await store.lanes.look(lambda: reads.get(store.keys, run_id))

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        store = self._store
        hot = store.watch.hot
        if store.watch.following:
            page = hot.read(run_id, after, limit, max_bytes)
            if page is not None:
                return page
        while True:
            epoch = hot.epoch
            found = await store.lanes.look(lambda: reads.read(store.keys, run_id, after, limit, max_bytes))
            hot.confirm(found.run, epoch)
            store.watch.saw(found.run)
            if found.lost < 0 or found.batches:
                run, behind = found.run, max(after, found.run.first_index - 1)
                batches = take(found.batches, behind, limit, max_bytes)
                if limit > 0 and (batches[-1].last if batches else behind) >= run.last_index:
                    store.watch.followed(run, epoch)
                return Page(run, batches)
            # What should stand here has been evicted, trimmed by somebody else, or lost with the server's memory
            lost = found.lost
            logger.warning("events of a run are lost; readers get a gap", extra={"run_id": run_id, "index": lost})
            await store.lanes.write(lambda: ops.heal(store.writer, run_id, lost), store.watch.committed)  # noqa: B023

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        store = self._store
        await store.watch.wait(run_id, version, timeout, store.listener.nudge)

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        async def wait(version: int, left: float) -> None:
            store = self._store
            await store.watch.wait_cancel(run_id, version, left, store.listener.nudge)

        return await cancel_seen(partial(self.read, run_id, limit=0), wait, timeout)

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        store = self._store
        found = await store.lanes.look(lambda: reads.intents(store.keys, limit))
        store.listener.saw_intents(found.version)
        if found.version == version and timeout > 0:
            await store.listener.intents.wait(version, timeout, store.listener.nudge)
            store = self._store
            found = await store.lanes.look(lambda: reads.intents(store.keys, limit))
        return found

    async def list(
        self,
        *,
        component_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
        before: float | None = None,
    ) -> Sequence[Run]:
        filters = {"component_id": component_id, "session_id": session_id, "user_id": user_id}
        store = self._store
        return await store.lanes.look(lambda: reads.list_runs(store.keys, filters, status, limit, before))


def _nothing(_: object) -> None:
    """After a write that concerns no reader."""
