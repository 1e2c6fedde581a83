"""``LogEventStream``: agno's contract of an event stream, kept by a log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from agno.run.agent import RunCancelledEvent, RunCompletedEvent, RunContentEvent, RunPausedEvent, RunStartedEvent
from agno.run.base import RunStatus as AgnoStatus
from agno.run.team import RunContentEvent as TeamRunContentEvent
from agno.run.workflow import WorkflowStartedEvent

from agno_resumable import (
    EncodedEvent,
    Family,
    LogUnavailable,
    MemoryEventLog,
    NewRun,
    Run,
    RunFinished,
    RunStatus,
    SQLiteEventLog,
)
from agno_resumable.agentos import LogEventStream
from agno_resumable.agentos.events import _encoded, last_encoded
from agno_resumable.agentos.leg import FENCE
from agno_resumable.agentos.ownership import RequestOwner, request_owner
from agno_resumable.sse import Decoder, Frame, format_sse_event

from ..support import PATIENCE, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # agno's own


@pytest.fixture
async def stream() -> AsyncIterator[LogEventStream]:
    async with LogEventStream(MemoryEventLog()) as stream:
        yield stream


def said(text: str, run_id: str = "run", **fields: Any) -> RunContentEvent:
    return RunContentEvent(run_id=run_id, session_id="session", agent_id="agent", content=text, **fields)


async def begin(stream: LogEventStream, run_id: str = "run") -> None:
    """What agno calls when a background run begins."""
    await stream.register_run(run_id)
    await stream.set_run_status(run_id, AgnoStatus.running)


def frames(strings: Sequence[str]) -> list[Frame]:
    return Decoder().feed("".join(strings).encode())


async def told(stream: LogEventStream, after: int | None = None, run_id: str = "run") -> list[Frame]:
    return frames([text for _, text in await stream.replay(run_id, after)])


async def test_a_background_run_of_agnos_is_stored_and_ends(stream: LogEventStream) -> None:
    await stream.register_run("run")
    assert await stream.get_run_status("run") is AgnoStatus.pending
    await stream.register_run("run")  # idempotent
    await stream.set_run_status("run", AgnoStatus.running)
    assert await stream.get_run_status("run") is AgnoStatus.running
    assert await stream.get_last_index("run") == -1
    events = [said(str(number)) for number in range(5)]
    assert [await stream.add_event("run", event) for event in events] == [0, 1, 2, 3, 4]
    assert [event.event_index for event in events] == [0, 1, 2, 3, 4]
    assert await stream.get_last_index("run") == 4
    assert await stream.get_event_count("run") == 5
    assert await stream.add_event("run", RunCompletedEvent(run_id="run", agent_id="agent")) == 5
    await stream.complete_run("run", AgnoStatus.completed)
    assert await stream.get_run_status("run") is AgnoStatus.completed
    replayed = await stream.replay("run", 2)
    assert [index for index, _ in replayed] == [3, 4, 5]
    assert [frame.id for frame in frames([text for _, text in replayed])] == ["run:3", "run:4", "run:5"]
    run = await (await stream.log()).get("run")
    assert run.status is RunStatus.COMPLETED
    assert run.transcript is not None
    assert orjson.loads(run.transcript)["content"] == "01234"


async def test_what_is_unknown_is_told_so(stream: LogEventStream) -> None:
    assert await stream.get_run_status("nobody") is None
    assert await stream.get_last_index("nobody") == -1
    assert await stream.get_event_count("nobody") == 0
    assert await stream.replay("nobody") == []
    assert [item async for item in stream.tail("nobody")] == []
    assert not await stream.stored("nobody", 0)
    await stream.complete_run("nobody", AgnoStatus.completed)  # fabricates nothing
    assert await stream.get_run_status("nobody") is None


async def test_the_stored_frame_is_what_the_formatter_of_agno_would_give_and_an_id(stream: LogEventStream) -> None:
    await begin(stream)
    event = said("word")
    index = await stream.add_event("run", event)
    ((_, text),) = await stream.replay("run")
    (stored,), (agnos,) = frames([text]), frames([format_sse_event(event, index, "run")])
    assert (stored.event, stored.id) == (agnos.event, f"run:{index}")
    assert orjson.loads(stored.data) == orjson.loads(agnos.data)
    assert text.endswith(f"}}\nid: run:{index}\n\n")


async def test_the_formatter_gets_what_was_encoded_once(stream: LogEventStream) -> None:
    await begin(stream)
    event, other = said("word"), said("other")
    index = await stream.add_event("run", event)
    assert last_encoded(other, index) is None
    assert last_encoded(event, index + 1) is None
    encoded = last_encoded(event, index)
    assert encoded is not None
    assert encoded.type == "RunContent"
    assert orjson.loads(encoded.data)["content"] == "word"
    assert b"event_index" not in encoded.data
    await begin(stream, "other")
    await stream.add_event("other", other)
    assert last_encoded(event, index) == encoded  # whatever other runs say meanwhile
    await stream.add_event("run", said("next"))
    assert last_encoded(event, index) is None
    await stream.complete_run("run", AgnoStatus.completed)
    await stream.complete_run("other", AgnoStatus.completed)
    await eventually(lambda: not _encoded)


@pytest.mark.parametrize(
    ("status", "name"),
    [(AgnoStatus.completed, "RunCompleted"), (AgnoStatus.cancelled, "RunCancelled"), (AgnoStatus.error, "RunError")],
)
async def test_a_run_without_a_terminal_event_gets_its_familys(
    stream: LogEventStream, status: AgnoStatus, name: str
) -> None:
    await begin(stream)
    await stream.add_event("run", RunStartedEvent(run_id="run", session_id="session", agent_id="a", agent_name="Ann"))
    await stream.complete_run("run", status)
    last = (await told(stream))[-1]
    assert last.event == name
    data = orjson.loads(last.data)
    assert (data["run_id"], data["session_id"], data["agent_id"], data["agent_name"]) == ("run", "session", "a", "Ann")


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (TeamRunContentEvent(run_id="run", team_id="team", content="x"), "TeamRunError"),
        (WorkflowStartedEvent(run_id="run", workflow_id="workflow"), "WorkflowError"),
        (said("x"), "RunError"),
    ],
)
async def test_the_family_is_that_of_the_first_event_where_no_request_says(
    stream: LogEventStream, event: Any, name: str
) -> None:
    await begin(stream)
    await stream.add_event("run", event)
    await stream.complete_run("run", AgnoStatus.error)
    assert (await told(stream))[-1].event == name


async def test_what_agno_says_after_cancelled_is_refused(stream: LogEventStream) -> None:
    await begin(stream)
    assert await stream.add_event("run", RunCancelledEvent(run_id="run", reason="stop")) == 0
    assert await stream.add_event("run", RunCompletedEvent(run_id="run")) == -1
    await stream.complete_run("run", AgnoStatus.cancelled)
    assert [frame.event for frame in await told(stream)] == ["RunCancelled"]
    assert await stream.get_run_status("run") is AgnoStatus.cancelled


async def test_a_members_end_is_not_the_runs(stream: LogEventStream) -> None:
    await begin(stream)
    member = RunCompletedEvent(run_id="member", parent_run_id="run")
    assert await stream.add_event("run", TeamRunContentEvent(run_id="run", content="x")) == 0
    assert await stream.add_event("run", member) == 1
    assert await stream.add_event("run", said("more")) == 2


async def test_a_status_that_is_no_ending_ends_as_the_run_itself_said(stream: LogEventStream) -> None:
    await begin(stream, "one")
    await stream.add_event("one", RunCompletedEvent(run_id="one"))
    await stream.complete_run("one", AgnoStatus.running)
    assert await stream.get_run_status("one") is AgnoStatus.completed
    await begin(stream, "two")
    await stream.add_event("two", said("x", "two"))
    await stream.complete_run("two", AgnoStatus.running)
    assert await stream.get_run_status("two") is AgnoStatus.error


async def test_a_tail_gets_every_event_once_while_they_come(stream: LogEventStream) -> None:
    await begin(stream)
    got: list[int] = []

    async def read() -> None:
        async for index, text in stream.tail("run", 9):
            assert frames([text])[0].id == f"run:{index}"
            got.append(index)

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            await stream.add_event("run", said(str(number)))
        tasks.start_soon(read)
        for number in range(30, 200):
            await stream.add_event("run", said(str(number)))
            if number % 7 == 0:
                await anyio.sleep(0.001)
        await stream.complete_run("run", AgnoStatus.completed)
    assert got == list(range(10, 201))


async def test_a_paused_run_ends_its_tails_and_goes_on_with_its_indices(stream: LogEventStream) -> None:
    await begin(stream)
    await stream.add_event("run", said("before"))
    await stream.add_event("run", RunPausedEvent(run_id="run"))
    await stream.complete_run("run", AgnoStatus.paused)
    assert await stream.get_run_status("run") is AgnoStatus.paused
    assert [index async for index, _ in stream.tail("run")] == [0, 1]
    # inline: agno registers, asks for the last index, reopens, and says that it runs
    await stream.register_run("run")
    assert await stream.get_last_index("run") == 1
    assert await stream.reopen_run("run")
    await stream.set_run_status("run", AgnoStatus.running)
    assert await stream.get_run_status("run") is AgnoStatus.running
    assert await stream.add_event("run", said("after")) == 2
    await stream.add_event("run", RunPausedEvent(run_id="run"))
    await stream.complete_run("run", AgnoStatus.paused)
    # in the background: without the reopening
    await begin(stream)
    assert await stream.add_event("run", said("at last")) == 4
    await stream.complete_run("run", AgnoStatus.completed)
    assert [frame.id for frame in await told(stream)] == [f"run:{index}" for index in range(6)]
    run = await (await stream.log()).get("run")
    assert run.transcript is not None
    assert orjson.loads(run.transcript)["content"] == "beforeafterat last"


async def test_a_run_that_only_agno_knows_goes_on_above_the_index_of_its_row(stream: LogEventStream) -> None:
    await stream.register_run("run")
    assert await stream.get_last_index("run") < 0
    assert await stream.reopen_run("run", floor=41)
    await stream.set_run_status("run", AgnoStatus.running)
    assert await stream.add_event("run", said("on")) == 42
    await stream.complete_run("run", AgnoStatus.completed)
    gap, first, _ = await told(stream, 12)
    assert (gap.event, gap.id) == ("gap", None)
    assert orjson.loads(gap.data)["first_available"] == 42
    assert first.id == "run:42"
    assert [frame.id for frame in await told(stream, 41)] == ["run:42", "run:43"]


async def test_what_runs_or_has_ended_is_not_reopened(stream: LogEventStream) -> None:
    await begin(stream)
    await stream.add_event("run", said("x"))
    assert not await stream.reopen_run("run")
    await stream.complete_run("run", AgnoStatus.error)
    assert not await stream.reopen_run("run")
    assert await stream.reopen_run("run", include_error=True)
    assert await stream.add_event("run", said("again")) == 2
    await stream.complete_run("run", AgnoStatus.completed)
    assert not await stream.reopen_run("run", include_error=True)
    with pytest.raises(RunFinished):
        await stream.add_event("run", said("too late"))


async def test_a_cursor_ahead_of_the_log_gets_a_gap_and_the_run_anew(stream: LogEventStream) -> None:
    await begin(stream)
    for number in range(3):
        await stream.add_event("run", said(str(number)))
    await stream.complete_run("run", AgnoStatus.completed)
    gap, *rest = await told(stream, 99)
    assert (gap.event, orjson.loads(gap.data)["reason"]) == ("gap", "ahead")
    assert [frame.id for frame in rest] == [f"run:{index}" for index in range(4)]
    tailed = frames([text async for _, text in stream.tail("run", 99)])
    assert [frame.data for frame in tailed] == [frame.data for frame in (gap, *rest)]


async def test_a_reset_drops_events_and_keeps_the_indices(stream: LogEventStream) -> None:
    await begin(stream)
    for number in range(3):
        await stream.add_event("run", said(str(number)))
    await stream.reset_run_events("run")
    assert await stream.get_event_count("run") == 0
    assert await stream.get_last_index("run") == 2
    assert await stream.add_event("run", said("anew")) == 3
    gap, first = await told(stream, 0)
    assert (gap.event, first.id) == ("gap", "run:3")
    assert [frame.id for frame in await told(stream, 2)] == ["run:3"]


async def test_a_newer_attempt_fences_the_older_one() -> None:
    log = MemoryEventLog()
    async with LogEventStream(log) as first, LogEventStream(log) as second:
        await first.register_run("run")
        await first.begin_attempt("run", 1)
        assert await first.add_event("run", said("one"), 1) == 0
        assert await first.get_last_index("run") == 0
        await second.begin_attempt("run", 2)
        assert (await log.get("run")).generation == 2 * FENCE
        await second.reset_run_events("run", 2)
        assert await second.add_event("run", said("two"), 2) == 1
        assert await second.get_last_index("run") == 1
        await first.add_event("run", said("late"), 1)  # not yet told of its loss
        await eventually(lambda: _refuses(first))
        await first.complete_run("run", AgnoStatus.error, 1)
        await first.reset_run_events("run", 1)
        await first.begin_attempt("run", 1)
        assert await second.get_run_status("run") is AgnoStatus.running
        await second.complete_run("run", AgnoStatus.completed, 2)
        assert [orjson.loads(frame.data).get("content") for frame in await told(second, 0)] == ["two", None]


async def _refuses(stream: LogEventStream) -> bool:
    return await stream.add_event("run", said("late"), 1) == -1


async def test_a_leg_of_the_same_attempt_keeps_its_generation(stream: LogEventStream) -> None:
    await stream.register_run("run")
    await stream.begin_attempt("run", 3)
    await stream.add_event("run", RunPausedEvent(run_id="run"), 3)
    await stream.complete_run("run", AgnoStatus.paused, 3)
    await stream.begin_attempt("run", 3)
    assert await stream.add_event("run", said("on"), 3) == 1
    await stream.complete_run("run", AgnoStatus.completed, 3)
    assert await stream.get_run_status("run") is AgnoStatus.completed


async def test_cleaning_up_deletes_the_run(stream: LogEventStream) -> None:
    await begin(stream)
    await stream.add_event("run", said("x"))
    await stream.cleanup_run("run")
    assert await stream.get_run_status("run") is None


@pytest.mark.parametrize("family", Family)
async def test_a_run_belongs_to_the_request_that_it_came_from(stream: LogEventStream, family: Family) -> None:
    fields: dict[str, str] = {}
    state: dict[str, Any] = {}
    token = request_owner.set(RequestOwner(family, "component", fields, state))
    fields["session_id"], state["user_id"] = "session", "alice"  # the body and the JWT middleware come later
    try:
        await stream.register_run("run")
    finally:
        request_owner.reset(token)
    run = await (await stream.log()).get("run")
    assert (run.family, run.component_id, run.session_id, run.user_id) == (family, "component", "session", "alice")


async def test_a_run_whose_process_died_is_ended_by_another_and_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    lost: list[str] = []

    async def mourn(run: Any) -> None:
        lost.append(run.run_id)

    async with SQLiteEventLog(tmp_path / "runs.db") as dead:  # a process that holds a run, and does nothing more
        other = LogEventStream(url, lease=0.2, sweep_interval=0.05)
        other.on_lost(mourn)
        await dead.create(_new("run"), lease=0.1)
        await dead.append("run", 1, [EncodedEvent("RunContent", b'{"event":"RunContent","content":"x"}')])
        async with other:
            await eventually(lambda: _is(other, AgnoStatus.error))
            assert [frame.event for frame in await told(other)] == ["RunContent", "RunError"]
            await eventually(lambda: _true(lost == ["run"]))


def _new(run_id: str) -> Any:
    from agno_resumable import NewRun

    return NewRun(run_id)


async def _is(stream: LogEventStream, status: AgnoStatus) -> bool:
    return await stream.get_run_status("run") is status


async def _true(value: bool) -> bool:
    return value


async def test_the_lease_is_renewed_as_long_as_the_process_lives() -> None:
    log = MemoryEventLog()
    async with LogEventStream(log, lease=0.15, sweep_interval=0.05) as stream:
        await begin(stream)
        await anyio.sleep(0.6)
        assert await stream.get_run_status("run") is AgnoStatus.running
        assert await stream.add_event("run", said("still here")) == 0


async def test_a_run_that_waits_for_its_turn_is_alive(tmp_path: Path) -> None:
    """agno registers a background run at once, and begins it when one of its places is free."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    async with LogEventStream(url, lease=0.2, sweep_interval=0.05) as stream:
        await stream.register_run("run")
        async with SQLiteEventLog(tmp_path / "runs.db") as other:
            for _ in range(8):
                await anyio.sleep(0.1)
                assert await other.expire(lease=1.0) == []
        assert await stream.get_run_status("run") is AgnoStatus.pending
        await stream.set_run_status("run", AgnoStatus.running)
        assert await stream.add_event("run", said("at last")) == 0


