"""One process's hold on a log in Redis: its connections and the tasks that use them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio

from ..errors import LogUnavailable
from ..model import Durability
from .hot import HotTail
from .redis_driver import RedisError
from .redis_keys import Keys
from .redis_lanes import Lanes
from .redis_link import Lane, unavailable
from .redis_listener import Listener
from .redis_settings import ask_durability, ask_layout
from .redis_topology import Servers
from .redis_watch import RedisWatch
from .redis_writer import Writer

__all__ = ["RedisSettings", "RedisStore"]

logger: logging.Logger = logging.getLogger("agno_resumable.log.redis")


@dataclass(frozen=True)
class RedisSettings:
    """How a log in Redis was asked to be; see ``RedisEventLog``.

    Raises:
        ValueError: A value that cannot be.
    """

    prefix: str
    partitions: int | None
    poll_interval: float
    timeout: float
    finished_ttl: float | None
    max_run_bytes: int
    max_event_bytes: int
    hot_bytes: int
    allow_eviction: bool

    def __post_init__(self) -> None:
        if not self.prefix or set(self.prefix) & set("{} \n"):
            raise ValueError(f"prefix is the beginning of a key, without braces and spaces, not {self.prefix!r}.")
        if self.partitions is not None and not 1 <= self.partitions <= 1024:
            raise ValueError(f"partitions is a number from 1 to 1024, not {self.partitions!r}.")


class RedisStore:
    """Made anew for each opening, in the event loop that it belongs to; see ``open`` and ``close``."""

    def __init__(self, servers: Servers, settings: RedisSettings) -> None:
        self._servers = servers
        self._settings = settings
        self._timeout = settings.timeout
        self.watch: RedisWatch = RedisWatch(HotTail(max_bytes=settings.hot_bytes))
        self.durability: Durability = Durability.NOTHING
        self.keys: Keys
        self.writer: Writer
        self.lanes: Lanes
        self.listener: Listener
        self._owner: object = None  # the task; held, because an event loop holds tasks only weakly
        self._ended = anyio.Event()
        self._scopes: list[anyio.CancelScope] = []
        self._closing = False

    async def open(self) -> None:
        """Ask the servers, and start the tasks.

        Raises:
            LogUnavailable, SchemaTooNew: The log cannot be used; nothing is left behind.
        """
        try:
            try:
                with anyio.fail_after(self._timeout * 2):
                    await self._servers.open()
            except (RedisError, OSError) as error:
                raise unavailable(error) from error
            await self._ask()
            self._start()
            await self._run()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._servers.close()
            raise

    async def _ask(self) -> None:
        lane = Lane(self._servers, self._timeout, patient=False)  # whoever opens it shall hear at once what is wrong
        try:
            partitions = await ask_layout(
                lane, self._settings.prefix, self._settings.partitions or self._servers.partitions
            )
            self.keys = Keys(self._settings.prefix, partitions)
            one_of_each: dict[str, str] = {}
            for partition in range(partitions):
                tag = self.keys.name(partition, "")
                one_of_each.setdefault(self._servers.address(tag), tag)
            self.durability = await ask_durability(
                lane, list(one_of_each.values()), allow_eviction=self._settings.allow_eviction
            )
        finally:
            await lane.close()

    def _start(self) -> None:
        self.writer = Writer(self.keys, secrets.token_hex(5))
        shards = self._servers.shards(self.keys.partitions)
        self.lanes = Lanes(
            self._servers,
            self._timeout,
            patient=len(shards) == 1,
            lost=self._lost,
            begins=self.watch.commit_begins,
            ended=self._settled,
        )
        self.listener = Listener(
            self._servers,
            self.keys,
            self.watch,
            self._is_own,
            shards=shards,
            poll_interval=self._settings.poll_interval,
            timeout=self._timeout,
        )

    async def _run(self) -> None:
        """Start the owner of the tasks: a task by itself, because a log may outlive the task that opened it.

        It begins in an empty context, so that it does not carry one request's along.
        """
        self._owner = contextvars.Context().run(asyncio.get_running_loop().create_task, self._main())
        try:
            with anyio.move_on_after(self._settings.timeout):
                await self.listener.begun()
        except BaseException:
            await self._stop()
            raise

    async def _main(self) -> None:
        jobs: list[Callable[[], Awaitable[None]]] = [self.lanes.run_writer, *self.lanes.readers(), self.listener.look]
        shards = self._servers.shards(self.keys.partitions)
        jobs += [partial(self.listener.follow, shard) for shard in range(len(shards))]
        try:
            async with anyio.create_task_group() as tasks:
                for job in jobs:
                    tasks.start_soon(self._keep, job)
        finally:
            self._ended.set()

    async def _keep(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run a job for as long as the log is open.

        A loop that a server has left without a lifespan cancels each task there is, once, and runs still have to
        get their end.
        """
        with anyio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            while not self._closing:
                try:
                    await job()
                except anyio.get_cancelled_exc_class():
                    pass
                except Exception:  # a bug of ours must not take the log along; what was under way was told of it
                    logger.exception("a task of the log failed, and is started again")
                    await anyio.sleep(0.1)

    async def _stop(self) -> None:
        self._closing = True
        if self._owner is not None:
            for scope in self._scopes:
                scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._ended.wait()

    async def close(self) -> None:
        """Wake who waits, write what was accepted, and hang up."""
        self.watch.close()
        self.listener.intents.close()
        with anyio.CancelScope(shield=True):
            await self.lanes.drained()
            await self._stop()
            with suppress(OSError, LogUnavailable):
                await self._servers.close()

    def _is_own(self, origin: bytes) -> bool:
        return origin == self.writer.tag.encode()

    def _lost(self) -> None:
        self.writer.connection += 1

    def _settled(self, unknown: bool) -> None:
        self.watch.commit_ended()
        if unknown:  # what came of it is in the store, and nowhere else
            self.watch.follows(self.watch.following)
            self.listener.nudge()
