"""The faults: what is done to producers, readers, connections and stores while runs are produced and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar, cast

import anyio

from .backends import Backend, PostgresBackend, ServerBackend, SQLiteBackend
from .cycle import LONG_LEASE, READERS, SHORT_LEASE, Cycle
from .proxy import CuttingProxy

__all__ = ["FAULTS", "Fault"]

_SHARED = frozenset({"sqlite", "postgres", "redis"})
_SERVERS = frozenset({"postgres", "redis"})


class Fault(ABC):
    """Something that goes wrong.

    Attributes:
        name: On the command line.
        backends: Where it makes sense.
        lease: Of the producers, in seconds.
        timeout: How long, in seconds, a server may take to answer its clients.
        pause: About how long, in seconds, a producer waits between two appends.
    """

    name: ClassVar[str]
    backends: ClassVar[frozenset[str]] = _SHARED
    lease: ClassVar[float] = LONG_LEASE
    timeout: ClassVar[float] = 30.0
    pause: ClassVar[float] = 0.004

    @asynccontextmanager
    async def around(self, backend: Backend, seed: int) -> AsyncIterator[int | None]:
        """What has to be there for all cycles; yields the port through which workers have to go, if there is one."""
        yield None

    @abstractmethod
    async def strike(self, cycle: Cycle) -> None:
        """Do it once, to runs that are produced and read; return when they may finish."""


class Calm(Fault):
    """Nothing goes wrong, and each run rests once: what is found here is wrong with the log, or with the checker."""

    name = "calm"
    backends = _SHARED | {"memory"}

    async def strike(self, cycle: Cycle) -> None:
        await cycle.rest()
        await cycle.progress(30)


class ProducerKilled(Fault):
    """``kill -9`` of the process that produces; another one ends its runs, or goes on with them."""

    name = "producer-killed"
    backends = _SHARED | {"memory"}
    lease = SHORT_LEASE

    async def strike(self, cycle: Cycle) -> None:
        await cycle.kill("producer")
        how = cycle.random.choice(("bury", "adopt"))
        await cycle.inherit(how)
        if how == "adopt":
            await cycle.taken_over()
            await cycle.progress(20)


class ProducerStopped(Fault):
    """A producer stands still past its lease and wakes up after the takeover: nothing of it may come through."""

    name = "producer-stopped"
    backends = _SHARED | {"memory"}
    lease = SHORT_LEASE

    async def strike(self, cycle: Cycle) -> None:
        zombie = await cycle.worker("producer")
        await cycle.phase()
        zombie.stop()
        if isinstance(cycle.backend, SQLiteBackend):
            # Within its transaction it would keep everybody from writing, so that there were no takeover
            while await anyio.to_thread.run_sync(cycle.backend.is_locked):
                zombie.go_on()
                await cycle.phase()
                zombie.stop()
        try:
            how = cycle.random.choice(("bury", "adopt", "adopt"))
            await cycle.inherit(how)
            if how == "adopt":
                await cycle.taken_over()
                await cycle.progress(20)
            else:
                await cycle.told_the_end()
        finally:
            zombie.go_on()
        mine = zombie.name
        await cycle.until(lambda: mine not in {each[0] for each in cycle.journal.producing}, "the zombie is fenced")


class ReaderKilled(Fault):
    """``kill -9`` of a process that reads; its clients come back with their cursors."""

    name = "reader-killed"
    backends = _SHARED | {"memory"}

    async def strike(self, cycle: Cycle) -> None:
        for _ in range(3):
            role = cycle.random.choice(READERS)
            await cycle.kill(role)
            await cycle.progress(10)
            await cycle.come_back(role)
            await cycle.progress(10)


class Retention(Fault):
    """Old events are dropped while they are read: whoever misses them is told."""

    name = "retention"
    backends = _SHARED | {"memory"}

    async def strike(self, cycle: Cycle) -> None:
        for number in range(3):
            run = cycle.random.choice(cycle.runs)
            before = cycle.random.randint(1, cycle.journal.next_index[run])
            heir = await cycle.worker("heir")
            seen = cycle.journal.said.get((heir.name, "trimmed"), 0)
            heir.send(do="trim", run=run, before=before)
            await cycle.until(lambda: cycle.journal.said.get((heir.name, "trimmed"), 0) > seen, "events are dropped")  # noqa: B023
            await cycle.read(cycle.random.choice(READERS), run, f"late-{number}:{run}")
            await cycle.progress(10)


class ServerFault(Fault):
    """What needs a server. Producers write nearly all the time, so that it hits them in the middle of an append."""

    backends = _SERVERS
    pause = 0.001

    async def strike(self, cycle: Cycle) -> None:
        await cycle.phase()
        await self.hit(cycle, cast(ServerBackend, cycle.backend))
        await cycle.progress(10)

    @abstractmethod
    async def hit(self, cycle: Cycle, server: ServerBackend) -> None:
        """Do it to the server; afterwards it answers again."""


class ServerKilled(ServerFault):
    """``kill -9`` of the whole server, which comes back a moment later."""

    name = "server-killed"

    async def hit(self, cycle: Cycle, server: ServerBackend) -> None:
        await anyio.to_thread.run_sync(server.kill)
        await anyio.sleep(cycle.random.choice((0.0, 0.1, 0.5)))
        await anyio.to_thread.run_sync(server.start)


class ServerRestarted(ServerFault):
    """An orderly restart, under load."""

    name = "server-restarted"

    async def hit(self, cycle: Cycle, server: ServerBackend) -> None:
        await anyio.to_thread.run_sync(server.terminate)
        await anyio.to_thread.run_sync(server.start)


class ServerPaused(ServerFault):
    """The server stands still until a client has given it up, or for five seconds, and then goes on."""

    name = "server-paused"
    timeout = 1.0

    async def hit(self, cycle: Cycle, server: ServerBackend) -> None:
        before = cycle.troubles()
        await anyio.to_thread.run_sync(server.pause)
        try:
            if cycle.random.random() < 0.7:
                await cycle.trouble(before, "a producer is in doubt")
                await cycle.phase()
            else:
                await anyio.sleep(5.0)
        finally:
            await anyio.to_thread.run_sync(server.resume)


class WritesBlocked(ServerFault):
    """Reads are answered and writes wait for a lock, until producers have given up and ask what came of it: what they
    had given up is done after all when the lock is gone, and they must not have tried again by then."""

    name = "writes-blocked"
    backends = frozenset({"postgres"})
    timeout = 0.5

    async def hit(self, cycle: Cycle, server: ServerBackend) -> None:
        assert isinstance(server, PostgresBackend)
        before = cycle.troubles()
        async with server.locked():
            await cycle.trouble(before, "every producer is in doubt", everywhere=True)
            await cycle.phase()


class ListenerCut(ServerFault):
    """The connections on which logs hear of changes are ended: they look for themselves, and listen again."""

    name = "listener-cut"

    async def hit(self, cycle: Cycle, server: ServerBackend) -> None:
        for _ in range(3):
            await anyio.to_thread.run_sync(server.cut_listeners)
            await cycle.progress(15)


class ConnectionsCut(ServerFault):
    """Connections break at any byte, in either direction."""

    name = "connections-cut"

    @asynccontextmanager
    async def around(self, backend: Backend, seed: int) -> AsyncIterator[int | None]:
        async with CuttingProxy(cast(ServerBackend, backend).connect, seed=seed) as self._proxy:
            yield self._proxy.port

    async def hit(self, cycle: Cycle, server: ServerBackend) -> None:
        before = self._proxy.cuts
        self._proxy.arm()
        try:
            await cycle.progress(40, 20)
            while self._proxy.cuts < before + 5:
                await cycle.progress(20, 10)
        finally:
            self._proxy.calm()


class DiskFull(Fault):
    """Nothing can be written for a while: by the process with SQLite, and by the server otherwise."""

    name = "disk-full"

    async def strike(self, cycle: Cycle) -> None:
        room = cycle.random.randrange(30_000)
        before = cycle.troubles()
        if isinstance(cycle.backend, SQLiteBackend):
            producer = await cycle.worker("producer")
            # Also less than there is: the file is written over from its beginning now and then
            producer.send(do="limit", path=cycle.backend.journal, beyond=room - 10_000)
            await cycle.trouble(before, "the disk is full")
            producer.send(do="limit", path=cycle.backend.journal, beyond=None)
        else:
            server = cast(ServerBackend, cycle.backend)
            await anyio.to_thread.run_sync(server.fill_disk, room)
            await cycle.trouble(before, "the disk is full")
            await anyio.to_thread.run_sync(server.free_disk)
        await cycle.progress(10)


FAULTS: Mapping[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        *(Calm, ProducerKilled, ProducerStopped, ReaderKilled, Retention),
        *(ServerKilled, ServerRestarted, ServerPaused, WritesBlocked, ListenerCut, ConnectionsCut, DiskFull),
    )
}
