"""What every benchmark shares: figures with gates, alternating rounds, and server processes on loopback."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from benchmarks._client import get_json

__all__ = [
    "Figure",
    "Report",
    "Server",
    "alternate",
    "cpu_note",
    "cpu_per_event",
    "main",
    "median",
    "raise_descriptor_limit",
    "render",
    "running",
    "sqlite_url",
    "surroundings",
    "workspace",
]

ROOT = Path(__file__).resolve().parent.parent
median = statistics.median


@dataclass(frozen=True)
class Figure:
    """One measured number; ``gate`` is the bound that the project promises for it, if any."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def gate(self) -> str:
        """The bound in words: ``≥ 2 x``; empty where nothing is promised."""
        if self.at_least is not None:
            return f"≥ {self.at_least:,g} {self.unit}"
        return f"≤ {self.at_most:,g} {self.unit}" if self.at_most is not None else ""

    @property
    def passed(self) -> bool | None:
        """Whether the gate holds; ``None`` where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.value <= self.at_most if self.at_most is not None else None


@dataclass
class Report:
    """What one benchmark found."""

    benchmark: str
    about: str
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        note: str = "",
    ) -> None:
        """Add a figure."""
        self.figures.append(Figure(name, value, unit, at_least, at_most, note))

    def as_json(self) -> dict[str, Any]:
        """The report as JSON, each figure with its gate in words and whether it holds."""
        figures = [{**asdict(figure), "gate": figure.gate, "passed": figure.passed} for figure in self.figures]
        return {
            "benchmark": self.benchmark,
            "about": self.about,
            "seconds": round(self.seconds, 1),
            "figures": figures,
        }


def surroundings(directory: Path | None = None) -> dict[str, str]:
    """The machine and the versions, so that a reader can judge the figures."""
    found = {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "disk": _filesystem(directory or Path(tempfile.gettempdir())),
    }
    for package in ("agno", "starlette", "fastapi", "uvicorn", "uvloop", "httptools", "anyio", "orjson"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _filesystem(directory: Path) -> str:
    """The file system under ``directory``: a database in tmpfs would make FULL look cheap."""
    best, name = "", "unknown"
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if (f"{directory}/".startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
                best, name = mount, kind
    except OSError:
        pass
    return name


def render(reports: Sequence[Report]) -> str:
    """All figures as one table: what, how much, the gate, and whether it holds."""
    rows = [("figure", "value", "gate", "", "note")]
    for report in reports:
        rows.append((f"[{report.benchmark}] {report.about}", "", "", "", ""))
        for figure in report.figures:
            mark = {True: "pass", False: "MISS", None: ""}[figure.passed]
            rows.append(("  " + figure.name, f"{_short(figure.value)} {figure.unit}", figure.gate, mark, figure.note))
    widths = [max(len(row[column]) for row in rows if row[1]) for column in range(4)]
    lines = []
    for row in rows:
        if row[1]:
            name, value, gate, mark, note = row
            line = f"{name:<{widths[0]}}  {value:>{widths[1]}}  {gate:>{widths[2]}}  {mark:<{widths[3]}}  {note}"
            lines.append(line.rstrip())
        else:
            lines.append("\n" + row[0])
    return "\n".join(lines)


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def alternate(rounds: int, contenders: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Run every contender once per round, each round beginning with another one; a warm-up round is thrown away.

    What changes on a shared machine from minute to minute then hits all alike.
    """
    names = list(contenders)
    for name in names:
        contenders[name]()
    results: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            results[name].append(contenders[name]())
    return results


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory for databases, gone afterwards. ``TMPDIR`` decides which disk is measured."""
    with tempfile.TemporaryDirectory(prefix="agno-resumable-bench-") as directory:
        yield Path(directory)


def sqlite_url(directory: Path, name: str = "runs") -> str:
    """The URL of a database in ``directory``: SQLite as it is by default, with synchronous=FULL."""
    return f"sqlite:///{directory / name}.db"


class Server:
    """One app of ``benchmarks._apps`` under uvicorn in a process of its own, on a free port of the loopback.

    uvicorn runs with its defaults (uvloop and httptools where installed) but for the access log, on every side.
    """

    def __init__(self, app: str, **config: object) -> None:
        self.app = app
        self.config = config
        self.port = 0

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        with listener:
            self.port = int(listener.getsockname()[1])
            command = [sys.executable, "-m", "benchmarks._apps", self.app, json.dumps(self.config)]
            environment = {**os.environ, "AGNO_TELEMETRY": "false"}
            self._process = subprocess.Popen(
                [*command, "--fd", str(listener.fileno())], pass_fds=[listener.fileno()], cwd=ROOT, env=environment
            )
        try:
            self.stats()  # waits in the backlog until the app is up
        except OSError as error:
            self.__exit__(None, None, None)
            raise RuntimeError(f"the server {self.app!r} did not start") from error
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._process.kill()  # a stop signal would give unfinished runs their grace, which nobody here waits for
        self._process.wait()

    def stats(self) -> Mapping[str, int]:
        """``cpu_ns``: CPU time of all threads of the process so far; ``rss``: resident bytes now."""
        found: Mapping[str, int] = get_json(self.port, "/_bench/stats", timeout=60)
        return found

    @property
    def cpu_ns(self) -> int:
        """CPU time of the server process so far, in nanoseconds."""
        return self.stats()["cpu_ns"]

    @property
    def rss(self) -> int:
        """Resident memory of the server process now, in bytes."""
        return self.stats()["rss"]


def raise_descriptor_limit() -> None:
    """As many descriptors as a thousand readers need, where the system allows; servers started later inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def cpu_per_event(server: Server, events: int, work: Callable[[], float]) -> tuple[float, float]:
    """Do ``work``, which returns seconds; return (events per second, CPU µs of the server per event).

    A moment passes before the CPU time is read again, so that what a side leaves for after the response counts too.
    """
    before = server.cpu_ns
    seconds = work()
    time.sleep(0.05)
    return events / seconds, (server.cpu_ns - before) / events / 1000


def cpu_note(rate: float, cpu: float) -> str:
    """CPU µs per event, and how much of a core the server got: well under 100 % means that others were at work."""
    return f"server CPU {cpu:.{1 if cpu < 20 else 0}f} µs per event, {rate * cpu / 1e4:.0f} % of a core"


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Start several servers, end them in the reverse order."""
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        yield


def main(run: Callable[[bool], Report], arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark from the command line: ``--quick`` for a shorter one, ``--json FILE`` for the figures."""
    parser = argparse.ArgumentParser(description=(sys.modules[run.__module__].__doc__ or "").strip())
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seconds instead of a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON as well")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    report = run(options.quick)
    report.seconds = time.perf_counter() - start
    print(render([report]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
