"""The PostgreSQL log: the contract, and what is PostgreSQL's own."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import IO, Any, TypeVar

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import URL

from agno_resumable import Batch, ResumableStream, follow
from agno_resumable.cli import main
from agno_resumable.errors import LogUnavailable, RunNotFound, SchemaTooNew, UnsupportedLogURL
from agno_resumable.log.checks import chunks
from agno_resumable.log.open import open_log
from agno_resumable.log.postgres import PostgresEventLog
from agno_resumable.log.postgres_notify import EVERYTHING, payloads
from agno_resumable.log.postgres_url import split_url
from agno_resumable.log.protocol import EventLog
from agno_resumable.model import Durability, EncodedEvent, NewRun, RunStatus
from agno_resumable.testing import Check, event_log_checks

from .postgres_server import PostgresServer, PostgresStore, serve
from .postgres_workers import event

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
LEASE = 600.0
PATIENCE = 20.0

T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def admin(postgres: PostgresServer) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection that may do anything to the server."""
    async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as conn:
        yield conn


async def rows(conn: psycopg.AsyncConnection[Any], statement: str, *parameters: object) -> list[Any]:
    return await (await conn.execute(statement.encode(), parameters or None)).fetchall()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    with anyio.fail_after(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - it asks a server
            await anyio.sleep(0.01)


async def data_of(log: EventLog, run_id: str) -> list[bytes]:
    found: list[bytes] = []
    while page := (await log.read(run_id, len(found) - 1)).events:
        found += [one.data for one in page]
    return found


# -------------------------------------------------------------------- the contract


def named(check: Check) -> str:
    return check.name


@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_postgres_log_keeps(check: Check, postgres: PostgresServer) -> None:
    store = PostgresStore(postgres)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_postgres_log_with_nothing_in_memory_and_nobody_telling_keeps(
    check: Check, postgres: PostgresServer
) -> None:
    store = PostgresStore(postgres, hot_bytes=0, listen=False, prepare=False, poll_interval=0.02)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


SHARING = [check for check in event_log_checks() if check.needs == "reopen"]


@pytest.mark.parametrize("check", SHARING, ids=named)
async def test_postgres_log_in_serializable_transactions_keeps(check: Check, postgres: PostgresServer) -> None:
    strict = PostgresServer(f"{postgres.url}&options=-cdefault_transaction_isolation%3Dserializable")
    store = PostgresStore(strict)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


@pytest.mark.parametrize("check", SHARING, ids=named)
async def test_postgres_log_on_the_users_pool_keeps(check: Check, postgres: PostgresServer) -> None:
    options: dict[str, Any] = {"row_factory": dict_row}
    async with AsyncConnectionPool(postgres.url, min_size=2, max_size=3, kwargs=options, open=False) as pool:
        store = PostgresStore(PostgresServer(postgres.url), database=pool)
        await check.run(store.open, reopen=store.reopen, limited=store.open)
        for _ in range(2):
            async with pool.connection() as conn:
                assert not conn.autocommit
                found: Any = await (await conn.execute("SELECT 1 AS one")).fetchone()
                assert found == {"one": 1}
        await until(_all_back(pool))


def _all_back(pool: AsyncConnectionPool[Any]) -> Callable[[], Awaitable[bool]]:
    async def back() -> bool:
        stats = pool.get_stats()
        return stats["pool_available"] == stats["pool_size"] and not stats["requests_waiting"]

    return back


# -------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg", "postgresql+pg8000"],
)
def test_sqlalchemys_urls_lead_to_a_log_that_keeps_the_password_to_itself(scheme: str) -> None:
    log = open_log(f"{scheme}://ann:se%40cret@db.example:5433/runs?sslmode=require&schema=mine&listen=false")
    assert isinstance(log, PostgresEventLog)
    assert repr(log) == "PostgresEventLog('postgresql://db.example:5433/runs')"


def test_options_of_other_drivers_are_left_out_and_ours_are_taken() -> None:
    url, options = split_url(
        "postgresql+asyncpg://u:p@/db?host=/tmp&ssl=true&prepared_statement_cache_size=0&prefix=x_&schema=&prepare=no"
    )
    assert url == "postgresql://u:p@/db?host=%2Ftmp&sslmode=require"
    assert options == {"prefix": "x_", "schema": None, "prepare": False}


def test_whatever_sqlalchemy_renders_libpq_reads() -> None:
    given = {"username": "an n", "password": "p@ss w+rd:/?#%", "host": "h", "port": 5433, "database": "d b"}
    rendered = URL.create("postgresql+psycopg", **given, query={"options": "-c a=b"})  # type: ignore[arg-type]
    known = conninfo_to_dict(split_url(rendered.render_as_string(hide_password=False))[0])
    assert known == {
        "user": "an n",
        "password": "p@ss w+rd:/?#%",
        "host": "h",
        "port": "5433",
        "dbname": "d b",
        "options": "-c a=b",
    }


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@h/db?nonsense=1",
        "postgresql://ann:secret@[h/db",
        "postgresql://ann:sec%zzret@h/db",
        "postgresql://ann:secret@h/db?listen=perhaps",
        "postgresqlite://ann:secret@h/db",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UnsupportedLogURL) as caught:
        open_log(url)
    assert "sec" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("option", ["schema=a-b", "schema=" + "x" * 41, 'prefix=a"b', "prefix=1a", "prefix=%25s"])
