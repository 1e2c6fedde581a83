"""What must hold of a run, whatever was done to its server and its connections.

Every function returns the violations it found, as sentences; an empty list is a pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["ENDINGS", "History", "Seen", "check_agreement", "check_end", "check_history", "check_run"]

ENDINGS: Mapping[str, Mapping[str, str]] = {
    "agent": {"COMPLETED": "RunCompleted", "ERROR": "RunError", "CANCELLED": "RunCancelled"},
    "team": {"COMPLETED": "TeamRunCompleted", "ERROR": "TeamRunError", "CANCELLED": "TeamRunCancelled"},
    "workflow": {"COMPLETED": "WorkflowCompleted", "ERROR": "WorkflowError", "CANCELLED": "WorkflowCancelled"},
}
"""The last event of a run of each family, by the status that it ends with."""


@dataclass(frozen=True)
class Seen:
    """An event as a client received it: the index of its ``id:``, its type, and the bytes of its frame."""

    index: int
    type: str
    frame: bytes

    @property
    def data(self) -> dict[str, object]:
        """The JSON of the event."""
        line = next(line for line in self.frame.split(b"\n") if line.startswith(b"data:"))
        value: dict[str, object] = json.loads(line[5:])
        return value


@dataclass
class History:
    """All that one client received of a run, over all of its connections, in order of arrival.

    ``after`` is the cursor it began with, ``controls`` are the control frames with their JSON.
    """

    run_id: str
    after: int = -1
    events: list[Seen] = field(default_factory=list)
    controls: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    @property
    def cursor(self) -> int:
        """The index of the last event received."""
        return self.events[-1].index if self.events else self.after

    @property
    def ended(self) -> bool:
        """Whether the client was told the run's end."""
        return any(name == "end" for name, _ in self.controls)


def check_history(history: History) -> list[str]:
    """Every index once and in order, behind the cursor that the client began with; the same index within the JSON."""
    found = []
    expected = history.after + 1
    for seen in history.events:
        if seen.index < expected:
            found.append(f"index {seen.index} came again after {expected - 1}")
        elif seen.index > expected:
            found.append(f"index {seen.index} came after {expected - 1}: {seen.index - expected} are missing")
        expected = max(expected, seen.index + 1)
        if seen.data.get("event_index") != seen.index:
            found.append(f"the JSON of index {seen.index} says {seen.data.get('event_index')!r}")
        if not seen.frame.endswith(f"\nid: {history.run_id}:{seen.index}".encode()):
            found.append(f"the id of index {seen.index} is not the run's")
    ends = [position for position, (name, _) in enumerate(history.controls) if name == "end"]
    if len(ends) > 1:
        found.append(f"the end was told {len(ends)} times")
    if ends:
        last = history.controls[ends[0]][1].get("last_event_index")
        if last != history.cursor:
            found.append(f"the end says that {last!r} is the last index; the client has {history.cursor}")
    found += [f"a gap was told: {data}" for name, data in history.controls if name == "gap"]
    return found


def check_agreement(histories: Iterable[History]) -> list[str]:
    """Whatever two clients have both received is the same, byte for byte."""
    first: dict[int, bytes] = {}
    found = []
    for history in histories:
        for seen in history.events:
            if first.setdefault(seen.index, seen.frame) != seen.frame:
                found.append(f"two clients hold different bytes for index {seen.index}")
    return found


def check_end(replay: Sequence[Seen], run_id: str, family: str, status: str) -> list[str]:
    """A finished run has exactly one end: its last event, of its family, as its status says."""
    names = ENDINGS[family]
    if status not in names:
        return [f"the run is {status}, which is no end"]
    ends = [
        seen
        for seen in replay
        if seen.type in names.values()
        and seen.data.get("run_id") == run_id
        and not seen.data.get("nested_depth")
        and not seen.data.get("parent_run_id")
    ]
    if len(ends) != 1:
        return [f"the run has {len(ends)} ends: {[(seen.index, seen.type) for seen in ends]}"]
    found = []
    if ends[0] is not replay[-1]:
        found.append(f"{len(replay) - 1 - ends[0].index} events follow the end")
    if ends[0].type != names[status]:
        found.append(f"the run is {status}, and its last event is a {ends[0].type}")
    return found


def check_run(replay: History, histories: Sequence[History], *, family: str, status: str) -> list[str]:
    """All of it, for a run that has finished.

    Args:
        replay: A client that read the run from the beginning to the end after all faults were over.
        histories: The clients that read it meanwhile. What they received was acknowledged, and has to be in the
            replay; those that were told the end have to have all of it.
        family: The run's.
        status: What the log says how it ended.
    """
    found = [f"replay: {violation}" for violation in check_history(replay)]
    if replay.after != -1 or not replay.ended:
        found.append("replay: it is not whole")
    final = {seen.index: seen.frame for seen in replay.events}
    for number, history in enumerate(histories):
        found += [f"client {number}: {violation}" for violation in check_history(history)]
        for seen in history.events:
            if seen.index not in final:
                found.append(f"client {number}: index {seen.index} was acknowledged and is lost")
            elif final[seen.index] != seen.frame:
                found.append(f"client {number}: index {seen.index} differs from the replay")
        if history.ended and history.cursor != replay.cursor:
            found.append(f"client {number}: told the end at {history.cursor}, and the run has {replay.cursor}")
    found += check_agreement(histories)
    told = {str(data.get("status")) for each in (replay, *histories) for name, data in each.controls if name == "end"}
    if told != {status}:
        found.append(f"clients were told that the run ended as {sorted(told)}, and it is {status}")
    return found + check_end(replay.events, replay.run_id, family, status)
