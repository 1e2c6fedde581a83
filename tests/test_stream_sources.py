"""``ResumableStream`` over callables of every kind: what they give is stored, and how they end is how the run ends."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import orjson
import pytest
from pydantic import BaseModel

from agno_resumable import Event, EventTooLarge, MemoryEventLog, ResumableStream, Run, RunStatus

from .support import PATIENCE, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def played(source: Any, input: Any = "Go.", **options: Any) -> tuple[Run, list[Event]]:
    """Run ``source`` to its end; the run and its events."""
    with anyio.fail_after(PATIENCE):
        async with ResumableStream(source, log=options.pop("log", "memory:")) as stream:
            run = await stream.start(input, **options)
            events = [event async for event in stream.events(run.run_id)]
            return await stream.wait(run.run_id), events


def contents(events: list[Event]) -> list[Any]:
    return [orjson.loads(event.data).get("content") for event in events]


# ---------------------------------------------------------------- shapes


async def test_an_async_generator_is_a_source() -> None:
    async def count(input: str) -> AsyncIterator[str]:
        for number in range(3):
            await anyio.lowlevel.checkpoint()
            yield f"{input}{number}"

    run, events = await played(count)
    assert contents(events) == ["Go.0", "Go.1", "Go.2"]
    assert [event.index for event in events] == [0, 1, 2]
    assert run.status is RunStatus.COMPLETED
    assert run.component_id == "count"


async def test_a_sync_generator_is_a_source_and_runs_in_a_thread_of_its_own() -> None:
    threads = set()

    def count(input: str) -> Iterator[str]:
        for number in range(1000):
            threads.add(threading.current_thread())
            yield f"{input}{number}"

    run, events = await played(count)
    assert contents(events) == [f"Go.{number}" for number in range(1000)]
    assert run.status is RunStatus.COMPLETED
    assert threading.current_thread() not in threads
    assert len(threads) == 1
    await eventually(lambda: not any(thread.is_alive() for thread in threads))


async def test_a_coroutine_that_returns_an_iterator_is_a_source() -> None:
    async def give(input: str) -> list[str]:
        return [input, "b"]

    async def stream(input: str) -> AsyncIterator[str]:
        yield input

    async def give_stream(input: str) -> AsyncIterator[str]:
        return stream(input)

    assert contents((await played(give))[1]) == ["Go.", "b"]
    assert contents((await played(give_stream))[1]) == ["Go."]


async def test_an_object_with_a_call_is_a_source_and_its_class_names_the_component() -> None:
    class Counter:
        async def __call__(self, input: str) -> AsyncIterator[int]:
            yield 1

    run, events = await played(Counter())
    assert contents(events) == [1]
    assert run.component_id == "counter"


async def test_events_may_be_dicts_strings_dataclasses_and_pydantic_models() -> None:
    @dataclass
    class Point:
        x: int
        event: str = "Point"

    class Line(BaseModel):
        length: float
        type: str = "Line"

    async def give(input: str) -> AsyncIterator[Any]:
        yield {"event": "Named", "value": [1, None]}
        yield {"type": "Typed", "value": 2}
        yield "words"
        yield Point(3)
        yield Line(length=4.5)

    _, events = await played(give)
    assert [event.type for event in events] == ["Named", "Typed", "message", "Point", "Line"]
    said = [orjson.loads(event.data) for event in events]
    assert said[0]["value"] == [1, None]
    assert said[3]["x"] == 3
    assert said[4]["length"] == 4.5


async def test_a_callable_gets_the_ids_that_it_names_and_the_options_of_the_start() -> None:
    got: list[dict[str, Any]] = []

    async def some(input: Any, session_id: str, *, colour: str) -> AsyncIterator[str]:
        got.append({"session_id": session_id, "colour": colour})
        yield "x"

    async def all_of_them(input: Any, **options: Any) -> AsyncIterator[str]:
        got.append(options)
        yield "x"

    run, _ = await played(some, session_id="s", user_id="u", colour="red")
    assert got == [{"session_id": "s", "colour": "red"}]
    run, _ = await played(all_of_them, session_id="s", user_id="u", metadata={"a": 1})
    assert got[1] == {"run_id": run.run_id, "session_id": "s", "user_id": "u", "metadata": {"a": 1}}


async def test_what_is_no_iterator_of_events_ends_the_run_in_an_error_that_says_so() -> None:
    run, events = await played(lambda input: 5)
    assert run.status is RunStatus.ERROR
    assert [event.type for event in events] == ["RunError"]
    assert "int" in contents(events)[0]


async def test_what_is_no_source_at_all_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="int"):
        ResumableStream(5, log="memory:")


# ---------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("family", "error"), [("agent", "RunError"), ("team", "TeamRunError"), ("workflow", "WorkflowError")]
)
async def test_an_exception_is_the_familys_error_frame_behind_what_was_said(family: str, error: str) -> None:
    async def fail(input: str) -> AsyncIterator[str]:
        yield "so far"
        raise LookupError("out of ink")

    async with ResumableStream(fail, log="memory:", family=family) as stream:
        run = await stream.start("Go.")
        events = [event async for event in stream.events(run.run_id)]
        run = await stream.wait(run.run_id)
        transcript = await stream.transcript(run.run_id)
    assert [event.type for event in events] == ["message", error]
    last = orjson.loads(events[-1].data)
    assert "out of ink" in (last.get("error") or last["content"])
    assert last["error_type"] == "LookupError"
    assert last["run_id"] == run.run_id
    assert run.status is RunStatus.ERROR
    assert transcript["content"] == "so far"
    assert "out of ink" in transcript["error"]["message"]


async def test_a_sync_iterators_exception_ends_the_run_like_an_asynchronous_ones() -> None:
    def fail(input: str) -> Iterator[str]:
        yield "so far"
        raise LookupError("out of ink")

    run, events = await played(fail)
    assert run.status is RunStatus.ERROR
    assert [event.type for event in events] == ["message", "RunError"]


@pytest.mark.parametrize("error", [StopIteration("a"), StopAsyncIteration("b"), GeneratorExit("c"), SystemExit("d")])
async def test_exceptions_that_python_treats_otherwise_end_the_run_all_the_same(error: BaseException) -> None:
    class Source:
        """An iterator written by hand, which may raise anything."""

        def __init__(self) -> None:
            self.given = False

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> str:
            if self.given:
                raise error
            self.given = True
            return "so far"

    run, events = await played(lambda input: Source())
    assert run.status.finished
    assert contents(events)[0] == "so far"
    assert run.status is (RunStatus.COMPLETED if isinstance(error, StopIteration) else RunStatus.ERROR)


async def test_an_event_that_ends_the_run_ends_it_and_what_follows_is_not_stored() -> None:
    async def give(input: str) -> AsyncIterator[Any]:
        yield {"event": "RunContent", "content": "x"}
        yield {"event": "RunCancelled", "reason": "enough"}
        yield {"event": "RunCompleted", "content": "x"}

    run, events = await played(give)
    assert [event.type for event in events] == ["RunContent", "RunCancelled"]
    assert run.status is RunStatus.CANCELLED


async def test_the_endings_of_nested_runs_do_not_end_the_run() -> None:
    async def give(input: str, run_id: str) -> AsyncIterator[Any]:
        yield {"event": "RunCompleted", "run_id": "member", "parent_run_id": run_id}
        yield {"event": "RunCompleted", "run_id": "step", "workflow_run_id": run_id}
        yield {"event": "RunCompleted", "run_id": run_id, "nested_depth": 1}
        yield {"event": "RunContent", "content": "x"}

    run, events = await played(give)
    assert len(events) == 4
    assert run.status is RunStatus.COMPLETED


async def test_a_run_inside_a_callable_that_failed_makes_the_run_a_failed_one_at_its_end() -> None:
    async def give(input: str) -> AsyncIterator[Any]:
        yield {"event": "RunError", "run_id": "inner", "content": "no"}
        yield {"event": "RunContent", "content": "after it"}

    run, events = await played(give)
    assert len(events) == 2
    assert run.status is RunStatus.ERROR


async def test_a_hostile_event_gives_an_error_frame_and_the_run_goes_on() -> None:
    circle: dict[str, Any] = {"event": "RunContent"}
    circle["self"] = circle

    class Raises:
        def to_dict(self) -> dict[str, Any]:
            raise RuntimeError("never")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("never")

    async def give(input: str) -> AsyncIterator[Any]:
        yield "one"
        yield circle
        yield Raises()
        yield "two"

    run, events = await played(give)
    assert run.status is RunStatus.COMPLETED
    assert [event.type for event in events] == ["message", "RunError", "RunError", "message"]
    assert {orjson.loads(event.data)["error_type"] for event in events[1:3]} == {"serialization_error"}


async def test_an_ending_that_cannot_be_serialized_is_an_end_all_the_same_and_an_error() -> None:
    async def give(input: str) -> AsyncIterator[Any]:
        yield "one"
        yield {"event": "RunCompleted", "content": {(1, 2): "no JSON has such a name"}}
        yield "never stored"

    run, events = await played(give)
    assert run.status is RunStatus.ERROR
    assert [event.type for event in events] == ["message", "RunError"]


async def test_an_event_too_large_for_the_log_is_replaced_by_an_error_frame_and_the_run_goes_on() -> None:
    async def give(input: str) -> AsyncIterator[Any]:
        yield "one"
        yield "x" * 5000
        yield "two"

    run, events = await played(give, log=MemoryEventLog(max_event_bytes=2000))
    assert run.status is RunStatus.COMPLETED
    assert [event.type for event in events] == ["message", "RunError", "message"]
    assert orjson.loads(events[1].data)["error_type"] == "event_too_large"


async def test_an_ending_too_large_for_the_log_ends_the_run_with_the_status_it_had() -> None:
    async def give(input: str) -> AsyncIterator[Any]:
        yield {"event": "RunCompleted", "content": "x" * 5000}

    run, events = await played(give, log=MemoryEventLog(max_event_bytes=2000))
    assert [event.type for event in events] == ["RunError"]
    assert run.status is RunStatus.COMPLETED
    assert issubclass(EventTooLarge, Exception)


async def test_a_log_that_cannot_even_take_the_error_frame_still_gets_the_end_of_the_run() -> None:
    async def give(input: str) -> AsyncIterator[Any]:
        yield "x" * 500

    run, _ = await played(give, log=MemoryEventLog(max_event_bytes=50))
    assert run.status.finished


# ---------------------------------------------------------------- cancelling


async def test_a_source_that_waits_for_ever_is_cancelled_and_what_it_said_is_kept() -> None:
    cleaned = anyio.Event()

    async def wait(input: str) -> AsyncIterator[str]:
        try:
            yield "so far"
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(wait, log="memory:", cancel_grace=0.1) as stream:
            run = await stream.start("Go.")
            await (await stream.log()).wait(run.run_id, run.version, timeout=PATIENCE)
            await stream.cancel(run.run_id)
            run = await stream.wait(run.run_id)
            assert run.status is RunStatus.CANCELLED
            assert [event.type async for event in stream.events(run.run_id)] == ["message", "RunCancelled"]
            assert (await stream.transcript(run.run_id))["content"] == "so far"
            await cleaned.wait()


async def test_a_sync_source_is_told_to_stop_and_its_thread_ends_at_its_next_event() -> None:
    go_on = threading.Event()
    closed = threading.Event()

    def wait(input: str) -> Iterator[str]:
        try:
            yield "so far"
            go_on.wait(PATIENCE)
            while True:
                yield "more"
        finally:
            closed.set()

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(wait, log="memory:", cancel_grace=0.1) as stream:
            run = await stream.start("Go.")
            await (await stream.log()).wait(run.run_id, run.version, timeout=PATIENCE)
            await stream.cancel(run.run_id)
            run = await stream.wait(run.run_id)  # the end does not wait for the thread
            assert run.status is RunStatus.CANCELLED
            assert not closed.is_set()
            go_on.set()
            await eventually(closed.is_set)
            assert [event.type async for event in stream.events(run.run_id)] == ["message", "RunCancelled"]


async def test_a_source_that_swallows_its_cancellation_and_goes_on_is_ended_all_the_same() -> None:
    async def stubborn(input: str) -> AsyncIterator[str]:
        yield "so far"
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
        yield "never stored"

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(stubborn, log="memory:", cancel_grace=0.1) as stream:
            run = await stream.start("Go.")
            await (await stream.log()).wait(run.run_id, run.version, timeout=PATIENCE)
            await stream.cancel(run.run_id)
            assert (await stream.wait(run.run_id)).status is RunStatus.CANCELLED


async def test_a_source_that_never_awaits_leaves_others_their_turn_and_can_be_cancelled() -> None:
    async def hasty(input: str) -> AsyncIterator[str]:
        while True:
            yield "x"

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(hasty, log=MemoryEventLog(max_run_bytes=100_000)) as stream:
            run = await stream.start("Go.")
            await anyio.sleep(0.02)
            await stream.cancel(run.run_id)
            assert (await stream.wait(run.run_id)).status is RunStatus.CANCELLED


# ---------------------------------------------------------------- surroundings


async def test_the_context_variables_of_the_caller_reach_the_run_and_those_of_the_run_stay_in_it() -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    async def look(input: str) -> AsyncIterator[str]:
        seen.append(tenant.get())
        tenant.set("changed")
        yield "x"

    def look_in_thread(input: str) -> Iterator[str]:
        seen.append(tenant.get())
        yield "x"

    for source in (look, look_in_thread):
        async with ResumableStream(source, log="memory:") as stream:
            for name in ("alice", "bob"):
                tenant.set(name)
                await stream.wait((await stream.start("Go.")).run_id)
                assert tenant.get() == name
    assert seen == ["alice", "bob", "alice", "bob"]


async def test_a_run_goes_on_when_the_task_that_started_it_is_cancelled() -> None:
    gate = anyio.Event()

    async def give(input: str) -> AsyncIterator[str]:
        yield "one"
        await gate.wait()
        yield "two"

    started: list[str] = []

    async def start_and_wait(stream: ResumableStream) -> None:
        run = await stream.start("Go.")
        started.append(run.run_id)
        async for _ in stream.events(run.run_id):
            pass

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(give, log="memory:") as stream:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(start_and_wait, stream)
                await eventually(lambda: bool(started))
                tasks.cancel_scope.cancel()
            gate.set()
            run = await stream.wait(started[0])
            assert run.status is RunStatus.COMPLETED
            assert run.next_index == 2


async def test_a_start_that_is_cancelled_at_once_leaves_no_run_without_a_producer() -> None:
    async def give(input: str) -> AsyncIterator[str]:
        yield "one"

    with anyio.fail_after(PATIENCE):
        async with ResumableStream(give, log="memory:") as stream:
            log = await stream.log()
            for _ in range(5):
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await stream.start("Go.")
            for run in await log.list():
                assert (await stream.wait(run.run_id)).status is RunStatus.COMPLETED


async def test_a_source_that_blocks_the_event_loop_past_its_lease_keeps_its_run_if_nobody_else_noticed() -> None:
    async def block(input: str) -> AsyncIterator[str]:
        yield "before"
        await anyio.sleep(0.02)
        time.sleep(0.3)  # noqa: ASYNC251  # what it is about: the loop can neither renew nor sweep
        yield "after"

    async with ResumableStream(block, log="memory:", lease=0.1, sweep_interval=0.01) as stream:
        run = await stream.wait((await stream.start("x")).run_id)
    assert run.status is RunStatus.COMPLETED


async def test_an_event_that_could_not_be_said_is_no_error_of_a_run_that_completed() -> None:
    async def give(input: str) -> AsyncIterator[Any]:
        yield {"event": "RunContent", "content": "said"}
        yield {"event": "RunContent", "content": threading.Lock()}
        yield {"event": "RunCompleted", "content": "all that was said"}

    run, events = await played(give)
    assert [event.type for event in events] == ["RunContent", "RunError", "RunCompleted"]
    assert run.status is RunStatus.COMPLETED
    assert run.transcript is not None
    transcript = orjson.loads(run.transcript)
    assert transcript["error"] is None
    assert transcript["content"] == "all that was said"