def test_a_schema_or_prefix_that_could_not_stand_in_a_statement_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        open_log(f"postgresql://h/db?{option}")


def test_without_the_driver_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["psycopg"] = None
from agno_resumable import LogUnavailable, open_log
try:
    open_log("postgresql://h/db")
except LogUnavailable as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install 'agno-resumable[postgres]'" in said


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_the_error_says_that_the_driver_needs_asyncio(postgres: PostgresServer) -> None:
    with pytest.raises(LogUnavailable, match="asyncio"):
        await postgres.open().__aenter__()


async def test_a_database_that_does_not_answer_is_told_without_the_password() -> None:
    log = open_log("postgresql://ann:secret@127.0.0.1:1/db")
    with pytest.raises(LogUnavailable) as caught:
        await log.__aenter__()
    assert "secret" not in f"{caught.value}{caught.value.__cause__}"
    assert not caught.value.outcome_unknown
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)


# -------------------------------------------------------------------- durability


@pytest.mark.parametrize(("setting", "durability"), [("on", Durability.POWER_LOSS), ("off", Durability.PROCESS_CRASH)])
async def test_the_durability_is_what_the_server_says(
    postgres: PostgresServer, setting: str, durability: Durability
) -> None:
    url = f"{postgres.url}&options=-csynchronous_commit%3D{setting}"
    async with PostgresEventLog(url, schema=postgres.schema()) as log:
        assert log.durability is durability


async def test_a_wait_for_a_cancel_that_is_woken_for_another_reason_goes_on(postgres: PostgresServer) -> None:
    """A look that was made before the run is one such reason: it says that there is none."""
    async with postgres.open() as log:
        await log.create(NewRun("run"), lease=LEASE)
        found: list[bool] = []

        async def ask() -> None:
            found.append(await log.wait_cancel("run", timeout=PATIENCE))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while not log.stats()["waiters"]:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            log._session.watch.gone("run")
            await anyio.sleep(0.1)
            assert (found, log.stats()["waiters"]) == ([], 1)
            await log.request_cancel("run")
        assert found == [True]


CLOSED_AT_ONCE = """
import asyncio, sys
from agno_resumable.log.postgres import PostgresEventLog

async def main():
    for _ in range(5):
        async with PostgresEventLog(sys.argv[1], schema=sys.argv[2]):
            pass  # no turn of the event loop lies between: its tasks have not had their first step
    print("closed")

asyncio.run(main())
"""


