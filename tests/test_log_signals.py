"""Waking those who wait, and group commit's outcomes: on every event loop that the library runs on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from agno_resumable.log.group_commit import GroupCommit, Operation
from agno_resumable.log.signals import Signals

pytestmark = pytest.mark.parametrize(
    "loop",
    [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})],
    ids=["asyncio", "uvloop", "trio"],
)
Loop = tuple[str, dict[str, Any]]


def run(loop: Loop, main: Any) -> None:
    backend, options = loop
    if options:
        pytest.importorskip("uvloop")
    anyio.run(main, backend=backend, backend_options=options)


def test_all_that_wait_are_woken_and_nobody_else(loop: Loop) -> None:
    async def main() -> None:
        signals, woken = Signals(), []

        async def wait(key: str, number: int) -> None:
            await signals.wait(key, math.inf)
            woken.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(wait, "run", number)
            tasks.start_soon(wait, "other", 3)
            while signals.waiters < 4:
                await anyio.lowlevel.checkpoint()
            assert set(signals.keys) == {"run", "other"}
            signals.set("run")
            assert set(signals.keys) == {"other"}
            await anyio.wait_all_tasks_blocked()
            assert sorted(woken) == [0, 1, 2]
            signals.set_all()
        assert woken[3:] == [3]
        assert signals.waiters == 0

    run(loop, main)


def test_a_wait_ends_by_itself_and_leaves_nothing(loop: Loop) -> None:
    async def main() -> None:
        signals = Signals()
        for timeout in (0.0, -1.0, 0.01):
            await signals.wait("run", timeout)
        assert not signals.keys
        signals.set("run")  # for nobody

    run(loop, main)


def test_who_is_cancelled_leaves_and_the_others_wait_on(loop: Loop) -> None:
    async def main() -> None:
        signals, woken = Signals(), []

        async def wait(number: int) -> None:
            await signals.wait("run", 60.0)
            woken.append(number)

        async with anyio.create_task_group() as others:
            others.start_soon(wait, 1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, 0)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
                signals.set("")  # in the same turn
            assert signals.waiters == 1
            signals.set("run")
        assert woken == [1]
        assert not signals.keys

    run(loop, main)


def test_who_is_cancelled_and_woken_at_once_is_cancelled(loop: Loop) -> None:
    async def main() -> None:
        signals = Signals()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(signals.wait, "run", 60.0)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                signals.set("run")
        assert scope.cancelled_caught or scope.cancel_called
        assert not signals.waiters

    run(loop, main)


def test_registered_is_called_when_the_waiter_can_be_found(loop: Loop) -> None:
    async def main() -> None:
        signals = Signals()
        await signals.wait("run", 60.0, lambda: signals.set("run"))

        def fail() -> None:
            raise LookupError

        with pytest.raises(LookupError):
            await signals.wait("run", 60.0, fail)
        assert not signals.keys

    run(loop, main)


def test_an_outcome_reaches_its_caller_and_a_cancelled_caller_stops_nothing(loop: Loop) -> None:
    async def main() -> None:
        groups: list[Sequence[Operation[None, object]]] = []
        commits: GroupCommit[None] = GroupCommit(groups.append)
        operations = [Operation[None, object](lambda _: None) for _ in range(4)]
        heard: list[object] = []
        operations[1].committed = heard.append

        async def submit(operation: Operation[None, object], scope: anyio.CancelScope) -> None:
            with scope:
                commits.submit(operation)
                heard.append(await operation.outcome())

        scopes = [anyio.CancelScope() for _ in operations[:2]]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, operations[0], scopes[0])
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(submit, operations[1], scopes[1])
            await anyio.wait_all_tasks_blocked()
            scopes[1].cancel()
            await anyio.wait_all_tasks_blocked()
            assert groups == [[operations[0]]]
            operations[0].result = "first"
            commits.finished(groups[0])
            assert groups[1:] == [[operations[1]]]
            operations[1].result = "second"
            commits.finished(groups[1])
        assert sorted(map(str, heard)) == ["first", "second"]  # stored, although nobody waits any more

        for operation, error in ((operations[2], None), (operations[3], LookupError("no"))):
            commits.submit(operation)
            operation.result, operation.error = "done before anybody waits", error
            commits.finished(groups[-1])
        assert await operations[2].outcome() == "done before anybody waits"
        with pytest.raises(LookupError, match="no"):
            await operations[3].outcome()

    run(loop, main)
