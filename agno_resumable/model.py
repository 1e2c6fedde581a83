"""The words of the library as types: runs, events, batches, pages. No I/O, and nothing but the standard library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import NamedTuple

from .errors import CursorInvalid, RunIdInvalid
from .kinds import EncodedEvent, Family, RunStatus

__all__ = [
    "Batch",
    "Durability",
    "EncodedEvent",
    "Event",
    "Family",
    "Intents",
    "NewRun",
    "Page",
    "Run",
    "RunStatus",
    "check_run_id",
    "parse_cursor",
]


class Durability(str, Enum):
    """What an acknowledged append survives. Each value includes the ones before it."""

    NOTHING = "nothing"
    """Lost with the process."""
    PROCESS_CRASH = "process-crash"
    """Survives the end of the process, ``kill -9`` included; a power cut may take the newest events."""
    POWER_LOSS = "power-loss"
    """Survives a power cut, as far as the disk keeps what it has confirmed."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it stands in the log."""

    index: int
    type: str
    data: bytes


class Batch:
    """Consecutive events of one run, immutable, shared by every reader of the process.

    The bytes that go to native readers are made at the first request and kept, so that a thousand readers of one
    run cost one rendering.
    """

    __slots__ = ("_frames", "_size", "events", "first", "run_id")

    def __init__(self, run_id: str, first: int, events: Sequence[EncodedEvent], size: int = -1) -> None:
        self.run_id: str = run_id
        self.first: int = first
        self.events: Sequence[EncodedEvent] = events
        self._frames: bytes | None = None
        self._size = size  # where the caller has counted already

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        for index, (type_, data) in enumerate(self.events, self.first):
            yield Event(index, type_, data)

    def __repr__(self) -> str:
        return f"Batch({self.run_id!r}, {self.first}..{self.last})"

    @property
    def last(self) -> int:
        """The index of the last event; ``first - 1`` in an empty batch."""
        return self.first + len(self.events) - 1

    @property
    def size(self) -> int:
        """The JSON of all events, in bytes."""
        if self._size < 0:
            self._size = sum([len(data) for _, data in self.events])
        return self._size

    @property
    def frames(self) -> bytes:
        """The events as native SSE frames: ``event:``, ``data:`` with ``event_index`` spliced in, ``id:`` last."""
        if self._frames is None:
            self._frames = render_frames(self.run_id, self.first, self.events)
        return self._frames

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Consecutive batches as one. Its frames are the theirs, so that what is rendered once stays shared."""
        if len(batches) == 1:
            return batches[0]
        joined = cls(batches[0].run_id, batches[0].first, [event for batch in batches for event in batch.events])
        joined._frames = b"".join([batch.frames for batch in batches])
        return joined

    def slice(self, after: int, limit: int | None = None) -> Batch:
        """The events behind ``after``, at most ``limit``; this very batch if that is all of it."""
        start = max(0, after + 1 - self.first)
        stop = len(self.events) if limit is None else min(len(self.events), start + limit)
        if start == 0 and stop == len(self.events):
            return self
        return Batch(self.run_id, self.first + start, self.events[start:stop])


def render_frames(run_id: str, first: int, events: Sequence[EncodedEvent]) -> bytes:
    """Render consecutive events as native frames. ``id:`` stands last, because some clients commit it at its line."""
    rid = run_id.encode()
    return b"".join(
        [
            # data ends in "}" and is never an empty object: the index goes in before the brace, without a parse
            b'event: %b\ndata: %b,"event_index":%d}\nid: %b:%d\n\n' % (type_.encode(), data[:-1], index, rid, index)
            for index, (type_, data) in enumerate(events, first)
        ]
    )


@dataclass(frozen=True)
class NewRun:
    """What is known of a run before it exists.

    ``input`` and ``metadata`` are JSON in UTF-8, or ``None``. ``user_id`` is the owner; ``None`` is a run that
    nobody owns. ``idempotency_key`` is unique per owner.
    """

    run_id: str
    family: Family = Family.AGENT
    component_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    idempotency_key: str | None = None
    input: bytes | None = field(default=None, repr=False)
    metadata: bytes | None = field(default=None, repr=False)
    options: bytes | None = field(default=None, repr=False)
    """What else it takes to run it again, as JSON."""
    max_attempts: int = 1
    """How many producers may have it one after the other; the loss of the last is its end."""


@dataclass(frozen=True)
class Run:
    """A run as of one committed moment. Times are seconds since the epoch by the store's clock."""

    run_id: str
    family: Family
    component_id: str | None
    session_id: str | None
    user_id: str | None
    idempotency_key: str | None
    input: bytes | None = field(repr=False)
    metadata: bytes | None = field(repr=False)
    status: RunStatus
    first_index: int
    """The oldest event that is still there; equal to ``next_index`` when none is."""
    next_index: int
    """The index that the next event will get."""
    generation: int
    """The fencing number of the producer, from 1; only ever raised."""
    attempts: int
    """How many producers have claimed the run, the first included."""
    version: int
    """Raised by every committed change but the renewal of a lease; what ``EventLog.wait`` compares."""
    created_at: float
    updated_at: float
    finished_at: float | None = None
    lease_expires_at: float | None = None
    """When the producer is believed dead; ``None`` while the run rests or after its end."""
    cancel_requested_at: float | None = None
    transcript: bytes | None = field(default=None, repr=False)
    """After the end: the fold of the log as JSON, see ``agno_resumable.transcript``."""
    options: bytes | None = field(default=None, repr=False)
    max_attempts: int = 1

    @property
    def last_index(self) -> int:
        """The cursor of a reader that has everything; -1 before the first event."""
        return self.next_index - 1


