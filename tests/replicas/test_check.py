"""The checks find what is wrong, so that a test of replicas that passes says something."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from agno_resumable import EncodedEvent, MemoryEventLog, NewRun, ResumableStream, Run, RunStatus

from ..faults.checker import History
from ..faults.support import Reader
from .app import LostPolicy, talk, talker
from .check import check_restarts, check_status, check_story, replay
from .clients import Kind, Story

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Checked:
    story: Story
    run: Run
    whole: History

    def violations(self, policy: LostPolicy = "restart") -> list[str]:
        return [
            *check_story(self.story, self.run, self.whole),
            *check_status(self.story, self.run, self.whole, policy),
            *check_restarts(self.story, self.run, self.whole),
        ]


async def checked(kind: Kind = "short") -> Checked:
    """A run that was lost once, was run again and completed, and a reader that has all of it."""
    message = talk(3, 0.0)
    async with MemoryEventLog() as log:
        lost = NewRun("run", component_id="talker", session_id="s", input=json.dumps(message).encode(), max_attempts=9)
        generation = (await log.create(lost, lease=0.01)).generation
        said = [b'{"event":"RunStarted","run_id":"run"}', b'{"event":"RunContent","run_id":"run","content":"old"}']
        await log.append("run", generation, [EncodedEvent(json.loads(data)["event"], data) for data in said])
        async with ResumableStream(talker(), log=log, on_producer_lost="restart", sweep_interval=0.02) as stream:
            await stream.wait("run")
        run, whole = await replay(log, "run")
    reader = Reader(copy.deepcopy(whole), "agent")
    return Checked(Story(0, kind, message, reader, done=True), run, whole)


async def test_a_run_with_nothing_wrong_passes_the_checks() -> None:
    good = await checked()
    assert good.run.attempts == 2
    assert good.violations() == []


def forget_one(case: Checked) -> None:
    del case.story.history.events[3]


def repeat_one(case: Checked) -> None:
    case.story.history.events.insert(3, case.story.history.events[3])


def change_a_byte(case: Checked) -> None:
    seen = case.story.history.events[3]
    case.story.history.events[3] = replace(seen, frame=seen.frame.replace(b"RunStarted", b"RunStartet"))


def leave_early(case: Checked) -> None:
    case.story.history.events.pop()
    case.story.history.controls.clear()


def hide_the_restart(case: Checked) -> None:
    for history in (case.whole, case.story.history):
        seen = history.events[2]
        assert seen.type == "restarted"
        history.events[2] = replace(seen, type="RunContent")


def lose_what_was_said(case: Checked) -> None:
    for history in (case.whole, case.story.history):
        at = max(seen.index for seen in history.events if seen.type == "RunContent")
        history.events[at] = replace(history.events[at], type="RunOther")


def fail_for_good(case: Checked) -> None:
    case.run = replace(case.run, status=RunStatus.ERROR)


@pytest.mark.parametrize(
    "fault",
    [forget_one, repeat_one, change_a_byte, leave_early, hide_the_restart, lose_what_was_said, fail_for_good],
)
async def test_the_checks_find_what_is_wrong(fault: Callable[[Checked], None]) -> None:
    case = await checked()
    fault(case)
    assert case.violations()


async def test_a_cancelled_run_may_not_complete() -> None:
    assert (await checked("cancelled")).violations() == ["it was cancelled, and went on to its end"]
