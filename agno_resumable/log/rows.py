"""How runs and events lie in the rows of a database: shared by the backends that speak SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..model import EncodedEvent, Family, Run, RunStatus

__all__ = ["RUN_COLUMNS", "pack", "run_from_row", "unpack"]

RUN_COLUMNS = (
    "run_id, family, component_id, session_id, user_id, idempotency_key, status, first_index, next_index, generation, "
    "attempts, version, created_at, updated_at, finished_at, lease_expires_at, cancel_requested_at, max_attempts"
)


def run_from_row(row: Sequence[object], heavy: Sequence[bytes | None] = (None, None, None, None)) -> Run:
    """A run from ``RUN_COLUMNS``, and from its input, metadata, options and transcript."""
    run_id, family, component_id, session_id, user_id, key, status, *rest, max_attempts = row
    owner = (run_id, Family(family), component_id, session_id, user_id, key)
    fields: Any = (*owner, heavy[0], heavy[1], RunStatus(status), *rest, heavy[3], heavy[2], max_attempts)
    return Run(*fields)


def pack(events: Sequence[EncodedEvent]) -> bytes:
    """Events as alternating lines; neither a type nor strict JSON holds a line feed."""
    return b"\n".join([line for type_, data in events for line in (type_.encode(), data)])


def unpack(blob: bytes) -> list[EncodedEvent]:
    """The reverse of ``pack``."""
    lines = blob.split(b"\n")
    return list(map(EncodedEvent, map(bytes.decode, lines[0::2]), lines[1::2]))
