"""Connections: made when they are needed, looked at before they are used, and never waited for without an end."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import anyio
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from ..errors import LogUnavailable
from .patience import Patience
from .postgres_values import register

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

__all__ = ["Connection", "Connections", "Connector", "OwnConnections", "PoolConnections", "unavailable"]

Connection = psycopg.AsyncConnection[Any]
Connector = Callable[[], Awaitable[Connection]]

# For what the user's URL leaves open. A cut that nobody tells of is noticed within half a minute.
_DEFAULTS: dict[str, str | int] = {
    "application_name": "agno-resumable",
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


# How long, in seconds, a server that cannot be reached any more may take to come back before callers are told.
_RESTART = 3.0

# A prepared statement is planned once. It would be planned for every execution, because PostgreSQL takes the arrays
# of a generic plan for longer than they are, and that takes longer than the statement itself; and a plan that is made
# while the tables are small must still do when they are large.
_PLANS = (
    b"SELECT set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false)"
)


class Connections(Protocol):
    """Where statements get their connections from."""

    def use(self) -> AbstractAsyncContextManager[Connection]:
        """A connection in autocommit mode that was alive a moment ago, for as long as the context lasts.

        Raises:
            LogUnavailable: There is none to be had; nothing was sent.
        """
        ...

    async def close(self) -> None:
        """Close what was opened here."""
        ...


def unavailable(error: BaseException, *, outcome_unknown: bool = False) -> LogUnavailable:
    """A driver's error as the library's, without the parameters that PostgreSQL may quote in its details."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    log_error = LogUnavailable(f"PostgreSQL did not do this: {said}", outcome_unknown=outcome_unknown)
    log_error.__cause__ = error
    return log_error


def connector(conninfo: str, *, prepare: bool, planned: bool = True, kwargs: dict[str, Any] | None = None) -> Connector:
    """What opens a connection of the log's own.

    Args:
        conninfo: As libpq takes it.
        prepare: Whether the server keeps prepared statements for the connection.
        planned: Whether it is for statements whose plans matter.
        kwargs: What else the user's pool gives its connections.
    """

    async def connect() -> Connection:
        given: dict[str, Any] = {**(kwargs or {}), "autocommit": True, "prepare_threshold": 0 if prepare else None}
        for name in ("row_factory", "cursor_factory", "context"):
            given.pop(name, None)
        try:
            known = conninfo_to_dict(conninfo)
            defaults = {name: value for name, value in _DEFAULTS.items() if name not in known}
            conn: Connection = await psycopg.AsyncConnection.connect(conninfo, **{**defaults, **given})
            if prepare and planned:
                await conn.execute(_PLANS)
            return conn
        except psycopg.Error as error:
            raise unavailable(error) from error

    return connect


def is_alive(conn: Connection) -> bool:
    """Whether an idle connection has not been ended by the server. It costs no round trip."""
    if conn.closed or conn.pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    try:
        # Nobody has asked it anything: if there is something to read, it is the word with which the server takes its
        # leave, or the end
        if not hasattr(select, "poll"):  # on Windows
            return not select.select([conn.fileno()], [], [], 0)[0]
        poll = select.poll()
        poll.register(conn.fileno(), select.POLLIN)
        return not poll.poll(0)
    except (psycopg.Error, OSError):
        return False


class _Use:
    """A connection of ``OwnConnections``, taken and given back. A class, as a generator for each statement costs more
    than what is done here.
    """

    __slots__ = ("_conn", "_connections", "_patience")

    def __init__(self, connections: OwnConnections) -> None:
        self._connections = connections
        self._conn: Connection
        self._patience: Patience

    async def __aenter__(self) -> Connection:
        self._conn = conn = await self._connections.take()
        self._patience = patience(conn, self._connections.timeout)
        return conn

    async def __aexit__(self, *_: object) -> None:
        self._patience.__exit__()
        await self._connections.give_back(self._conn)


def patience(conn: Connection, seconds: float) -> Patience:
    """Cut the connection if the body takes longer: a server that stands still would be waited for without an end.

    Cancelling the statement would not do, as psycopg waits for the server's answer to that.
    """
    return Patience(seconds, partial(_cut, conn))


