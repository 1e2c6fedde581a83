"""Runs for the tests of cancellation: each family, executed each way, and stuck in something."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from agno.agent import Agent
from agno.db.sqlite import SqliteDb
from agno.team import Team
from agno.workflow import Step, StepInput, StepOutput, Workflow

from agno_resumable.agentos import LogCancellationManager
from agno_resumable.demo.scripted import ScriptedModel, ScriptItem, ToolCall

from ..support import Gate, eventually

FAMILIES = ("agent", "team", "workflow")
KINDS = ("stream", "whole", "background", "detached")
"""How a run is executed: inline as a stream or not, in the background with a client that listens or without one."""


class Case:
    """One run, and the moment at which it is to be cancelled.

    Args:
        family: ``agent``, ``team`` (with a member) or ``workflow`` (with an agent's step).
        kind: One of ``KINDS``.
        what: What the run does: it is ``talking``, or its model is ``silent``, or an asynchronous ``tool`` is, or a
            synchronous one (``thread``), or one that takes a second to end (``slow``), or a workflow's own function
            (``function``); a team's member does it.
    """

    def __init__(self, family: str, kind: str, what: str, *, db: SqliteDb, run_id: str) -> None:
        self.family = family
        self.kind = kind
        self.run_id = run_id
        self.session_id = f"session-{run_id}"
        self.events: list[Any] = []
        self.released = threading.Event()
        self.cancellations = 0
        self._gate = Gate()
        self.reached = self._gate.reached
        self._loop = asyncio.get_running_loop()
        scripts: dict[str, list[ScriptItem]] = {
            "talking": ["first ", self._reach, *["word "] * 3_000],
            "silent": ["first ", self._gate.pass_, "never "],
            "tool": ["first ", ToolCall("stall"), "never "],
            "thread": ["first ", ToolCall("block"), "never "],
            "slow": ["first ", ToolCall("linger"), "never "],
            "function": ["first "],
        }
        model = ScriptedModel(script=scripts[what], delay=0.01)
        tools: list[Any] = [self.stall, self.linger, self.block]
        agent = Agent(id="speaker", name="speaker", model=model, tools=tools, telemetry=False)
        if family == "agent":
            agent.db = db
            self.component: Any = agent
        elif family == "team":
            delegate = ToolCall("delegate_task_to_member", {"member_id": "speaker", "task": "Speak."})
            self.component = Team(
                id="team",
                name="team",
                members=[agent],
                model=ScriptedModel(script=["Well. ", delegate, "done"]),
                db=db,
                telemetry=False,
            )
        else:
            steps: Any = [Step(name="speak", agent=agent)]
            if what == "function":
                steps.append(Step(name="wait", executor=self.step))
            self.component = Workflow(id="workflow", name="workflow", steps=steps, db=db, telemetry=False)

    async def _reach(self) -> None:
        self.reached.set()

    async def stall(self) -> str:
        """Wait for something that never comes."""
        await self._gate.pass_()
        return "never"

    async def linger(self) -> str:
        """Need a second to clean up behind it."""
        try:
            await self._gate.pass_()
        finally:
            for _ in range(10):
                try:
                    await asyncio.sleep(0.1)
                except asyncio.CancelledError:
                    self.cancellations += 1
            self.cancellations += 1
        return "never"

    def block(self) -> str:
        """Wait in a thread."""
        self._loop.call_soon_threadsafe(self.reached.set)
        self.released.wait(60.0)
        return "late"

    async def step(self, step_input: StepInput) -> StepOutput:
        await self._gate.pass_()
        return StepOutput(content="never")

    async def play(self) -> None:
        """Run it, to the end of what its caller sees."""
        options: dict[str, Any] = {"session_id": self.session_id, "background": self.kind in ("background", "detached")}
        if not (self.family == "workflow" and self.kind == "detached"):
            options["run_id"] = self.run_id  # agno gives this kind an id of its own
        if self.kind in ("stream", "background"):
            async for event in self.component.arun("Go.", stream=True, stream_events=True, **options):
                self.events.append(event)
        else:
            output = await self.component.arun("Go.", stream=False, **options)
            self.run_id = output.run_id
            self.events.append(output)


async def row_status(db: SqliteDb, case: Case) -> str:
    """The status of the run's row, once it is at its end; agno stores that of a hard cancel in a task of its own."""
    statuses: list[str] = []

    def ended() -> bool:
        session: Any = db.get_session(case.session_id, session_type=case.family)  # type: ignore[arg-type]
        runs = session.runs if session is not None else ()
        statuses[:] = [str(getattr(run.status, "value", run.status)) for run in runs if run.run_id == case.run_id]
        return bool(statuses) and statuses[0] not in ("PENDING", "RUNNING")

    await eventually(ended, message=f"the row of {case.run_id} says {statuses}")
    return statuses[0]


async def until_idle(manager: LogCancellationManager) -> None:
    """Return when no run executes here, and no cancel is left."""
    await eventually(lambda: not manager.get_active_runs(), message=f"left: {manager.get_active_runs()}")
