"""From a URL to where the log lies in Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from ..errors import UnsupportedLogURL
from .redis_driver import require_driver
from .redis_topology import Clustered, Servers, Single

__all__ = ["SCHEMES", "log_options", "servers_of"]

SCHEMES: tuple[str, ...] = ("redis", "rediss", "valkey", "valkeys")
"""The last letter asks for TLS."""

_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "prefix": str,
    "partitions": int,
    "poll_interval": float,
    "timeout": float,
    "finished_ttl": lambda value: None if value in ("", "none") else float(value),
    "max_run_bytes": int,
    "max_event_bytes": int,
    "hot_bytes": int,
    "allow_eviction": lambda value: value.lower() in ("1", "true", "yes"),
}


def log_options(url: str) -> tuple[str, dict[str, Any]]:
    """Take the options of ``RedisEventLog`` out of a URL; what is left of its query is for the driver.

    Raises:
        UnsupportedLogURL: An option has no value that it could have.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = {}
    rest: list[str] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _OPTIONS:
            try:
                options[name] = _OPTIONS[name](value)
            except ValueError:
                raise UnsupportedLogURL(f"The option {name!r} of the Redis URL is no {name}: {value[:40]!r}.") from None
        else:
            rest.append(f"{quote(name, safe='')}={quote(value, safe='')}")
    return urlunsplit(parts._replace(query="&".join(rest))), options


def servers_of(url: str, timeout: float) -> Servers:
    """The servers that a URL names; nothing is connected yet.

    Raises:
        UnsupportedLogURL: It names none. Passwords are not repeated.
        LogUnavailable: redis-py is missing.
    """
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in SCHEMES or kind not in ("", "unix", "sentinel", "cluster"):
        raise UnsupportedLogURL(
            f"No log answers to {parts.scheme!r}: use redis://, rediss://, redis+unix://, redis+sentinel:// or "
            "redis+cluster://."
        )
    require_driver()
    tls = scheme.endswith("s") and scheme != "redis"
    try:
        if kind == "sentinel":
            return _sentinel(parts.netloc, parts.path, parts.query, tls, timeout)
        if kind == "cluster":
            return _cluster(parts.netloc, parts.query, tls, timeout)
        return _single(url, kind, tls, timeout)
    except UnsupportedLogURL:
        raise
    except (ValueError, TypeError) as error:
        raise UnsupportedLogURL(f"This Redis URL cannot be read: {type(error).__name__}.") from error


def _common(timeout: float) -> dict[str, Any]:
    """How every connection of ours is made: nothing is tried again behind our back."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return {"socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0), "protocol": 2}


def _single(url: str, kind: str, tls: bool, timeout: float) -> Single:
    from redis.asyncio import ConnectionPool

    parts = urlsplit(url)
    scheme = "unix" if kind == "unix" else "rediss" if tls else "redis"
    return Single(ConnectionPool.from_url(urlunsplit(parts._replace(scheme=scheme)), **_common(timeout)), owned=True)


def _hosts(netloc: str, port: int) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """User and password, and the hosts, of ``user:password@host:port,host:port``."""
    user, at, hosts = netloc.rpartition("@")
    access: dict[str, Any] = {}
    if at:
        name, _, password = user.partition(":")
        access = {
            **({"username": unquote(name)} if name else {}),
            **({"password": unquote(password)} if password else {}),
        }
    found = []
    for host in hosts.split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError(host)
        found.append((one.hostname, one.port or port))
    return access, found


def _query(query: str, timeout: float) -> dict[str, Any]:
    """What redis-py reads from the query of a URL, as it reads it."""
    from redis.asyncio.connection import parse_url

    return {**_common(timeout), **parse_url(f"redis://host?{query}"), "host": None}


def _sentinel(netloc: str, path: str, query: str, tls: bool, timeout: float) -> Single:
    from redis.asyncio.sentinel import Sentinel

    access, hosts = _hosts(netloc, 26379)
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise UnsupportedLogURL("Write redis+sentinel://host:26379,host:26379/service/0, with the service's name.")
    options = _query(query, timeout)
    del options["host"]
    sentinel: dict[str, Any] = {
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        **({"ssl": True} if tls else {}),
    }
    for name in ("username", "password"):
        value = options.pop(f"sentinel_{name}", None)
        if value is not None:
            sentinel[name] = value
    if tls:
        options["ssl"] = True
    manager: Any = Sentinel(hosts, sentinel_kwargs=sentinel)  # type: ignore[no-untyped-call, unused-ignore]
    client = manager.master_for(unquote(service), db=int(db or 0), **access, **options)
    return Single(client.connection_pool, owned=True, sentinels=manager.sentinels)


def _cluster(netloc: str, query: str, tls: bool, timeout: float) -> Clustered:
    from redis.asyncio.cluster import ClusterNode, RedisCluster

    access, hosts = _hosts(netloc, 6379)
    options = _query(query, timeout)
    del options["host"]
    if tls:
        options["ssl"] = True
    nodes = [ClusterNode(host, port) for host, port in hosts]
    return Clustered(RedisCluster(startup_nodes=nodes, **access, **options), owned=True)