def _cut(conn: Connection) -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)


async def discard(conn: Connection) -> None:
    """Close a connection, whatever state it is in."""
    with anyio.CancelScope(shield=True), suppress(psycopg.Error, OSError):
        await conn.close()


class OwnConnections:
    """Up to ``limit`` connections that the log has opened itself, and closes.

    Args:
        connect: Opens one.
        limit: How many statements may be under way at the same time.
        timeout: How long, in seconds, what is done with a connection may take before it is cut.
    """

    def __init__(self, connect: Connector, *, limit: int, timeout: float) -> None:
        self.timeout: float = timeout
        self._connect = connect
        self._limit = anyio.Semaphore(limit, fast_acquire=True)
        self._idle: list[Connection] = []
        self._answered = False
        self._closed = False

    def use(self) -> AbstractAsyncContextManager[Connection]:
        return _Use(self)

    async def take(self) -> Connection:
        """See ``use``; to be given back."""
        try:
            self._limit.acquire_nowait()
        except anyio.WouldBlock:
            await self._limit.acquire()
        try:
            while self._idle:
                conn = self._idle.pop()
                if is_alive(conn):
                    return conn
                await discard(conn)
            conn = await self._make()
            register(conn)
        except BaseException:
            self._limit.release()
            raise
        return conn

    async def give_back(self, conn: Connection) -> None:
        """What ``take`` gave."""
        try:
            if self._closed or conn.closed or conn.pgconn.transaction_status != TransactionStatus.IDLE:
                await discard(conn)
            else:
                self._idle.append(conn)
        finally:
            self._limit.release()

    async def _make(self) -> Connection:
        # A server that was there and is started again is waited for: nothing has been sent, and nothing can be doubtful
        deadline = anyio.current_time() + (_RESTART if self._answered else 0.0)
        delay = 0.05
        while True:
            try:
                conn = await self._connect()
            except LogUnavailable:
                if self._closed or anyio.current_time() + delay > deadline:
                    raise
                await anyio.sleep(delay)
                delay = min(delay * 2, 0.4)
            else:
                self._answered = True
                return conn

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await discard(self._idle.pop())


class PoolConnections:
    """The connections of a pool that is the user's: taken for one statement or transaction, and given back as it was.

    Args:
        pool: The user's; open while the log is.
        limit: How many of its connections may be in use at the same time.
        timeout: How long, in seconds, to wait for one, and how long what is done with it may take before it is cut.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], *, limit: int, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._limit = anyio.Semaphore(limit, fast_acquire=True)
        self._known: WeakSet[Connection] = WeakSet()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        async with self._limit:
            conn = await self._take()
            autocommit = conn.autocommit
            try:
                if not autocommit:
                    await conn.set_autocommit(True)
                with patience(conn, self._timeout):
                    yield conn
            finally:
                with anyio.CancelScope(shield=True):
                    with suppress(psycopg.Error):
                        if not autocommit and not conn.closed:
                            await conn.set_autocommit(False)
                    await self._pool.putconn(conn)

    async def _take(self) -> Connection:
        from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

        try:
            while True:
                conn: Connection = await self._pool.getconn(timeout=self._timeout)
                if is_alive(conn):
                    break
                await discard(conn)
                await self._pool.putconn(conn)  # which replaces it
        except (PoolClosed, PoolTimeout, TooManyRequests, psycopg.Error) as error:
            raise unavailable(error) from error
        if conn not in self._known:
            register(conn)
            self._known.add(conn)
        return conn

    async def close(self) -> None:
        """The pool is its owner's to close."""


async def pool_connector(pool: AsyncConnectionPool[Any], *, prepare: bool) -> Connector:
    """What opens connections like the pool's, beside it: one that listens would be lost to the pool for good."""
    conninfo: Any = pool.conninfo
    kwargs: Any = pool.kwargs
    given = []
    for value in (conninfo, kwargs):
        if callable(value):  # since psycopg_pool 3.3
            value = value()
            if isinstance(value, Awaitable):
                value = await value
        given.append(value)
    return connector(given[0], prepare=prepare, planned=False, kwargs=dict(given[1] or {}))
