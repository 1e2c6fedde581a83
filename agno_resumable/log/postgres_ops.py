"""What the PostgreSQL log does on a connection, but for appends: functions of a connection in autocommit mode."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from ..errors import RunExists, RunFinished, RunNotFound, StaleGeneration
from ..model import Intents, NewRun, Run, RunStatus
from .postgres_link import Connection
from .postgres_sql import Statements
from .postgres_values import Int8s, Texts, fetch
from .protocol import Claim
from .rows import run_from_row

__all__: list[str] = []

# A step of retention is one transaction, and appends wait behind it.
_PRUNE_RUNS = 32
_PRUNE_BYTES = 4_194_304


def owner_key(run: NewRun) -> bytes | None:
    """What is unique of a run with an idempotency key: of one length, however long key and owner are."""
    if run.idempotency_key is None:
        return None
    owner = b"" if run.user_id is None else sha256(run.user_id.encode()).digest()
    return sha256(owner + b"\0" + run.idempotency_key.encode()).digest()


async def create(db: Connection, sql: Statements, run: NewRun, lease: float) -> Run:
    key = owner_key(run)
    while True:
        rows = await fetch(
            db,
            sql.create,
            (
                run.run_id,
                run.family.value,
                run.component_id,
                run.session_id,
                run.user_id,
                run.idempotency_key,
                key,
                lease,
                run.max_attempts,
                run.input,
                run.metadata,
                run.options,
            ),
        )
        if rows:
            return run_from_row(rows[0], (run.input, run.metadata, run.options, None))
        for (taken,) in await fetch(db, sql.taken, (run.run_id, key, run.run_id)):
            raise RunExists(taken, idempotency_key=None if taken == run.run_id else run.idempotency_key)
        # what stood in the way was deleted in between


async def get(db: Connection, sql: Statements, run_id: str) -> Run:
    for row in await fetch(db, sql.get, (run_id,)):
        return run_from_row(row[4:], row[:4])
    raise RunNotFound(run_id)


async def claim(
    db: Connection,
    sql: Statements,
    run_id: str,
    lease: float,
    generation: int | None,
    floor: int | None,
    reopen: bool,
) -> Run:
    async with db.transaction():
        rows = await fetch(db, sql.lock, (run_id,))
        if not rows:
            raise RunNotFound(run_id)
        ((id_, status, current, _, next_index),) = rows
        reopened = reopen and status == RunStatus.ERROR.value
        if RunStatus(status).finished and not reopened:
            raise RunFinished(run_id, status)
        if generation is not None and generation <= current:
            raise StaleGeneration(run_id, generation, current)
        if floor is not None and floor > next_index:
            await fetch(db, sql.drop_chunks, (id_, floor))
            await fetch(db, sql.raise_floor, (floor, floor, id_))
        if reopened:
            await fetch(db, sql.reopen, (id_,))
            await fetch(db, sql.forget_transcript, (id_,))
        (row,) = await fetch(db, sql.claim, (current + 1 if generation is None else generation, lease, id_))
        heavy = await fetch(db, sql.payload, (id_,))
    return run_from_row(row, *heavy)


async def renew(db: Connection, sql: Statements, claims: Sequence[Claim], lease: float) -> list[str]:
    names = Texts([run_id for run_id, _ in claims])
    held = {row[0] for row in await fetch(db, sql.renew, (lease, names, Int8s([held for _, held in claims])))}
    return [run_id for run_id, _ in claims if run_id not in held]


async def request_cancel(db: Connection, sql: Statements, run_id: str) -> Run:
    await fetch(db, sql.request_cancel, (run_id,))
    return await get(db, sql, run_id)


async def expire(db: Connection, sql: Statements, lease: float, serves: Sequence[str], patience: float) -> list[Run]:
    return [run_from_row(row) for row in await fetch(db, sql.expire, (patience, Texts(serves), lease))]


async def trim(db: Connection, sql: Statements, run_id: str, before: int) -> Run | None:
    """The run after it, or ``None`` where nothing was to be dropped."""
    async with db.transaction():
        rows = await fetch(db, sql.lock, (run_id,))
        if not rows:
            raise RunNotFound(run_id)
        ((id_, _, _, first_index, next_index),) = rows
        before = min(before, next_index)
        if before <= first_index:
            return None
        dropped = await fetch(db, sql.drop_chunks, (id_, before))
        (row,) = await fetch(db, sql.trim, (before, sum(size for (size,) in dropped), id_))
    return run_from_row(row)


async def delete(db: Connection, sql: Statements, run_id: str) -> list[str]:
    async with db.transaction():
        return await _remove(db, sql, await fetch(db, sql.delete, (run_id,)))


async def prune(db: Connection, sql: Statements, finished_before: float) -> list[str]:
    """Delete some runs; nothing when none is left."""
    await fetch(db, sql.sweep_intents)
    async with db.transaction():
        return await _remove(
            db, sql, await fetch(db, sql.prune, (finished_before, finished_before, _PRUNE_RUNS, _PRUNE_BYTES))
        )


async def _remove(db: Connection, sql: Statements, rows: Sequence[tuple[int, str]]) -> list[str]:
    # behind the runs, so that whatever an append could still store is seen and goes too
    if rows:
        ids = Int8s([id_ for id_, _ in rows])
        await fetch(db, sql.delete_chunks, (ids,))
        await fetch(db, sql.delete_payloads, (ids,))
    return [run_id for _, run_id in rows]


async def states(db: Connection, sql: Statements, run_ids: Sequence[str]) -> list[Run]:
    """The runs of these ids that exist."""
    return [run_from_row(row) for row in await fetch(db, sql.states, (Texts(run_ids),))]


async def list_runs(
    db: Connection, sql: Statements, filters: Sequence[tuple[str, str]], limit: int, before: float | None
) -> list[Run]:
    clauses = []
    values: list[object] = []
    for column, value in filters:
        if column in ("session_id", "user_id"):
            clauses.append(f"left({column}, 128) = left(%b, 128)")  # what the index holds of it
            values.append(value)
        clauses.append(f"{column} = %b")
        values.append(value)
    if before is not None:
        clauses.append("created_at < %b")
        values.append(before)
    where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
    rows = await fetch(db, f"{sql.list}{where} ORDER BY created_at DESC, id DESC LIMIT %b", (*values, max(limit, 0)))
    return [run_from_row(row) for row in rows]


async def now(db: Connection, sql: Statements) -> float:
    ((moment,),) = await fetch(db, sql.now)
    return float(moment)


async def intend_cancel(db: Connection, sql: Statements, run_id: str, ttl: float) -> int:
    await fetch(db, sql.sweep_intents)
    ((version,),) = await fetch(db, sql.intend, (run_id, ttl))
    return int(version)


async def drop_intent(db: Connection, sql: Statements, run_id: str) -> int | None:
    """The new version, or ``None`` where nothing was to be dropped."""
    for (version,) in await fetch(db, sql.drop_intent, (run_id,)):
        return int(version)
    return None


async def intents_version(db: Connection, sql: Statements) -> int:
    ((version,),) = await fetch(db, sql.intents_version)
    return int(version)


async def read_intents(db: Connection, sql: Statements, limit: int) -> Intents:
    rows = await fetch(db, sql.intents, (max(limit, 1),))
    return Intents(rows[0][0], [run_id for _, run_id in rows if run_id is not None][: max(limit, 0)])