_RUN_FIELDS = tuple(one.name for one in fields(Run))


def make_run(values: Iterable[object]) -> Run:
    """A run from the values of all its fields, in their order.

    Every append makes one, and the constructor of a frozen dataclass, a call for each field, takes four times as long.
    """
    run: Run = object.__new__(Run)
    run.__dict__.update(zip(_RUN_FIELDS, values, strict=True))
    return run


def changed_run(run: Run, **changes: object) -> Run:
    """What ``dataclasses.replace`` does, for where every event needs it; it does not look at the names."""
    changed: Run = object.__new__(Run)
    changed.__dict__.update(run.__dict__, **changes)
    return changed


class Page(NamedTuple):
    """What one read gives: the run and a stretch of its events, both of one consistent moment.

    ``batches`` are consecutive and begin at ``max(after + 1, run.first_index)``. No batch, and a cursor that is at
    ``run.last_index``, means that there is no more at that moment.
    """

    run: Run
    batches: Sequence[Batch]

    @property
    def events(self) -> list[Event]:
        """All events of the page, in order."""
        return [event for batch in self.batches for event in batch]

    @property
    def last(self) -> int | None:
        """The index of the last event of the page, or ``None`` for an empty page."""
        return self.batches[-1].last if self.batches else None


class Intents(NamedTuple):
    """What one ``EventLog.intents`` gives: the runs that shall be cancelled wherever they are, as of one moment."""

    version: int
    """Raised by every cancel intent and by every one that is dropped; what the next ``EventLog.intents`` is given."""
    run_ids: Sequence[str]
    """The live ones, those that live longest first."""


# An id stands in a URL segment, in an SSE `id:` field of at most 64 bytes together with ":" and an index of up to 12
# digits, and next to a front end that counts braces over the whole stream.
_RUN_ID = re.compile(r"[A-Za-z0-9._~@+=-]{1,51}(?<!\n)", re.ASCII)
_INDEX = re.compile(r"-1|[0-9]{1,12}", re.ASCII)


def check_run_id(run_id: str) -> str:
    """Return ``run_id``, or raise ``RunIdInvalid`` if it could not stand in a URL, a header or an SSE field.

    Up to 51 of ``A-Z a-z 0-9 . _ ~ @ + = -``, and neither ``.`` nor ``..``.
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id) or run_id in (".", ".."):
        shown = repr(run_id)
        raise RunIdInvalid(
            f"{shown if len(shown) < 80 else shown[:80] + '…'} cannot be a run id: use 1 to 51 ASCII letters, digits "
            "or any of . _ ~ @ + = -"
        )
    return run_id


def parse_cursor(cursor: str, run_id: str) -> int:
    """Read a cursor, ``run_id:index`` or a bare ``index``, for a reader of ``run_id``.

    A client library that joins two headers sends ``a:0, a:1``; the last one counts. An empty cursor is -1.

    Raises:
        CursorInvalid: It is no cursor, or a cursor of another run: a cursor never selects a run.
    """
    if len(cursor) > 4096:  # two servers pass on a header of 300 kB
        raise CursorInvalid("The cursor is longer than 4096 characters.", run_id=run_id)
    last = next((part.strip() for part in reversed(cursor.split(",")) if part.strip()), "")
    if not last:
        return -1
    owner, colon, index = last.rpartition(":")
    if not _INDEX.fullmatch(index):
        raise CursorInvalid(
            f"{last[:80]!r} is no cursor: send the id of the last frame you have, or its event_index.", run_id=run_id
        )
    if colon and owner != run_id:
        raise CursorInvalid(f"The cursor {last[:80]!r} belongs to another run than {run_id!r}.", run_id=run_id)
    return int(index)
