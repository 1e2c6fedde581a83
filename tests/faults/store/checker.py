"""What must hold of a run, whatever was done to its producers, its readers and its store: one checker for all logs.

A pure function of what the workers have recorded and of what the log holds in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .judging import Kind, Violation
from .lines import check_agreement, check_line, lines_of
from .records import Acknowledged, Attempted, Failed, Final, Held, Record, Refused, Trimmed

__all__ = ["ENDINGS", "Kind", "Violation", "check"]

ENDINGS: Mapping[str, str] = {"COMPLETED": "RunCompleted", "ERROR": "RunError", "CANCELLED": "RunCancelled"}
"""The last event of a run, by the status that it ends with; no other event of the workload has such a type."""


@dataclass
class _Writing:
    """What was written to one run."""

    run: str
    attempted: dict[str, Attempted] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)  # by event: the attempts that were not refused
    acknowledged: list[Acknowledged] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    trimmed: int = 0


def check(records: Iterable[Record], finals: Iterable[Final]) -> list[Violation]:
    """Everything that is wrong, run by run; empty if nothing is.

    Args:
        records: Of all workers; those of one worker in their order.
        finals: The runs that were written, as a log that was opened afterwards holds them.
    """
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record.run, []).append(record)
    found: list[Violation] = []
    for final in finals:
        found += _check_run(runs.pop(final.run, []), final)
    for run, left in runs.items():
        found += [Violation(Kind.WORKER_FAILED, run, each.error) for each in left if isinstance(each, Failed)]
        if any(isinstance(record, Acknowledged) for record in left):
            found.append(Violation(Kind.LOST_EVENT, run, "the run was written and is not in the log"))
    return found


def _check_run(records: Sequence[Record], final: Final) -> list[Violation]:
    writing = _gather(final.run, records)
    found = [
        Violation(Kind.WORKER_FAILED, final.run, f"{record.worker}: {record.error}")
        for record in records
        if isinstance(record, Failed)
    ]
    found += _check_content(writing, final)
    found += _check_acknowledged(writing, final)
    found += _check_fence(writing, final)
    found += _check_end(writing, final)
    lines = lines_of(records)
    for line in lines.values():
        found += check_line(line, final, writing.trimmed)
    return found + check_agreement(final.run, lines.values())


def _gather(run: str, records: Sequence[Record]) -> _Writing:
    writing = _Writing(run)
    calls: dict[tuple[str, int], Attempted] = {}
    for record in records:
        if isinstance(record, Attempted):
            calls[record.worker, record.number] = record
            for event in record.events:
                # Tried again by the same producer, it is still the same event, and of the same generation
                writing.attempted.setdefault(event, record)
                writing.open[event] = writing.open.get(event, 0) + 1
        elif isinstance(record, Refused):  # one in doubt stays open: it may be there or not
            for event in calls[record.worker, record.number].events:
                writing.open[event] -= 1
        elif isinstance(record, Acknowledged):
            writing.acknowledged.append(record)
        elif isinstance(record, Held):
            writing.held.append(record)
        elif isinstance(record, Trimmed):
            writing.trimmed = max(writing.trimmed, record.before)
    return writing


def _check_content(writing: _Writing, final: Final) -> list[Violation]:
    """Dense, each event once, and nothing that nobody wrote."""
    run, found = final.run, []
    seen: dict[str, int] = {}
    expected = final.first_index
    for stored in final.events:
        if stored.index != expected:
            sentence = f"index {stored.index} stands where {expected} should"
            found.append(Violation(Kind.HOLE, run, sentence, index=expected))
        expected = stored.index + 1
        if stored.event in seen:
            sentence = f"index {stored.index} holds the event of index {seen[stored.event]} once more"
            found.append(Violation(Kind.DUPLICATE_EVENT, run, sentence, index=stored.index))
        seen.setdefault(stored.event, stored.index)
        if stored.event not in writing.attempted:
            sentence = f"index {stored.index} holds a {stored.type} that nobody wrote"
            found.append(Violation(Kind.FOREIGN_EVENT, run, sentence, index=stored.index))
        elif not writing.open[stored.event]:
            sentence = f"index {stored.index} holds an event whose writer was told that it was not stored"
            found.append(Violation(Kind.REFUSED_EVENT, run, sentence, index=stored.index))
    if expected != final.next_index:
        sentence = f"the run says that index {final.next_index} is next, and its events end before {expected}"
        found.append(Violation(Kind.HOLE, run, sentence, index=expected))
    if final.first_index > writing.trimmed:
        sentence = (
            f"the run begins at {final.first_index}, and nobody has dropped more than what is under {writing.trimmed}"
        )
        found.append(Violation(Kind.LOST_EVENT, run, sentence, index=final.first_index))
    return found


def _check_acknowledged(writing: _Writing, final: Final) -> list[Violation]:
    """What was acknowledged is there, at the index that its writer was told."""
    found = []
    at = {stored.index: stored.event for stored in final.events}
    where = {event: index for index, event in at.items()}
    for told in writing.acknowledged:
        for index, event in enumerate(told.events, told.first):
            if index < min(final.first_index, writing.trimmed) or at.get(index) == event:
                continue
            if event in where:
                kind, sentence = Kind.MOVED_EVENT, f"is at index {where[event]}"
            else:
                kind, sentence = Kind.LOST_EVENT, "is not in the log"
            sentence = f"the event that {told.worker} was told to be at index {index} {sentence}"
            found.append(Violation(kind, final.run, sentence, index=index))
    return found


def _check_fence(writing: _Writing, final: Final) -> list[Violation]:
    """Behind a takeover nothing comes from before it, and no two have held the same generation."""
    found = []
    newest = 0
    for stored in final.events:
        written = writing.attempted.get(stored.event)
        if written is None:
            continue
        fences = [held.generation for held in writing.held if held.next_index <= stored.index]
        newest = max([newest, *fences])
        if written.generation < newest:
            sentence = f"index {stored.index} is of generation {written.generation}, behind the begin of {newest}"
            found.append(Violation(Kind.LATE_EVENT, final.run, sentence, index=stored.index))
        newest = max(newest, written.generation)
    holders: dict[int, str] = {}
    for held in writing.held:
        if held.generation in holders:
            sentence = f"{holders[held.generation]} and {held.worker} both hold generation {held.generation}"
            found.append(Violation(Kind.TWO_HOLDERS, final.run, sentence))
        holders.setdefault(held.generation, held.worker)
        if held.generation > final.generation:
            sentence = f"{held.worker} holds generation {held.generation}, and the run is at {final.generation}"
            found.append(Violation(Kind.TWO_HOLDERS, final.run, sentence))
    return found


def _check_end(writing: _Writing, final: Final) -> list[Violation]:
    """Exactly one end: one event and one status, stored together, and nothing behind."""
    run, found = final.run, []
    ends = [stored for stored in final.events if stored.type in ENDINGS.values()]
    if len(ends) > 1:
        sentence = f"the run has {len(ends)} ends: {[(end.index, end.type) for end in ends]}"
        found.append(Violation(Kind.TWO_ENDS, run, sentence, index=ends[1].index))
    if ends and ends[0] is not final.events[-1]:
        sentence = f"{final.events[-1].index - ends[0].index} indices follow the end at {ends[0].index}"
        found.append(Violation(Kind.EVENT_BEHIND_END, run, sentence, index=ends[0].index + 1))
    if final.finished and not (ends and ends[-1].type == ENDINGS[final.status]):
        sentence = f"the run is {final.status} without the event that says so"
        found.append(Violation(Kind.NO_END, run, sentence))
    if not final.finished:
        found.append(Violation(Kind.NO_END, run, f"the run is {final.status}, which is no end"))
    told = {(told.events[-1:], told.ends) for told in writing.acknowledged if told.ends in ENDINGS}
    if len(told) > 1:
        found.append(Violation(Kind.TWO_ENDS, run, f"{len(told)} writers were told that they had ended the run"))
    if any(ends != final.status for _, ends in told):
        sentence = (
            f"the run is {final.status}, and a writer was told another end: {sorted(str(end) for _, end in told)}"
        )
        found.append(Violation(Kind.NO_END, run, sentence))
    return found
