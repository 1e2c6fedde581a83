"""The SQLite log's file: connections and schema."""

from __future__ import annotations

import sqlite3
import time

from ..errors import LogUnavailable, ResumableError, SchemaTooNew

__all__ = ["connect", "set_up"]

SCHEMA_VERSION = 3
APPLICATION_ID = 0x61677275  # "agru", so that nothing else's database is taken for ours
MINIMUM_SQLITE = (3, 38, 0)  # RETURNING came with 3.35, JSON functions by default with 3.38

# Events lie in chunks: what one append stored, as lines that alternate between type and JSON. A row an event would
# cost one statement an event, and every statement gives the interpreter lock away and has to win it back.
_VERSION_1 = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    family TEXT NOT NULL,
    component_id TEXT,
    session_id TEXT,
    user_id TEXT,
    idempotency_key TEXT,
    status TEXT NOT NULL,
    first_index INTEGER NOT NULL DEFAULT 0,
    next_index INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,
    generation INTEGER NOT NULL DEFAULT 1,
    attempts INTEGER NOT NULL DEFAULT 1,
    version INTEGER NOT NULL DEFAULT 1,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    finished_at REAL,
    lease_expires_at REAL,
    cancel_requested_at REAL
);
CREATE INDEX run_by_time ON run (created_at);
CREATE INDEX run_by_session ON run (session_id, created_at) WHERE session_id IS NOT NULL;
CREATE INDEX run_by_owner ON run (user_id, created_at) WHERE user_id IS NOT NULL;
CREATE INDEX run_by_key ON run (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX run_by_lease ON run (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
CREATE INDEX run_by_end ON run (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE payload (id INTEGER PRIMARY KEY, input BLOB, metadata BLOB, transcript BLOB);
CREATE TABLE chunk (
    run INTEGER NOT NULL,
    last_index INTEGER NOT NULL,
    first_index INTEGER NOT NULL,
    size INTEGER NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (run, last_index)
) WITHOUT ROWID;
"""

_VERSION_2 = """
CREATE TABLE intent (run_id TEXT PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX intent_by_end ON intent (expires_at);
CREATE TABLE intents (version INTEGER NOT NULL);
INSERT INTO intents (version) VALUES (0);
"""

_VERSION_3 = """
ALTER TABLE run ADD COLUMN max_attempts INTEGER NOT NULL DEFAULT 1;
ALTER TABLE payload ADD COLUMN options BLOB;
"""

# Each step leads from the version before it. A process of an older version that has the file open goes on as before:
# a step may add, and never change what is there.
_STEPS = (_VERSION_1, _VERSION_2, _VERSION_3)


def connect(path: str, *, synchronous: str, timeout: float, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection in autocommit mode, WAL, with the durability asked for.

    Raises:
        LogUnavailable: The file cannot be opened, is no database or another program's, or cannot use a
            write-ahead log.
        SchemaTooNew: A newer version of this library has written the file.
    """
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise LogUnavailable(
            f"SQLite {sqlite3.sqlite_version} is too old: agno-resumable needs "
            f"{'.'.join(map(str, MINIMUM_SQLITE))}, which comes with every current Python build."
        )
    try:
        db = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=True, cached_statements=64)
    except sqlite3.Error as error:
        raise LogUnavailable(f"SQLite cannot open {path!r}: {error}. Does its directory exist?") from error
    deadline = time.monotonic() + timeout
    while True:
        try:
            _configure(db, path, synchronous=synchronous, read_only=read_only)
            return db
        except sqlite3.Error as error:
            # SQLite does not wait by itself for the lock under which a file turns to a write-ahead log, or under which
            # its last user folds the log into it: of processes that start or stop together some would fail.
            if _is_locked(error) and time.monotonic() < deadline:
                time.sleep(0.01)  # in the connection's own thread
                continue
            db.close()
            raise LogUnavailable(f"SQLite cannot use {path!r}: {error}.") from error
        except ResumableError:
            db.close()
            raise


def _configure(db: sqlite3.Connection, path: str, *, synchronous: str, read_only: bool) -> None:
    db.execute("BEGIN")  # one moment for the three looks: another process may be making the schema just now
    try:
        _check_owner(db, path)  # before anything is changed in a file that may not be ours
    finally:
        db.execute("ROLLBACK")
    mode = db.execute("PRAGMA journal_mode").fetchone()[0]
    if mode != "wal":
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LogUnavailable(
            f"{path!r} cannot use a write-ahead log (journal_mode is {mode!r}): put it on a local disk."
        )
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("PRAGMA journal_size_limit = 67108864")
    if read_only:
        db.execute("PRAGMA query_only = ON")


def _is_locked(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # since Python 3.11
    return "locked" in str(error) if code is None else code & 0xFF in (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED


def _check_owner(db: sqlite3.Connection, path: str) -> int:
    """The version of the file's schema, 0 where it is empty; raises if it is not ours, or too new."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    empty = not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application != APPLICATION_ID and not (empty and not version and not application):
        raise LogUnavailable(f"{path!r} is another program's database: give the log a file of its own.")
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(path, version, SCHEMA_VERSION)
    return int(version)


def set_up(db: sqlite3.Connection, path: str) -> None:
    """Create the schema in an empty file, and bring that of an older version up to date."""
    db.execute("BEGIN IMMEDIATE")  # of two processes that open an empty file at once, one makes the schema
    try:
        version = _check_owner(db, path)
        if version < SCHEMA_VERSION:
            for statement in "".join(_STEPS[version:]).split(";"):
                if statement.strip():
                    db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
