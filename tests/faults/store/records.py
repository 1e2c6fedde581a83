"""What the workers of a fault test have done and seen, as records that survive the process that wrote them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import orjson

from agno_resumable.log.protocol import EventLog
from agno_resumable.model import EncodedEvent, RunStatus

__all__ = [
    "Acknowledged",
    "Attempted",
    "Began",
    "Broke",
    "Delivered",
    "Doubted",
    "Ended",
    "Failed",
    "Final",
    "Finished",
    "Held",
    "Lost",
    "Missed",
    "Opened",
    "Record",
    "Refused",
    "Rested",
    "Said",
    "Stored",
    "Trimmed",
    "dump",
    "event_digest",
    "frame_digest",
    "frames_of",
    "load",
    "read_final",
]


@dataclass(frozen=True)
class Record:
    """Something that a worker says of a run; the order of one worker's records is the order in which it happened."""

    worker: str
    run: str


@dataclass(frozen=True)
class Attempted(Record):
    """An append is about to be called with these events; ``number`` is the worker's own for this call."""

    number: int
    generation: int
    events: tuple[str, ...]
    ends: str | None


@dataclass(frozen=True)
class Acknowledged(Record):
    """The log has told that these events are stored from ``first`` on."""

    generation: int
    first: int
    events: tuple[str, ...]
    ends: str | None


@dataclass(frozen=True)
class Refused(Record):
    """The log has told that nothing of this append was stored."""

    number: int
    error: str


@dataclass(frozen=True)
class Doubted(Record):
    """The log could not tell whether this append was stored."""

    number: int
    error: str


@dataclass(frozen=True)
class Held(Record):
    """The worker has the run from here on: by ``create``, ``claim`` or ``expire``."""

    generation: int
    next_index: int


@dataclass(frozen=True)
class Began(Record):
    """The worker produces the run from here on, until ``Lost`` or ``Finished``."""

    generation: int


@dataclass(frozen=True)
class Lost(Record):
    """The worker has stopped producing the run, because the log would not have it any more."""

    generation: int
    error: str


@dataclass(frozen=True)
class Finished(Record):
    """The worker has given the run its end."""

    generation: int


@dataclass(frozen=True)
class Trimmed(Record):
    """Somebody is about to drop the events under ``before``."""

    before: int


@dataclass(frozen=True)
class Opened(Record):
    """A reader begins, or comes back, with its cursor. ``line`` is what one client sees over all its connections."""

    line: str
    after: int


@dataclass(frozen=True)
class Delivered(Record):
    """A reader has received these frames: the index in each one's ``id:`` and the digest of its bytes."""

    line: str
    frames: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Missed(Record):
    """A reader was told of a gap."""

    line: str
    requested: int
    first_available: int
    reason: str


@dataclass(frozen=True)
class Rested(Record):
    """A reader was told that the run is paused."""

    line: str
    last_index: int


@dataclass(frozen=True)
class Ended(Record):
    """A reader was told the end."""

    line: str
    status: str
    last_index: int


@dataclass(frozen=True)
class Broke(Record):
    """The log did not answer a reader, which comes back."""

    line: str
    error: str


@dataclass(frozen=True)
class Failed(Record):
    """Something was raised that no caller of the log has to expect."""

    error: str


@dataclass(frozen=True)
class Said(Record):
    """The answer of a worker to a command that concerns no event."""

    what: str
    value: int


_KINDS: Mapping[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        *(Attempted, Acknowledged, Refused, Doubted, Held, Began, Lost, Finished, Trimmed),
        *(Opened, Delivered, Missed, Rested, Ended, Broke, Failed, Said),
    )
}


def dump(record: Record) -> bytes:
    """One line of JSON."""
    return orjson.dumps({"is": type(record).__name__, **asdict(record)}) + b"\n"


def load(line: bytes) -> Record:
    """The record of a line."""
    fields: dict[str, Any] = orjson.loads(line)
    kind = _KINDS[fields.pop("is")]
    if "events" in fields:
        fields["events"] = tuple(fields["events"])
    if "frames" in fields:
        fields["frames"] = tuple((index, digest) for index, digest in fields["frames"])
    return kind(**fields)


# ---------------------------------------------------------------- bytes


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=9).hexdigest()


def event_digest(event: EncodedEvent) -> str:
    """Of the bytes that are to be stored."""
    return _digest(event.type.encode() + b"\0" + event.data)


def frame_digest(run_id: str, index: int, event: EncodedEvent) -> str:
    """Of the frame that readers have to get. Rendered here and not by the library, whose rendering is on trial too."""
    type_, data, rid = event.type.encode(), event.data, run_id.encode()
    return _digest(b'event: %b\ndata: %b,"event_index":%d}\nid: %b:%d\n\n' % (type_, data[:-1], index, rid, index))


_ID = re.compile(rb"\nid: [^\n]*:(\d+)\n\n\Z")


def frames_of(rendered: bytes) -> tuple[tuple[int, str], ...]:
    """The frames in what is sent to a client: index and digest of each; -1 is the index of what has no id."""
    frames = [frame + b"\n\n" for frame in rendered.split(b"\n\n")[:-1]]
    found = ((_ID.search(frame), frame) for frame in frames)
    return tuple((int(match[1]) if match else -1, _digest(frame)) for match, frame in found)


# ---------------------------------------------------------------- what is there in the end


@dataclass(frozen=True)
class Stored:
    """An event of the log: its index, type, and the digests of its bytes and of its frame."""

    index: int
    type: str
    event: str
    frame: str


@dataclass(frozen=True)
class Final:
    """A run as the log holds it when everything is over."""

    run: str
    status: str
    first_index: int
    next_index: int
    generation: int
    events: Sequence[Stored]

    @property
    def finished(self) -> bool:
        """Whether the run has its end."""
        return RunStatus(self.status).finished


async def read_final(log: EventLog, run_id: str) -> Final:
    """Read a run page by page, from its first event, with no more trust in the pages than a reader needs."""
    events: list[Stored] = []
    after = -1
    while True:
        run, batches = await log.read(run_id, after)
        found = [event for batch in batches for event in batch]
        for each in found:
            encoded = EncodedEvent(each.type, each.data)
            frame = frame_digest(run_id, each.index, encoded)
            events.append(Stored(each.index, each.type, event_digest(encoded), frame))
        if not found or found[-1].index <= after:
            return Final(run_id, run.status.value, run.first_index, run.next_index, run.generation, events)
        after = found[-1].index
