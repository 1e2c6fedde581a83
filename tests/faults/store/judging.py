"""What can be wrong with a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Kind", "Violation"]


class Kind(Enum):
    """The promises that can be broken, by what shows it. ``G1`` and so on are those of docs/guarantees.md."""

    LOST_EVENT = "an acknowledged event is not in the log (G1)"
    MOVED_EVENT = "an acknowledged event is at another index than its writer was told (G2)"
    HOLE = "the indices of the log are not dense (G2)"
    DUPLICATE_EVENT = "an event is in the log twice (G3)"
    FOREIGN_EVENT = "the log holds what nobody wrote (G10)"
    REFUSED_EVENT = "an event is in the log whose writer was told that it was not stored"
    LATE_EVENT = "an event of an old generation stands behind a takeover (G5)"
    TWO_HOLDERS = "two producers hold the same generation, or one that the run never had (G5)"
    TWO_ENDS = "a run has more than one end (G6)"
    EVENT_BEHIND_END = "an event follows the end (G6)"
    NO_END = "a run has no end, or another one than was told (G6, G7)"
    REPEATED_INDEX = "a reader got an index again (G3)"
    SILENT_GAP = "a reader was not told that events are missing (G4)"
    NEEDLESS_GAP = "a reader was told of a gap where nothing is missing (G4)"
    DIFFERENT_BYTES = "two readers got different bytes for one index, or others than are stored (G10)"
    NOT_STORED = "a reader got what the log does not hold (G1)"
    EARLY_END = "a reader was told the end, or a pause, before it had everything (G6)"
    STUCK = "something that has to happen did not"
    WORKER_FAILED = "a worker met an error that no caller of a log has to expect"


@dataclass(frozen=True)
class Violation:
    """A broken promise, as a sentence that says what was found where."""

    kind: Kind
    run: str
    sentence: str
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.run}: {self.sentence} [{self.kind.name}]"
