"""The SQLite log among other processes, on files that are not what they should be, and on full disks."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO

import anyio
import psutil
import pytest

from agno_resumable.errors import LogUnavailable, SchemaTooNew, StaleGeneration
from agno_resumable.log import sqlite_ops as ops
from agno_resumable.log.checks import chunks
from agno_resumable.log.sqlite import SQLiteEventLog
from agno_resumable.log.sqlite_schema import connect
from agno_resumable.model import Durability, EncodedEvent, NewRun, RunStatus

from .sqlite_workers import event

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
LEASE = 600.0
PATIENCE = 20.0


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "runs.db")


class Process:
    """A worker of ``tests.sqlite_workers`` in a process of its own."""

    def __init__(self, what: str, *words: str) -> None:
        command = [sys.executable, "-m", "tests.sqlite_workers", what, *words]
        self.popen = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def output(self) -> IO[str]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    def cue(self, word: str = "go") -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(word + "\n")
        self.popen.stdin.flush()

    def line(self) -> str:
        """Its next line; it fails, instead of hanging, when the process has ended."""
        line = self.output.readline()
        assert line, f"the worker ended with {self.popen.wait()}"
        return line.strip()

    def rest(self) -> list[str]:
        """Wait for its end and give all it still had to say."""
        said, _ = self.popen.communicate(timeout=120)
        assert self.popen.returncode == 0
        return said.splitlines()


@contextmanager
def worker(what: str, *words: str) -> Iterator[Process]:
    process = Process(what, *words)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()


async def labels(log: SQLiteEventLog, run_id: str) -> list[str]:
    """The labels of all events of the run, whose indices must be dense."""
    found: list[str] = []
    after = -1
    while True:
        page = await log.read(run_id, after)
        assert [one.index for one in page.events] == list(range(after + 1, after + 1 + len(page.events)))
        if page.last is None:
            return found
        found += [one.data.split(b'"')[3].decode() for one in page.events]
        after = page.last


def check_integrity(path: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ----------------------------------------------------------------------------------------------- several processes


async def test_a_change_by_another_process_ends_a_wait(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        await log.append("run", 1, [event("mine")])
        with worker("change", path, "run") as other:
            assert other.line() == "ready"
            for what in ("append", "cancel", "claim", "finish"):
                version = (await log.read("run", limit=0)).run.version
                with anyio.fail_after(PATIENCE):
                    async with anyio.create_task_group() as group:
                        group.start_soon(lambda: log.wait("run", version, timeout=3600.0))  # noqa: B023
                        await waiting(log, 1)
                        other.cue(what)
                    while (run := (await log.read("run", limit=0)).run).version == version:
                        await log.wait("run", version, timeout=3600.0)
                assert other.line() == f"done {what}"
            assert await labels(log, "run") == ["mine", "from-elsewhere"]
            assert (run.status, run.generation) == (RunStatus.COMPLETED, 2)
            assert run.cancel_requested_at is not None


async def waiting(log: SQLiteEventLog, count: int) -> None:
    with anyio.fail_after(PATIENCE):
        while log.stats()["waiters"] != count:  # noqa: ASYNC110 - it only counts
            await anyio.sleep(0.001)


async def test_a_cancel_request_of_another_process_reaches_the_producer(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        with worker("change", path, "run") as other:
            assert other.line() == "ready"
            asked: list[bool] = []

            async def wait() -> None:
                asked.append(await log.wait_cancel("run", timeout=3600.0))

            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(wait)
                    await waiting(log, 1)
                    other.cue("append")
                    assert other.line() == "done append"
                    assert asked == []
                    other.cue("cancel")
            assert asked == [True]


async def test_a_wait_for_a_cancel_that_is_woken_for_another_reason_goes_on(path: str) -> None:
    """A look that was made before the run is one such reason: it says that there is none."""
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        found: list[bool] = []

        async def ask() -> None:
            found.append(await log.wait_cancel("run", timeout=20.0))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while not log.stats()["waiters"]:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            log._file.watch.gone("run")
            await anyio.sleep(0.1)
            assert (found, log.stats()["waiters"]) == ([], 1)
            await log.request_cancel("run")
        assert found == [True]


async def test_a_takeover_by_another_process_fences_this_one_at_once(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        await log.append("run", 1, [event("mine")])
        with worker("change", path, "run") as other:
            assert other.line() == "ready"
            other.cue("claim")
            assert other.line() == "done claim"
            with pytest.raises(StaleGeneration):
                await log.append("run", 1, [event("late")])
            assert await log.renew([("run", 1)], lease=LEASE) == ["run"]


def test_many_that_open_a_new_file_at_once_all_get_in(tmp_path: Path) -> None:
    """Turning a file to a write-ahead log takes a lock that SQLite does not wait for; threads race as processes do."""
    errors: list[BaseException] = []

    async def use(path: str) -> None:
        async with SQLiteEventLog(path) as log:
            assert await log.list() == []

    def enter(path: str, gate: threading.Barrier) -> None:
        gate.wait(PATIENCE)
        try:
            anyio.run(use, path)
        except BaseException as error:
            errors.append(error)

    for number in range(10):
        gate = threading.Barrier(8)
        threads = [threading.Thread(target=enter, args=(str(tmp_path / f"{number}.db"), gate)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert errors == []


def test_processes_that_open_and_append_at_once_lose_nothing(path: str) -> None:
    names = [f"process-{number}" for number in range(4)]
    count = 60
    with ExitStack() as stack:
        others = [stack.enter_context(worker("append", path, name, str(count))) for name in names]
        for other in others:
            assert other.line() == "ready"
        for other in others:  # the file does not exist yet: they make it at once, too
            other.cue()
        said = {name: [line.split() for line in other.rest()] for name, other in zip(names, others, strict=True)}

    async def check() -> None:
        async with SQLiteEventLog(path) as log:
            shared = await labels(log, "shared")
            assert len(shared) == len(set(shared))
            for name in names:
                wanted = [f"{name}-{number}-{part}" for number in range(count) for part in range(number % 3 + 1)]
                assert await labels(log, name) == wanted
                assert [label for label in shared if label.startswith(f"{name}-")] == wanted
                for run_id, number, after in said[name]:
                    size = int(number) % 3 + 1
                    stored = shared if run_id == "shared" else wanted
                    batch = [f"{name}-{number}-{part}" for part in range(size)]
                    assert stored[int(after) - size : int(after)] == batch
                assert len(said[name]) == 2 * count

    anyio.run(check)
    check_integrity(path)


@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_what_was_acknowledged_survives_kill_9(path: str, synchronous: str) -> None:
    rounds = 50 if os.environ.get("AGNO_RESUMABLE_LONG") else 5
    chance = random.Random(synchronous)
    acknowledged = dict.fromkeys([f"run-{number}" for number in range(4)], 0)

    async def check() -> None:
        async with SQLiteEventLog(path) as log:
            for run_id, least in acknowledged.items():
                stored = await labels(log, run_id)
                assert len(stored) >= least
                assert stored == [f"{run_id}-{index}" for index in range(len(stored))]

    for _ in range(rounds):
        with worker("write-until-killed", path, synchronous) as writer:
            lines = [writer.line() for _ in range(chance.randrange(1, 400))]
            writer.popen.kill()
            lines += writer.output.read().splitlines(keepends=False)
        for line in lines:
            words = line.split()
            if len(words) == 2 and words[1].isdecimal():  # the last line may be cut
                acknowledged[words[0]] = max(acknowledged[words[0]], int(words[1]))
        check_integrity(path)
        anyio.run(check)
    assert min(acknowledged.values()) > 0


async def test_a_write_waits_for_another_programs_transaction(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        await log.append("run", 1, [event("before")])
        with worker("hold", path) as other:
            assert other.line() == "holding"
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    for number in range(5):
                        group.start_soon(log.append, "run", 1, [event(f"held-{number}")])
                    await anyio.sleep(0.3)  # not to wait for anything: the lock shall be held for a while
                    assert await labels(log, "run") == ["before"]  # reading goes on, and the writes have not failed
                    assert (await log.get("run")).next_index == 1
                    other.cue()
        assert sorted((await labels(log, "run"))[1:]) == [f"held-{number}" for number in range(5)]


async def test_a_write_that_waited_too_long_fails_and_stores_nothing(path: str) -> None:
    async with SQLiteEventLog(path, busy_timeout=0.05) as log:
        await log.create(NewRun("run"), lease=LEASE)
        with worker("hold", path) as other:
            assert other.line() == "holding"
            with pytest.raises(LogUnavailable) as caught:
                await log.append("run", 1, [event("lost")])
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            assert not caught.value.outcome_unknown
            other.cue()
            other.rest()
        assert await log.append("run", 1, [event("stored")]) == 1
        assert await labels(log, "run") == ["stored"]


async def test_opening_behind_another_programs_transaction_says_what_is_wrong(path: str) -> None:
    async with SQLiteEventLog(path):
        pass
    with worker("hold", path) as other:
        assert other.line() == "holding"
        with pytest.raises(LogUnavailable, match="locked"):
            await SQLiteEventLog(path, busy_timeout=0.05).__aenter__()


# ----------------------------------------------------------------------------------------------------- strange files


def bytes_beside(path: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(path).parent.iterdir()}


def spoil(path: str) -> None:
    Path(path).write_bytes(b"These are the notes of somebody else.\n" * 100)


async def refusal(path: str) -> LogUnavailable:
    with pytest.raises(LogUnavailable) as caught:
        await SQLiteEventLog(path).__aenter__()
    assert path in str(caught.value)
    return caught.value


async def test_a_newer_schema_is_refused_and_left_alone(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = bytes_beside(path)
    with pytest.raises(SchemaTooNew) as caught:
        await SQLiteEventLog(path).__aenter__()
    assert (caught.value.found, caught.value.supported) == (99, 3)
    assert path in str(caught.value)
    assert bytes_beside(path) == before


def make_version_2(path: str) -> None:
    """Turn a file to what the version before restarts has written."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "ALTER TABLE run DROP COLUMN max_attempts;ALTER TABLE payload DROP COLUMN options; PRAGMA user_version = 2;"
        )


