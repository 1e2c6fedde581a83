"""From what a user gives to a log that is open: the first connection, the tables, and what runs beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..errors import LogUnavailable, UnsupportedLogURL
from .postgres_link import (
    Connection,
    Connections,
    OwnConnections,
    PoolConnections,
    connector,
    pool_connector,
    unavailable,
)
from .postgres_schema import SCHEMA_VERSION, Names, check_schema, migrate, migration
from .postgres_session import PostgresSession
from .postgres_sql import Statements

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

__all__ = ["Opening"]


@dataclass(frozen=True)
class Tuning:
    """What a session is told besides; see ``PostgresEventLog``."""

    create: bool
    listen: bool
    prepare: bool
    connections: int
    poll_interval: float
    timeout: float
    hot_bytes: int
    max_run_bytes: int


class Opening:
    """How to open a log; see ``PostgresEventLog`` for its arguments."""

    def __init__(
        self, database: str | AsyncConnectionPool[Any], *, schema: str | None, prefix: str, **tuning: Any
    ) -> None:
        self._database = database
        self._names = Names(schema, prefix)
        self._statements = Statements(self._names)
        self._tuning = Tuning(**tuning)
        self.where: str = _where(database) if isinstance(database, str) else "a pool"
        """The database, without the user and the password."""

    async def open(self) -> PostgresSession:
        """Open the log.

        Raises:
            LogUnavailable, SchemaTooNew: The database or its tables cannot be used; nothing is left behind.
        """
        tuning = self._tuning
        writer: Connections
        readers: Connections
        if isinstance(self._database, str):
            connect = connector(self._database, prepare=tuning.prepare)
            beside = connector(self._database, prepare=tuning.prepare, planned=False)
            writer = OwnConnections(connect, limit=1, timeout=tuning.timeout)
            readers = OwnConnections(connect, limit=tuning.connections - 1, timeout=tuning.timeout)
        else:
            beside = await pool_connector(self._database, prepare=tuning.prepare)
            writer = PoolConnections(self._database, limit=1, timeout=tuning.timeout)
            readers = PoolConnections(self._database, limit=tuning.connections - 1, timeout=tuning.timeout)
        try:
            async with writer.use() as conn:
                await self._prepare(conn)
            session = PostgresSession(
                writer,
                readers,
                beside if tuning.listen else None,
                self._statements,
                poll_interval=tuning.poll_interval,
                hot_bytes=tuning.hot_bytes,
                max_run_bytes=tuning.max_run_bytes,
            )
            await session.open()
        except BaseException:
            await writer.close()
            await readers.close()
            raise
        return session

    def migration(self, grant: str | None) -> str:
        """What ``migrate`` does in a database without the log's tables, as SQL."""
        statements = ["BEGIN", *migration(self._names, grant=grant), "COMMIT"]
        return "".join([f"{statement};\n" for statement in statements])

    async def migrate(self, grant: str | None) -> tuple[int, int]:
        """Bring the tables up to date; return the versions before and after.

        Raises:
            LogUnavailable, SchemaTooNew: They could not be.
        """
        if isinstance(self._database, str):
            connections: Connections = OwnConnections(
                connector(self._database, prepare=False), limit=1, timeout=self._tuning.timeout
            )
        else:
            connections = PoolConnections(self._database, limit=1, timeout=self._tuning.timeout)
        try:
            async with connections.use() as conn:
                return await migrate(conn, self._names, grant=grant)
        except psycopg.Error as error:
            raise unavailable(error) from error
        finally:
            await connections.close()

    async def _prepare(self, conn: Connection) -> None:
        try:
            if self._tuning.create:
                await migrate(conn, self._names)
                return
            found = await check_schema(conn, self._names)
        except psycopg.Error as error:
            raise unavailable(error) from error
        if found < SCHEMA_VERSION:
            raise LogUnavailable(
                f"The log's tables ({self._names}) are at version {found} of {SCHEMA_VERSION}: run "
                "'agno-resumable migrate'."
            )


def _where(url: str) -> str:
    try:
        known = conninfo_to_dict(url)
    except psycopg.Error:
        # libpq's own words may quote the URL, and with it the password
        raise UnsupportedLogURL("libpq does not understand this URL: look at its options and its quoting.") from None
    port = f":{known['port']}" if "port" in known else ""
    return f"postgresql://{known.get('host', '')}{port}/{known.get('dbname', '')}"