async def test_a_run_that_is_registered_here_and_run_elsewhere_is_let_go() -> None:
    log = MemoryEventLog()
    async with LogEventStream(log, lease=0.15) as accepts, LogEventStream(log, lease=0.15) as works:
        await accepts.register_run("run")
        await works.begin_attempt("run", 1)
        assert await works.add_event("run", said("there"), 1) == 0
        await eventually(lambda: not accepts._legs)
        assert await accepts.get_run_status("run") is AgnoStatus.running
        await works.complete_run("run", AgnoStatus.completed, 1)
        assert await accepts.get_last_index("run") == 1


@pytest.mark.parametrize("stops", ["aclose", "supervisor"])
async def test_a_run_in_a_queue_outlives_the_process_that_took_it_in(stops: str) -> None:
    """With a durable queue any process may begin it: the end of the one that accepted it is not the run's."""
    log = MemoryEventLog()
    async with log, LogEventStream(log) as works:
        accepts = LogEventStream(log)
        await accepts.register_run("run")
        if stops == "aclose":
            await accepts.aclose()
        else:
            accepts._legs["run"].stop()
            await accepts._legs["run"].done.wait()
        assert await works.get_run_status("run") is AgnoStatus.pending
        await works.begin_attempt("run", 1)
        assert await works.add_event("run", said("after all"), 1) == 0
        await works.complete_run("run", AgnoStatus.completed, 1)
        assert await works.get_run_status("run") is AgnoStatus.completed