def test_a_log_that_is_closed_at_once_ends(postgres: PostgresServer) -> None:
    command = [sys.executable, "-c", CLOSED_AT_ONCE, postgres.url, postgres.schema()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("closed\n", "")


# -------------------------------------------------------------------- tables


async def test_a_role_that_may_not_create_works_once_the_tables_are_there(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    schema, role = postgres.schema(), f"app_{postgres.schema()}"
    await admin.execute(f"CREATE ROLE {role} LOGIN".encode())
    theirs = f"{postgres.url}{'&' if '?' in postgres.url else '?'}user={role}"
    with pytest.raises(LogUnavailable, match="agno-resumable migrate"):
        await PostgresEventLog(theirs, schema=schema).__aenter__()
    with pytest.raises(LogUnavailable, match="version 0 of"):
        await PostgresEventLog(theirs, schema=schema, create=False).__aenter__()
    owner = PostgresEventLog(postgres.url, schema=schema)
    newest = (await owner.migrate())[1]
    with pytest.raises(LogUnavailable, match="--grant"):
        await PostgresEventLog(theirs, schema=schema).__aenter__()
    assert await owner.migrate(grant=role) == (newest, newest)
    for create in (True, False):
        async with PostgresEventLog(theirs, schema=schema, create=create) as log:
            await log.create(NewRun(f"run-{create}", input=b"{}"), lease=LEASE)
            await log.append(f"run-{create}", 1, [event("a")], status=RunStatus.COMPLETED, transcript=b"{}")
            await log.intend_cancel("any", ttl=1.0)
            assert await log.prune(finished_before=await log.now() + 1) == 1


async def test_the_printed_sql_makes_the_same_tables(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    described = []
    for printed in (True, False):
        log = postgres.open(schema=f"same_{printed}", prefix="p_")
        if printed:
            await admin.execute(log.migration().encode())
        else:
            await log.migrate()
        async with log:
            await log.create(NewRun("run"), lease=LEASE)
        found = await rows(
            admin,
            "SELECT c.relname, c.relkind, c.reloptions::text, a.attname, a.atttypid::regtype::text, a.attnotnull "
            "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE relnamespace = %s::regnamespace "
            "AND attnum > 0 ORDER BY 1, 4",
            f'"same_{printed}"',
        )
        described.append(found)
    assert described[0] == described[1]
    assert len({name for name, *_ in described[0]}) > 12


def test_the_command_line_migrates_and_looking_creates_nothing(
    postgres: PostgresServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = postgres.schema()
    monkeypatch.setenv("AGNO_RESUMABLE_LOG", f"{postgres.url}&schema={schema}")
    assert main(["runs"]) == 1
    assert "agno-resumable migrate" in capsys.readouterr().err
    assert main(["migrate", "--sql", "--grant", 'bo"b']) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("BEGIN;\nCREATE SCHEMA")
    assert printed.endswith("COMMIT;\n")
    assert 'TO "bo""b";' in printed
    with psycopg.connect(postgres.url) as conn:
        assert conn.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone() == (None,)
    assert main(["migrate"]) == 0
    assert "version 0" in capsys.readouterr().out
    assert main(["runs"]) == 0
    assert capsys.readouterr().out.startswith("RUN")
    assert main(["migrate"]) == 0
    assert "version 0" not in capsys.readouterr().out
    assert main(["migrate", "--log", "sqlite:///runs.db"]) == 1
    assert "PostgreSQL" in capsys.readouterr().err


async def test_logs_with_prefixes_share_a_schema_and_nothing_else(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    schema = postgres.schema()
    await admin.execute(f"CREATE SCHEMA {schema}".encode())
    within = f"{postgres.url}&options=-csearch_path%3D{schema}"
    async with (
        PostgresEventLog(within, schema=None, prefix="one_") as one,
        PostgresEventLog(postgres.url, schema=schema, prefix="two_") as two,
    ):
        for log in (one, two):
            await log.create(NewRun("run"), lease=LEASE)
        await one.append("run", 1, [event("one")])
        assert await data_of(two, "run") == []
    async with PostgresEventLog(postgres.url, schema=schema, prefix="one_") as again:
        assert await data_of(again, "run") == [event("one").data]


async def test_tables_of_a_newer_version_are_left_alone(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    log = postgres.open(schema=(schema := postgres.schema()))
    await log.migrate()
    await admin.execute(f"UPDATE {schema}.schema_version SET version = 99".encode())
    for attempt in (log.__aenter__, log.migrate):
        with pytest.raises(SchemaTooNew) as caught:
            await attempt()
        assert caught.value.found == 99
    assert await rows(admin, f"SELECT version FROM {schema}.schema_version") == [(99,)]


async def test_processes_that_open_an_empty_database_at_once_all_succeed(postgres: PostgresServer) -> None:
    schema = postgres.schema()
    opened = []

    async def one(number: int) -> None:
        async with PostgresEventLog(postgres.url, schema=schema) as log:
            opened.append(await log.create(NewRun(f"run-{number}"), lease=LEASE))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(one, number)
    assert len(opened) == 8


async def test_the_tables_carry_their_settings(postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]) -> None:
    schema = postgres.schema()
    await postgres.open(schema=schema).migrate()
    found = dict(
        await rows(
            admin,
            "SELECT relname, reloptions FROM pg_class WHERE relnamespace = %s::regnamespace AND reloptions IS NOT NULL",
            schema,
        )
    )
    assert "fillfactor=50" in found["run"]
    assert "autovacuum_vacuum_scale_factor=0.02" in found["chunk"]


async def test_appends_and_renewals_touch_no_index_of_the_run(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    schema = postgres.schema()
    async with postgres.open(schema=schema, connections=2) as log:
        await log.create(NewRun("run", session_id="s", user_id="u", idempotency_key="k"), lease=LEASE)
        for number in range(100):
            await log.append("run", 1, [event(f"{number}")])
            await log.renew([("run", 1)], lease=LEASE + number)

    async def counted() -> bool:
        ((updated, hot),) = await rows(
            admin,
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = %s AND relname = 'run'",
            schema,
        )
        if updated == 200:
            assert hot >= 190  # a page that is full is left for another one now and then
        return bool(updated == 200)

    await until(counted)


# -------------------------------------------------------------------- what a client may send


async def test_names_of_any_length_and_script_are_kept_and_found(postgres: PostgresServer) -> None:
    random = Random(1)
    long = "".join([chr(random.randrange(0x4E00, 0x9FFF)) for _ in range(5_000)])
    names = [long, long[:-1] + "x", "ünï — 🙂", "%s %b % ' \" \\ --", ""]
    async with postgres.open() as log:
        for number, name in enumerate(names):
            new = NewRun(f"run-{number}", session_id=name, user_id=name, component_id=name, idempotency_key=name)
            await log.create(new, lease=LEASE)
            with pytest.raises(Exception, match="already started"):
                await log.create(NewRun("other", user_id=name, idempotency_key=name), lease=LEASE)
        for number, name in enumerate(names):
            for found in (await log.list(session_id=name), await log.list(user_id=name, component_id=name)):
                assert [run.run_id for run in found] == [f"run-{number}"]
            assert (await log.get(f"run-{number}")).user_id == name


async def test_what_postgres_cannot_keep_is_refused_or_not_there(postgres: PostgresServer) -> None:
    async with postgres.open() as log:
        await log.create(NewRun("run"), lease=LEASE)
        with pytest.raises(ValueError, match="NUL"):
            await log.create(NewRun("nul", session_id="a\0b"), lease=LEASE)
        for name in ("a\0b", "\ud800"):
            for call in (
                log.get(name),
                log.read(name),
                log.claim(name, lease=LEASE),
                log.append(name, 1, [event("a")]),
            ):
                with pytest.raises(RunNotFound):
                    await call
            await log.delete(name)
            assert list(await log.renew([(name, 1), ("run", 1)], lease=LEASE)) == [name]
            assert list(await log.list(session_id=name)) == []
            await log.drop_intent(name)
            await log.wait(name, 0, timeout=1.0)


async def test_what_is_too_much_for_one_statement_goes_in_several(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agno_resumable.log.postgres_commit._STATEMENT_BYTES", 300_000)
    monkeypatch.setattr("agno_resumable.log.postgres_commit._STATEMENT_RUNS", 5)
    given = [event(f"{number}", pad=100_000) for number in range(4)]
    async with postgres.open() as log:
        for number in range(16):
            await log.create(NewRun(f"run-{number}"), lease=LEASE)
        async with anyio.create_task_group() as group:
            for number in range(16):
                for one in given:
                    group.start_soon(log.append, f"run-{number}", 1, [one])
        for number in range(16):
            assert await data_of(log, f"run-{number}") == [one.data for one in given]
        assert log.stats()["appends"] == 64


async def test_appends_that_come_together_are_one_commit_and_one_row_a_run(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    schema = postgres.schema()
    async with postgres.open(schema=schema) as log:
        for number in range(10):
            await log.create(NewRun(f"run-{number}"), lease=LEASE)
        before = log.stats()["commits"]
        async with anyio.create_task_group() as group:
            for label in "abcde":
                for number in range(10):
                    group.start_soon(log.append, f"run-{number}", 1, [event(label)])
        assert log.stats()["commits"] - before == 2  # the first that came, and all others
        for number in range(10):
            assert await data_of(log, f"run-{number}") == [event(label).data for label in "abcde"]
    ((count,),) = await rows(admin, f"SELECT count(*) FROM {schema}.chunk")
    assert count == 11


# -------------------------------------------------------------------- when the server misbehaves


async def pids(admin: psycopg.AsyncConnection[Any], name: str, query: str) -> list[int]:
    found = await rows(
        admin, "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s", name, query
    )
    return [pid for (pid,) in found]


async def terminate(admin: psycopg.AsyncConnection[Any], name: str, query: str = "%") -> int:
    """End the server processes of the log with this application name; return how many."""
    found = await pids(admin, name, query)
    for pid in found:
        await admin.execute("SELECT pg_terminate_backend(%s)", (pid,))

    async def ended() -> bool:
        return not set(found) & set(await pids(admin, name, query))

    await until(ended)
    return len(found)


@asynccontextmanager
async def locked(postgres: PostgresServer, schema: str, run_id: str) -> AsyncIterator[None]:
    """Hold the run's row, so that whoever writes to it stands still."""
    async with await psycopg.AsyncConnection.connect(postgres.url) as holder:
        await holder.execute(f"SELECT 1 FROM {schema}.run WHERE run_id = %s FOR UPDATE".encode(), (run_id,))
        yield
        await holder.rollback()


def as_application(postgres: PostgresServer, name: str) -> str:
    return f"{postgres.url}&application_name={name}"


async def test_connections_that_were_ended_while_idle_are_not_noticed(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    name = postgres.schema()
    async with PostgresEventLog(as_application(postgres, name), schema=name) as log:
        await log.create(NewRun("run"), lease=LEASE)
        for number in range(3):
            assert await terminate(admin, name) >= 2
            assert await log.append("run", 1, [event(f"{number}")]) == number + 1
            assert (await log.get("run")).next_index == number + 1
            assert len(await log.list()) == 1


async def test_when_the_listener_is_ended_readers_go_on_and_it_comes_back(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    name = postgres.schema()
    async with (
        PostgresEventLog(as_application(postgres, name), schema=name) as reader,
        PostgresEventLog(postgres.url, schema=name) as writer,
    ):
        await writer.create(NewRun("run"), lease=LEASE)
        seen: list[bytes] = []

        async def read() -> None:
            while len(seen) < 60:
                page = await reader.read("run", len(seen) - 1)
                seen.extend(one.data for one in page.events)
                if not page.events:
                    await reader.wait("run", page.run.version, timeout=LEASE)

        with anyio.fail_after(PATIENCE), caplog.at_level(logging.WARNING):
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                for number in range(60):
                    if number % 20 == 10:
                        await until(_listens(reader))
                        assert await terminate(admin, name, "LISTEN%") == 1
                    await writer.append("run", 1, [event(f"{number}")])
                    await anyio.sleep(0.005)
        assert seen == [event(f"{number}").data for number in range(60)]
        await until(_listens(reader))
        assert {record.message for record in caplog.records} == {
            "lost the connection that hears of changes; looking for them instead"
        }
        assert reader.stats()["listening"] == 1


def _listens(log: PostgresEventLog) -> Callable[[], Awaitable[bool]]:
    async def listens() -> bool:
        return log.is_listening

    return listens


async def test_a_process_that_tells_nothing_is_seen_all_the_same(postgres: PostgresServer) -> None:
    schema = postgres.schema()
    async with (
        PostgresEventLog(postgres.url, schema=schema) as reader,
        PostgresEventLog(postgres.url, schema=schema, listen=False) as silent,
    ):
        await silent.create(NewRun("run"), lease=LEASE)
        await until(_listens(reader))
        run = (await reader.read("run")).run
        for number in range(2):
            await silent.append("run", 1, [event(f"{number}")])
            with anyio.fail_after(PATIENCE):
                while run.next_index <= number:
                    await reader.wait("run", run.version, timeout=LEASE)
                    run = (await reader.read("run", limit=0)).run


async def test_the_outcome_of_an_append_whose_connection_is_cut_is_unknown_and_its_neighbours_go_on(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    name = postgres.schema()
    errors: list[LogUnavailable] = []
    async with PostgresEventLog(as_application(postgres, name), schema=name) as log:
        for run_id in ("run", "other"):
            await log.create(NewRun(run_id), lease=LEASE)

        async def append(run_id: str) -> None:
            try:
                await log.append(run_id, 1, [event("cut")])
            except LogUnavailable as error:
                errors.append(error)

        with anyio.fail_after(PATIENCE):
            async with locked(postgres, name, "run"), anyio.create_task_group() as group:
                group.start_soon(append, "run")

                async def stands() -> bool:
                    return bool(await rows(admin, "SELECT 1 FROM pg_locks WHERE NOT granted"))

                await until(stands)
                assert await terminate(admin, name, "%UPDATE%") == 1
                await until(lambda: _of(errors))
                assert await log.append("other", 1, [event("neighbour")]) == 1
        assert [error.outcome_unknown for error in errors] == [True]
        assert isinstance(errors[0].__cause__, psycopg.OperationalError)
        assert await log.append("run", 1, [event("after")]) in (1, 2)


async def _of(what: T) -> T:
    return what


async def test_a_server_that_stands_still_is_given_up(postgres: PostgresServer) -> None:
    schema = postgres.schema()
    async with postgres.open(schema=schema, timeout=0.3) as log:
        await log.create(NewRun("run"), lease=LEASE)
        began = time.monotonic()
        async with locked(postgres, schema, "run"):
            with pytest.raises(LogUnavailable) as caught:
                await log.append("run", 1, [event("late")])
        assert caught.value.outcome_unknown
        assert time.monotonic() - began < PATIENCE / 2
        # what stood still may go on now that it can, and be stored: that is why nobody knows
        assert await log.append("run", 1, [event("after")]) in (1, 2)


async def test_when_the_server_is_killed_and_started_readers_and_producers_go_on_and_nothing_is_lost() -> None:
    with contextmanager(serve)() as server:
        if server.pid is None:
            pytest.skip("the server that AGNO_RESUMABLE_POSTGRES names is not ours to kill")
        async with server.open() as log:
            await log.create(NewRun("run"), lease=LEASE)
            seen: list[bytes] = []
            wanted = 0
            ended = anyio.Event()

            async def write() -> None:
                nonlocal wanted
                while not ended.is_set():
                    try:
                        stored = await log.append("run", 1, [event(f"{wanted}")])
                    except LogUnavailable as error:
                        # the one that was under way: who knows its own index asks whether it was stored
                        stored = wanted if not error.outcome_unknown else await log.append("run", 1, [])
                    wanted = stored
                    await anyio.sleep(0.002)

            async def read() -> None:
                async for item in follow(log, "run"):
                    if isinstance(item, Batch):
                        seen.extend(one.data for one in item)

            with anyio.fail_after(PATIENCE * 2):
                async with anyio.create_task_group() as group:
                    group.start_soon(write)
                    group.start_soon(read)
                    for _ in range(3):
                        before = len(seen)
                        await until(partial(_longer, seen, before + 20))
                        await anyio.to_thread.run_sync(server.kill)
                        await anyio.to_thread.run_sync(server.start)
                        before = len(seen)
                        await until(partial(_longer, seen, before + 20))
                    await until(_listens(log))
                    ended.set()
                    await log.append("run", 1, [], status=RunStatus.COMPLETED)
            assert seen == [event(f"{number}").data for number in range(len(seen))]
            assert len(seen) == wanted


async def _longer(what: list[bytes], length: int) -> bool:
    return len(what) >= length


async def test_transactions_that_lock_each_other_out_are_done_again(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    schema = postgres.schema()
    await admin.execute("ALTER DATABASE postgres SET deadlock_timeout = '20ms'")
    try:
        async with postgres.open(schema=schema) as one, postgres.open(schema=schema) as two:
            names = [f"run-{number}" for number in range(12)]
            for name in names:
                await one.create(NewRun(name), lease=LEASE)

            async def crowd(log: PostgresEventLog, order: list[str]) -> None:
                for number in range(15):
                    async with anyio.create_task_group() as group:
                        for name in order:
                            group.start_soon(log.append, name, 1, [event(f"{number}")])

            with anyio.fail_after(PATIENCE * 2):
                async with anyio.create_task_group() as group:
                    group.start_soon(crowd, one, names)
                    group.start_soon(crowd, two, names[::-1])
            for name in names:
                assert (await one.get(name)).next_index == 30
    finally:
        await admin.execute("ALTER DATABASE postgres RESET deadlock_timeout")


async def test_a_cancelled_caller_costs_no_connection(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    name = postgres.schema()
    async with PostgresEventLog(as_application(postgres, name), schema=name, listen=False) as log:
        await log.create(NewRun("run"), lease=LEASE)
        before: set[int] = set()
        for turn in range(40):
            async with anyio.create_task_group() as group:
                group.start_soon(log.append, "run", 1, [event(f"{turn}")])
                group.start_soon(log.get, "run")
                group.start_soon(log.read, "run", 3)
                for _ in range(turn % 8):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            if turn == 20:
                before = set(await pids(admin, name, "%"))
        assert len(before) <= 4
        assert set(await pids(admin, name, "%")) <= before
        assert await log.append("run", 1, [event("last")]) == (await log.get("run")).next_index


def test_a_loop_that_cancels_every_task_at_its_end_costs_no_append(postgres: PostgresServer) -> None:
    """``asyncio.run`` does so where a server has no lifespan: a run has to have its end all the same."""
    stored: list[object] = []

    async def own(log: PostgresEventLog, ready: asyncio.Event) -> None:
        async with log:
            await log.create(NewRun("run"), lease=LEASE)
            try:
                while True:
                    await log.append("run", 1, [event("before")])
                    ready.set()
            except asyncio.CancelledError:
                before = await log.append("run", 1, [])
                stored.append(await log.append("run", 1, [event("after")], status=RunStatus.COMPLETED) - before)
                stored.append((await log.get("run")).status)

    async def leave_it() -> None:
        ready = asyncio.Event()
        tasks.append(asyncio.create_task(own(postgres.open(), ready)))
        await ready.wait()

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(leave_it())
    assert stored == [1, RunStatus.COMPLETED]


# -------------------------------------------------------------------- notifications


def test_names_are_packed_into_payloads_that_postgres_takes() -> None:
    names = [f"{number:051}" for number in range(500)]
    packed = payloads(names)
    assert all(len(payload.encode()) <= 7_999 for payload in packed)
    assert ",".join(packed).split(",") == names
    assert payloads(names * 3) == [EVERYTHING]
    assert payloads([]) == []
    assert payloads(["x"]) == ["x"]


async def test_many_runs_at_once_are_told_of_without_their_names(postgres: PostgresServer) -> None:
    schema = postgres.schema()
    async with postgres.open(schema=schema) as one, postgres.open(schema=schema) as two:
        names = [f"{number:050}" for number in range(1_000)]
        async with anyio.create_task_group() as group:
            for name in [*names, "watched"]:
                group.start_soon(partial(one.create, NewRun(name), lease=LEASE))
        run = (await two.read("watched")).run
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: two.wait("watched", run.version, timeout=LEASE))
                for name in [*names, "watched"]:
                    group.start_soon(one.append, name, 1, [event(name)])
        await until(lambda: _has_events(two, names[0]))


async def _has_events(log: EventLog, run_id: str) -> bool:
    return bool((await log.read(run_id)).events)


async def test_readers_of_another_processes_run_share_one_reading(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = postgres.schema()
    async with postgres.open(schema=schema) as writer, postgres.open(schema=schema) as reader:
        await writer.create(NewRun("run"), lease=LEASE)
        await until(_listens(reader))
        seen: list[list[object]] = [[] for _ in range(50)]

        async def read(mine: list[object]) -> None:
            after, version = -1, -1
            while after < 39:
                page = await reader.read("run", after)
                for batch in page.batches:
                    mine.append(batch)
                    after = batch.last
                version = page.run.version
                if not page.batches:
                    await reader.wait("run", version, timeout=LEASE)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for mine in seen:
                    group.start_soon(read, mine)
                for number in range(40):
                    await writer.append("run", 1, [event(f"{number}")])
                    await anyio.sleep(0.003)
        assert all(len(mine) >= 1 for mine in seen)
        for others in seen[1:]:
            assert {id(batch) for batch in others} == {id(batch) for batch in seen[0]}


# -------------------------------------------------------------------- processes


class Process:
    """A worker of ``tests.postgres_workers`` in a process of its own."""

    def __init__(self, what: str, *words: str) -> None:
        command = [sys.executable, "-m", "tests.postgres_workers", what, *words]
        self.popen = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def output(self) -> IO[str]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    async def line(self) -> str:
        """Its next line; it fails, instead of hanging, when the process has ended."""
        line = await anyio.to_thread.run_sync(self.output.readline)
        assert line, f"the worker ended with {self.popen.wait()}"
        return line.strip()

    async def rest(self, cue: str | None = None) -> list[str]:
        """Wait for its end and give all it still had to say."""
        said, _ = await anyio.to_thread.run_sync(lambda: self.popen.communicate(cue, timeout=120))
        assert self.popen.returncode == 0
        return str(said).splitlines()


async def test_processes_that_write_and_read_at_once_agree(postgres: PostgresServer) -> None:
    schema = postgres.schema()
    await postgres.open(schema=schema).migrate()
    workers = [Process("append", postgres.url, schema, f"worker-{number}", "25") for number in range(2)]
    for worker in workers:
        assert await worker.line() == "ready"
    async with postgres.open(schema=schema) as log:
        await log.create(NewRun("shared"), lease=LEASE)
        reader = Process("read", postgres.url, schema, "shared")
        assert await reader.line() == "ready"
        said: dict[str, list[str]] = {}

        async def work(number: int) -> None:
            said[f"worker-{number}"] = await workers[number].rest("go\n")

        async with anyio.create_task_group() as group:
            for number in range(len(workers)):
                group.start_soon(work, number)
        await log.append("shared", 1, [], status=RunStatus.COMPLETED)
        heard = await reader.rest()
        stored = await data_of(log, "shared")
        assert heard == [f"{index} {data.decode()}" for index, data in enumerate(stored)]
        assert len(stored) == len(set(stored)) == 2 * sum(number % 3 + 1 for number in range(25))
        for name, lines in said.items():
            for run_id, turn, next_index in map(str.split, lines):
                wanted = [event(f"{name}-{turn}-{part}").data for part in range(int(turn) % 3 + 1)]
                if run_id == "shared":
                    assert stored[int(next_index) - len(wanted) : int(next_index)] == wanted


# -------------------------------------------------------------------- plans


async def test_no_statement_goes_over_a_whole_table(
    postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]
) -> None:
    """With three thousand runs, of which sixty are active, and with the settings of any connection."""
    schema = postgres.schema()
    async with postgres.open(schema=schema) as log:
        sql: Any = log._session.sql
        await fill(admin, schema)
        plans = {}
        for name, parameters in PARAMETERS.items():
            statement = sql.list + LISTS[name] if name in LISTS else getattr(sql, name)
            plans[name] = await plan_of(admin, statement, parameters)
    # the row that holds the version of the intents is the only one of its table
    scans = {
        name: [line for line in plan if "Seq Scan" in line and " on intents" not in line]
        for name, plan in plans.items()
    }
    assert {name: found for name, found in scans.items() if found} == {}
    for name in ("list", "list_before"):  # a page of all runs is not sorted out of all runs
        assert not any("Sort" in line for line in plans[name]), plans[name]
    assert {name for name, value in vars(sql).items() if isinstance(value, str)} - plans.keys() == {
        *("create", "now", "intents_version")
    }
    assert any("run_held" in line for line in plans["expire"])
    assert any("chunk_pkey" in line for line in plans["read"])


LISTS = {
    "list": " ORDER BY created_at DESC, id DESC LIMIT %b",
    "list_before": " WHERE created_at < %b ORDER BY created_at DESC, id DESC LIMIT %b",
    "list_session": " WHERE left(session_id, 128) = left(%b, 128) AND session_id = %b "
    "ORDER BY created_at DESC, id DESC LIMIT %b",
    "list_owner": " WHERE left(user_id, 128) = left(%b, 128) AND user_id = %b "
    "ORDER BY created_at DESC, id DESC LIMIT %b",
}
_RUN = ["run-1", "run-2"]
PARAMETERS: dict[str, list[object]] = {
    "append": [5, 1, _RUN, [1, 1], [1, 1], [9, 9], ["", "ERROR"], [1, 2], [1, 1], [1, 1], [9, 9], [b"a", b"b"]],
    "append_transcripts": [
        *[5, 1, _RUN, [1, 1], [1, 1], [9, 9], ["", "ERROR"], [1, 2], [1, 1], [1, 1], [9, 9], [b"a", b"b"]],
        *[[2], [b"t"]],
    ],
    "append_one": [1, 9, 5, 1, "run-1", 1, 1, 9, b"a"],
    "fence": [_RUN, [1, 1], 5, 2],
    "states": [_RUN],
    "excess": [1, 1, 100],
    "taken": ["run-1", b"key", "run-1"],
    "get": ["run-1"],
    "payload": [1],
    "lock": ["run-1"],
    "claim": [2, 1.0, 1],
    "raise_floor": [1, 1, 1],
    "reopen": [1],
    "forget_transcript": [1],
    "renew": [1.0, _RUN, [1, 1]],
    "request_cancel": ["run-1"],
    "expire": [300.0, ["agent:writer"], 1.0],
    "drop_chunks": [1, 5],
    "trim": [1, 1, 1],
    "delete": ["run-1"],
    "prune": [5.0, 5.0, 32, 4_000_000],
    "delete_chunks": [[1, 2]],
    "delete_payloads": [[1, 2]],
    "read": [_RUN, [-1, 5], [100, 100], [262_144, 262_144]],
    "follow": [_RUN, [-1, 5], 16],
    "follow_one": [5, 16, "run-1"],
    "intend": ["run", 1.0],
    "drop_intent": ["run"],
    "sweep_intents": [],
    "intents": [100],
    "list": [100],
    "list_before": [5.0, 100],
    "list_session": ["s-1", "s-1", 100],
    "list_owner": ["u-1", "u-1", 100],
}


async def fill(admin: psycopg.AsyncConnection[Any], schema: str) -> None:
    await admin.execute(
        f"""
INSERT INTO {schema}.run (run_id, family, session_id, user_id, owner_key, status, created_at, updated_at, finished_at,
    lease_expires_at, held)
SELECT 'run-' || n, 'agent', 's-' || n / 10, 'u-' || n / 30, int8send(n), CASE WHEN n % 50 = 0 THEN 'RUNNING'
    ELSE 'COMPLETED' END, n, n, CASE WHEN n % 50 <> 0 THEN n END, CASE WHEN n % 50 = 0 THEN 1e12 END, n % 50 = 0
FROM generate_series(1, 3000) n;
INSERT INTO {schema}.payload SELECT n, 'in', 'meta', 'script' FROM generate_series(1, 3000) n;
INSERT INTO {schema}.chunk SELECT n, i, i, 9, 'events' FROM generate_series(1, 3000) n, generate_series(0, 9) i;
INSERT INTO {schema}.intent SELECT 'run-' || n, CASE WHEN n % 100 = 0 THEN 1e12 ELSE 1 END
FROM generate_series(1, 20000) n;
ANALYZE {schema}.run;
ANALYZE {schema}.payload;
ANALYZE {schema}.chunk;
ANALYZE {schema}.intent;
ANALYZE {schema}.intents;
""".encode()
    )


async def plan_of(admin: psycopg.AsyncConnection[Any], statement: str, parameters: list[object]) -> list[str]:
    return [line for (line,) in await rows(admin, f"EXPLAIN {statement}", *parameters)]


async def test_chunks_are_cut_for_pages(postgres: PostgresServer, admin: psycopg.AsyncConnection[Any]) -> None:
    schema = postgres.schema()
    given = [event(f"{number}", pad=number % 700) for number in range(3_000)]
    async with postgres.open(schema=schema) as log:
        await log.create(NewRun("run"), lease=LEASE)
        await log.append("run", 1, given)
    found = await rows(
        admin, f"SELECT first_index, last_index, size, octet_length(events) FROM {schema}.chunk ORDER BY last_index"
    )
    parts: list[EncodedEvent] = []
    for (first, last, size, _), part in zip(found, chunks(given, sum(len(one.data) for one in given)), strict=True):
        assert (first, last) == (len(parts), len(parts) + len(part) - 1)
        assert size == sum(len(one.data) for one in part)
        parts += part


async def test_all_parts_of_a_process_share_the_log_of_one_url(postgres: PostgresServer) -> None:
    async def nothing(input: str) -> AsyncIterator[str]:
        yield input

    url = f"{postgres.url}{'&' if '?' in postgres.url else '?'}schema={postgres.schema()}"
    one, two = ResumableStream(nothing, log=url), ResumableStream(nothing, log=url, component_id="two")
    async with one, two:
        assert await one.log() is await two.log()
        assert (await one.wait((await one.start("Go.")).run_id)).status is RunStatus.COMPLETED
