"""What a Redis server may lose, and what a connection: readers are told of it, and nothing is stored twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from redis.crc import key_slot

from agno_resumable.errors import LogUnavailable, RunNotFound
from agno_resumable.log import redis_scripts as scripts
from agno_resumable.log.redis import RedisEventLog
from agno_resumable.log.redis_link import evaluate
from agno_resumable.log.redis_script import LATE
from agno_resumable.model import Batch, Durability, EncodedEvent, NewRun, RunStatus
from agno_resumable.reader import End, FollowItem, Gap, follow

from .redis_server import RedisServer, clustered

pytestmark = pytest.mark.anyio

LEASE = 600.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


made = itertools.count()


@pytest.fixture
def log(redis_server: RedisServer) -> RedisEventLog:
    """A log of the test's own, not open yet."""
    return RedisEventLog(redis_server.url, prefix=f"faults-{next(made)}")


def event(number: int) -> EncodedEvent:
    return EncodedEvent("RunContent", b'{"n":%d}' % number)


def again(log: RedisEventLog, server: RedisServer) -> RedisEventLog:
    """The same log as another process would open it, with nothing in memory."""
    return RedisEventLog(server.url, prefix=log.settings.prefix, hot_bytes=0)


async def start(log: RedisEventLog, count: int, run_id: str = "run") -> None:
    await log.create(NewRun(run_id), lease=LEASE)
    for number in range(count):
        await log.append(run_id, 1, [event(number)])


def key(log: RedisEventLog, name: str) -> str:
    return f"{{{log.settings.prefix}:0}}:{name}"


class Reader:
    """Follows a run, and keeps what it saw."""

    def __init__(self) -> None:
        self.items: list[FollowItem] = []
        self.indices: list[int] = []

    async def read(self, log: RedisEventLog, run_id: str = "run", after: int = -1) -> None:
        async for item in follow(log, run_id, after):
            if isinstance(item, Batch):
                for stored in item:
                    assert stored.data == event(stored.index).data
                    self.indices.append(stored.index)
            else:
                self.items.append(item)

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]


async def until(condition: Callable[[], Awaitable[object] | object], seconds: float = 5.0) -> None:
    with anyio.fail_after(seconds):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await anyio.sleep(0.01)


# ------------------------------------------------------------------------------------------------ what is lost


@pytest.mark.parametrize(
    ("damage", "first"),
    [
        (("DEL", "events"), 10),
        (("XTRIM", "events", "MINID", 5), 4),
        (("XDEL", "events", "4-1"), 4),
        (("XDEL", "events", "10-1", "1-1"), 10),
    ],
    ids=["evicted", "trimmed", "a-hole", "both-ends"],
)
async def test_a_reader_is_told_of_what_the_server_lost(
    log: RedisEventLog, redis_server: RedisServer, damage: tuple[str, ...], first: int
) -> None:
    async with log, again(log, redis_server) as other:
        await start(log, 10)
        command, name, *rest = damage
        redis_server.command(command, key(log, f"{name}:run"), *rest)
        reader = Reader()
        async with anyio.create_task_group() as group:
            group.start_soon(reader.read, other)
            await until(lambda: bool(reader.gaps))
            for number in range(10, 13):
                await log.append("run", 1, [event(number)])
            await log.append("run", 1, [], status=RunStatus.COMPLETED)
        assert sorted({*reader.indices}) == reader.indices
        missed = {index for gap in reader.gaps for index in range(gap.requested, gap.first_available)}
        assert missed.isdisjoint(reader.indices)
        assert missed.union(reader.indices) == set(range(13))
        assert reader.gaps[-1].first_available >= first or reader.gaps[-1].first_available == first
        assert isinstance(reader.items[-1], End)


async def test_a_run_that_was_evicted_is_not_found(log: RedisEventLog, redis_server: RedisServer) -> None:
    async with log, again(log, redis_server) as other:
        await start(log, 3)
        reader = Reader()
        async with anyio.create_task_group() as group:
            group.start_soon(reader.read, other)
            await until(lambda: len(reader.indices) == 3)
            redis_server.command("DEL", key(log, "run:run"))
        assert reader.gaps == [Gap(3, 3, "deleted")]
        with pytest.raises(RunNotFound):
            await log.append("run", 1, [event(3)])
        assert list(await log.list()) == []
        await start(log, 2)  # nothing of the old one is left
        assert (await other.read("run")).run.next_index == 2
        assert [stored.index for stored in (await other.read("run")).events] == [0, 1]


