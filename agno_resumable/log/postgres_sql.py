"""The PostgreSQL log's statements, in one place."""

from __future__ import annotations

from .postgres_schema import Names
from .rows import RUN_COLUMNS

__all__ = ["Statements"]

# By the server's clock, which is the only one that leases and retention are measured by.
_NOW = "extract(epoch FROM now())::double precision"
_FINISHED = "('COMPLETED', 'ERROR', 'CANCELLED')"
_RESTING = "('PAUSED', 'COMPLETED', 'ERROR', 'CANCELLED')"
_OF_R = ", ".join(f"r.{column.strip()}" for column in RUN_COLUMNS.split(","))


class Statements:
    """Every statement but those that make the tables, for tables of these names.

    What a statement does to a run it does behind the lock on the run's row: an ``UPDATE`` that had to wait for another
    transaction looks at the row again, as that one left it. What it finds in *other* tables is of the moment at which
    it began, so where that matters the row is locked by a statement of its own.
    """

    def __init__(self, name: Names) -> None:
        run, chunk, payload = name("run"), name("chunk"), name("payload")
        intent, intents = name("intent"), name("intents")
        self.names: Names = name

        # ------------------------------------------------------------ append

        # All runs of the group in one statement: the fence, the counter, the events. What is not in the answer was
        # refused. A chunk's place is counted from the run's new end, which only this statement knows.
        # A statement whose connection was given up may still be done by the server, when a lock is free again or the
        # server goes on. By then its runs may have been asked for what is stored, see `fence`, and it comes too late.
        appended = f"""
WITH given AS (
    SELECT *, %b::int8 AS origin, %b::int8 AS connection
    FROM unnest(%b::text[], %b::int8[], %b::int8[], %b::int8[], %b::text[])
        WITH ORDINALITY AS g (run_id, generation, count, size, status, n)
), appended AS (
    UPDATE {run} r SET
        next_index = r.next_index + g.count, size = r.size + g.size, version = r.version + 1, updated_at = {_NOW},
        status = CASE WHEN g.status <> '' THEN g.status
            WHEN r.status = 'PENDING' AND g.count > 0 THEN 'RUNNING' ELSE r.status END,
        finished_at = CASE WHEN g.status IN {_FINISHED} THEN {_NOW} END,
        lease_expires_at = CASE WHEN g.status IN {_RESTING} THEN NULL ELSE r.lease_expires_at END,
        held = r.held AND g.status NOT IN {_RESTING}, origin = g.origin, connection = g.connection
    FROM given g
    WHERE r.run_id = g.run_id AND r.generation = g.generation AND r.status NOT IN {_FINISHED}
        AND (r.origin <> g.origin OR r.connection <= g.connection)
    RETURNING g.n, r.id, r.size, {_OF_R}
), stored AS (
    INSERT INTO {chunk} (run, last_index, first_index, size, events)
    SELECT a.id, a.next_index - c.last, a.next_index - c.first, c.size, c.events
    FROM unnest(%b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::bytea[]) AS c (n, last, first, size, events)
    JOIN appended a ON a.n = c.n
)"""
        self.append: str = f"{appended} SELECT * FROM appended"
        self.append_transcripts: str = f"""{appended}, told AS (
    INSERT INTO {payload} AS p (id, transcript)
    SELECT a.id, t.transcript FROM unnest(%b::int8[], %b::bytea[]) AS t (n, transcript) JOIN appended a ON a.n = t.n
    ON CONFLICT (id) DO UPDATE SET transcript = excluded.transcript
) SELECT * FROM appended"""
        # The same for one run with one chunk and no status: of what happens between two commits on a quiet machine, the
        # plan of arrays and joins is a good part.
        self.append_one: str = f"""
WITH appended AS (
    UPDATE {run} r SET
        next_index = r.next_index + %b::int8, size = r.size + %b::int8, version = r.version + 1, updated_at = {_NOW},
        status = CASE WHEN r.status = 'PENDING' THEN 'RUNNING' ELSE r.status END, origin = g.origin,
        connection = g.connection
    FROM (VALUES (%b::int8, %b::int8)) AS g (origin, connection)
    WHERE r.run_id = %b::text AND r.generation = %b::int8 AND r.status NOT IN {_FINISHED}
        AND (r.origin <> g.origin OR r.connection <= g.connection)
    RETURNING 1, r.id, r.size, {_OF_R}
), stored AS (
    INSERT INTO {chunk} (run, last_index, first_index, size, events)
    SELECT id, next_index - 1, next_index - %b::int8, %b::int8, %b::bytea FROM appended
) SELECT * FROM appended"""
        # From here on nothing is stored that was sent over an earlier connection: it waits for what is under way in
        # its runs, and turns away what comes behind it.
        self.fence: str = f"""
UPDATE {run} r SET origin = w.origin, connection = w.connection
FROM unnest(%b::text[], %b::int8[]) AS g (run_id, generation), (VALUES (%b::int8, %b::int8)) AS w (origin, connection)
WHERE r.run_id = g.run_id AND r.generation = g.generation AND r.status NOT IN {_FINISHED}
    AND (r.origin <> w.origin OR r.connection < w.connection)"""
        self.states: str = f"SELECT {RUN_COLUMNS} FROM {run} WHERE run_id = ANY(%b::text[])"
        # the newest chunk stays, whatever its size
        self.excess: str = f"""
SELECT max(last_index) + 1 FROM (
    SELECT last_index, sum(size) OVER (ORDER BY last_index) - size AS dropped FROM {chunk}
    WHERE run = %b AND last_index < (SELECT max(last_index) FROM {chunk} WHERE run = %b)
) c WHERE dropped < %b"""

        # ------------------------------------------------------------ the life of a run

        self.create: str = f"""
WITH made AS (
    INSERT INTO {run} (run_id, family, component_id, session_id, user_id, idempotency_key, owner_key, status,
        created_at, updated_at, lease_expires_at, held, max_attempts)
    VALUES (%b, %b, %b, %b, %b, %b, %b, 'PENDING', {_NOW}, {_NOW}, {_NOW} + %b::double precision, true, %b::int8)
    ON CONFLICT DO NOTHING RETURNING id, {RUN_COLUMNS}
), kept AS (
    INSERT INTO {payload} (id, input, metadata, options)
    SELECT id, i, m, o FROM made, (SELECT %b::bytea, %b::bytea, %b::bytea) AS h (i, m, o)
    WHERE i IS NOT NULL OR m IS NOT NULL OR o IS NOT NULL
) SELECT {RUN_COLUMNS} FROM made"""
        self.taken: str = f"SELECT run_id FROM {run} WHERE run_id = %b OR owner_key = %b ORDER BY run_id <> %b LIMIT 1"
        self.get: str = (
            f"SELECT p.input, p.metadata, p.options, p.transcript, {_OF_R} "
            f"FROM {run} r LEFT JOIN {payload} p USING (id) WHERE r.run_id = %b"
        )
        self.payload: str = f"SELECT input, metadata, options, transcript FROM {payload} WHERE id = %b"
        self.lock: str = (
            f"SELECT id, status, generation, first_index, next_index FROM {run} WHERE run_id = %b FOR UPDATE"
        )
        self.claim: str = f"""
UPDATE {run} SET generation = %b, attempts = attempts + 1, version = version + 1, updated_at = {_NOW},
    lease_expires_at = {_NOW} + %b::double precision, held = true,
    status = CASE WHEN status = 'PENDING' THEN status ELSE 'RUNNING' END
WHERE id = %b RETURNING {RUN_COLUMNS}"""
        self.raise_floor: str = f"UPDATE {run} SET first_index = %b, next_index = %b, size = 0 WHERE id = %b"
        self.reopen: str = f"UPDATE {run} SET finished_at = NULL, cancel_requested_at = NULL WHERE id = %b"
        self.forget_transcript: str = f"UPDATE {payload} SET transcript = NULL WHERE id = %b"
        self.renew: str = f"""
UPDATE {run} r SET lease_expires_at = {_NOW} + %b::double precision, held = true
FROM unnest(%b::text[], %b::int8[]) AS g (run_id, generation)
WHERE r.run_id = g.run_id AND r.generation = g.generation AND r.status IN ('PENDING', 'RUNNING')
RETURNING r.run_id"""
        self.request_cancel: str = f"""
UPDATE {run} SET cancel_requested_at = {_NOW}, updated_at = {_NOW}, version = version + 1
WHERE run_id = %b AND cancel_requested_at IS NULL AND status NOT IN {_FINISHED}"""
        # Whoever is at a row at this moment, a producer that is late or another sweep, has it; the next sweep looks
        # again.
        self.expire: str = f"""
WITH dead AS (
    SELECT id FROM {run} WHERE held AND lease_expires_at <= {_NOW} AND (attempts >= max_attempts
        OR lease_expires_at <= {_NOW} - %b::double precision OR family || ':' || component_id = ANY(%b::text[]))
    FOR UPDATE SKIP LOCKED
)
UPDATE {run} r SET generation = r.generation + 1, attempts = r.attempts + 1, version = r.version + 1,
    updated_at = {_NOW}, lease_expires_at = {_NOW} + %b::double precision
FROM dead WHERE r.id = dead.id RETURNING {_OF_R}"""
        self.drop_chunks: str = f"DELETE FROM {chunk} WHERE run = %b AND last_index < %b RETURNING size"
        self.trim: str = f"""
UPDATE {run} SET first_index = %b, size = size - %b, version = version + 1, updated_at = {_NOW}
WHERE id = %b RETURNING {RUN_COLUMNS}"""
        self.delete: str = f"DELETE FROM {run} WHERE run_id = %b RETURNING id, run_id"
        self.prune: str = f"""
DELETE FROM {run} WHERE id IN (
    SELECT id FROM {run} WHERE finished_at < %b AND id IN (
        SELECT id FROM (
            SELECT id, sum(size) OVER (ORDER BY finished_at, id) - size AS before FROM (
                SELECT id, size, finished_at FROM {run} WHERE finished_at < %b ORDER BY finished_at LIMIT %b
            ) oldest
        ) step WHERE before < %b
    ) FOR UPDATE SKIP LOCKED
) RETURNING id, run_id"""
        self.delete_chunks: str = f"DELETE FROM {chunk} WHERE run = ANY(%b::int8[])"
        self.delete_payloads: str = f"DELETE FROM {payload} WHERE id = ANY(%b::int8[])"
        self.list: str = f"SELECT {RUN_COLUMNS} FROM {run}"

        # ------------------------------------------------------------ reading

        # The pages of all who read at this moment. A chunk may begin before the cursor and end behind the page.
        self.read: str = f"""
SELECT g.n, c.firsts, c.chunks, {_OF_R}
FROM unnest(%b::text[], %b::int8[], %b::int8[], %b::int8[])
    WITH ORDINALITY AS g (run_id, after, most, max_bytes, n)
JOIN {run} r ON r.run_id = g.run_id
LEFT JOIN LATERAL (
    SELECT array_agg(first_index ORDER BY last_index) AS firsts, array_agg(events ORDER BY last_index) AS chunks
    FROM (
        SELECT *, sum(size) OVER (ORDER BY last_index) - size AS before FROM (
            SELECT last_index, first_index, size, events FROM {chunk}
            WHERE run = r.id AND last_index > greatest(g.after, r.first_index - 1) ORDER BY last_index LIMIT g.most
        ) behind
    ) page WHERE before < greatest(g.max_bytes, 1)
) c ON g.most > 0"""
        # What has come behind the ends of runs that are followed: as a rule one chunk each, and for that it is the
        # quicker statement.
        self.follow: str = f"""
SELECT g.n, c.first_index, c.events, {_OF_R}
FROM unnest(%b::text[], %b::int8[]) WITH ORDINALITY AS g (run_id, after, n)
JOIN {run} r ON r.run_id = g.run_id
LEFT JOIN LATERAL (
    SELECT first_index, events FROM {chunk} WHERE run = r.id AND last_index > g.after ORDER BY last_index LIMIT %b
) c ON g.after < r.next_index - 1
ORDER BY g.n, c.first_index"""
        self.follow_one: str = f"""
SELECT 1, c.first_index, c.events, {_OF_R} FROM {run} r LEFT JOIN LATERAL (
    SELECT first_index, events FROM {chunk} WHERE run = r.id AND last_index > %b::int8 ORDER BY last_index LIMIT %b
) c ON true
WHERE r.run_id = %b ORDER BY c.first_index"""
        self.now: str = "SELECT extract(epoch FROM clock_timestamp())::double precision"

        # ------------------------------------------------------------ intents

        # The intent first and then the version, everywhere: in one order, so that no two wait for each other.
        self.intend: str = f"""
WITH put AS (
    INSERT INTO {intent} AS i (run_id, expires_at) VALUES (%b, {_NOW} + %b::double precision)
    ON CONFLICT (run_id) DO UPDATE SET expires_at = greatest(i.expires_at, excluded.expires_at) RETURNING 1
) UPDATE {intents} SET version = version + 1 WHERE EXISTS (SELECT FROM put) RETURNING version"""
        self.drop_intent: str = f"""
WITH gone AS (DELETE FROM {intent} WHERE run_id = %b RETURNING 1)
UPDATE {intents} SET version = version + 1 WHERE EXISTS (SELECT FROM gone) RETURNING version"""
        self.sweep_intents: str = f"""
DELETE FROM {intent} WHERE run_id = ANY (ARRAY(
    SELECT run_id FROM {intent} WHERE expires_at <= {_NOW} ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED
))"""
        self.intents_version: str = f"SELECT version FROM {intents}"
        self.intents: str = f"""
SELECT version, run_id FROM {intents} LEFT JOIN {intent} ON expires_at > {_NOW}
ORDER BY expires_at DESC NULLS LAST LIMIT %b"""
