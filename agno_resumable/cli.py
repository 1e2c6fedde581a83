"""The command line: look into a log from outside, and serve the demo."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from .demo import DEFAULT_LOG, DEFAULT_PORT
from .errors import ResumableError, RunNotFound, UnsupportedLogURL
from .model import Event, Run, RunStatus

if TYPE_CHECKING:
    from .log.protocol import EventLog

__all__ = ["main"]


class CommandError(Exception):
    """What the user can put right; shown as one line, without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "demo":
            return _demo(arguments)
        if arguments.command == "migrate":
            return _migrate(arguments)
        return _in_log(arguments)
    except UnsupportedLogURL as error:
        return _complain(error, status=2)
    except (CommandError, ResumableError) as error:
        return _complain(error)
    except BrokenPipeError:
        # whoever read the output has enough; nothing may be flushed into the pipe at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _complain(error: Exception, *, status: int = 1) -> int:
    print(f"agno-resumable: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agno-resumable", description="Agno runs that outlive their connection.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    log = argparse.ArgumentParser(add_help=False)
    log.add_argument(
        "--log",
        metavar="URL",
        default=os.environ.get("AGNO_RESUMABLE_LOG", DEFAULT_LOG),
        help="the event log, such as sqlite:////srv/runs.db (default: %(default)s; AGNO_RESUMABLE_LOG sets it)",
    )

    demo = commands.add_parser("demo", parents=[log], help="serve a page whose streams survive what you do to them")
    demo.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="the next free one is taken (default: %(default)s)"
    )
    demo.add_argument(
        "--model",
        metavar="PROVIDER:ID",
        help="a real model instead of the offline script, by agno's name for it, such as openai:gpt-4o-mini",
    )
    demo.add_argument(
        "--delay", type=float, default=0.1, help="seconds between the script's words (default: %(default)s)"
    )
    demo.add_argument("--no-browser", action="store_true", help="do not open the page")

    runs = commands.add_parser("runs", parents=[log], help="list the runs of a log, newest first")
    runs.add_argument("--session", metavar="ID", help="only the runs of this session")
    runs.add_argument("--status", type=_status, metavar="STATUS", help="only runs that are: " + _statuses())
    runs.add_argument("--limit", type=int, default=20, help="how many at most (default: %(default)s)")

    tail = commands.add_parser("tail", parents=[log], help="print a run's events as they come, until it ends")
    tail.add_argument("run_id", metavar="RUN_ID")
    tail.add_argument("--after", type=int, default=-1, metavar="INDEX", help="only events behind this index")
    tail.add_argument("--frames", action="store_true", help="SSE frames, as they are sent, instead of lines of JSON")

    prune = commands.add_parser("prune", parents=[log], help="delete finished runs")
    prune.add_argument(
        "--older-than",
        type=_duration,
        default=timedelta(hours=24),
        metavar="TIME",
        help="only runs that finished so long ago: 90s, 30m, 24h or 7d (default: 24h)",
    )

    migrate = commands.add_parser(
        "migrate", parents=[log], help="make the tables of a PostgreSQL log, or bring them up to date"
    )
    migrate.add_argument("--sql", action="store_true", help="print the SQL for an empty database, and do nothing")
    migrate.add_argument("--grant", metavar="ROLE", help="a role that shall use the log without owning its tables")
    return parser


def _statuses() -> str:
    return ", ".join([status.value.lower() for status in RunStatus])


def _status(text: str) -> RunStatus:
    try:
        return RunStatus(text.upper())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no status; there are {_statuses()}") from None


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 30m, 24h or 7d")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: float(match[1])})


# -------------------------------------------------------------------- commands on a log


def _in_log(arguments: argparse.Namespace) -> int:
    import asyncio

    import anyio

    log = _existing_log(arguments.log)
    if arguments.command == "runs":
        command = partial(_runs, log, arguments.session, arguments.status, arguments.limit)
    elif arguments.command == "tail":
        command = partial(_tail, log, arguments.run_id, arguments.after, arguments.frames)
    else:
        command = partial(_prune, log, arguments.older_than)
    try:
        anyio.run(command)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # on Python 3.10 this is what becomes of Ctrl-C
    return 0


def _existing_log(url: str) -> EventLog:
    """The log that somebody else has made: looking for runs in the wrong place must not create an empty file."""
    from .log.memory import MemoryEventLog
    from .log.open import open_log
    from .log.postgres import PostgresEventLog
    from .log.sqlite import SQLiteEventLog

    log = open_log(url)
    if isinstance(log, PostgresEventLog):
        return PostgresEventLog(url, create=False)
    if isinstance(log, MemoryEventLog):
        raise CommandError("A log in memory can be seen only by the process that holds it.")
    if isinstance(log, SQLiteEventLog) and not os.path.exists(log.path):
        raise CommandError(f"There is no log at {log.path!r}: name the one to look into with --log.")
    return log