async def test_a_flushed_server_is_noticed_by_who_waits(redis_server: RedisServer) -> None:
    with RedisServer(redis_server.binary) as server:
        log = RedisEventLog(server.url)
        async with log, again(log, server) as other:
            await start(log, 3)
            await log.intend_cancel("run", ttl=LEASE)
            await log.intend_cancel("other", ttl=LEASE)
            reader = Reader()
            async with anyio.create_task_group() as group:
                group.start_soon(reader.read, other)
                await until(lambda: len(reader.indices) == 3)
                server.command("FLUSHALL")
            assert reader.gaps == [Gap(3, 3, "deleted")]
            with pytest.raises(RunNotFound):
                await log.append("run", 1, [event(3)])
            await until(lambda: again_readable(log))
            # and everything goes on, wake-ups included
            await start(log, 2)
            later = Reader()
            async with anyio.create_task_group() as group:
                group.start_soon(later.read, other)
                await until(lambda: len(later.indices) == 2)
                await log.append("run", 1, [event(2)])
                await until(lambda: len(later.indices) == 3, 0.5)
                await log.append("run", 1, [], status=RunStatus.COMPLETED)
            version = (await other.intents()).version
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: other.intents(version, timeout=60))
                await until(lambda: other.stats()["waiters"] == 1)
                await log.intend_cancel("run", ttl=LEASE)
            assert list((await other.intents()).run_ids) == ["run"]


async def again_readable(log: RedisEventLog) -> bool:
    """Whether what is in memory is doubted: a read finds that the run is gone."""
    try:
        await log.read("run")
    except RunNotFound:
        return True
    return False


async def test_lost_wakeups_are_noticed(log: RedisEventLog, redis_server: RedisServer) -> None:
    async with log, again(log, redis_server) as other:
        await start(log, 1)
        reader = Reader()
        async with anyio.create_task_group() as group:
            group.start_soon(reader.read, other)
            await until(lambda: reader.indices == [0])
            redis_server.command("DEL", key(log, "wake"))
            await log.append("run", 1, [event(1)])
            await until(lambda: reader.indices == [0, 1])
            # a stream that began again by a clock far behind: nothing of it is newer than what was read
            redis_server.command("DEL", key(log, "wake"))
            redis_server.command("XADD", key(log, "wake"), "5-0", "w", "1 1 - x.1 other")
            redis_server.command("XDEL", key(log, "wake"), "5-0")
            await log.append("run", 1, [event(2)])
            await until(lambda: reader.indices == [0, 1, 2])
            await log.append("run", 1, [], status=RunStatus.COMPLETED)


async def test_polling_suffices_where_a_server_lets_nobody_block(redis_server: RedisServer) -> None:
    with RedisServer(redis_server.binary) as server:
        server.command("ACL", "SETUSER", "poller", "on", ">secret", "~*", "&*", "+@all", "-xread")
        log = RedisEventLog(server.url)
        polling = RedisEventLog(f"redis://poller:secret@127.0.0.1:{server.port}/0", poll_interval=0.02)
        async with log, polling as other:
            assert other.stats()["following"] == 0
            await start(log, 1)
            reader = Reader()
            async with anyio.create_task_group() as group:
                group.start_soon(reader.read, other)
                for number in range(1, 10):
                    await until(lambda number=number: len(reader.indices) == number, 1.0)  # type: ignore[misc]
                    await log.append("run", 1, [event(number)])
                asked: list[bool] = []

                async def wait() -> None:
                    asked.append(await other.wait_cancel("run", timeout=60))

                group.start_soon(wait)
                await log.request_cancel("run")
                await until(lambda: asked == [True], 1.0)
                await log.append("run", 1, [], status=RunStatus.COMPLETED)
            assert reader.indices == list(range(10))


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("options", "durability"),
    [
        ({}, Durability.NOTHING),
        ({"save": "60 1"}, Durability.NOTHING),
        ({"appendonly": "yes"}, Durability.PROCESS_CRASH),
        ({"appendonly": "yes", "appendfsync": "no"}, Durability.PROCESS_CRASH),
        ({"appendonly": "yes", "appendfsync": "always"}, Durability.POWER_LOSS),
        ({"appendonly": "yes", "appendfsync": "always", "forbid": "CONFIG"}, Durability.PROCESS_CRASH),
    ],
    ids=["no-file", "snapshots", "everysec", "no-sync", "always", "forbids-CONFIG"],
)
async def test_durability_is_what_the_server_says(
    redis_server: RedisServer, options: dict[str, Any], durability: Durability
) -> None:
    options = dict(options)
    forbidden = options.pop("forbid", None)
    with RedisServer(redis_server.binary, **options) as server:
        if forbidden:
            server.command("ACL", "SETUSER", "default", f"-{forbidden}")
        async with RedisEventLog(server.url) as log:
            assert log.durability is durability


