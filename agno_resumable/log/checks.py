"""What every backend refuses before it stores anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import EventTooLarge, RunIdInvalid
from ..model import EncodedEvent, NewRun, check_run_id

__all__ = ["MAX_EVENT_BYTES", "MAX_RUN_BYTES", "check_events", "check_intended", "check_new_run", "chunks"]

MAX_EVENT_BYTES = 8_388_608
"""The default for one event's JSON: generous for text, small enough that a reader's page stays in memory."""

MAX_RUN_BYTES = 67_108_864
"""The default for one run's events together; the oldest are trimmed beyond it, and readers behind get a gap."""

# What a reader's page holds by default: a batch that fits is handed to all readers whole, and rendered once.
CHUNK_EVENTS = 1024
CHUNK_BYTES = 262_144

_known_types: set[str] = set()


def check_new_run(run: NewRun) -> None:
    """Refuse a run whose names no store could keep.

    Raises:
        RunIdInvalid: The run id could not stand in a URL or an SSE field.
        ValueError: Another name is no valid Unicode, or there is no attempt.
    """
    check_run_id(run.run_id)
    if not 1 <= run.max_attempts <= 1_000_000:
        raise ValueError(f"max_attempts of run {run.run_id!r} is a number from 1, not {run.max_attempts!r}.")
    for name in ("component_id", "session_id", "user_id", "idempotency_key"):
        value = getattr(run, name)
        if value is not None and not _is_unicode(value):
            raise ValueError(f"The {name} of run {run.run_id!r} holds a lone surrogate, which no store can keep.")


def check_intended(run_id: str) -> None:
    """Refuse an id for a cancel intent that no store could keep. agno takes ids that this library's runs cannot have.

    Raises:
        RunIdInvalid: It is empty, too long, or holds NUL or a lone surrogate.
    """
    if not 0 < len(run_id) <= 256 or "\0" in run_id or not _is_unicode(run_id):
        raise RunIdInvalid(
            f"{run_id[:80]!r} cannot be the id of a run to cancel: use 1 to 256 characters of Unicode, without NUL."
        )


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_events(run_id: str, events: Iterable[EncodedEvent], max_event_bytes: int) -> int:
    """Return the JSON of all events in bytes; refuse what is too large or could forge a frame.

    Raises:
        EventTooLarge: An event is over ``max_event_bytes``.
        ValueError: A type or data that could not stand in an SSE frame.
    """
    total = 0
    for type_, data in events:
        size = len(data)
        total += size
        if size > max_event_bytes:
            raise EventTooLarge(run_id, size, max_event_bytes)
        if size < 5 or data[0] != 123 or data[-1] != 125 or b"\n" in data or b"\r" in data:  # {"":0} is the least
            raise ValueError(
                f"An event of run {run_id!r} is no JSON object on one line: encode it with agno_resumable.sse."
            )
        if type_ not in _known_types:
            if not type_ or not type_.isprintable():
                raise ValueError(f"The event type {type_[:80]!r} of run {run_id!r} could not stand in an SSE frame.")
            if len(_known_types) < 1024:  # the names of agno's events are few; somebody's own may be endless
                _known_types.add(type_)
    return total


def chunks(
    events: Sequence[EncodedEvent], total: int, *, most: int = CHUNK_EVENTS, most_bytes: int = CHUNK_BYTES
) -> list[Sequence[EncodedEvent]]:
    """Cut what one append stores, ``total`` bytes of JSON, into parts of up to ``most`` events and ``most_bytes``."""
    if total <= most_bytes and len(events) <= most:
        return [events] if events else []
    parts: list[Sequence[EncodedEvent]] = []
    start = size = 0
    for position, (_, data) in enumerate(events):
        if position > start and (size + len(data) > most_bytes or position - start == most):
            parts.append(events[start:position])
            start, size = position, 0
        size += len(data)
    parts.append(events[start:])
    return parts
