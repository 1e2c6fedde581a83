"""What one client has seen of a run, over all its connections, held against what the log holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .judging import Kind, Violation
from .records import Delivered, Ended, Final, Missed, Opened, Record, Rested

__all__ = ["Line", "check_agreement", "check_line", "lines_of"]


@dataclass
class Line:
    """The records of one client, in their order; a client that comes back goes on with its line."""

    name: str
    seen: list[Record] = field(default_factory=list)


def lines_of(records: Sequence[Record]) -> Mapping[str, Line]:
    """The lines, by their names."""
    lines: dict[str, Line] = {}
    for record in records:
        if isinstance(record, (Opened, Delivered, Missed, Rested, Ended)):
            lines.setdefault(record.line, Line(record.line)).seen.append(record)
    return lines


def check_line(line: Line, final: Final, trimmed: int) -> list[Violation]:
    """Each index once and in order, none left out without a gap, the bytes that are stored, and the end at the end.

    Args:
        trimmed: Under which index somebody has dropped events; only there a gap may be.
    """
    return _Reading(line, final, trimmed).check()


class _Reading:
    def __init__(self, line: Line, final: Final, trimmed: int) -> None:
        self.line = line
        self.final = final
        self.trimmed = trimmed
        self.stored = {stored.index: stored.frame for stored in final.events}
        self.cursor: int | None = None
        self.ended = False
        self.found: list[Violation] = []

    def check(self) -> list[Violation]:
        for record in self.line.seen:
            if self.ended and not isinstance(record, Opened):
                self.say(Kind.EARLY_END, f"got a {type(record).__name__} behind the end")
            if isinstance(record, Opened):
                self.cursor = record.after  # that of the last frame that the client has, in whatever order they came
            elif isinstance(record, Delivered):
                for index, frame in record.frames:
                    self.deliver(index, frame)
            elif isinstance(record, Missed):
                self.miss(record)
            elif isinstance(record, (Rested, Ended)):
                self.rest(record)
        return self.found

    def deliver(self, index: int, frame: str) -> None:
        assert self.cursor is not None
        if index <= self.cursor:
            self.say(Kind.REPEATED_INDEX, f"got index {index} behind {self.cursor}", index)
        elif index > self.cursor + 1:
            self.say(Kind.SILENT_GAP, f"got index {index} behind {self.cursor} without a word", index)
        self.cursor = max(self.cursor, index)
        kept = self.stored.get(index)
        if kept is None:
            if index >= min(self.final.first_index, self.trimmed):
                self.say(Kind.NOT_STORED, f"got index {index}, which is not in the log", index)
        elif kept != frame:
            self.say(Kind.DIFFERENT_BYTES, f"got other bytes for index {index} than are stored", index)

    def miss(self, gap: Missed) -> None:
        assert self.cursor is not None
        if gap.requested != self.cursor + 1 or gap.reason == "ahead" or gap.first_available < gap.requested:
            self.say(Kind.NEEDLESS_GAP, f"behind {self.cursor}, was told of {gap}", gap.requested)
        elif gap.first_available > self.trimmed:
            sentence = f"was told that {gap.requested} to {gap.first_available - 1} are {gap.reason}, and nobody"
            self.say(Kind.NEEDLESS_GAP, f"{sentence} has dropped more than what is under {self.trimmed}", gap.requested)
        self.cursor = max(self.cursor, gap.first_available - 1)

    def rest(self, told: Rested | Ended) -> None:
        assert self.cursor is not None
        if told.last_index != self.cursor:
            self.say(Kind.EARLY_END, f"has {self.cursor}, and was told that {told.last_index} is the last")
        if isinstance(told, Ended):
            self.ended = True
            if (told.status, told.last_index) != (self.final.status, self.final.next_index - 1):
                end = f"{self.final.status} at {self.final.next_index - 1}"
                self.say(Kind.EARLY_END, f"was told {told.status} at {told.last_index}, and the run is {end}")

    def say(self, kind: Kind, sentence: str, index: int | None = None) -> None:
        self.found.append(Violation(kind, self.final.run, f"the reader {self.line.name} {sentence}", index))


def check_agreement(run: str, lines: Iterable[Line]) -> list[Violation]:
    """Whatever two clients have both received is the same, byte for byte."""
    first: dict[int, tuple[str, str]] = {}
    found = []
    for line in lines:
        for record in line.seen:
            for index, frame in record.frames if isinstance(record, Delivered) else ():
                other, theirs = first.setdefault(index, (line.name, frame))
                if theirs != frame:
                    sentence = f"the readers {other} and {line.name} got different bytes for index {index}"
                    found.append(Violation(Kind.DIFFERENT_BYTES, run, sentence, index))
    return found
