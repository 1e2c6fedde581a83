"""The command line, run as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import anyio
import anyio.from_thread
import pytest

from agno_resumable.log.sqlite import SQLiteEventLog
from agno_resumable.model import Batch, EncodedEvent, NewRun, RunStatus

pytestmark = pytest.mark.anyio

PATIENCE = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the processes started here choose their own


def events(*contents: str) -> list[EncodedEvent]:
    return [
        EncodedEvent("RunContent", json.dumps({"event": "RunContent", "content": text}).encode()) for text in contents
    ]


class Log:
    """A file that the command line is pointed to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    async def add(
        self, run_id: str, *contents: str, status: RunStatus | None = None, session_id: str | None = None
    ) -> None:
        async with SQLiteEventLog(self.path) as log:
            await log.create(NewRun(run_id, component_id="pilot", session_id=session_id), lease=60)
            await log.append(run_id, 1, events(*contents), status=status)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command(*arguments, "--log", self.url)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "runs.db")


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "agno_resumable", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        cwd=cwd,
        env=environment(),
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def environment() -> dict[str, str]:
    root = Path(__file__).parent.parent
    kept = {name: value for name, value in os.environ.items() if name != "AGNO_RESUMABLE_LOG"}
    return {**kept, "PYTHONPATH": str(root), "PYTHONUTF8": "1", "COLUMNS": "200"}


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "agno_resumable", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment(),
    )
    try:
        with process:
            yield process
    finally:
        process.kill()


async def line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    with anyio.fail_after(PATIENCE):
        return await anyio.to_thread.run_sync(stream.readline)


# -------------------------------------------------------------------- help and usage


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["runs", "--help"], ["tail", "--help"], ["prune", "--help"]]
)
def test_every_command_explains_itself(arguments: Sequence[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: agno-resumable")


def test_without_a_command_the_usage_is_shown_and_the_status_is_2() -> None:
    done = command()
    assert done.returncode == 2
    assert "usage: agno-resumable" in done.stderr


# -------------------------------------------------------------------- runs


async def test_runs_lists_the_newest_first_with_status_component_and_number_of_events(log: Log) -> None:
    await log.add("first", "a", "b", status=RunStatus.COMPLETED)
    await log.add("second", "c", session_id="s-2")
    done = log.command("runs")
    assert done.returncode == 0
    header, second, first = done.stdout.splitlines()
    assert header.split()[:6] == ["RUN", "STATUS", "FAMILY", "COMPONENT", "SESSION", "EVENTS"]
    assert second.split()[:6] == ["second", "RUNNING", "agent", "pilot", "s-2", "1"]
    assert first.split()[:6] == ["first", "COMPLETED", "agent", "pilot", "-", "2"]


async def test_runs_can_be_narrowed_to_a_session_a_status_and_a_number(log: Log) -> None:
    await log.add("a", session_id="one")
    await log.add("b", session_id="two", status=RunStatus.ERROR)
    await log.add("c", session_id="two")

    def listed(*arguments: str) -> list[str]:
        return [line.split()[0] for line in log.command("runs", *arguments).stdout.splitlines()[1:]]

    assert listed("--session", "two") == ["c", "b"]
    assert listed("--status", "error") == ["b"]
    assert listed("--limit", "1") == ["c"]


async def test_control_characters_that_a_client_put_into_a_session_id_do_not_reach_the_terminal(log: Log) -> None:
    await log.add("a", session_id="\x1b[31mred\r\n")
    assert "?[31mred??" in log.command("runs").stdout


def test_an_unknown_status_is_wrong_usage_and_the_message_names_those_there_are(log: Log) -> None:
    done = log.command("runs", "--status", "sleeping")
    assert done.returncode == 2
    assert "pending, running, paused, completed, error, cancelled" in done.stderr


def test_looking_into_a_log_that_is_not_there_says_so_and_makes_no_file(log: Log) -> None:
    for arguments in (["runs"], ["tail", "x"], ["prune"]):
        done = log.command(*arguments)
        assert done.returncode == 1
        assert str(log.path) in done.stderr
    assert not log.path.exists()


def test_without_a_log_given_the_one_of_the_demo_in_this_directory_is_looked_for(tmp_path: Path) -> None:
    done = command("runs", cwd=tmp_path)
    assert done.returncode == 1
    assert "demo-runs.db" in done.stderr


@pytest.mark.parametrize("url", ["runs.db", "mysql://x/y", "sqlite://runs.db"])
def test_a_url_that_names_no_log_is_wrong_usage(url: str) -> None:
    done = command("runs", "--log", url)
    assert done.returncode == 2
    assert "sqlite:///" in done.stderr


def test_a_log_in_memory_cannot_be_looked_into_from_outside() -> None:
    done = command("runs", "--log", "memory:")
    assert done.returncode == 1
    assert "only by the process that holds it" in done.stderr


def test_a_file_that_is_no_log_is_refused_and_left_as_it_was(log: Log) -> None:
    log.path.write_text("This is a shopping list, and not a short one either.\n" * 30, encoding="utf-8")
    before = log.path.read_bytes()
    done = log.command("runs")
    assert done.returncode == 1
    assert str(log.path) in done.stderr
    assert log.path.read_bytes() == before


# -------------------------------------------------------------------- tail


async def test_tail_prints_a_finished_run_as_one_line_of_json_an_event_and_ends(log: Log) -> None:
    await log.add("r", "ein", "zwei ü", "drei", status=RunStatus.COMPLETED)
    done = log.command("tail", "r")
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"event": "RunContent", "content": text, "event_index": index}
        for index, text in enumerate(["ein", "zwei ü", "drei"])
    ]
    assert done.stderr == "COMPLETED after index 2\n"


