"""Which servers hold the log: one, the master that Sentinel names, or the shards of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import UnsupportedLogURL
from .redis_link import Topology

__all__ = ["Clustered", "Servers", "Single", "topology_of"]

DEFAULT_PARTITIONS = 16
"""Of a log in a cluster: enough to spread it over some shards; each costs every process a connection that waits."""


class Servers(Topology, Protocol):
    """Where the log lies, from its opening to its closing."""

    partitions: int
    """How many a new log gets."""

    async def open(self) -> None:
        """Find the servers."""
        ...

    async def close(self) -> None:
        """Let go of what was opened here."""
        ...

    def shards(self, partitions: int) -> Sequence[Sequence[int]]:
        """The partitions whose wake-ups one blocking read can follow together."""
        ...


class Single:
    """One server, or whoever is the master at the moment.

    Args:
        pool: A pool of redis-py's, of which only the way of connecting is used.
        owned: Whether it is closed with the log.
        sentinels: Clients that know who is the master, which are closed with the pool.
    """

    partitions: int = 1

    def __init__(self, pool: Any, *, owned: bool, sentinels: Sequence[Any] = ()) -> None:
        self._pool = pool
        self._owned = owned
        self._sentinels = sentinels

    async def open(self) -> None:
        """Nothing to find: each connection finds its server."""

    async def close(self) -> None:
        if self._owned:
            await self._pool.disconnect()
            for client in self._sentinels:
                await client.connection_pool.disconnect()

    def shards(self, partitions: int) -> Sequence[Sequence[int]]:
        return [range(partitions)]

    def address(self, tag: str) -> str:
        return ""

    def make(self, address: str) -> Any:
        # Not the pool's own making, which keeps to the user's limit for the user's commands
        return self._pool.connection_class(**{**self._pool.connection_kwargs, "decode_responses": False})

    def moved(self, tag: str, address: str) -> None:
        """Not in a single server."""

    async def refresh(self) -> None:
        """The next connection asks again who is the master."""


class Clustered:
    """The masters of a Redis Cluster.

    Args:
        cluster: redis-py's client, which finds them.
        owned: Whether it is closed with the log.
    """

    partitions: int = DEFAULT_PARTITIONS

    def __init__(self, cluster: Any, *, owned: bool) -> None:
        self._cluster = cluster
        self._owned = owned
        self._addresses: dict[str, str] = {}

    async def open(self) -> None:
        await self._cluster.initialize()

    async def close(self) -> None:
        if self._owned:
            await (self._cluster.aclose() if hasattr(self._cluster, "aclose") else self._cluster.close())

    def shards(self, partitions: int) -> Sequence[Sequence[int]]:
        # A command may not name keys of two slots, not even of one server
        return [[partition] for partition in range(partitions)]

    def address(self, tag: str) -> str:
        address = self._addresses.get(tag)
        if address is None:
            node = self._cluster.get_node_from_key(tag)
            address = self._addresses[tag] = f"{node.host}:{node.port}"
        return address

    def make(self, address: str) -> Any:
        host, _, port = address.rpartition(":")
        like = self._cluster.get_primaries()[0]
        return like.connection_class(
            **{**like.connection_kwargs, "host": host, "port": int(port), "decode_responses": False}
        )

    def moved(self, tag: str, address: str) -> None:
        self._addresses[tag] = address

    async def refresh(self) -> None:
        self._addresses.clear()
        await self._cluster.nodes_manager.initialize()


def topology_of(client: Any) -> Servers:
    """Where a user's client leads to; it stays the user's.

    Raises:
        UnsupportedLogURL: It is no client of ``redis.asyncio``.
    """
    if hasattr(client, "get_node_from_key") and hasattr(client, "initialize"):
        return Clustered(client, owned=False)
    pool = getattr(client, "connection_pool", client)
    if not hasattr(pool, "connection_class") or not hasattr(pool, "connection_kwargs"):
        raise UnsupportedLogURL(
            f"{type(client).__module__}.{type(client).__name__} is no client for the log: give it a "
            "redis.asyncio.Redis, a redis.asyncio.RedisCluster, or a URL."
        )
    return Single(pool, owned=False)
