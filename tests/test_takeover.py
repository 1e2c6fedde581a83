"""Runs that are begun anew where their producer was lost, wait for a place, or are handed over at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import orjson
import pytest

from agno_resumable import (
    EncodedEvent,
    Event,
    EventLog,
    Family,
    MemoryEventLog,
    NewRun,
    ResumableStream,
    Run,
    RunStatus,
)
from agno_resumable.dialects.native import Native
from agno_resumable.model import Batch

from .support import PATIENCE, Gate, eventually, scripted

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"lease": 0.3, "sweep_interval": 0.05}
RESTART: dict[str, Any] = {**QUICK, "on_producer_lost": "restart"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def lost_run(log: EventLog, run_id: str = "run", *, component: str = "speak", **fields: Any) -> Run:
    """A run whose process has died after three events."""
    new = NewRun(run_id, component_id=component, session_id="s", **{"input": b'"Go."', "max_attempts": 3, **fields})
    run = await log.create(new, lease=0.01)
    said = [EncodedEvent("RunContent", b'{"event":"RunContent","content":"old %d "}' % n) for n in range(3)]
    await log.append(run_id, run.generation, said)
    return run


async def events_of(stream: ResumableStream, run_id: str, after: int = -1) -> list[Event]:
    with anyio.fail_after(PATIENCE):
        return [event async for event in stream.events(run_id, after)]


async def speak(input: str, *, session_id: str, user_id: str | None, **options: Any) -> AsyncIterator[dict[str, Any]]:
    run_id = options.pop("run_id")
    for word in (f"new {session_id} ", f"{input} ", orjson.dumps(options).decode()):
        yield {"event": "RunContent", "run_id": run_id, "content": word}


async def test_a_lost_run_is_run_again_from_its_input_and_its_indices_go_on() -> None:
    async with MemoryEventLog() as log:
        await lost_run(log, options=b'{"temperature":0.5}', metadata=b'{"for":"ann"}')
        async with ResumableStream(speak, log=log, **RESTART) as stream:
            events = await events_of(stream, "run")
            run = await stream.wait("run")
            behind = await events_of(stream, "run", 1)
            transcript = await stream.transcript("run")
    assert [event.index for event in events] == list(range(len(events)))
    assert [event.type for event in events] == ["RunContent"] * 3 + ["restarted"] + ["RunContent"] * 3
    assert orjson.loads(events[3].data) == {"event": "restarted", "run_id": "run", "attempt": 2, "first_index": 4}
    assert behind == events[2:]
    assert (run.status, run.attempts, run.generation) == (RunStatus.COMPLETED, 2, 2)
    assert transcript["content"] == 'new s Go. {"temperature":0.5,"metadata":{"for":"ann"}}'


@pytest.mark.parametrize("family", list(Family))
async def test_a_real_component_runs_again(family: Family) -> None:
    async with MemoryEventLog() as log:
        await lost_run(log, component=family.value, family=family)
        async with ResumableStream(scripted(family, "all ", "anew"), log=log, **RESTART) as stream:
            events = await events_of(stream, "run")
            run = await stream.wait("run")
            transcript = await stream.transcript("run")
    assert run.status is RunStatus.COMPLETED
    assert events[3].type == "restarted"
    assert "old" not in str(transcript)
    assert "all anew" in str(transcript)


async def test_a_run_that_had_said_nothing_is_begun_without_a_word() -> None:
    async with MemoryEventLog() as log:
        await log.create(NewRun("run", component_id="speak", input=b'"Go."', max_attempts=2), lease=0.01)
        async with ResumableStream(speak, log=log, **RESTART) as stream:
            assert [event.type for event in await events_of(stream, "run")] == ["RunContent"] * 3


async def test_the_attempts_are_bounded() -> None:
    async with MemoryEventLog() as log:
        await lost_run(log, max_attempts=2)
        await log.claim("run", lease=0.01)  # a second producer, which dies too
        async with ResumableStream(speak, log=log, **RESTART) as stream:
            events = await events_of(stream, "run")
            run = await stream.wait("run")
    assert (run.status, events[-1].type) == (RunStatus.ERROR, "RunError")
    assert orjson.loads(events[-1].data)["error_type"] == "producer_lost"


async def test_a_run_that_was_to_be_cancelled_is_not_begun_anew() -> None:
    async with MemoryEventLog() as log:
        await lost_run(log)
        await log.request_cancel("run")
        async with ResumableStream(speak, log=log, **RESTART) as stream:
            assert (await events_of(stream, "run"))[-1].type == "RunCancelled"
            assert (await stream.wait("run")).status is RunStatus.CANCELLED


async def test_a_stream_that_does_not_ask_for_it_ends_what_is_lost() -> None:
    async with MemoryEventLog() as log, ResumableStream(speak, log=log, **QUICK) as stream:
        run = await stream.start("Go.")
        assert (await log.get(run.run_id)).max_attempts == 1


async def test_what_another_service_can_run_again_is_left_to_it() -> None:
    async with MemoryEventLog() as log:
        await lost_run(log)
        await lost_run(log, "once", max_attempts=1)
        async with ResumableStream(scripted("agent"), log=log, **RESTART):
            await eventually(lambda: _finished(log, "once"))
            assert (await log.get("run")).generation == 1
        async with ResumableStream(speak, log=log, **RESTART) as stream:
            assert (await stream.wait("run")).status is RunStatus.COMPLETED


async def _finished(log: EventLog, run_id: str) -> bool:
    return (await log.get(run_id)).status.finished


class Unsayable:
    pass


async def test_input_without_json_is_run_once() -> None:
    async def listen(input: Any, **options: Any) -> AsyncIterator[str]:
        yield "heard"

    async with MemoryEventLog() as log, ResumableStream(listen, log=log, **RESTART) as stream:
        attempts = []
        cases: list[tuple[Any, dict[str, Any]]] = [("text", {}), (Unsayable(), {}), ((1, 2), {})]
        for given, options in [*cases, ("text", {"image": Unsayable()})]:
            run = await stream.wait((await stream.start(given, **options)).run_id)
            assert run.status is RunStatus.COMPLETED
            attempts.append(run.max_attempts)
    assert attempts == [3, 1, 1, 1]


async def test_a_producer_that_stood_still_is_fenced_off() -> None:
    """It is taken over, comes to itself, and nothing of what it says is heard."""
    gate = Gate()
    said: list[str] = []

    async def stand_still(input: str, *, run_id: str) -> AsyncIterator[dict[str, Any]]:
        said.append("begun")
        yield {"event": "RunContent", "content": f"{len(said)} "}
        if len(said) == 1:
            await gate.pass_()
            yield {"event": "RunContent", "content": "from the dead"}

    async with MemoryEventLog() as log, ResumableStream(stand_still, log=log, **RESTART) as stream:
        run = await stream.start("Go.")
        await gate.reached.wait()
        await eventually(lambda: _stored(log, run.run_id))
        await log.claim(run.run_id, lease=0.0)  # by a process that thought it dead, and died itself
        await eventually(lambda: _finished(log, run.run_id))
        gate.open()
        events = await events_of(stream, run.run_id)
    assert [event.type for event in events] == ["RunContent", "restarted", "RunContent"]
    assert (await _text(events)) == "1 2 "


async def _stored(log: EventLog, run_id: str) -> bool:
    return (await log.get(run_id)).next_index > 0


async def _text(events: list[Event]) -> str:
    return "".join(orjson.loads(event.data).get("content", "") for event in events)


# ---------------------------------------------------------------- places


async def test_runs_beyond_the_places_wait_visibly_and_in_order() -> None:
    gates = [Gate() for _ in range(4)]
    begun: list[int] = []

    async def work(input: int) -> AsyncIterator[str]:
        begun.append(input)
        await gates[input].pass_()
        yield "done"

    async with MemoryEventLog() as log, ResumableStream(work, log=log, max_concurrent=2, **QUICK) as stream:
        runs = [await stream.start(number) for number in range(4)]
        with anyio.fail_after(PATIENCE):
            await gates[1].reached.wait()
        await anyio.sleep(0.5)  # longer than a lease: who waits is alive
        waiting = await log.list(status=RunStatus.PENDING)
        assert {run.run_id for run in runs[2:]} <= {run.run_id for run in waiting}
        assert begun == [0, 1]
        gates[0].open()
        with anyio.fail_after(PATIENCE):
            await gates[2].reached.wait()
        assert begun == [0, 1, 2]
        for gate in gates:
            gate.open()
        assert [(await stream.wait(run.run_id)).status for run in runs] == [RunStatus.COMPLETED] * 4


async def test_a_run_that_waits_can_be_cancelled_and_never_begins() -> None:
    gate = Gate()
    begun: list[int] = []

    async def work(input: int) -> AsyncIterator[str]:
        begun.append(input)
        await gate.pass_()
        yield "done"

    async with MemoryEventLog() as log, ResumableStream(work, log=log, max_concurrent=1, **QUICK) as stream:
        runs = [await stream.start(number) for number in range(3)]
        with anyio.fail_after(PATIENCE):
            await gate.reached.wait()
            await stream.cancel(runs[1].run_id)
            assert (await stream.wait(runs[1].run_id)).status is RunStatus.CANCELLED
            gate.open()
            assert (await stream.wait(runs[2].run_id)).status is RunStatus.COMPLETED
        assert [event.type for event in await events_of(stream, runs[1].run_id)] == ["RunCancelled"]
    assert begun == [0, 2]


@pytest.mark.parametrize("wrong", [{"on_producer_lost": "retry"}, {"max_attempts": 0}, {"max_concurrent": 0}])
async def test_what_cannot_be_is_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ResumableStream(speak, log="memory:", **wrong)


# ---------------------------------------------------------------- handing over


async def test_a_process_that_stops_hands_its_runs_over() -> None:
    gate = Gate()
    begun: list[str] = []

    async def work(input: str, *, run_id: str) -> AsyncIterator[dict[str, Any]]:
        begun.append(input)
        yield {"event": "RunContent", "content": "first " if not gate.reached.is_set() else "again "}
        if not gate.reached.is_set():
            await gate.pass_()

    settings = {**RESTART, "lease": 60.0, "max_concurrent": 1, "drain_grace": 0.1}
    async with MemoryEventLog() as log:
        async with ResumableStream(work, log=log, **settings) as stream:
            active, waiting = await stream.start("active"), await stream.start("waiting")
            with anyio.fail_after(PATIENCE):
                await gate.reached.wait()
            await eventually(lambda: _stored(log, active.run_id))
        for run in (active, waiting):
            left = await log.get(run.run_id)
            assert left.status.active
            assert left.lease_expires_at is not None
            assert left.lease_expires_at <= await log.now()
        assert begun == ["active"]
        async with ResumableStream(work, log=log, **settings) as stream:
            events = await events_of(stream, active.run_id)
            assert (await stream.wait(waiting.run_id)).status is RunStatus.COMPLETED
    assert [event.type for event in events] == ["RunContent", "restarted", "RunContent"]
    assert await _text(events) == "first again "


async def test_a_run_whose_last_attempt_is_running_is_ended_when_its_process_stops() -> None:
    gate = Gate()

    async def work(input: str) -> AsyncIterator[str]:
        await gate.pass_()
        yield "never"

    async with MemoryEventLog() as log:
        async with ResumableStream(work, log=log, **{**RESTART, "max_attempts": 1, "drain_grace": 0.1}) as stream:
            run = await stream.start("Go.")
            with anyio.fail_after(PATIENCE):
                await gate.reached.wait()
        assert (await log.get(run.run_id)).status is RunStatus.CANCELLED


async def test_a_log_that_cannot_be_closed_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryEventLog):
        async def __aexit__(self, *raised: object) -> None:
            await super().__aexit__(None, None, None)
            raise RuntimeError("It is stuck.")

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(speak, log=Broken(), **QUICK) as stream:
            await stream.wait((await stream.start("Go.")).run_id)
    assert [record.message for record in caplog.records if record.exc_info] == ["the log could not be closed"]


# ---------------------------------------------------------------- the wire


def test_no_filter_keeps_a_restart_from_a_reader() -> None:
    batch = Batch("run", 3, [EncodedEvent("restarted", b'{"attempt":2}'), EncodedEvent("RunContent", b'{"a":1}')])
    assert Native(types=["RunCompleted"]).batch(batch) == (
        b'event: restarted\ndata: {"attempt":2,"event_index":3}\nid: run:3\n\n'
    )
    assert b"restarted" in Native(exclude=["restarted"]).batch(batch)
