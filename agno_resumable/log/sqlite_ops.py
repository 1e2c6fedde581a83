"""What the SQLite log does inside its transactions: plain functions of a connection, without threads or loops.

Every write checks before it changes anything, because operations share a transaction: a typed error concerns only
the operation that raised it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import RunExists, RunFinished, RunNotFound, StaleGeneration
from ..model import Batch, EncodedEvent, Intents, NewRun, Run, RunStatus
from .protocol import Claim
from .rows import RUN_COLUMNS, batch_behind, pack, run_from_row

_FINISHED = "('COMPLETED', 'ERROR', 'CANCELLED')"

# A status of its own statement, so that the common append touches no index at all.
_APPEND = f"""
UPDATE run SET next_index = next_index + ?, size = size + ?, version = version + 1, updated_at = ?,
    status = CASE WHEN status = 'PENDING' THEN 'RUNNING' ELSE status END
WHERE run_id = ? AND generation = ? AND status NOT IN {_FINISHED}
RETURNING id, size, {RUN_COLUMNS}"""
_APPEND_STATUS = f"""
UPDATE run SET next_index = next_index + ?, size = size + ?, version = version + 1, updated_at = ?,
    status = ?, finished_at = ?, lease_expires_at = CASE WHEN ? THEN lease_expires_at END
