"""``open_log``: from a URL to a log."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import UnsupportedLogURL

if TYPE_CHECKING:
    from .protocol import EventLog

__all__ = ["open_log"]


def open_log(url: str) -> EventLog:
    """Make the log that ``url`` names. It opens when it is entered: ``async with open_log(url) as log``.

    ========================================  =====================================================================
    ``memory:``                               this process only
    ``sqlite:///runs.db``                     a file beside the working directory
    ``sqlite:////var/lib/app/runs.db``        a file by its absolute path
    ``sqlite:///runs.db?synchronous=normal``  faster commits; a power cut may take the newest events
    ``redis://user:password@host:6379/0``     Redis or Valkey; ``rediss://`` with TLS, ``redis+unix:///path``
    ``redis+sentinel://host,host/service/0``  the master that Sentinel names
    ``redis+cluster://host:6379,host:6379``   a Redis Cluster
    ``postgresql://user@host/database``       a PostgreSQL; SQLAlchemy's ``postgresql+driver://`` is the same
    ========================================  =====================================================================

    Raises:
        UnsupportedLogURL: No backend answers to this URL; the message says which do. Passwords are not repeated.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UnsupportedLogURL("This is no URL: its brackets do not match.") from None
    scheme = parts.scheme.partition("+")[0]
    options = dict(parse_qsl(parts.query))
    if scheme == "memory":
        if parts.netloc or parts.path or options:
            raise UnsupportedLogURL("The memory log takes no path and no options: write 'memory:'.")
        from .memory import MemoryEventLog

        return MemoryEventLog()
    if scheme == "sqlite":
        path = unquote(parts.path)[1:]
        if parts.netloc or not path or path == ":memory:":
            raise UnsupportedLogURL(
                "Write 'sqlite:///runs.db' for a file beside the working directory, 'sqlite:////srv/runs.db' for an "
                "absolute path, and 'memory:' for a log in memory."
            )
        synchronous = options.pop("synchronous", "full")
        if options:
            raise UnsupportedLogURL(f"Unknown options in the SQLite URL: {', '.join(sorted(options))}.")
        from .sqlite import SQLiteEventLog

        return SQLiteEventLog(path, synchronous=synchronous)
    if scheme in ("postgres", "postgresql"):
        from .postgres import PostgresEventLog

        return PostgresEventLog(url)
    if scheme in ("redis", "rediss", "valkey", "valkeys"):
        from .redis import RedisEventLog

        return RedisEventLog(url)
    raise UnsupportedLogURL(
        f"No log answers to {scheme or 'an empty scheme'}: use 'memory:', 'sqlite:///path', "
        "'postgresql://host/database' or 'redis://host'."
    )
