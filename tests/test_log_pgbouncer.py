"""The PostgreSQL log through PgBouncer, where one is installed, in both of its modes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from agno_resumable.testing import Check, event_log_checks

from .postgres_server import PostgresServer, PostgresStore

pytestmark = pytest.mark.anyio

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
PATIENCE = 20.0

# Fewer than the connections that two openings of a log have, so that in transaction mode they do share these
CONFIGURATION = """
[databases]
* = host={server}

[pgbouncer]
pool_mode = {mode}
listen_addr =
unix_socket_dir = {directory}
unix_socket_mode = 0777
listen_port = 6432
auth_type = trust
auth_file = {directory}/users
logfile = {directory}/log
default_pool_size = {size}
max_db_connections = {size}
server_idle_timeout = 5
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def pgbouncer(postgres: PostgresServer, mode: str, size: int) -> Iterator[PostgresServer]:
    """A PgBouncer in front of ``postgres``, which the tests take for the server itself."""
    if PGBOUNCER is None:
        pytest.skip("no PgBouncer: there is no pgbouncer on the path")
    if postgres.pid is None:
        pytest.skip("PgBouncer is tried in front of the session's own PostgreSQL only")
    known = conninfo_to_dict(postgres.url)
    owner = psutil.Process(postgres.pid).username()  # it does not run as root, nor do strangers reach the socket
    directory = Path(tempfile.mkdtemp(prefix="agru-pgb-"))
    try:
        (directory / "users").write_text(f'"{known["user"]}" ""\n')
        ini = directory / "pgbouncer.ini"
        ini.write_text(CONFIGURATION.format(server=known["host"], mode=mode, directory=directory, size=size))
        if owner == psutil.Process().username():
            process = subprocess.Popen([PGBOUNCER, "-q", ini])
        else:
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, owner)
            process = subprocess.Popen([PGBOUNCER, "-q", ini], user=owner)
        try:
            url = f"postgresql://{known['user']}@/{known['dbname']}?host={directory}&port=6432"
            _wait_for(url)
            yield PostgresServer(url)
        finally:
            process.terminate()
            process.wait(PATIENCE)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with psycopg.connect(url, autocommit=True) as db:
                db.execute("SELECT 1", prepare=False)
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.fixture(scope="module")
def by_transaction(postgres: PostgresServer) -> Iterator[PostgresServer]:
    with pgbouncer(postgres, "transaction", size=3) as server:
        yield server


@pytest.fixture(scope="module")
def by_session(postgres: PostgresServer) -> Iterator[PostgresServer]:
    with pgbouncer(postgres, "session", size=60) as server:
        yield server


def named(check: Check) -> str:
    return check.name


@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_postgres_log_by_transactions_keeps(check: Check, by_transaction: PostgresServer) -> None:
    store = PostgresStore(by_transaction, listen=False, prepare=False)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


@pytest.mark.parametrize("check", [check for check in event_log_checks() if check.needs == "reopen"], ids=named)
async def test_postgres_log_by_sessions_keeps(check: Check, by_session: PostgresServer) -> None:
    store = PostgresStore(by_session)
    await check.run(store.open, reopen=store.reopen, limited=store.open)