async def _runs(log: EventLog, session_id: str | None, status: RunStatus | None, limit: int) -> None:
    async with log:
        runs = await log.list(session_id=session_id, status=status, limit=limit)
        now = await log.now()
    header = ("RUN", "STATUS", "FAMILY", "COMPONENT", "SESSION", "EVENTS", "CREATED", "TOOK")
    rows = [header, *[_row(run, now) for run in runs]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]).rstrip())


def _row(run: Run, now: float) -> tuple[str, ...]:
    took = (run.finished_at if run.finished_at is not None else now) - run.created_at
    return (
        run.run_id,
        run.status.value,
        run.family.value,
        _printable(run.component_id),
        _printable(run.session_id),
        # what retention has trimmed is not there any more, though its indices are taken
        str(run.next_index - run.first_index),
        datetime.fromtimestamp(run.created_at).strftime("%Y-%m-%d %H:%M:%S"),
        f"{took:.1f} s" if run.status.finished else f"{took:.0f} s so far",
    )


def _printable(text: str | None) -> str:
    """A session id is whatever a client sent: its control characters are not for this terminal."""
    if text is None:
        return "-"
    return "".join([char if char.isprintable() else "?" for char in text])


async def _tail(log: EventLog, run_id: str, after: int, frames: bool) -> None:
    from .model import Batch
    from .reader import End, Gap, Paused, follow

    async with log:
        try:
            async for item in follow(log, run_id, after):
                if isinstance(item, Batch):
                    sys.stdout.buffer.write(item.frames if frames else b"".join(map(_line, item)))
                    sys.stdout.buffer.flush()
                elif isinstance(item, Gap):
                    _remark(f"gap: {item.missed} events from index {item.requested} on are not there ({item.reason})")
                elif isinstance(item, Paused):
                    _remark(f"paused after index {item.run.last_index}; waiting for it to go on")
                elif isinstance(item, End):
                    _remark(f"{item.run.status.value} after index {item.run.last_index}")
        except RunNotFound as error:
            raise CommandError(f"{error} 'agno-resumable runs' lists those that are there.") from error


def _line(event: Event) -> bytes:
    return b'%b,"event_index":%d}\n' % (event.data[:-1], event.index)


def _remark(text: str) -> None:
    """Say what is no event beside the output, so that the output stays one event a line."""
    print(text, file=sys.stderr, flush=True)


async def _prune(log: EventLog, older_than: timedelta) -> None:
    async with log:
        pruned = await log.prune(finished_before=await log.now() - older_than.total_seconds())
    print(f"{pruned} {'run' if pruned == 1 else 'runs'} deleted.")


def _migrate(arguments: argparse.Namespace) -> int:
    import anyio

    from .log.open import open_log
    from .log.postgres import PostgresEventLog

    log = open_log(arguments.log)
    if not isinstance(log, PostgresEventLog):
        raise CommandError("Only a PostgreSQL log is migrated: any other makes what it needs when it is opened.")
    if arguments.sql:
        print(log.migration(grant=arguments.grant), end="")
        return 0
    before, after = anyio.run(partial(log.migrate, grant=arguments.grant))
    print(f"The tables were at version {before}, and are at version {after} now.")
    return 0


# -------------------------------------------------------------------- the demo


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from .demo.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("agno_resumable"):
            raise
        raise CommandError(f"The demo needs more packages ({error}): pip install 'agno-resumable[demo]'") from error
    import anyio

    if arguments.model is not None:
        _check_model(arguments.model)
    durability = anyio.run(_durability, arguments.log)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how one ends it
        serve(
            log=arguments.log,
            durability=durability,
            port=arguments.port,
            model=arguments.model,
            delay=arguments.delay,
            browser=not arguments.no_browser,
            command=_same_command(arguments),
        )
    return 0


def _check_model(name: str) -> None:
    from agno.models.utils import get_model

    try:
        get_model(name)
    except (ImportError, ValueError) as error:  # the provider's package is missing; the name is not agno's
        raise CommandError(f"The model {name!r} cannot be used: {error}") from error


async def _durability(url: str) -> str:
    """Open the log once before anything is served, so that what is wrong with it is said here."""
    from .log.open import open_log

    async with open_log(url) as log:
        return log.durability.value


def _same_command(arguments: argparse.Namespace) -> list[str]:
    """The command that starts this demo again but for its port, without what is the default."""
    words = [*_program(), "demo"]
    if arguments.log != DEFAULT_LOG:
        words += ["--log", arguments.log]
    if arguments.model is not None:
        words += ["--model", arguments.model]
    return words


def _program() -> list[str]:
    """This program as it can be typed here: the name alone does not do in a virtual environment that is not active."""
    if os.path.basename(sys.argv[0]) == "__main__.py":
        return [sys.executable, "-m", "agno_resumable"]
    if not os.path.exists(sys.argv[0]):  # Windows leaves the extension away
        return ["agno-resumable"]
    found = shutil.which("agno-resumable")
    if found is not None and os.path.samefile(found, sys.argv[0]):
        return ["agno-resumable"]
    nearby = os.path.relpath(sys.argv[0])
    return [sys.argv[0] if nearby.startswith(os.pardir) else nearby]