async def test_a_run_that_has_begun_without_a_word_is_cancelled_with_its_process() -> None:
    log = MemoryEventLog()
    async with log, LogEventStream(log) as reads:
        stream = LogEventStream(log)
        await stream.register_run("run")
        await stream.set_run_status("run", AgnoStatus.running)
        await stream.aclose()
        assert await reads.get_run_status("run") is AgnoStatus.cancelled


async def test_a_run_that_two_replicas_begin_at_once_is_taken_over() -> None:
    """Both have read that there is none; who creates it second takes it, as whoever comes later does."""

    class Late(MemoryEventLog):
        async def create(self, run: NewRun, *, lease: float) -> Run:
            await super().create(run, lease=lease)  # the other replica's
            return await super().create(run, lease=lease)

    async with LogEventStream(Late()) as stream:
        await stream.begin_attempt("run", 3)
        assert await stream.add_event("run", said("taken over"), 3) == 0


async def test_who_waits_for_room_beside_others_is_not_forgotten() -> None:
    log = Away()
    async with LogEventStream(log) as stream:
        await begin(stream)
        log.away = True
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(_talk, stream, 1000)
            await anyio.sleep(0.3)
            log.away = False
        assert await stream.get_last_index("run") == 5999


async def _talk(stream: LogEventStream, words: int) -> None:
    for _ in range(words):
        await stream.add_event("run", said("x" * 1000))


