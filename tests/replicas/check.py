"""What must hold of every run once the kills are over. Violations are sentences, as in ``tests.faults.checker``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from agno_resumable import EventLog, Run, RunStatus

from ..faults.checker import History, Seen, check_run
from .app import LostPolicy, said
from .clients import Story

__all__ = ["check_all", "check_restarts", "check_status", "check_story", "replay"]


async def replay(log: EventLog, run_id: str) -> tuple[Run, History]:
    """The run and all of its events, as the log gives them without a server."""
    history = History(run_id)
    run = await log.get(run_id)
    while history.cursor < run.last_index:
        page = await log.read(run_id, history.cursor)
        for batch in page.batches:
            for event, frame in zip(batch, batch.frames.split(b"\n\n"), strict=False):
                history.events.append(Seen(event.index, event.type, frame))
        if not page.batches:
            break  # `check_story` finds what is missing
    history.controls.append(("end", {"status": run.status.value, "last_event_index": run.last_index}))
    return run, history


async def check_all(
    log: EventLog, stories: Sequence[Story], policy: LostPolicy, counts: Counter[str]
) -> tuple[list[str], Counter[str]]:
    """Check every story against the log; returns what was found, and how many runs ended in which status."""
    found: list[str] = []
    statuses: Counter[str] = Counter()
    for story in stories:
        run, whole = await replay(log, story.run_id)
        violations = [
            *check_story(story, run, whole),
            *check_status(story, run, whole, policy),
            *check_restarts(story, run, whole),
        ]
        found += [f"{story.run_id} ({story.kind}): {violation}" for violation in violations]
        statuses[run.status.value] += 1
        counts["lost for good"] += story.kind != "cancelled" and run.status is not RunStatus.COMPLETED
        counts["events"] += len(whole.events)
        counts["restarts"] += sum(seen.type == "restarted" for seen in whole.events)
        counts["most attempts"] = max(counts["most attempts"], run.attempts)
        counts["readers that hold exactly the log"] += _frames(story.history) == _frames(whole)
    started = {story.run_id for story in stories}
    stored = await log.list(limit=len(stories) + 1000)
    found += [f"{run.run_id}: nobody asked for this run" for run in stored if run.run_id not in started]
    if len(started) < len(stories):
        found.append(f"{len(stories)} starts gave {len(started)} runs")
    return found, statuses


def check_story(story: Story, run: Run, whole: History) -> list[str]:
    """The reader holds exactly the log."""
    found = check_run(whole, [story.history], family="agent", status=run.status.value)
    if not story.done:
        found.append(f"its reader was left at {story.history.cursor} of {run.last_index}, the run {run.status.value}")
    elif _frames(story.history) != _frames(whole):
        found.append(f"its reader holds {len(story.history.events)} events, and the log {len(whole.events)}")
    return found


def check_status(story: Story, run: Run, whole: History, policy: LostPolicy) -> list[str]:
    """How it may have ended, by what was asked for."""
    last = whole.events[-1].data if whole.events else {}
    if run.status is RunStatus.ERROR:
        if last.get("error_type") != "producer_lost":
            return [f"it failed: {last}"]
        return [] if policy == "error" else ["its producer was lost for good"]
    if run.status is RunStatus.CANCELLED:
        # With "error" the drain cancels what it cannot finish
        return [] if story.kind == "cancelled" or policy == "error" else ["it was cancelled, and nobody asked for it"]
    if run.status is not RunStatus.COMPLETED:
        return [f"it is {run.status.value}"]
    return ["it was cancelled, and went on to its end"] if story.kind == "cancelled" else []


def check_restarts(story: Story, run: Run, whole: History) -> list[str]:
    """Each attempt that follows another says so, and the last one of a run that completed says everything."""
    found = []
    attempts: list[list[Seen]] = [[]]
    numbers = [1]
    for seen in whole.events:
        if seen.type != "restarted":
            attempts[-1].append(seen)
            continue
        data = seen.data
        if data.get("first_index") != seen.index + 1 or data.get("run_id") != story.run_id:
            found.append(f"the restart at {seen.index} says {data}")
        number = data.get("attempt")
        assert isinstance(number, int)
        numbers.append(number)
        attempts.append([])
    # An attempt whose process died before it had said anything has left no trace
    if numbers != sorted(set(numbers)) or numbers[-1] > run.attempts:
        found.append(f"its attempts were told as {numbers}, and it had {run.attempts}")
    for number, events in zip(numbers, attempts, strict=True):
        begun = [seen.index for seen in events if seen.type == "RunStarted"]
        if len(begun) > 1:
            found.append(f"attempt {number} has begun at each of {begun}")
    if run.status is RunStatus.COMPLETED:
        text = "".join(str(seen.data.get("content")) for seen in attempts[-1] if seen.type == "RunContent")
        if text != said(story.message):
            found.append(f"its last attempt said {text[:60]!r}…, {len(text)} characters")
        stored = json.loads(run.transcript or b"{}").get("content")
        if stored != said(story.message):
            found.append(f"its transcript says {str(stored)[:60]!r}…")
    return found


def _frames(history: History) -> list[bytes]:
    return [seen.frame for seen in history.events]