def make_version_1(path: str) -> None:
    """Turn a file to what the version before intents has written."""
    make_version_2(path)
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE intent; DROP TABLE intents; PRAGMA user_version = 1;")


@pytest.mark.parametrize("make_older", [make_version_1, make_version_2])
async def test_a_file_of_an_older_version_is_brought_up_to_date(path: str, make_older: Callable[[str], None]) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        await log.append("run", 1, [event("old")])
    make_older(path)
    async with SQLiteEventLog(path) as log:
        assert await labels(log, "run") == ["old"]
        assert (await log.get("run")).max_attempts == 1
        assert (await log.create(NewRun("new", max_attempts=2), lease=LEASE)).max_attempts == 2
        await log.intend_cancel("run", ttl=LEASE)
        async with SQLiteEventLog(path) as other:
            assert list((await other.intents()).run_ids) == ["run"]
    check_integrity(path)


async def test_a_file_that_cannot_be_brought_up_to_date_is_left_alone(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
    make_version_1(path)
    with closing(sqlite3.connect(path)) as db:  # the first statement of the step succeeds, the third one does not
        db.execute("CREATE TABLE intents (mine TEXT)")
    await refusal(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'intent'").fetchone() == (0,)
        assert db.execute("SELECT run_id FROM run").fetchall() == [("run",)]


def test_of_many_that_open_an_older_file_at_once_one_brings_it_up_to_date(path: str) -> None:
    async def make() -> None:
        async with SQLiteEventLog(path) as log:
            await log.create(NewRun("run"), lease=LEASE)

    anyio.run(make)
    make_version_1(path)
    errors: list[BaseException] = []
    gate = threading.Barrier(8)

    async def use(name: str) -> None:
        async with SQLiteEventLog(path) as log:
            await log.intend_cancel(name, ttl=LEASE)

    def enter(name: str) -> None:
        gate.wait(PATIENCE)
        try:
            anyio.run(use, name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=enter, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []

    async def check() -> None:
        async with SQLiteEventLog(path) as log:
            assert sorted((await log.intents()).run_ids) == [str(number) for number in range(8)]

    anyio.run(check)


async def test_another_programs_database_is_refused_and_left_alone(path: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE run (mine TEXT)")
    before = bytes_beside(path)
    await refusal(path)
    assert bytes_beside(path) == before


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: str) -> None:
    spoil(path)
    before = bytes_beside(path)
    error = await refusal(path)
    assert isinstance(error.__cause__, sqlite3.DatabaseError)
    assert bytes_beside(path) == before


async def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    await refusal(str(tmp_path / "missing" / "runs.db"))
    assert bytes_beside(str(tmp_path / "runs.db")) == {}


async def test_a_directory_is_no_log(tmp_path: Path) -> None:
    await refusal(str(tmp_path))


@pytest.mark.parametrize("written", [True, False])
def test_a_file_that_may_not_be_written_is_refused(written: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "runs.db")

        async def make() -> None:
            async with SQLiteEventLog(path):
                pass

        if written:
            anyio.run(make)
        else:
            path.touch()
        path.chmod(0o444)
        Path(directory).chmod(0o555)
        with worker("just-open", str(path)) as other:
            (said,) = other.rest()
        assert said.startswith("LogUnavailable"), said
        assert str(path) in said


async def test_an_empty_file_becomes_a_log(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.touch()
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)


async def test_a_log_without_a_file_is_refused() -> None:
    for no_file in ("", ":memory:"):
        with pytest.raises(ValueError, match="file"):
            SQLiteEventLog(no_file)


# --------------------------------------------------------------------------------------------------- what it promises


@pytest.mark.parametrize(
    ("synchronous", "durability"),
    [
        ("full", Durability.POWER_LOSS),
        ("FULL", Durability.POWER_LOSS),
        ("extra", Durability.POWER_LOSS),
        ("normal", Durability.PROCESS_CRASH),
    ],
)
async def test_durability_is_what_the_setting_gives(path: str, synchronous: str, durability: Durability) -> None:
    async with SQLiteEventLog(path, synchronous=synchronous) as log:
        assert log.durability is durability
        mode = await log._file._writer.run(lambda db: db.execute("PRAGMA journal_mode").fetchone())
        assert mode == ("wal",)


async def test_durability_is_full_unless_told_otherwise(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        assert log.durability is Durability.POWER_LOSS


def test_a_setting_that_would_lose_acknowledged_events_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="'off'"):
        SQLiteEventLog(path, synchronous="off")


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


async def test_nothing_is_left_after_closing(path: str) -> None:
    process = psutil.Process()
    async with SQLiteEventLog(path):  # whatever is loaded at the first use is loaded now
        pass
    before = threads(), process.num_fds()
    for number in range(10):
        async with SQLiteEventLog(path) as log:
            await log.create(NewRun(f"run-{number}"), lease=LEASE)
            await log.append(f"run-{number}", 1, [event("one")])
            await log.list()
            assert len(threads()) > len(before[0])
            with anyio.move_on_after(0.001):
                await log.wait(f"run-{number}", 1_000, timeout=3600.0)
        assert (threads(), process.num_fds()) == before
    spoil(path)
    for _ in range(3):
        await refusal(path)
        await refusal(f"{path}/no/such/directory")
    assert (threads(), process.num_fds()) == before


async def test_closing_stores_what_was_accepted_and_folds_the_log_into_its_file(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(log.append, "run", 1, [event(str(number))])
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert list(bytes_beside(path)) == ["runs.db"]
    async with SQLiteEventLog(path) as log:
        assert len(await labels(log, "run")) in range(21)


async def test_a_log_is_entered_once_at_a_time(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        with pytest.raises(LogUnavailable):
            await log.__aenter__()
        await log.create(NewRun("run"), lease=LEASE)
    async with log:
        assert (await log.get("run")).run_id == "run"


async def test_what_is_kept_in_memory_is_bounded_and_the_rest_is_read(path: str) -> None:
    async with SQLiteEventLog(path, hot_bytes=20_000) as log:
        for number in range(4):
            run_id = f"run-{number}"
            await log.create(NewRun(run_id), lease=LEASE)
            for part in range(50):
                await log.append(run_id, 1, [event(str(part), pad=1_000)])
                assert log.stats()["hot_bytes"] <= 25_000
            assert await labels(log, run_id) == [str(part) for part in range(50)]
        for number in range(4):
            assert len(await labels(log, f"run-{number}")) == 50


async def test_a_value_that_cannot_be_stored_fails_alone(path: str) -> None:
    """A group of writes shares one transaction; what SQLite cannot take must not take the others with it."""
    async with SQLiteEventLog(path) as log:
        await log.create(NewRun("run"), lease=LEASE)
        failed: list[Exception] = []

        async def create_bad() -> None:
            try:
                await log.create(NewRun("bad", session_id="\ud800"), lease=LEASE)
            except (LogUnavailable, ValueError) as error:
                failed.append(error)

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(log.append, "run", 1, [event(str(number))])
                if number == 5:
                    group.start_soon(create_bad)
        assert len(failed) == 1
        assert sorted(await labels(log, "run")) == sorted(str(number) for number in range(10))
        assert [run.run_id for run in await log.list()] == ["run"]


# -------------------------------------------------------------------------------------------------------- full disks


async def test_a_full_database_is_told_and_appends_go_on_when_there_is_space(path: str) -> None:
    async with SQLiteEventLog(path) as log:
        for run_id in ("run", "other"):
            await log.create(NewRun(run_id), lease=LEASE)
        pages = await log._file._writer.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await log._file._writer.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 30}").fetchone())
        stored = 0

        async def fill() -> None:
            nonlocal stored
            while stored < 1_000:
                stored = await log.append("run", 1, [event(str(stored), pad=10_000)])

        with pytest.raises(LogUnavailable) as caught:
            await fill()
        assert 0 < stored < 1_000
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert not caught.value.outcome_unknown
        assert await labels(log, "run") == [str(number) for number in range(stored)]
        await log.append("other", 1, [event("small")])  # what needs no new page goes on
        await log._file._writer.run(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
        for number in range(stored, stored + 5):
            assert await log.append("run", 1, [event(str(number), pad=10_000)]) == number + 1
        assert await labels(log, "run") == [str(number) for number in range(stored + 5)]
    check_integrity(path)


def test_a_file_that_may_grow_no_more_is_told_and_appends_go_on_when_it_may(path: str) -> None:
    with worker("fill-the-disk", path) as other:
        said = other.rest()
    full, readable, went_on = (line.split() for line in said)
    stored = int(full[1])
    assert 0 < stored < 1_000
    assert full[0] == "full"
    assert readable[0] == "readable"
    assert stored <= int(readable[2]) <= stored + (full[3] == "True")  # one more only where the outcome was unknown
    assert int(readable[1]) == int(readable[2])
    assert went_on[:2] == ["went", "on"]

    async def check() -> None:
        async with SQLiteEventLog(path) as log:
            assert await labels(log, "run") == [str(number) for number in range(int(went_on[2]))]

    anyio.run(check)
    check_integrity(path)


# ------------------------------------------------------------------------------------------------------- query plans


def test_no_statement_but_the_whole_list_reads_all_runs(path: str) -> None:
    """Sweeps and look-ups must not slow down with the number of runs that are kept."""

    async def make() -> None:
        async with SQLiteEventLog(path):
            pass

    anyio.run(make)
    with closing(connect(path, synchronous="normal", timeout=1.0)) as db:
        statements: list[str] = []
        db.set_trace_callback(statements.append)
        ops.create(db, NewRun("run", user_id="ann", idempotency_key="key", input=b"{}"), LEASE)
        parts = chunks([EncodedEvent("Type", b'{"a":1}')], 7)
        ops.append(db, "run", 1, parts, 7, None, None, 1_000)
        ops.append(db, "run", 1, parts, 7, RunStatus.RUNNING, b"{}", 1)
        ops.claim(db, "run", LEASE, None)
        ops.get(db, "run")
        ops.read(db, "run", -1, 10, 1_000)
        ops.states(db, ["run"])
        ops.renew(db, [("run", 2)], LEASE)
        ops.request_cancel(db, "run")
        for filters in given(session_id="s"), given(user_id="ann"):
            ops.list_runs(db, filters, 10, 1.0)
        ops.trim(db, "run", 1)
        ops.expire(db, LEASE)
        ops.prune(db, 1.0, 10)
        ops.delete(db, "run")
        db.set_trace_callback(None)
        assert len(statements) > 20
        for statement in statements:
            if statement.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT"):
                plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
                assert not [step for step in plan if step.startswith(("SCAN run", "SCAN chunk", "SCAN payload"))], (
                    statement,
                    plan,
                )


def given(**filters: object) -> Sequence[tuple[str, object]]:
    return list(filters.items())