async def test_tail_after_an_index_prints_only_what_comes_behind_it(log: Log) -> None:
    await log.add("r", "a", "b", "c", status=RunStatus.CANCELLED)
    done = log.command("tail", "r", "--after", "1")
    assert [json.loads(line)["event_index"] for line in done.stdout.splitlines()] == [2]
    assert done.stderr == "CANCELLED after index 2\n"


async def test_tail_can_print_the_very_frames_that_readers_get(log: Log) -> None:
    await log.add("r", "a", "b", status=RunStatus.COMPLETED)
    assert log.command("tail", "r", "--frames").stdout == Batch("r", 0, events("a", "b")).frames.decode()


async def test_tail_stays_with_a_run_that_goes_on_in_another_process_until_it_ends(log: Log) -> None:
    async with SQLiteEventLog(log.path) as writer:
        await writer.create(NewRun("r"), lease=60)
        await writer.append("r", 1, events("first"))
        with running("tail", "r", "--log", log.url) as tail:
            assert json.loads(await line_of(tail.stdout))["content"] == "first"
            await writer.append("r", 1, events("second"))
            assert json.loads(await line_of(tail.stdout))["content"] == "second"
            await writer.append("r", 1, [], status=RunStatus.PAUSED)
            assert await line_of(tail.stderr) == "paused after index 1; waiting for it to go on\n"
            leg = await writer.claim("r", lease=60)
            await writer.append("r", leg.generation, events("third"), status=RunStatus.COMPLETED)
            assert json.loads(await line_of(tail.stdout))["content"] == "third"
            assert await line_of(tail.stderr) == "COMPLETED after index 2\n"
            assert await anyio.to_thread.run_sync(tail.wait) == 0


async def test_tail_tells_which_events_retention_has_taken(log: Log) -> None:
    await log.add("r", "a", "b", "c", status=RunStatus.COMPLETED)
    async with SQLiteEventLog(log.path) as writer:
        await writer.trim("r", before=2)
    done = log.command("tail", "r")
    assert [json.loads(line)["event_index"] for line in done.stdout.splitlines()] == [2]
    assert done.stderr.splitlines()[0] == "gap: 2 events from index 0 on are not there (trimmed)"


async def test_tail_of_an_unknown_run_fails_and_says_how_to_find_the_known_ones(log: Log) -> None:
    await log.add("r", "a")
    done = log.command("tail", "other")
    assert done.returncode == 1
    assert "'other'" in done.stderr
    assert "agno-resumable runs" in done.stderr


async def test_tail_ends_quietly_when_nobody_reads_its_output_any_more(log: Log) -> None:
    await log.add("r", *["x" * 1000] * 2000, status=RunStatus.COMPLETED)  # far more than a pipe holds
    with running("tail", "r", "--log", log.url) as tail:
        await line_of(tail.stdout)
        assert tail.stdout is not None
        tail.stdout.close()
        assert tail.stderr is not None
        assert await anyio.to_thread.run_sync(tail.stderr.read) == ""
        assert await anyio.to_thread.run_sync(tail.wait) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child")
async def test_ctrl_c_ends_tail_without_a_traceback(log: Log) -> None:
    await log.add("r", "a")
    with running("tail", "r", "--log", log.url) as tail:
        await line_of(tail.stdout)
        tail.send_signal(signal.SIGINT)
        assert tail.stderr is not None
        assert await anyio.to_thread.run_sync(tail.stderr.read) == ""
        assert await anyio.to_thread.run_sync(tail.wait) == 130


# -------------------------------------------------------------------- prune


async def test_prune_deletes_finished_runs_of_the_given_age_and_no_others(log: Log) -> None:
    await log.add("finished", "a", status=RunStatus.COMPLETED)
    await log.add("running", "b")
    assert log.command("prune").stdout == "0 runs deleted.\n"
    assert log.command("prune", "--older-than", "1.5h").stdout == "0 runs deleted.\n"
    assert log.command("prune", "--older-than", "0s").stdout == "1 run deleted.\n"
    async with SQLiteEventLog(log.path) as reader:
        assert [run.run_id for run in await reader.list()] == ["running"]


@pytest.mark.parametrize("age", ["yesterday", "24", "-1h", "h"])
def test_an_age_that_is_none_is_wrong_usage(log: Log, age: str) -> None:
    done = log.command("prune", f"--older-than={age}")
    assert done.returncode == 2
    assert "90s, 30m, 24h or 7d" in done.stderr
