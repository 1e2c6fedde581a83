"""What a Redis server will do with what it is given: read from its own settings when the log is opened."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LogUnavailable, SchemaTooNew
from ..model import Durability
from .redis_driver import ResponseError
from .redis_keys import LAYOUT_VERSION, Keys
from .redis_link import Command, Lane

__all__ = ["ask_durability", "ask_layout"]

logger: logging.Logger = logging.getLogger("agno_resumable.log.redis")

_MINIMUM = (6, 2)  # XTRIM MINID, ZADD GT, exclusive ranges


async def ask_layout(lane: Lane, prefix: str, partitions: int) -> int:
    """The number of partitions of this log: the one it was made with, else ``partitions``.

    Raises:
        SchemaTooNew: A newer version of this library has laid it out.
        LogUnavailable: The server does not answer, or is too old.
    """
    meta = Keys.meta(prefix)
    *_, found = await lane.look(
        [
            Command(meta, ("HSETNX", meta, "layout", LAYOUT_VERSION)),
            Command(meta, ("HSETNX", meta, "partitions", partitions)),
            Command(meta, ("HMGET", meta, "layout", "partitions")),
        ]
    )
    layout, number = int(found[0]), int(found[1])
    if layout > LAYOUT_VERSION:
        raise SchemaTooNew(f"The log {prefix!r} in Redis", layout, LAYOUT_VERSION)
    return number


async def ask_durability(lane: Lane, tags: Sequence[str], *, allow_eviction: bool) -> Durability:
    """What an acknowledged append survives on the weakest of the servers that these hash tags lead to.

    ``appendfsync always`` survives a power cut, any other append-only file the end of the server; without one the
    events live as long as the server's process. A server that does not say how it writes its file is taken at less.

    Raises:
        LogUnavailable: A server does not answer, is too old, or may evict what is stored.
    """
    found = [await _ask(lane, tag, allow_eviction=allow_eviction) for tag in tags]
    return min(found, key=list(Durability).index)


async def _ask(lane: Lane, tag: str, *, allow_eviction: bool) -> Durability:
    server, persistence, memory, config = await lane.exchange(
        [
            Command(tag, ("INFO", "server")),
            Command(tag, ("INFO", "persistence")),
            Command(tag, ("INFO", "memory")),
            Command(tag, ("CONFIG", "GET", "append*")),
        ]
    )
    if isinstance(server, LogUnavailable) and isinstance(persistence, LogUnavailable):
        _check_answers(server)
    info = {**_info(server), **_info(persistence), **_info(memory)}
    version = info.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < _MINIMUM:
        raise LogUnavailable(f"Redis {version} is too old: the log needs 6.2, or any Valkey.")
    _check_eviction(info, allow_eviction)
    settings = _settings(config)
    if not settings:
        logger.info("the server does not tell its settings: its durability is taken at the least they allow")
    if settings.get("appendonly", "yes" if info.get("aof_enabled") == "1" else "no") != "yes":
        logger.warning(
            "the server keeps no append-only file: what is stored is lost with its process; set 'appendonly yes'"
        )
        return Durability.NOTHING
    return Durability.POWER_LOSS if settings.get("appendfsync") == "always" else Durability.PROCESS_CRASH


def _check_answers(reply: LogUnavailable) -> None:
    """A server that forbids INFO is one thing, one that is not there another."""
    if not isinstance(reply.__cause__, ResponseError):
        raise reply


def _check_eviction(info: Mapping[str, str], allow: bool) -> None:
    policy, limit = info.get("maxmemory_policy", "noeviction"), info.get("maxmemory", "0")
    if policy == "noeviction" or limit == "0":
        return
    what = f"The server evicts by {policy!r} at {limit} bytes"
    if policy.startswith("volatile"):  # only finished runs have a time to live
        logger.warning("%s: finished runs may go before their time", what)
    elif allow:
        logger.warning("%s: runs may be lost while they run; readers are told of it as of a gap", what)
    else:
        raise LogUnavailable(
            f"{what}, so that runs would be lost while they run: set 'maxmemory-policy noeviction', or give the log "
            "allow_eviction=True (in the URL: allow_eviction=1)."
        )


def _info(reply: Any) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    pairs = [line.partition(":") for line in reply.decode("utf-8", "replace").splitlines()]
    return {name: value.strip() for name, colon, value in pairs if colon}


def _settings(reply: Any) -> dict[str, str]:
    if isinstance(reply, Mapping):  # the newer protocol
        reply = [part for pair in reply.items() for part in pair]
    if not isinstance(reply, Sequence) or isinstance(reply, (str, bytes)):
        return {}
    texts = [part.decode() if isinstance(part, bytes) else str(part) for part in reply]
    return dict(zip(texts[::2], texts[1::2], strict=False))
