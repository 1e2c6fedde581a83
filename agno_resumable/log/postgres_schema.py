"""The PostgreSQL log's tables: where they are, how they are made, and which version they have."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from psycopg import AsyncConnection, errors

from ..errors import LogUnavailable, SchemaTooNew
from .postgres_values import fetch

__all__ = ["Names", "check_schema", "migrate", "migration"]

SCHEMA_VERSION = 1
MINIMUM_SERVER = 130000  # what the tables' autovacuum settings need

logger: logging.Logger = logging.getLogger("agno_resumable.log.postgres")


@dataclass(frozen=True)
class Names:
    """Where the tables are.

    Args:
        schema: The schema; ``None`` for wherever the role's search_path leads.
        prefix: What the names of tables and indexes begin with.
    """

    schema: str | None = "agno_resumable"
    prefix: str = ""

    def __post_init__(self) -> None:
        for what, name in (("schema", self.schema), ("prefix", self.prefix)):
            # they stand in statements and in the names of indexes, which PostgreSQL cuts after 63 bytes
            if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,39}", name):
                raise ValueError(f"The {what} {name[:80]!r} is no name of up to 40 ASCII letters, digits and _.")

    def __call__(self, table: str) -> str:
        """The table as it stands in a statement."""
        return f'"{self.schema}".{self.bare(table)}' if self.schema else self.bare(table)

    def bare(self, name: str) -> str:
        """The name of an index, which is where its table is."""
        return f'"{self.prefix}{name}"'

    @property
    def channel(self) -> str:
        """The channel on which processes that share these tables tell each other of changes."""
        return f"agno_resumable_{crc32(repr((self.schema, self.prefix)).encode()):08x}"

    def __str__(self) -> str:
        return f"schema {self.schema or 'of the search_path'}" + (f", prefix {self.prefix}" if self.prefix else "")


def _version_1(name: Names) -> Sequence[str]:
    index = name.bare
    return (
        # Every append updates its run's row. Where nothing that an index or its predicate names is changed, and the
        # page has room, no index is touched: so leases, which are renewed all the time, are in no index, and the sweep
        # goes over the runs that are `held`, which are few.
        f"""CREATE TABLE {name("run")} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text COLLATE "C" NOT NULL UNIQUE,
    family text NOT NULL,
    component_id text,
    session_id text,
    user_id text,
    idempotency_key text,
    owner_key bytea UNIQUE,
    status text NOT NULL,
    first_index bigint NOT NULL DEFAULT 0,
    next_index bigint NOT NULL DEFAULT 0,
    size bigint NOT NULL DEFAULT 0,
    generation bigint NOT NULL DEFAULT 1,
    attempts bigint NOT NULL DEFAULT 1,
    version bigint NOT NULL DEFAULT 1,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    finished_at double precision,
    lease_expires_at double precision,
    cancel_requested_at double precision,
    held boolean NOT NULL,
    -- which opening of the log has written last, and over which of its connections, one after the other
    origin bigint NOT NULL DEFAULT 0,
    connection bigint NOT NULL DEFAULT 0,
    max_attempts bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05)""",
        f"CREATE INDEX {index('run_by_time')} ON {name('run')} (created_at, id)",
        # what a client sends as its session may be longer than an index takes
        f"CREATE INDEX {index('run_by_session')} ON {name('run')} (left(session_id, 128), created_at, id) "
        "WHERE session_id IS NOT NULL",
        f"CREATE INDEX {index('run_by_owner')} ON {name('run')} (left(user_id, 128), created_at, id) "
        "WHERE user_id IS NOT NULL",
        f"CREATE INDEX {index('run_held')} ON {name('run')} (id) WHERE held",
        f"CREATE INDEX {index('run_by_end')} ON {name('run')} (finished_at) WHERE finished_at IS NOT NULL",
        f"""CREATE TABLE {name("payload")} (
    id bigint PRIMARY KEY,
    input bytea,
    metadata bytea,
    options bytea,
    transcript bytea
)""",
        # Rows are only ever inserted and, with their run, deleted: a vacuum has to come by its share of the table and
        # not by a fifth of it, or the table grows to a multiple of what it holds.
        f"""CREATE TABLE {name("chunk")} (
    run bigint NOT NULL,
    last_index bigint NOT NULL,
    first_index bigint NOT NULL,
    size bigint NOT NULL,
    events bytea NOT NULL,
    PRIMARY KEY (run, last_index)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.02
)""",
        f'CREATE TABLE {name("intent")} (run_id text COLLATE "C" PRIMARY KEY, expires_at double precision NOT NULL)',
        f"CREATE INDEX {index('intent_by_end')} ON {name('intent')} (expires_at)",
        f"CREATE TABLE {name('intents')} (version bigint NOT NULL) WITH (fillfactor = 50)",
        f"INSERT INTO {name('intents')} (version) VALUES (0)",
    )


# Each step leads from the version before it. A process of an older version that has the log open goes on as before:
# a step may add, and never change what is there.
_STEPS = (_version_1,)


def migration(name: Names, found: int = 0, *, grant: str | None = None) -> Sequence[str]:
    """The statements that lead from version ``found`` to the newest, to be run in one transaction.

    Args:
        found: The version of the tables; 0 where there are none.
        grant: A role that shall be able to use the log without being able to change its tables.
    """
    statements = [statement for step in _STEPS[found:] for statement in step(name)]
    if not found:
        statements.insert(0, f"CREATE TABLE {name('schema_version')} (version bigint NOT NULL)")
        statements.append(f"INSERT INTO {name('schema_version')} (version) VALUES ({SCHEMA_VERSION})")
        if name.schema:
            statements.insert(0, f'CREATE SCHEMA IF NOT EXISTS "{name.schema}"')
    elif statements:
        statements.append(f"UPDATE {name('schema_version')} SET version = {SCHEMA_VERSION}")
    if grant is not None:
        role = '"' + grant.replace('"', '""') + '"'
        tables = ", ".join([name(table) for table in ("run", "payload", "chunk", "intent", "intents")])
        if name.schema:
            statements.append(f'GRANT USAGE ON SCHEMA "{name.schema}" TO {role}')
        statements.append(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {role}")
        statements.append(f"GRANT SELECT ON {name('schema_version')} TO {role}")
    return statements


async def check_schema(conn: AsyncConnection[Any], name: Names) -> int:
    """The version of the tables, 0 where there are none.

    Raises:
        SchemaTooNew: A newer version of this library made them.
        LogUnavailable: The server is too old or cannot keep Unicode, or the role may not read the tables.
    """
    if conn.info.server_version < MINIMUM_SERVER:
        raise LogUnavailable(f"PostgreSQL {conn.info.server_version // 10000} is too old: agno-resumable needs 13.")
    if conn.info.parameter_status("server_encoding") not in ("UTF8", None):
        raise LogUnavailable("The database has to keep UTF-8: create it with ENCODING 'UTF8'.")
    try:
        ((found,),) = await fetch(conn, f"SELECT version FROM {name('schema_version')}") or [(0,)]
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return 0
    except errors.InsufficientPrivilege as error:
        raise LogUnavailable(
            f"The role {conn.info.user!r} may not read the log's tables ({name}): have their owner grant it "
            "(agno-resumable migrate --grant ROLE)."
        ) from error
    if found > SCHEMA_VERSION:
        raise SchemaTooNew(f"The PostgreSQL log ({name})", found, SCHEMA_VERSION)
    return int(found)


async def migrate(conn: AsyncConnection[Any], name: Names, *, grant: str | None = None) -> tuple[int, int]:
    """Bring the tables up to date, if they are not; return the versions before and after.

    Raises:
        SchemaTooNew, LogUnavailable: See ``check_schema``; also where the role may not create what is missing.
    """
    found = await check_schema(conn, name)
    if found == SCHEMA_VERSION and grant is None:
        return found, found
    try:
        async with conn.transaction():
            # of processes that open an empty database at once, one makes the tables
            await fetch(conn, "SELECT pg_advisory_xact_lock(%s)", [crc32(name.channel.encode())])
            found = await _found_under_lock(conn, name)
            for statement in migration(name, found, grant=grant):
                if statement.startswith("CREATE SCHEMA") and await _has_schema(conn, name):
                    continue  # IF NOT EXISTS asks for the right to create even where there is nothing to create
                await fetch(conn, statement)
    except errors.InsufficientPrivilege as error:
        raise LogUnavailable(
            f"The role {conn.info.user!r} may not make the log's tables ({name}, version {found} of {SCHEMA_VERSION}): "
            "run 'agno-resumable migrate' with a role that may, or hand 'agno-resumable migrate --sql' to whoever can."
        ) from error
    if found != SCHEMA_VERSION:
        logger.info("the log's tables were made", extra={"schema_from": found, "schema_to": SCHEMA_VERSION})
    return found, SCHEMA_VERSION


async def _found_under_lock(conn: AsyncConnection[Any], name: Names) -> int:
    # to_regclass: an error would end the transaction
    ((there,),) = await fetch(conn, "SELECT to_regclass(%s) IS NOT NULL", [name("schema_version")])
    return await check_schema(conn, name) if there else 0


async def _has_schema(conn: AsyncConnection[Any], name: Names) -> bool:
    ((there,),) = await fetch(conn, "SELECT to_regnamespace(%s) IS NOT NULL", [f'"{name.schema}"'])
    return bool(there)
