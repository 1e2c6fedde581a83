"""The stores of the fault tests: where the workers find the log, and what can be done to whoever keeps it."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from agno_resumable.log.protocol import EventLog

from ...postgres_server import PostgresServer
from ...redis_server import RedisServer
from .worker import make_log

_SEGMENT = 16_777_216  # a file of PostgreSQL's write-ahead log

__all__ = ["Backend", "MemoryBackend", "PostgresBackend", "RedisBackend", "SQLiteBackend", "ServerBackend"]


class Backend(Protocol):
    """A store.

    Attributes:
        kind: ``"memory"``, ``"sqlite"``, ``"postgres"`` or ``"redis"``.
    """

    kind: str

    def spec(self, port: int | None = None, timeout: float = 30.0) -> dict[str, Any]:
        """What a worker has to know to open the log.

        Args:
            port: Of a proxy between them.
            timeout: How long, in seconds, a server may take to answer.
        """
        ...

    def open(self) -> EventLog:
        """The log as somebody opens it who has seen nothing yet."""
        ...


class ServerBackend(Backend, Protocol):
    """A store that is a server. All of this blocks, and is called in a thread."""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection for a proxy."""
        ...

    def kill(self) -> None:
        """SIGKILL to all of it."""
        ...

    def terminate(self) -> None:
        """Have it end in order, also while clients are connected."""
        ...

    def start(self) -> None:
        """Start it again; return when it answers."""
        ...

    def pause(self) -> None:
        """SIGSTOP to all of it."""
        ...

    def resume(self) -> None:
        """SIGCONT to all of it."""
        ...

    def cut_listeners(self) -> int:
        """End the connections on which logs hear of changes; return how many there were."""
        ...

    def fill_disk(self, room: int) -> None:
        """Let it write so many bytes more and then fail, as on a full disk."""
        ...

    def free_disk(self) -> None:
        """There is room again: have it answer, whether it has survived that or not."""
        ...


class MemoryBackend:
    """The log of one process."""

    kind = "memory"

    def __init__(self, log: EventLog) -> None:
        self.log = log

    def spec(self, port: int | None = None, timeout: float = 30.0) -> dict[str, Any]:
        raise AssertionError("nobody else can open it")

    def open(self) -> EventLog:
        return self.log


class SQLiteBackend:
    """A file."""

    kind = "sqlite"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "runs.db"

    @property
    def journal(self) -> str:
        """The file that grows with each commit."""
        return f"{self.path}-wal"

    def spec(self, port: int | None = None, timeout: float = 30.0) -> dict[str, Any]:
        return {"kind": self.kind, "where": str(self.path), "options": {}}

    def open(self) -> EventLog:
        return make_log(**self.spec())

    def is_locked(self) -> bool:
        """Whether somebody is in the middle of a transaction. One that is stopped there keeps everybody waiting."""
        with closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            db.execute("ROLLBACK")
            return False


