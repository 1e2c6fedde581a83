"""``ResumableStream`` over real agno components: how runs end, pause, are cancelled, taken over, swept and drained."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.tools import tool
from agno.workflow import Step, Workflow

from agno_resumable import (
    Draining,
    EncodedEvent,
    Event,
    EventLog,
    Family,
    LogUnavailable,
    MemoryEventLog,
    NewRun,
    ResumableStream,
    Run,
    RunExists,
    RunFinished,
    RunNotFound,
    RunStatus,
    drain,
)
from agno_resumable.demo.scripted import Pause, ScriptedModel, ScriptItem, ToolCall
from agno_resumable.outbox import Outbox
from agno_resumable.sse import Identity

from .broken_logs import Wrapped
from .support import PATIENCE, Gate, eventually, scripted, scripted_agent, scripted_team, scripted_workflow

pytestmark = pytest.mark.anyio

FAMILIES = list(Family)
PREFIXES = {Family.AGENT: "Run", Family.TEAM: "TeamRun", Family.WORKFLOW: "Workflow"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # agno runs on nothing else


async def events_of(stream: ResumableStream, run_id: str, after: int = -1) -> list[Event]:
    with anyio.fail_after(PATIENCE):
        return [event async for event in stream.events(run_id, after)]


async def ended(stream: ResumableStream, run: Run) -> Run:
    with anyio.fail_after(PATIENCE):
        return await stream.wait(run.run_id)


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def text(events: list[Event], type_: str = "RunContent") -> str:
    return "".join(orjson.loads(event.data)["content"] for event in events if event.type == type_)


# ---------------------------------------------------------------- endings


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_run_ends_with_its_own_event_and_not_with_a_members(family: Family) -> None:
    async with ResumableStream(scripted(family), log="memory:") as stream:
        run = await stream.start("Go.")
        events = await events_of(stream, run.run_id)
        run = await ended(stream, run)
    assert stream.family is family
    assert run.status is RunStatus.COMPLETED
    assert 40 <= len(events) <= 60
    assert [event.index for event in events] == list(range(len(events)))
    assert events[-1].type == PREFIXES[family] + "Completed"
    assert types(events).count(events[-1].type) == 1
    assert run.next_index == len(events)
    if family is not Family.AGENT:
        assert "RunCompleted" in types(events)


async def test_a_workflow_inside_a_workflow_does_not_end_the_outer_one() -> None:
    inner = scripted_workflow(words=3, id="inner")
    outer = Workflow(
        id="outer",
        name="outer",
        steps=[Step(name="first", workflow=inner), Step(name="second", agent=scripted_agent(id="after"))],
        telemetry=False,
    )
    async with ResumableStream(outer, log="memory:") as stream:
        run = await stream.start("Go.")
        events = await events_of(stream, run.run_id)
        run = await ended(stream, run)
    assert run.status is RunStatus.COMPLETED
    assert types(events).count("WorkflowCompleted") == 2
    assert orjson.loads(events[-1].data)["workflow_id"] == "outer"


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_cancelled_run_ends_with_cancelled_though_agno_says_completed_after_it(family: Family) -> None:
    gate = Gate()
    async with ResumableStream(scripted(family, "so far ", gate.pass_, "never"), log="memory:") as stream:
        run = await stream.start("Go.")
        with anyio.fail_after(PATIENCE):
            await gate.reached.wait()
        await stream.cancel(run.run_id)
        gate.open()  # agno looks for a cancel between two events
        events = await events_of(stream, run.run_id)
        run = await ended(stream, run)
        transcript = await stream.transcript(run.run_id)
    assert run.status is RunStatus.CANCELLED
    assert events[-1].type == PREFIXES[family] + "Cancelled"
    assert types(events).count(PREFIXES[family] + "Completed") == 0
    assert "so far " in str(transcript["content"] or transcript["messages"])


async def test_a_run_that_was_asked_for_content_only_still_has_an_end() -> None:
    async with ResumableStream(scripted_agent("a ", "b"), log="memory:") as stream:
        run = await stream.start("Go.", stream_events=False)
        events = await events_of(stream, run.run_id)
        assert (await ended(stream, run)).status is RunStatus.COMPLETED
    assert types(events) == ["RunContent", "RunContent", "RunCompleted"]
    assert orjson.loads(events[-1].data)["run_id"] == run.run_id


async def test_the_output_that_agno_appends_on_request_is_no_event() -> None:
    async with ResumableStream(scripted_agent("a ", "b"), log="memory:") as stream:
        run = await stream.start("Go.", yield_run_output=True)
        events = await events_of(stream, run.run_id)
    assert types(events)[-1] == "RunCompleted"
    assert "message" not in types(events)
    assert "RunOutput" not in types(events)


@pytest.mark.parametrize("family", [Family.AGENT, Family.TEAM])  # a workflow tries a failed step again and skips it
async def test_a_model_that_fails_ends_the_run_in_its_familys_error_with_what_was_said(family: Family) -> None:
    async with ResumableStream(scripted(family, "so far ", ValueError("out of ink")), log="memory:") as stream:
        run = await stream.start("Go.")
        events = await events_of(stream, run.run_id)
        run = await ended(stream, run)
        transcript = await stream.transcript(run.run_id)
    assert run.status is RunStatus.ERROR
    assert events[-1].type == PREFIXES[family] + "Error"
    assert b"out of ink" in events[-1].data
    assert "so far " in str(transcript["messages"])
    assert "out of ink" in str(transcript["error"])


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_run_that_does_not_poll_for_its_cancel_is_cancelled_hard_and_keeps_what_it_said(family: Family) -> None:
    gate = Gate()  # never opened
    stream = ResumableStream(scripted(family, "so far ", gate.pass_), log="memory:", cancel_grace=0.1)
    async with stream:
        run = await stream.start("Go.")
        with anyio.fail_after(PATIENCE):
            await gate.reached.wait()
        await stream.cancel(run.run_id)
        run = await ended(stream, run)
        events = await events_of(stream, run.run_id)
        transcript = await stream.transcript(run.run_id)
    assert run.status is RunStatus.CANCELLED
    assert events[-1].type == PREFIXES[family] + "Cancelled"
    assert "so far " in str(transcript["messages"])


async def test_a_run_is_cancelled_from_another_stream_object_on_the_same_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    gate = Gate()
    first = ResumableStream(scripted_agent("so far ", gate.pass_), log=url, cancel_grace=0.1)
    async with first:
        from agno_resumable import SQLiteEventLog

        async with SQLiteEventLog(str(tmp_path / "runs.db")) as log:  # as another process would
            second = ResumableStream(scripted_agent("unused"), log=log)
            async with second:
                run = await first.start("Go.")
                with anyio.fail_after(PATIENCE):
                    await gate.reached.wait()
                assert (await second.cancel(run.run_id)).cancel_requested_at is not None
                assert (await ended(second, run)).status is RunStatus.CANCELLED
                assert await events_of(first, run.run_id) == await events_of(second, run.run_id)


async def test_cancelling_a_finished_run_changes_nothing_and_a_missing_one_is_not_found() -> None:
    async with ResumableStream(scripted_agent("a"), log="memory:") as stream:
        run = await ended(stream, await stream.start("Go."))
        assert await stream.cancel(run.run_id) == run
        with pytest.raises(RunNotFound):
            await stream.cancel("another")


async def test_runs_of_another_component_on_the_same_log_are_not_found() -> None:
    async with MemoryEventLog() as log:
        one = ResumableStream(scripted_agent("a", id="one"), log=log)
        two = ResumableStream(scripted_agent("a", id="two"), log=log)
        team = ResumableStream(scripted_team("a", id="one"), log=log)
        async with one, two, team:
            run = await ended(one, await one.start("Go."))
            for other in (two, team):
                for call in (other.get, other.cancel, other.wait, other.transcript, other.continue_run):
                    with pytest.raises(RunNotFound):
                        await call(run.run_id)
                with pytest.raises(RunNotFound):
                    await events_of(other, run.run_id)


# ---------------------------------------------------------------- starting


async def test_a_start_with_the_same_idempotency_key_starts_nothing_and_returns_the_first_run() -> None:
    async with ResumableStream(scripted_agent("a"), log="memory:") as stream:
        first = await stream.start("Go.", user_id="alice", idempotency_key="k")
        again = await stream.start("Go.", user_id="alice", idempotency_key="k")
        other = await stream.start("Go.", user_id="bob", idempotency_key="k")
        assert again.run_id == first.run_id
        assert other.run_id != first.run_id
        assert len(await (await stream.log()).list()) == 2


async def test_an_idempotency_key_never_answers_with_the_run_of_another_component() -> None:
    async with MemoryEventLog() as log:
        one, two = ResumableStream(scripted_agent("a"), log=log), ResumableStream(scripted_team("a"), log=log)
        async with one, two:
            first = await one.start("Go.", user_id="alice", idempotency_key="k")
            with pytest.raises(RunExists) as refused:
                await two.start("Go.", user_id="alice", idempotency_key="k")
            assert refused.value.run_id == first.run_id


async def test_a_run_id_that_is_taken_is_refused_and_the_run_there_is_untouched() -> None:
    async with ResumableStream(scripted_agent("a"), log="memory:") as stream:
        run = await ended(stream, await stream.start("Go.", run_id="mine"))
        with pytest.raises(RunExists):
            await stream.start("Go.", run_id="mine")
        assert await stream.get("mine") == run


async def test_it_works_without_a_lifespan_and_closes_what_it_opened(tmp_path: Path) -> None:
    stream = ResumableStream(scripted_agent("a ", "b"), log=f"sqlite:///{tmp_path}/runs.db")
    run = await stream.start("Go.")
    assert text(await events_of(stream, run.run_id)) == "a b"
    log = await stream.log()
    await stream.aclose()
    assert not log.is_open
    assert text(await events_of(stream, run.run_id)) == "a b"  # and opens it again
    await stream.aclose()


# ---------------------------------------------------------------- pausing


@tool(requires_confirmation=True)
def launch(target: str) -> str:
    """Launch it.

    Args:
        target (str): Where to.
    """
    return f"launched to {target}"


def cautious_agent() -> Agent:
    script: list[ScriptItem] = ["Ready. ", ToolCall("launch", {"target": "moon"}), "It ", "flies."]
    return Agent(
        id="cautious",
        model=ScriptedModel(script=script),
        tools=[launch],
        db=InMemoryDb(),  # type: ignore[no-untyped-call]  # agno's
        telemetry=False,
    )


async def test_a_paused_run_is_continued_with_indices_that_go_on() -> None:
    agent = cautious_agent()
    async with ResumableStream(agent, log="memory:") as stream:
        run = await stream.start("Go.", user_id="alice")
        first = await events_of(stream, run.run_id)
        assert first[-1].type == "RunPaused"
        assert (await ended(stream, run)).status is RunStatus.PAUSED
        output = await agent.aget_run_output(run.run_id, session_id=str(run.session_id))
        assert output is not None
        for requirement in output.requirements or ():
            requirement.confirm()  # type: ignore[no-untyped-call]  # agno's
        continued = await stream.continue_run(run.run_id, requirements=output.requirements)
        assert continued.generation == 2
        rest = await events_of(stream, run.run_id, first[-1].index)
        done = await ended(stream, run)
        transcript = await stream.transcript(run.run_id)
        assert [message["content"] for message in transcript["messages"]] == ["Ready. It flies."]
        assert transcript["status"] == "COMPLETED"
        with pytest.raises(RunFinished):
            await stream.continue_run(run.run_id)
    assert done.status is RunStatus.COMPLETED
    assert [event.index for event in [*first, *rest]] == list(range(done.next_index))
    assert "ToolCallCompleted" in types(rest)
    assert text([*first, *rest]) == "Ready. It flies."


async def test_a_paused_run_is_cancelled_here_and_now() -> None:
    async with ResumableStream(cautious_agent(), log="memory:") as stream:
        run = await stream.start("Go.")
        assert (await ended(stream, run)).status is RunStatus.PAUSED
        assert (await stream.cancel(run.run_id)).status is RunStatus.CANCELLED
        assert types(await events_of(stream, run.run_id))[-2:] == ["RunPaused", "RunCancelled"]
        transcript = await stream.transcript(run.run_id)
        assert (transcript["content"], transcript["status"]) == ("Ready. ", "CANCELLED")


# ---------------------------------------------------------------- leaving


async def test_a_run_that_nobody_reads_is_cancelled_after_the_grace_and_not_while_it_is_read() -> None:
    gate = Gate()
    stream = ResumableStream(
        scripted_agent("so far ", gate.pass_, "more"), log="memory:", on_disconnect=0.1, cancel_grace=0.1
    )
    async with stream:
        run = await stream.start("Go.")
        with stream.readers.reading(run.run_id):
            await anyio.sleep(0.3)
            assert (await stream.get(run.run_id)).status.active
        unread = await stream.start("Go.")
        log = await stream.log()
        for left in (run, unread):
            await eventually(lambda run_id=left.run_id: finished(log, run_id))  # type: ignore[misc]
            assert (await stream.get(left.run_id)).status is RunStatus.CANCELLED


async def test_reading_the_events_in_this_process_counts_as_reading() -> None:
    gate = Gate()
    stream = ResumableStream(scripted_agent("a ", gate.pass_, "b"), log="memory:", on_disconnect=0.1, cancel_grace=0.1)
    async with stream:
        run = await stream.start("Go.")
        seen: list[Event] = []
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                seen.extend(await events_of(stream, run.run_id))

            tasks.start_soon(read)
            await anyio.sleep(0.4)
            gate.open()
        assert (await ended(stream, run)).status is RunStatus.COMPLETED
    assert text(seen) == "a b"


async def test_waiting_for_the_result_counts_as_reading() -> None:
    stream = ResumableStream(scripted_agent("a ", Pause(0.4), "b"), log="memory:", on_disconnect=0.1, cancel_grace=0.1)
    async with stream:
        run = await stream.start("Go.")
        assert (await ended(stream, run)).status is RunStatus.COMPLETED


# ---------------------------------------------------------------- the log's faults


class Faulty(MemoryEventLog):
    """The memory log with a store that is away when a test says so."""

    def __init__(self, before: Callable[[int], Awaitable[None]], after: Callable[[int], Awaitable[None]]) -> None:
        super().__init__()
        self._before, self._after = before, after
        self.calls = 0
        self.largest = 0

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Any,
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        self.calls += 1
        call = self.calls
        self.largest = max(self.largest, len(events))
        await self._before(call)
        index = await super().append(run_id, generation, events, status=status, transcript=transcript)
        await self._after(call)
        return index


async def nothing(call: int) -> None:
    """The store is well."""


def away(*, outcome_unknown: bool) -> Callable[[int], Awaitable[None]]:
    async def fail(call: int) -> None:
        if call in (1, 2, 4, 7, 8, 10):
            raise LogUnavailable("away", outcome_unknown=outcome_unknown)

    return fail


@pytest.mark.parametrize(("outcome_unknown", "stored"), [(False, False), (True, False), (True, True)])
async def test_an_outage_of_the_log_loses_and_doubles_nothing(stored: bool, outcome_unknown: bool) -> None:
    fail = away(outcome_unknown=outcome_unknown)
    log = Faulty(nothing, fail) if stored else Faulty(fail, nothing)

    async def count(input: str) -> AsyncIterator[str]:
        for number in range(6):
            yield str(number)
            await anyio.sleep(0.01)

    async with log, ResumableStream(count, log=log) as stream:
        run = await stream.start("Go.")
        events = await events_of(stream, run.run_id)
        assert (await ended(stream, run)).status is RunStatus.COMPLETED
    assert [orjson.loads(event.data)["content"] for event in events] == ["0", "1", "2", "3", "4", "5"]


class FailsOver(Wrapped):
    """Its fourth append fails, and then there is a replica in its place that had received no more than two events."""

    calls = 0

    async def append(self, *args: Any, **options: Any) -> int:
        run_id, generation, events = args
        self.calls += bool(events)
        if self.calls != 4:
            return await super().append(*args, **options)
        self.calls += 1
        received = (await self.read(run_id, limit=2)).events
        await self.inner.__aexit__(None, None, None)
        self.inner = MemoryEventLog()
        await self.inner.__aenter__()
        await self.inner.create(NewRun(run_id), lease=60.0)
        await self.inner.append(run_id, generation, [EncodedEvent(event.type, event.data) for event in received])
        raise LogUnavailable("the server is gone", outcome_unknown=True)


async def test_a_store_that_has_lost_events_does_not_pass_for_one_that_has_stored_more() -> None:
    async def count(input: str) -> AsyncIterator[str]:
        for number in range(6):
            yield str(number)
            await anyio.sleep(0.02)

    async with FailsOver() as log, ResumableStream(count, log=log) as stream:
        run = await stream.start("Go.")
        assert (await ended(stream, run)).status is RunStatus.COMPLETED
        events = (await log.read(run.run_id)).events
    assert [orjson.loads(event.data)["content"] for event in events] == ["0", "1", "3", "4", "5"]


async def test_nobody_waits_for_an_index_that_a_store_has_lost() -> None:
    async with FailsOver() as log, anyio.create_task_group() as tasks:
        run = await log.create(NewRun("run"), lease=60.0)
        outbox = Outbox(log, run, family=Family.AGENT, identity=Identity(run_id="run"))
        tasks.start_soon(outbox.write)
        try:
            with anyio.fail_after(PATIENCE):
                for number in range(5):
                    outbox.put(EncodedEvent("RunContent", b'{"n":%d}' % number))
                    assert await outbox.stored(outbox.next_index - 1)
                    assert (await log.read("run")).events[-1].data == b'{"n":%d}' % number
        finally:
            outbox.finish(RunStatus.COMPLETED, None)
        found = [orjson.loads(event.data)["n"] for event in (await log.read("run")).events]
        assert found == [0, 1, 3, 4]


async def test_a_slow_log_holds_the_source_back_and_not_a_growing_buffer() -> None:
    given = 0
    slow = anyio.Event()

    async def hold(call: int) -> None:
        await slow.wait()

    async def hasty(input: str) -> AsyncIterator[str]:
        nonlocal given
        for _ in range(20_000):
            given += 1
            yield "x"

    log = Faulty(hold, nothing)
    async with log, ResumableStream(hasty, log=log) as stream:
        run = await stream.start("Go.")
        for _ in range(50):
            await anyio.sleep(0.005)
        held = given
        assert 0 < held < 5_000
        await anyio.sleep(0.05)
        assert given == held
        slow.set()
        assert (await ended(stream, run)).next_index == 20_000
    assert log.largest < 5_000


async def test_a_run_that_another_has_claimed_gets_nothing_more_from_its_old_producer() -> None:
    gate = Gate()
    async with MemoryEventLog() as log, ResumableStream(scripted_agent("a ", gate.pass_, "old"), log=log) as stream:
        run = await stream.start("Go.")
        with anyio.fail_after(PATIENCE):
            await gate.reached.wait()
            await eventually(lambda: stored(log, run.run_id))
        claimed = await log.claim(run.run_id, lease=60)
        await log.append(run.run_id, claimed.generation, [EncodedEvent("RunContent", b'{"content":"new"}')])
        gate.open()
        supervisor = await stream.supervisor()
        await eventually(lambda: supervisor.active == 0)
        await log.append(run.run_id, claimed.generation, [], status=RunStatus.COMPLETED)
        assert text(await events_of(stream, run.run_id)) == "a new"


async def stored(log: EventLog, run_id: str) -> bool:
    page = await log.read(run_id)
    return any(event.type == "RunContent" for event in page.events)


async def test_a_producer_whose_lease_was_taken_stops_at_the_next_renewal_though_it_writes_nothing() -> None:
    gate = Gate()
    async with MemoryEventLog() as log:
        stream = ResumableStream(scripted_agent("a ", gate.pass_), log=log, lease=0.15)
        async with stream:
            run = await stream.start("Go.")
            with anyio.fail_after(PATIENCE):
                await gate.reached.wait()
            await log.claim(run.run_id, lease=60)
            supervisor = await stream.supervisor()
            await eventually(lambda: supervisor.active == 0)
            assert (await stream.get(run.run_id)).status is RunStatus.RUNNING


@pytest.mark.parametrize("asked", [False, True], ids=["lost", "to be cancelled"])
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_run_whose_producer_died_is_ended_with_its_familys_frame(family: Family, asked: bool) -> None:
    async with MemoryEventLog() as log:
        await log.create(NewRun("dead", family=family, component_id="agent", session_id="s"), lease=0.01)
        delta = EncodedEvent("TeamRunContent" if family is Family.TEAM else "RunContent", b'{"content":"so far"}')
        await log.append("dead", 1, [delta])
        if asked:
            await log.request_cancel("dead")
        await anyio.sleep(0.02)
        async with ResumableStream(scripted_agent(), log=log, sweep_interval=0.05):
            await eventually(lambda: finished(log, "dead"))
        run = await log.get("dead")
        events = (await log.read("dead")).events
    said = orjson.loads(events[-1].data)
    if asked:
        assert (run.status, events[-1].type) == (RunStatus.CANCELLED, PREFIXES[family] + "Cancelled")
        assert said["reason"] == "The run was cancelled."
    else:
        assert (run.status, events[-1].type) == (RunStatus.ERROR, PREFIXES[family] + "Error")
        assert said["error_type"] == "producer_lost"
    assert b"so far" in (run.transcript or b"")


async def finished(log: EventLog, run_id: str) -> bool:
    return (await log.read(run_id, limit=0)).run.status.finished


async def test_finished_runs_leave_after_the_retention_and_active_ones_stay() -> None:
    async with MemoryEventLog() as log:
        await log.create(NewRun("active"), lease=60)
        await log.create(NewRun("old"), lease=60)
        await log.append("old", 1, [], status=RunStatus.COMPLETED)
        await anyio.sleep(0.02)
        async with ResumableStream(scripted_agent(), log=log, retention=0.01):
            await eventually(lambda: only(log, "active"))


async def only(log: EventLog, run_id: str) -> bool:
    return [run.run_id for run in await log.list()] == [run_id]


# ---------------------------------------------------------------- draining


async def test_at_the_drain_runs_get_their_grace_and_no_new_ones_are_started() -> None:
    gate, never = Gate(), Gate()
    async with MemoryEventLog() as log:
        quick = ResumableStream(scripted_agent("a ", gate.pass_, "b", id="quick"), log=log, drain_grace=0.5)
        stuck = ResumableStream(scripted_agent("so far ", never.pass_, id="stuck"), log=log, cancel_grace=0.1)
        async with quick, stuck:
            ending = await quick.start("Go.")
            hanging = await stuck.start("Go.")
            with anyio.fail_after(PATIENCE):
                await gate.reached.wait()
                await never.reached.wait()
            drain()
            with pytest.raises(Draining):
                await quick.start("Go.")
            gate.open()
            assert (await ended(quick, ending)).status is RunStatus.COMPLETED
            cut = await ended(stuck, hanging)
            assert cut.status is RunStatus.CANCELLED
            events = await events_of(stuck, cut.run_id)
            assert text(events) == "so far "
            assert events[-1].type == "RunCancelled"


async def test_closing_the_stream_gives_runs_their_grace_and_ends_what_is_left(tmp_path: Path) -> None:
    never = Gate()
    url = f"sqlite:///{tmp_path}/runs.db"
    stream = ResumableStream(scripted_agent("so far ", never.pass_), log=url, drain_grace=0.1, cancel_grace=0.1)
    async with stream:
        run = await stream.start("Go.")
        with anyio.fail_after(PATIENCE):
            await never.reached.wait()
    async with stream:
        assert (await stream.get(run.run_id)).status is RunStatus.CANCELLED
        assert text(await events_of(stream, run.run_id)) == "so far "