async def test_a_server_that_evicts_is_refused(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    limits: dict[str, Any] = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with RedisServer(redis_server.binary, **limits) as server:
        with pytest.raises(LogUnavailable, match=r"allkeys-lru.*noeviction"):
            async with RedisEventLog(server.url):
                pass
        async with RedisEventLog(server.url + "?allow_eviction=1"):
            assert "runs may be lost" in caplog.text
    with RedisServer(redis_server.binary, **{**limits, "maxmemory-policy": "volatile-ttl"}) as server:
        async with RedisEventLog(server.url):
            assert "finished runs may go" in caplog.text


async def test_a_server_without_memory_stores_nothing_of_an_append(redis_server: RedisServer) -> None:
    with RedisServer(redis_server.binary) as server:
        async with RedisEventLog(server.url) as log:
            await start(log, 3)
            before = await log.get("run")
            server.command("CONFIG", "SET", "maxmemory", 1000)
            for call in (
                lambda: log.append("run", 1, [event(3)]),
                lambda: log.append("run", 1, [event(3)], status=RunStatus.COMPLETED, transcript=b"{}"),
                lambda: log.claim("run", lease=LEASE, floor=50),
                lambda: log.create(NewRun("new", idempotency_key="key"), lease=LEASE),
            ):
                with pytest.raises(LogUnavailable) as refused:
                    await call()
                assert not refused.value.outcome_unknown
                # with its code by Redis 6, from 7 on by the driver's class for it
                assert re.search(r"has refused the command \((OOM|OutOfMemoryError)\)", str(refused.value))
            server.command("CONFIG", "SET", "maxmemory", 0)
            assert await log.get("run") == before
            assert [run.run_id for run in await log.list()] == ["run"]
            assert await log.append("run", 1, [event(3)]) == 4


# ------------------------------------------------------------------------------------------------ connections


class Proxy:
    """Hands on to a server, until somebody says how many more bytes."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.up: int | None = None  # bytes that still go to the server, over all connections; None for all
        self.down: int | None = None
        self.held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self.hold = False
        self.cuts = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await asyncio.sleep(0.05)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            down, up = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers |= {writer, up}
            ways = [
                asyncio.create_task(self._pump(reader, up, "up")),
                asyncio.create_task(self._pump(down, writer, "down")),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            writer.close()
            if all(held is not up for held, _ in self.held):
                up.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                left = getattr(self, way)
                if way == "up" and self.hold and b"RunContent" in data:
                    self.hold = False
                    self.held.append((writer, data))
                    return  # the client is hung up on, and the server gets this later
                if left is not None:
                    setattr(self, way, left - len(data))
                    data = data[: max(left, 0)]
                writer.write(data)
                await writer.drain()
                if left is not None and getattr(self, way) <= 0:
                    setattr(self, way, None)
                    self.cuts += 1
                    return


async def test_what_comes_late_over_an_old_connection_is_refused(log: RedisEventLog, redis_server: RedisServer) -> None:
    """A server that was paused does what it had received, also when its sender has long gone on elsewhere."""
    async with (
        Proxy(redis_server.port).running() as proxy,
        RedisEventLog(proxy.url, prefix=log.settings.prefix) as through,
        log,
    ):
        await start(through, 2)
        proxy.hold = True
        with pytest.raises(LogUnavailable) as lost:
            await through.append("run", 1, [event(2)])
        assert lost.value.outcome_unknown
        assert await through.append("run", 1, []) == 2  # it was not stored, and will not be
        for writer, data in proxy.held:
            writer.write(data)
            await writer.drain()
        await anyio.sleep(0.05)
        assert await through.append("run", 1, [event(2)]) == 3
        assert [stored.data for stored in (await log.read("run")).events] == [event(n).data for n in range(3)]


async def test_a_late_script_is_refused_by_its_connection_number(log: RedisEventLog) -> None:
    async with log:
        await start(log, 1)
        store = log._store
        keys = (*store.keys.stored(0, "run"), *store.keys.appends(0))
        tag = store.keys.name(0, "")
        for number, code in ((1, 0), (3, 0), (2, LATE), (3, 0)):
            args = (store.writer.origin, number, "run", 1, "", 0, "", 10_000, 0)
            (reply,) = await store.lanes._writer.exchange([evaluate(scripts.APPEND, tag, keys, *args)])
            assert reply[0] == code


@pytest.mark.parametrize("way", ["up", "down"])
async def test_connections_cut_at_any_byte_lose_and_double_nothing(
    log: RedisEventLog, redis_server: RedisServer, way: str, short: bool
) -> None:
    """What was acknowledged is there once, what was told as not stored is not, and the reader saw all of it."""
    choose = random.Random(way)
    async with (
        Proxy(redis_server.port).running() as proxy,
        log,
        RedisEventLog(proxy.url, prefix=log.settings.prefix, timeout=2.0) as through,
    ):
        await start(through, 0)
        reader = Reader()
        refused = 0
        async with anyio.create_task_group() as group:
            group.start_soon(reader.read, log)
            next_index = 0
            for _ in range(20 if short else 80):
                setattr(proxy, way, choose.randrange(1, 1200))
                batch = [event(next_index + number) for number in range(choose.randrange(1, 4))]
                try:
                    stored = await through.append("run", 1, batch)
                except LogUnavailable as error:
                    refused += 1
                    known = (await log.get("run")).next_index
                    if error.outcome_unknown:
                        stored = await through.append("run", 1, [])
                    else:
                        assert known == next_index
                        stored = known
                    assert stored in (next_index, next_index + len(batch))
                next_index = stored
            proxy.up = proxy.down = None
            await through.append("run", 1, [], status=RunStatus.COMPLETED)
        assert reader.indices == list(range(next_index))
        assert refused > 3


async def test_a_forgotten_script_is_given_again(log: RedisEventLog, redis_server: RedisServer) -> None:
    async with log:
        for round_ in range(3):
            redis_server.command("SCRIPT", "FLUSH")
            await start(log, 2, f"run-{round_}")
            redis_server.command("SCRIPT", "FLUSH")
            assert len((await log.read(f"run-{round_}")).events) == 2


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(redis_server: RedisServer, short: bool) -> None:
    with RedisServer(redis_server.binary, appendonly="yes", appendfsync="always") as server:
        log = RedisEventLog(server.url)
        async with log, again(log, server) as other:
            assert log.durability is Durability.POWER_LOSS
            await start(log, 0)
            reader = Reader()
            acknowledged = 0
            cycles = 3 if short else 8
            async with anyio.create_task_group() as group:
                group.start_soon(reader.read, other)

                async def produce() -> None:
                    nonlocal acknowledged
                    while acknowledged < cycles * 100:
                        try:
                            acknowledged = await log.append("run", 1, [event(acknowledged)])
                        except LogUnavailable as error:
                            if error.outcome_unknown:
                                acknowledged = await log.append("run", 1, [])

                group.start_soon(produce)
                for cycle in range(cycles):
                    await until(lambda cycle=cycle: acknowledged >= cycle * 100 + 50, 20)  # type: ignore[misc]
                    await anyio.to_thread.run_sync(server.kill)
                    await anyio.to_thread.run_sync(server.start)
                await until(lambda: acknowledged >= cycles * 100, 20)
                await until(lambda: len(reader.indices) == acknowledged, 10)
                await log.append("run", 1, [], status=RunStatus.COMPLETED)
            assert reader.indices == list(range(acknowledged))
            assert reader.gaps == []


async def test_a_server_that_is_paused_keeps_what_is_in_doubt_right(redis_server: RedisServer) -> None:
    with RedisServer(redis_server.binary) as server:
        async with RedisEventLog(server.url, timeout=0.3) as log:
            await start(log, 1)
            for number in range(1, 4):
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    with pytest.raises(LogUnavailable) as paused:
                        await log.append("run", 1, [event(number)])
                    assert paused.value.outcome_unknown
                finally:
                    os.kill(server.pid, signal.SIGCONT)
                stored = await log.append("run", 1, [])
                if stored == number:
                    stored = await log.append("run", 1, [event(number)])
                assert stored == number + 1
            indices: list[int] = []
            while (page := await log.read("run", len(indices) - 1)).events:
                indices += [stored.index for stored in page.events]
            assert indices == [0, 1, 2, 3]


async def test_the_master_that_sentinel_names_is_followed(redis_server: RedisServer) -> None:
    """A producer and a reader go on with the replica that takes over; what it had is there."""
    with RedisServer(redis_server.binary) as master, RedisServer(redis_server.binary) as replica:
        replica.command("REPLICAOF", "127.0.0.1", master.port)
        with RedisServer(redis_server.binary, sentinel=True) as sentinel:
            sentinel.command("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", master.port, 1)
            sentinel.command("SENTINEL", "SET", "mymaster", "down-after-milliseconds", 500)
            await until(lambda: b"slave0" in replication(master), 20)
            async with (
                RedisEventLog(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/0") as log,
                RedisEventLog(f"valkey+sentinel://127.0.0.1:{sentinel.port}/mymaster") as other,
            ):
                await start(log, 10)
                reader = Reader()
                async with anyio.create_task_group() as group:
                    group.start_soon(reader.read, other)
                    await until(lambda: len(reader.indices) == 10)
                    await until(lambda: sentinel.command("SENTINEL", "FAILOVER", "mymaster") == b"+OK", 20)
                    await until(lambda: b"role:master" in replication(replica), 30)
                    for number in range(10, 20):
                        with anyio.fail_after(20):
                            while (await stored_index(log)) != number + 1:
                                with contextlib.suppress(LogUnavailable):
                                    await log.append("run", 1, [event(number)])
                    await until(lambda: len(reader.indices) == 20)
                    await log.append("run", 1, [], status=RunStatus.COMPLETED)
                assert reader.indices == list(range(20))
                assert reader.gaps == []


async def stored_index(log: RedisEventLog) -> int:
    with contextlib.suppress(LogUnavailable):
        return await log.append("run", 1, [])
    return -1


def replication(server: RedisServer) -> bytes:
    with contextlib.suppress(OSError, ValueError):  # a server that changes its role hangs up
        return server.ask("INFO", "replication")
    return b""


async def test_a_slot_that_moves_takes_its_runs_along(redis_server: RedisServer) -> None:
    """A Cluster that is resharded under a producer and a reader: they go on, and nothing is lost or doubled."""
    with clustered(2, redis_server.binary) as (one, two):
        options: dict[str, Any] = {"prefix": "moving", "partitions": 1, "timeout": 2.0}
        url = f"redis+cluster://127.0.0.1:{one.port}"
        async with RedisEventLog(url, **options) as log, RedisEventLog(url, **options) as other:
            await start(log, 10)
            reader = Reader()
            stored = 10
            stop = anyio.Event()

            async def produce() -> None:
                nonlocal stored
                while not stop.is_set():
                    try:
                        stored = await log.append("run", 1, [event(stored)])
                    except LogUnavailable as error:
                        if error.outcome_unknown:
                            stored = await log.append("run", 1, [])
                    await anyio.sleep(0.001)

            async with anyio.create_task_group() as group:
                group.start_soon(reader.read, other)
                group.start_soon(produce)
                for source, target in ((one, two), (two, one)):
                    await until(lambda seen=stored: stored > seen + 20)  # type: ignore[misc]
                    await anyio.to_thread.run_sync(move_slot, key_slot(b"{moving:0}:"), source, target)
                await until(lambda seen=stored: stored > seen + 20, 10)  # type: ignore[misc]
                stop.set()
                await until(lambda: len(reader.indices) == stored)
                with anyio.fail_after(5):
                    await log.append("run", 1, [], status=RunStatus.COMPLETED)
            assert reader.indices == list(range(stored))
            assert reader.gaps == []


def move_slot(slot: int, one: RedisServer, two: RedisServer) -> None:
    """As redis-cli's reshard does it; the slot may be at either of the two."""
    names = {server: server.ask("CLUSTER", "MYID").decode() for server in (one, two)}
    source, target = (one, two) if int(one.command("CLUSTER", "COUNTKEYSINSLOT", slot)[1:]) else (two, one)
    assert target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source]) == b"+OK"
    assert source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target]) == b"+OK"
    for name in source.words("CLUSTER", "GETKEYSINSLOT", slot, 1000):
        source.command("MIGRATE", "127.0.0.1", target.port, name.decode(), 0, 5000)
    for server in (target, source):
        assert server.command("CLUSTER", "SETSLOT", slot, "NODE", names[target]) == b"+OK"


async def test_a_shard_that_is_away_keeps_nobody_on_the_others_waiting(redis_server: RedisServer) -> None:
    with clustered(2, redis_server.binary) as (one, two):
        async with RedisEventLog(f"redis+cluster://127.0.0.1:{one.port}", partitions=8) as log:
            store = log._store
            names = [f"run-{number}" for number in range(20)]
            for name in names:
                await start(log, 1, name)
            dead = f"127.0.0.1:{two.port}"
            gone = {n for n in names if store._servers.address(store.keys.name(store.keys.partition(n), "")) == dead}
            assert 0 < len(gone) < len(names)
            two.kill()
            refused: list[str] = []

            async def append(name: str) -> None:
                try:
                    await log.append(name, 1, [event(1)])
                    assert len((await log.read(name)).events) == 2
                except LogUnavailable:
                    refused.append(name)

            with anyio.fail_after(3):
                async with anyio.create_task_group() as group:
                    for name in names:
                        group.start_soon(append, name)
            assert set(refused) == gone
