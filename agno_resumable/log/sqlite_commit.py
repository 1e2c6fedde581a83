"""One transaction for a group of operations, in the writer thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..errors import LogUnavailable, ResumableError
from .group_commit import Operation

__all__ = ["transact"]


def transact(db: sqlite3.Connection, group: Sequence[Operation[sqlite3.Connection, object]]) -> None:
    """Apply and commit the group; give every operation its result or its error. Never raises."""
    outcome_unknown = False
    try:
        db.execute("BEGIN IMMEDIATE")  # a deferred one that turns to writing fails at once behind another writer
        for operation in group:
            try:
                operation.result = operation.apply(db)
            except ResumableError as error:  # refused before it changed anything
                operation.error = error
        outcome_unknown = True
        db.execute("COMMIT")
    except Exception as error:  # whatever it is, the callers must learn of it and the thread must live
        _roll_back(db)
        if len(group) > 1 and not isinstance(error, sqlite3.OperationalError):
            for operation in group:  # a value that cannot be bound concerns one operation: the others go on
                operation.error = None
                transact(db, [operation])
            return
        for operation in group:
            # A commit that the database reports as failed was rolled back, but after an I/O error during the sync
            # nobody can tell what is on the disk.
            unavailable = LogUnavailable(
                f"SQLite could not store this: {error}.", outcome_unknown=outcome_unknown and _is_io_error(error)
            )
            unavailable.__cause__ = error
            operation.error = unavailable


def _roll_back(db: sqlite3.Connection) -> None:
    try:
        if db.in_transaction:
            db.execute("ROLLBACK")
    except sqlite3.Error:  # the transaction is gone already; the error that led here is the one to tell
        pass


def _is_io_error(error: Exception) -> bool:
    # sqlite_errorcode came with Python 3.11; the low byte is the primary code, 10 is SQLITE_IOERR
    code: int = getattr(error, "sqlite_errorcode", 10)
    return code & 0xFF == 10