class PostgresBackend:
    """A schema of a server that is this test's own, and may be killed."""

    kind = "postgres"

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.schema = server.schema()

    def spec(self, port: int | None = None, timeout: float = 30.0) -> dict[str, Any]:
        where = self.server.url
        if port is not None:
            where = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"
        return {"kind": self.kind, "where": where, "options": {"schema": self.schema, "timeout": timeout}}

    def open(self) -> EventLog:
        return make_log(**self.spec())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        known = conninfo_to_dict(self.server.url)
        return await asyncio.open_unix_connection(f"{known['host']}/.s.PGSQL.{known.get('port', 5432)}")

    def _processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.server.pid)
        return [first, *first.children(recursive=True)]

    def kill(self) -> None:
        self.server.kill()

    def terminate(self) -> None:
        first = psutil.Process(self.server.pid)
        first.send_signal(signal.SIGINT)  # a fast shutdown
        psutil.wait_procs([first], timeout=60)

    def start(self) -> None:
        for _ in range(5):
            # What starts it has ten seconds' patience; a loaded machine may take longer for the recovery
            with suppress(subprocess.SubprocessError):
                self.server.start()
                return
        raise RuntimeError("PostgreSQL does not start")

    def pause(self) -> None:
        psutil.Process(self.server.pid).suspend()  # first, so that it makes no more
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in reversed(self._processes()):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _ask(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.server.url, autocommit=True) as db:
            return db.execute(statement.encode()).fetchall()

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold a lock like that of ``CREATE INDEX``: the log's tables can be read, and not written."""
        async with await psycopg.AsyncConnection.connect(self.server.url) as db:
            await db.execute(f'LOCK TABLE "{self.schema}".run IN SHARE MODE'.encode())
            yield
            await db.rollback()

    def waiting(self) -> int:
        """How many connections wait for a lock."""
        ((count,),) = self._ask("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return int(count)

    def cut_listeners(self) -> int:
        listening = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN %'"
        return len(self._ask(listening))

    def fill_disk(self, room: int) -> None:
        # Where the disk is full for the write-ahead log, the whole server goes down
        ((offset,),) = self._ask("SELECT file_offset FROM pg_walfile_name_offset(pg_current_wal_insert_lsn())")
        for (pid,) in self._ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'agno-resumable'"):
            _limit(pid, min(offset + room, _SEGMENT - 8192))

    def free_disk(self) -> None:
        for process in self._processes()[1:]:
            _limit(process.pid, None)


class RedisBackend:
    """A server that is this test's own, and may be killed."""

    kind = "redis"

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    def spec(self, port: int | None = None, timeout: float = 30.0) -> dict[str, Any]:
        where = f"redis://127.0.0.1:{port or self.server.port}/0"
        return {"kind": self.kind, "where": where, "options": {"timeout": timeout}}

    def open(self) -> EventLog:
        return make_log(**self.spec())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    def kill(self) -> None:
        self.server.kill()

    def terminate(self) -> None:
        process = psutil.Process(self.server.pid)
        process.terminate()
        psutil.wait_procs([process], timeout=60)
        self.server.kill()  # it is gone; the handle does not know yet

    def start(self) -> None:
        port = self.server.port
        self.server.start()
        assert self.server.port == port, "somebody else has taken the server's port"

    def pause(self) -> None:
        psutil.Process(self.server.pid).suspend()

    def resume(self) -> None:
        psutil.Process(self.server.pid).resume()

    def cut_listeners(self) -> int:
        clients = [dict(part.partition("=")[::2] for part in line.split()) for line in self._clients()]
        blocked = [client["id"] for client in clients if client.get("cmd") == "xread"]
        for number in blocked:
            self.server.command("CLIENT", "KILL", "ID", number)
        return len(blocked)

    def _clients(self) -> list[str]:
        return self.server.ask("CLIENT", "LIST").decode().splitlines()

    def fill_disk(self, room: int) -> None:
        _, directory = self.server.words("CONFIG", "GET", "dir")
        size = max(file.stat().st_size for file in Path(directory.decode()).rglob("*.aof*"))
        _limit(self.server.pid, size + room)

    def free_disk(self) -> None:
        # It ends itself rather than acknowledge what it cannot write
        with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired, psutil.NoSuchProcess):
            psutil.Process(self.server.pid).wait(timeout=60)
        self.server.kill()
        self.start()


def _limit(pid: int, size: int | None) -> None:
    """Let no file of a process grow beyond a size."""
    with suppress(psutil.NoSuchProcess):
        owner = psutil.Process(pid).uids().real
        # Only its own user may do that to a process, and PostgreSQL does not run as root
        command = ["prlimit", "--pid", str(pid), f"--fsize={'unlimited' if size is None else size}:"]
        done = subprocess.run(command, user=owner, capture_output=True, text=True)
        if done.returncode and psutil.pid_exists(pid):
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
