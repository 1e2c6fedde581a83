"""How runs and events lie in the rows of a database: shared by the backends that speak SQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from ..model import EncodedEvent, Family, Run, RunStatus

__all__ = ["FAMILY_OF", "RUN_COLUMNS", "STATUS_OF", "make_run", "pack", "run_from_row", "unpack"]

FAMILY_OF: dict[str, Family] = {family.value: family for family in Family}
STATUS_OF: dict[str, RunStatus] = {status.value: status for status in RunStatus}
_FIELDS = tuple(field.name for field in fields(Run))

RUN_COLUMNS = (
    "run_id, family, component_id, session_id, user_id, idempotency_key, status, first_index, next_index, generation, "
    "attempts, version, created_at, updated_at, finished_at, lease_expires_at, cancel_requested_at, max_attempts"
)


def run_from_row(row: Sequence[object], heavy: Sequence[bytes | None] = (None, None, None, None)) -> Run:
    """A run from ``RUN_COLUMNS``, and from its input, metadata, options and transcript."""
    run_id, family, component_id, session_id, user_id, key, status, *rest, max_attempts = row
    owner = (run_id, FAMILY_OF[str(family)], component_id, session_id, user_id, key)
    return make_run((*owner, heavy[0], heavy[1], STATUS_OF[str(status)], *rest, heavy[3], heavy[2], max_attempts))


def make_run(values: Iterable[object]) -> Run:
    """A run from the values of all its fields, in their order.

    Every append makes one. The constructor of a frozen dataclass sets field after field with a call each, which is
    four times what this takes.
    """
    run: Run = object.__new__(Run)
    run.__dict__.update(zip(_FIELDS, values, strict=True))
    return run


def pack(events: Sequence[EncodedEvent]) -> bytes:
    """Events as alternating lines; neither a type nor strict JSON holds a line feed."""
    return b"\n".join([line for type_, data in events for line in (type_.encode(), data)])


def unpack(blob: bytes) -> list[EncodedEvent]:
    """The reverse of ``pack``."""
    lines = blob.split(b"\n")
    return list(map(EncodedEvent, map(bytes.decode, lines[0::2]), lines[1::2]))
