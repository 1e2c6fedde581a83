"""``follow`` over real logs: every event once and in order, and what else a reader has to be told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from agno_resumable import (
    Batch,
    EncodedEvent,
    End,
    Event,
    EventLog,
    Gap,
    Idle,
    LogUnavailable,
    MemoryEventLog,
    NewRun,
    Paused,
    RunNotFound,
    RunStatus,
    SQLiteEventLog,
    follow,
)
from agno_resumable.reader import FollowItem

from .support import PATIENCE, eventually

pytestmark = pytest.mark.anyio

RUN = "run"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[EventLog]:
    on_disk = SQLiteEventLog(str(tmp_path / "runs.db"), synchronous="normal")  # power cuts are tested elsewhere
    made: EventLog = MemoryEventLog() if request.param == "memory" else on_disk
    async with made:
        await made.create(NewRun(RUN), lease=60)
        yield made


def made(*numbers: int) -> list[EncodedEvent]:
    return [EncodedEvent("RunContent", b'{"content":"%d"}' % number) for number in numbers]


async def write(log: EventLog, *numbers: int, status: RunStatus | None = None, generation: int = 1) -> None:
    await log.append(RUN, generation, made(*numbers), status=status)


def said(items: list[FollowItem]) -> list[str | int]:
    """Items as a short text: indices of events, and the names of all else."""
    told: list[str | int] = []
    for item in items:
        if isinstance(item, Batch):
            told += [event.index for event in item]
        elif isinstance(item, Gap):
            told.append(f"gap {item.requested}-{item.first_available} {item.reason}")
        else:
            told.append(type(item).__name__.lower())
    return told


async def followed(reader: AsyncGenerator[FollowItem, None]) -> list[FollowItem]:
    with anyio.fail_after(PATIENCE):
        return [item async for item in reader]


async def test_a_finished_run_is_replayed_from_any_cursor_and_ends(log: EventLog) -> None:
    await write(log, *range(10), status=RunStatus.COMPLETED)
    for after in range(-1, 10):
        items = await followed(follow(log, RUN, after))
        assert said(items) == [*range(after + 1, 10), "end"]
        end = items[-1]
        assert isinstance(end, End)
        assert end.run.status is RunStatus.COMPLETED


async def test_the_events_are_those_that_were_stored(log: EventLog) -> None:
    await write(log, *range(3), status=RunStatus.COMPLETED)
    items = await followed(follow(log, RUN))
    events = [event for item in items if isinstance(item, Batch) for event in item]
    assert events == [Event(i, "RunContent", b'{"content":"%d"}' % i) for i in range(3)]


async def test_readers_that_come_at_any_moment_of_a_live_run_all_see_every_event_once_and_in_order(
    log: EventLog,
) -> None:
    total = 200
    seen: list[list[str | int]] = []

    async def read(after: int) -> None:
        seen.append([after, *said(await followed(follow(log, RUN, after, limit=7)))])

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for number in range(total):
                tasks.start_soon(read, number - 1)  # a cursor at what was just stored, or before it
                if number % 20 == 0:
                    tasks.start_soon(read, -1)
                await write(log, number, status=RunStatus.COMPLETED if number == total - 1 else None)
                if number % 3 == 0:
                    await anyio.lowlevel.checkpoint()
    assert len(seen) == total + 10
    for after, *rest in seen:
        assert isinstance(after, int)
        # a reader that began before its cursor's event was stored is told so, and begins anew
        if rest[0] == f"gap {after + 1}-0 ahead":
            del rest[0]
            after = -1
        assert rest == [*range(after + 1, total), "end"]


async def test_two_readers_of_one_run_see_the_same_bytes(log: EventLog) -> None:
    received: list[bytes] = []

    async def read() -> None:
        items = await followed(follow(log, RUN))
        received.append(b"".join([item.frames for item in items if isinstance(item, Batch)]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await write(log, 0, 1, 2)
        tasks.start_soon(read)
        await write(log, 3, 4)
        await write(log, 5, status=RunStatus.COMPLETED)
    assert len(received) == 2
    assert received[0] == received[1]
    assert received[0].count(b"\nid: run:") == 6


async def test_a_reader_waits_without_asking_the_log_again_and_again(log: EventLog) -> None:
    reader = follow(log, RUN)
    got: list[FollowItem] = []

    async def read() -> None:
        async for item in reader:
            got.append(item)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await eventually(lambda: log.stats()["waiters"] == 1)
            assert got == []
            await write(log, 0, status=RunStatus.COMPLETED)
    assert said(got) == [0, "end"]
    assert log.stats()["waiters"] == 0


# ---------------------------------------------------------------- gaps


async def test_trimmed_events_are_told_as_a_gap_and_the_rest_follows(log: EventLog) -> None:
    for number in range(10):
        await write(log, number)
    await log.trim(RUN, before=6)
    await write(log, 10, status=RunStatus.COMPLETED)
    items = await followed(follow(log, RUN, 1))
    assert said(items) == ["gap 2-6 trimmed", *range(6, 11), "end"]
    assert isinstance(items[0], Gap)
    assert items[0].missed == 4
    assert said(await followed(follow(log, RUN, 5))) == [*range(6, 11), "end"]


async def test_a_run_that_was_trimmed_to_nothing_gives_a_gap_and_then_its_end(log: EventLog) -> None:
    await write(log, 0, 1, 2, status=RunStatus.COMPLETED)
    await log.trim(RUN, before=100)
    assert said(await followed(follow(log, RUN))) == ["gap 0-3 trimmed", "end"]
    assert said(await followed(follow(log, RUN, 2))) == ["end"]


async def test_events_that_are_trimmed_while_a_slow_reader_is_behind_are_a_gap_where_they_stood(log: EventLog) -> None:
    for number in range(10):
        await write(log, number)
    reader = follow(log, RUN, limit=2)
    async with aclosing(reader):
        assert said([await reader.__anext__()]) == [0, 1]
        await log.trim(RUN, before=7)
        await write(log, 10, status=RunStatus.COMPLETED)
        assert said(await followed(reader)) == ["gap 2-7 trimmed", *range(7, 11), "end"]


async def test_a_cursor_ahead_of_the_log_is_told_and_begins_anew(log: EventLog) -> None:
    await write(log, 0, 1, 2, status=RunStatus.COMPLETED)
    assert said(await followed(follow(log, RUN, 7))) == ["gap 8-0 ahead", 0, 1, 2, "end"]
    await log.trim(RUN, before=2)
    assert said(await followed(follow(log, RUN, 7))) == ["gap 8-2 ahead", 2, "end"]


async def test_a_cursor_ahead_of_an_empty_run_does_not_hide_its_first_events(log: EventLog) -> None:
    reader = follow(log, RUN, 5)
    async with aclosing(reader):
        assert said([await reader.__anext__()]) == ["gap 6-0 ahead"]
        await write(log, 0, status=RunStatus.COMPLETED)
        assert said(await followed(reader)) == [0, "end"]


async def test_a_run_that_is_deleted_under_its_reader_is_told_and_nothing_follows(log: EventLog) -> None:
    await write(log, 0)
    reader = follow(log, RUN)
    got: list[FollowItem] = []

    async def read() -> None:
        async for item in reader:
            got.append(item)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await eventually(lambda: log.stats()["waiters"] == 1)
            await log.delete(RUN)
    assert said(got) == [0, "gap 1-1 deleted"]


async def test_a_run_that_was_made_anew_under_the_same_id_is_another_run(log: EventLog) -> None:
    await write(log, 0, 1, 2)
    reader = follow(log, RUN, idle_after=0.05)
    async with aclosing(reader):
        assert said([await reader.__anext__()]) == [0, 1, 2]
        await log.delete(RUN)
        await log.create(NewRun(RUN), lease=60)
        await write(log, 0, 1, 2, 3, status=RunStatus.COMPLETED)
        assert said(await followed(reader))[-1] == "gap 3-3 deleted"


async def test_a_run_that_is_not_there_at_the_beginning_is_an_error(log: EventLog) -> None:
    with pytest.raises(RunNotFound):
        await followed(follow(log, "another"))


# ---------------------------------------------------------------- silence and rest


async def test_silence_is_told_again_and_again_and_events_come_in_between(log: EventLog) -> None:
    reader = follow(log, RUN, idle_after=0.02)
    with anyio.fail_after(PATIENCE):
        async with aclosing(reader):
            assert isinstance(await reader.__anext__(), Idle)
            assert isinstance(await reader.__anext__(), Idle)
            await write(log, 0)
            assert said([await reader.__anext__()]) == [0]
            assert isinstance(await reader.__anext__(), Idle)
            await write(log, 1, status=RunStatus.COMPLETED)
            assert said(await followed(reader)) == [1, "end"]


async def test_silence_is_told_although_the_wait_keeps_returning_early(log: EventLog) -> None:
    """A log may end a wait whenever it likes; a heartbeat must not be put off each time."""
    await log.create(NewRun("other"), lease=60)

    class Restless:
        """The real log, with waits that return after a moment as those of a busy file do."""

        read = log.read

        async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
            await log.wait(run_id, version, timeout=min(timeout, 0.01))

    reader = follow(Restless(), RUN, idle_after=0.1)  # type: ignore[arg-type]  # all that follow uses of a log
    with anyio.fail_after(PATIENCE):
        async with aclosing(reader):
            assert isinstance(await reader.__anext__(), Idle)


async def test_a_paused_run_is_told_once_and_its_next_leg_follows(log: EventLog) -> None:
    await write(log, 0, 1, status=RunStatus.PAUSED)
    reader = follow(log, RUN, idle_after=0.05)
    with anyio.fail_after(PATIENCE):
        async with aclosing(reader):
            assert said([await reader.__anext__()]) == [0, 1]
            paused = await reader.__anext__()
            assert isinstance(paused, Paused)
            assert paused.run.last_index == 1
            assert isinstance(await reader.__anext__(), Idle)
            await log.request_cancel(RUN)  # changes the run, and is no other pause
            assert isinstance(await reader.__anext__(), Idle)
            claimed = await log.claim(RUN, lease=60)
            await write(log, 2, generation=claimed.generation)
            assert said([await reader.__anext__()]) == [2]
            await write(log, status=RunStatus.PAUSED, generation=claimed.generation)
            assert isinstance(await reader.__anext__(), Paused)
            claimed = await log.claim(RUN, lease=60)
            await write(log, 3, status=RunStatus.COMPLETED, generation=claimed.generation)
            assert said(await followed(reader)) == [3, "end"]


async def test_a_reader_that_wants_no_pause_ends_with_it(log: EventLog) -> None:
    await write(log, 0, status=RunStatus.PAUSED)
    assert said(await followed(follow(log, RUN, stop_when_paused=True))) == [0, "paused"]
    assert said(await followed(follow(log, RUN, 0, stop_when_paused=True))) == ["paused"]


async def test_a_run_that_ends_without_a_last_event_ends_its_readers(log: EventLog) -> None:
    got: list[FollowItem] = []

    async def read() -> None:
        got.extend(await followed(follow(log, RUN)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await eventually(lambda: log.stats()["waiters"] == 1)
        await write(log, status=RunStatus.CANCELLED)
    assert said(got) == ["end"]


# ---------------------------------------------------------------- pages, speed and cancellation


async def test_a_page_has_no_more_events_and_bytes_than_it_may(log: EventLog) -> None:
    for number in range(50):
        await write(log, number)
    await write(log, status=RunStatus.COMPLETED)
    for options in ({"limit": 7}, {"max_bytes": 100}):
        items = await followed(follow(log, RUN, **options))  # type: ignore[arg-type]
        batches = [item for item in items if isinstance(item, Batch)]
        assert said(items) == [*range(50), "end"]
        assert max(map(len, batches)) <= 7
        assert max(batch.size for batch in batches) <= 120


async def test_an_event_larger_than_a_page_comes_alone(log: EventLog) -> None:
    big = EncodedEvent("RunContent", b'{"content":"%b"}' % (b"x" * 1000))
    await log.append(RUN, 1, [*made(0), big, *made(2)], status=RunStatus.COMPLETED)
    items = await followed(follow(log, RUN, max_bytes=100))
    assert [len(item) for item in items if isinstance(item, Batch)] == [1, 1, 1]


async def test_a_slow_reader_keeps_neither_the_writer_nor_another_reader_waiting(log: EventLog) -> None:
    slow = follow(log, RUN, limit=10)
    await write(log, 0)
    with anyio.fail_after(PATIENCE):
        async with aclosing(slow):
            assert said([await slow.__anext__()]) == [0]
            for number in range(1, 300):
                await write(log, number)
            await write(log, status=RunStatus.COMPLETED)
            assert said(await followed(follow(log, RUN))) == [*range(300), "end"]
            assert said(await followed(slow)) == [*range(1, 300), "end"]


async def test_a_reader_that_is_cancelled_at_any_moment_leaves_nothing_and_its_cursor_goes_on(log: EventLog) -> None:
    held: list[int] = []

    async def read() -> bool:
        reader = follow(log, RUN, held[-1] if held else -1, limit=3)
        async with aclosing(reader):
            async for item in reader:
                if isinstance(item, Batch):
                    held.extend(event.index for event in item)
                elif isinstance(item, End):
                    return True
        return False

    async def produce() -> None:
        for number in range(100):
            await write(log, number)
        await write(log, status=RunStatus.COMPLETED)

    ended = False
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            patience = 0.0
            while not ended:
                with anyio.move_on_after(patience):
                    ended = await read()
                patience = (patience + 0.0007) % 0.02
    assert held == list(range(100))
    assert log.stats()["waiters"] == 0


async def test_a_log_that_closes_under_its_reader_is_an_error_of_the_reader(log: EventLog) -> None:
    async def read() -> None:
        with pytest.raises(LogUnavailable):
            await followed(follow(log, RUN))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await eventually(lambda: log.stats()["waiters"] == 1)
        await log.__aexit__(None, None, None)
    await log.__aenter__()  # for the fixture, which leaves it