async def test_a_process_that_stops_ends_its_runs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    async with LogEventStream(url) as stream:
        await begin(stream)
        await stream.add_event("run", said("x"))
    async with LogEventStream(url) as stream:
        assert [frame.event for frame in await told(stream)] == ["RunContent", "RunCancelled"]
        assert await stream.get_run_status("run") is AgnoStatus.cancelled


class Away(MemoryEventLog):
    """A log that takes no events while it is away."""

    away = False

    async def append(self, *args: Any, **options: Any) -> int:
        if self.away:
            raise LogUnavailable("The store is away.")
        return await super().append(*args, **options)


async def test_events_spill_while_the_store_is_away_and_are_stored_when_it_is_back() -> None:
    log = Away()
    async with LogEventStream(log) as stream:
        await begin(stream)
        log.away = True
        for number in range(5000):  # far more than one batch; the run is not held up
            assert await stream.add_event("run", said(str(number))) == number
        log.away = False
        await stream.complete_run("run", AgnoStatus.completed)
        assert [frame.id for frame in await told(stream)] == [f"run:{index}" for index in range(5001)]


async def test_the_spill_is_bounded_and_its_end_is_a_clear_failure() -> None:
    log = Away()
    async with LogEventStream(log, outage=0.3) as stream:
        await begin(stream)
        log.away = True
        added: list[int] = []

        async def talk() -> None:
            while True:
                added.append(await stream.add_event("run", said("x" * 1000)))

        with anyio.fail_after(PATIENCE), pytest.raises(LogUnavailable, match="away for too long"):
            await talk()
        assert 3_000 < len(added) < 20_000
        assert not await stream.stored("run", 0)
        log.away = False


async def test_stored_waits_for_the_commit(stream: LogEventStream) -> None:
    await begin(stream)
    index = await stream.add_event("run", said("x"))
    with anyio.fail_after(PATIENCE):
        assert await stream.stored("run", index)
    assert (await (await stream.log()).read("run")).run.next_index == 1
    await stream.complete_run("run", AgnoStatus.completed)
    assert await stream.stored("run", 1)
    assert not await stream.stored("run", 2)


async def test_an_event_that_cannot_be_said_is_an_error_frame_of_the_streams_family(stream: LogEventStream) -> None:
    await begin(stream)
    circular: list[Any] = []
    circular.append(circular)
    await stream.add_event("run", TeamRunContentEvent(run_id="run", content="x"))
    await stream.add_event("run", said(circular))  # type: ignore[arg-type]
    assert await stream.add_event("run", TeamRunContentEvent(run_id="run", content="y")) == 2
    assert [frame.event for frame in await told(stream)] == ["TeamRunContent", "TeamRunError", "TeamRunContent"]