WHERE run_id = ? AND generation = ? AND status NOT IN {_FINISHED}
RETURNING id, size, {RUN_COLUMNS}"""


class Appended(NamedTuple):
    """An append as committed: the run after it, and its first new index."""

    run: Run
    first: int


def create(db: sqlite3.Connection, run: NewRun, lease: float) -> Run:
    if db.execute("SELECT 1 FROM run WHERE run_id = ?", (run.run_id,)).fetchone():
        raise RunExists(run.run_id)
    if run.idempotency_key is not None:
        taken = db.execute(
            "SELECT run_id FROM run WHERE idempotency_key = ? AND user_id IS ?", (run.idempotency_key, run.user_id)
        ).fetchone()
        if taken:
            raise RunExists(taken[0], idempotency_key=run.idempotency_key)
    now = time.time()
    ((id_, *row),) = db.execute(
        "INSERT INTO run (run_id, family, component_id, session_id, user_id, idempotency_key, status, created_at, "
        "updated_at, lease_expires_at, max_attempts) VALUES (?, ?, ?, ?, ?, ?, 'PENDING', ?, ?, ?, ?) "
        f"RETURNING id, {RUN_COLUMNS}",
        (
            run.run_id,
            run.family.value,
            run.component_id,
            run.session_id,
            run.user_id,
            run.idempotency_key,
            now,
            now,
            now + lease,
            run.max_attempts,
        ),
    ).fetchall()
    heavy = (run.input, run.metadata, run.options)
    if heavy != (None, None, None):
        db.execute("INSERT INTO payload (id, input, metadata, options) VALUES (?, ?, ?, ?)", (id_, *heavy))
    return run_from_row(row, (*heavy, None))


def get(db: sqlite3.Connection, run_id: str) -> Run:
    row = db.execute(
        f"SELECT input, metadata, options, transcript, {RUN_COLUMNS} FROM run LEFT JOIN payload USING (id) "
        "WHERE run_id = ?",
        (run_id,),
    ).fetchone()
    if row is None:
        raise RunNotFound(run_id)
    return run_from_row(row[4:], row[:4])


def claim(
    db: sqlite3.Connection,
    run_id: str,
    lease: float,
    generation: int | None,
    floor: int | None = None,
    reopen: bool = False,
) -> Run:
    row = db.execute("SELECT status, generation, id, next_index FROM run WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        raise RunNotFound(run_id)
    reopened = reopen and row[0] == RunStatus.ERROR.value
    if RunStatus(row[0]).finished and not reopened:
        raise RunFinished(run_id, row[0])
    if generation is not None and generation <= row[1]:
        raise StaleGeneration(run_id, generation, row[1])
    now = time.time()
    db.execute(
        "UPDATE run SET generation = coalesce(?, generation + 1), attempts = attempts + 1, version = version + 1, "
        "updated_at = ?, lease_expires_at = ?, status = CASE WHEN status = 'PAUSED' THEN 'RUNNING' ELSE status END "
        "WHERE run_id = ?",
        (generation, now, now + lease, run_id),
    )
    if floor is not None and floor > row[3]:
        db.execute("DELETE FROM chunk WHERE run = ?", (row[2],))
        db.execute("UPDATE run SET first_index = ?, next_index = ?, size = 0 WHERE id = ?", (floor, floor, row[2]))
    if reopened:
        db.execute(
            "UPDATE run SET status = 'RUNNING', finished_at = NULL, cancel_requested_at = NULL WHERE id = ?", (row[2],)
        )
        db.execute("UPDATE payload SET transcript = NULL WHERE id = ?", (row[2],))
    return get(db, run_id)


def append(
    db: sqlite3.Connection,
    run_id: str,
    generation: int,
    parts: Sequence[Sequence[EncodedEvent]],
    size: int,
    status: RunStatus | None,
    transcript: bytes | None,
    max_run_bytes: int,
) -> Appended:
    now = time.time()
    count = sum(map(len, parts))
    if not count and status is None and transcript is None:
        return _check_fence(db, run_id, generation)
    if status is None:
        found = db.execute(_APPEND, (count, size, now, run_id, generation)).fetchall()
    else:
        end = now if status.finished else None
        found = db.execute(
            _APPEND_STATUS, (count, size, now, status.value, end, status.active, run_id, generation)
        ).fetchall()
    if not found:
        return _check_fence(db, run_id, generation)
    ((id_, run_size, *row),) = found
    run = run_from_row(row)
    index = run.next_index - count
    for part in parts:
        db.execute(
            "INSERT INTO chunk (run, last_index, first_index, size, events) VALUES (?, ?, ?, ?, ?)",
            (id_, index + len(part) - 1, index, sum([len(data) for _, data in part]), pack(part)),
        )
        index += len(part)
    if transcript is not None:
        db.execute(
            "INSERT INTO payload (id, transcript) VALUES (?, ?) ON CONFLICT DO UPDATE SET transcript = ?",
            (id_, transcript, transcript),
        )
    if run_size > max_run_bytes:
        run = _shed(db, run_id, id_, run_size - max_run_bytes) or run
    return Appended(run, run.next_index - count)


def _check_fence(db: sqlite3.Connection, run_id: str, generation: int) -> Appended:
    run = read_run(db, run_id)
    if run.generation != generation:
        raise StaleGeneration(run_id, generation, run.generation)
    if run.status.finished:
        raise RunFinished(run_id, run.status.value)
    return Appended(run, run.next_index)


def _shed(db: sqlite3.Connection, run_id: str, id_: int, excess: int) -> Run | None:
    """Drop the oldest chunks until ``excess`` bytes are gone, but never the newest chunk."""
    before = None
    for size, last in db.execute(
        "SELECT size, last_index FROM chunk WHERE run = ? AND last_index < "
        "(SELECT max(last_index) FROM chunk WHERE run = ?) ORDER BY last_index",
        (id_, id_),
    ).fetchall():
        if excess <= 0:
            break
        excess -= size
        before = last + 1
    return None if before is None else trim(db, run_id, before)


def read_run(db: sqlite3.Connection, run_id: str) -> Run:
    row = db.execute(f"SELECT {RUN_COLUMNS} FROM run WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        raise RunNotFound(run_id)
    return run_from_row(row)


def read(db: sqlite3.Connection, run_id: str, after: int, limit: int, max_bytes: int) -> tuple[Run, list[Batch]]:
    """The run, and batches that hold at least the page, of one snapshot."""
    db.execute("BEGIN")  # deferred: in a write-ahead log this pins one snapshot for both reads
    try:
        row = db.execute(f"SELECT id, {RUN_COLUMNS} FROM run WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise RunNotFound(run_id)
        run = run_from_row(row[1:])
        after = max(after, run.first_index - 1)
        batches: list[Batch] = []
        if limit > 0 and after < run.last_index:
            size = 0
            for first, last, chunk_size, blob in db.execute(
                "SELECT first_index, last_index, size, events FROM chunk WHERE run = ? AND last_index > ? "
                "ORDER BY last_index",
                (row[0], after),
            ):
                batches.append(batch_behind(run_id, first, blob, after))
                size += chunk_size
                if size >= max_bytes or last - after >= limit:
                    break
        return run, batches
    finally:
        db.execute("COMMIT")


def states(db: sqlite3.Connection, run_ids: Sequence[str]) -> list[Run]:
    """The runs of these ids that exist."""
    rows = db.execute(
        f"SELECT {RUN_COLUMNS} FROM run WHERE run_id IN (SELECT value FROM json_each(?))", (json.dumps(run_ids),)
    )
    return [run_from_row(row) for row in rows]


def renew(db: sqlite3.Connection, claims: Sequence[Claim], lease: float) -> list[str]:
    expires = time.time() + lease
    kept = db.execute(
        "UPDATE run SET lease_expires_at = ? FROM "
        "(SELECT json_extract(value, '$[0]') AS claimed, json_extract(value, '$[1]') AS held FROM json_each(?)) "
        "WHERE run_id = claimed AND generation = held AND status IN ('PENDING', 'RUNNING') RETURNING run_id",
        (expires, json.dumps(claims)),
    ).fetchall()
    held = {row[0] for row in kept}
    return [run_id for run_id, _ in claims if run_id not in held]


def request_cancel(db: sqlite3.Connection, run_id: str) -> Run:
    now = time.time()
    db.execute(
        "UPDATE run SET cancel_requested_at = ?, updated_at = ?, version = version + 1 "
        f"WHERE run_id = ? AND cancel_requested_at IS NULL AND status NOT IN {_FINISHED}",
        (now, now, run_id),
    )
    return get(db, run_id)


def intend_cancel(db: sqlite3.Connection, run_id: str, ttl: float) -> int:
    now = time.time()
    sweep_intents(db)
    db.execute(
        "INSERT INTO intent (run_id, expires_at) VALUES (?, ?) "
        "ON CONFLICT DO UPDATE SET expires_at = max(expires_at, excluded.expires_at)",
        (run_id, now + ttl),
    )
    return _next_intents_version(db)


def drop_intent(db: sqlite3.Connection, run_id: str) -> int:
    if db.execute("DELETE FROM intent WHERE run_id = ? RETURNING 1", (run_id,)).fetchall():
        return _next_intents_version(db)
    return intents_version(db)


def _next_intents_version(db: sqlite3.Connection) -> int:
    ((version,),) = db.execute("UPDATE intents SET version = version + 1 RETURNING version").fetchall()
    return int(version)


def intents_version(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT version FROM intents").fetchone()[0])


def read_intents(db: sqlite3.Connection, limit: int) -> Intents:
    rows = db.execute(  # one statement, and so one moment; without a live intent it gives one row with the version
        "SELECT version, run_id FROM intents LEFT JOIN intent ON expires_at > ? ORDER BY expires_at DESC LIMIT ?",
        (time.time(), max(limit, 1)),
    ).fetchall()
    return Intents(rows[0][0], [run_id for _, run_id in rows if run_id is not None][: max(limit, 0)])


def sweep_intents(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM intent WHERE expires_at <= ?", (time.time(),))


def list_runs(
    db: sqlite3.Connection, filters: Sequence[tuple[str, object]], limit: int, before: float | None
) -> list[Run]:
    clauses = [f"{column} = ?" for column, _ in filters]
    values = [value for _, value in filters]
    if before is not None:
        clauses.append("created_at < ?")
        values.append(before)
    where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
    rows = db.execute(
        f"SELECT {RUN_COLUMNS} FROM run {where} ORDER BY created_at DESC, id DESC LIMIT ?", (*values, max(limit, 0))
    )
    return [run_from_row(row) for row in rows]


def trim(db: sqlite3.Connection, run_id: str, before: int) -> Run:
    row = db.execute("SELECT id, first_index, next_index FROM run WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        raise RunNotFound(run_id)
    id_, first, next_index = row
    before = min(before, next_index)
    if before > first:
        dropped = db.execute(
            "DELETE FROM chunk WHERE run = ? AND last_index < ? RETURNING size", (id_, before)
        ).fetchall()
        db.execute(
            "UPDATE run SET first_index = ?, size = size - ?, version = version + 1, updated_at = ? WHERE id = ?",
            (before, sum(size for (size,) in dropped), time.time(), id_),
        )
    return read_run(db, run_id)


def delete(db: sqlite3.Connection, run_id: str) -> list[str]:
    return _remove(db, db.execute("DELETE FROM run WHERE run_id = ? RETURNING id, run_id", (run_id,)).fetchall())


def prune(db: sqlite3.Connection, finished_before: float, limit: int) -> list[str]:
    """Delete up to ``limit`` runs: appends wait for a transaction, so a sweep of thousands goes in steps."""
    sweep_intents(db)
    return _remove(
        db,
        db.execute(
            "DELETE FROM run WHERE id IN (SELECT id FROM run WHERE finished_at < ? LIMIT ?) RETURNING id, run_id",
            (finished_before, limit),
        ).fetchall(),
    )


def _remove(db: sqlite3.Connection, rows: Sequence[tuple[int, str]]) -> list[str]:
    for id_, _ in rows:
        db.execute("DELETE FROM chunk WHERE run = ?", (id_,))
        db.execute("DELETE FROM payload WHERE id = ?", (id_,))
    return [run_id for _, run_id in rows]


def expire(db: sqlite3.Connection, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> list[Run]:
    now = time.time()
    rows = db.execute(
        "UPDATE run SET generation = generation + 1, attempts = attempts + 1, version = version + 1, updated_at = ?, "
        "lease_expires_at = ? WHERE lease_expires_at <= ? AND (attempts >= max_attempts OR lease_expires_at <= ? OR "
        f"family || ':' || component_id IN (SELECT value FROM json_each(?))) RETURNING {RUN_COLUMNS}",
        (now, now + lease, now, now - patience, json.dumps(list(serves))),
    ).fetchall()
    return [run_from_row(row) for row in rows]
