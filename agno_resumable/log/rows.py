"""How runs and events lie in the rows of a database: shared by the backends that speak SQL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..model import Batch, EncodedEvent, Family, Run, RunStatus, make_run

__all__ = ["FAMILY_OF", "RUN_COLUMNS", "STATUS_OF", "batch_behind", "pack", "run_from_row", "unpack"]

FAMILY_OF: dict[str, Family] = {family.value: family for family in Family}
STATUS_OF: dict[str, RunStatus] = {status.value: status for status in RunStatus}
_make_event = partial(tuple.__new__, EncodedEvent)  # without the Python function that a named tuple's class is

RUN_COLUMNS = (
    "run_id, family, component_id, session_id, user_id, idempotency_key, status, first_index, next_index, generation, "
    "attempts, version, created_at, updated_at, finished_at, lease_expires_at, cancel_requested_at, max_attempts"
)


def run_from_row(row: Sequence[object], heavy: Sequence[bytes | None] = (None, None, None, None)) -> Run:
    """A run from ``RUN_COLUMNS``, and from its input, metadata, options and transcript."""
    run_id, family, component_id, session_id, user_id, key, status, *rest, max_attempts = row
    owner = (run_id, FAMILY_OF[str(family)], component_id, session_id, user_id, key)
    return make_run((*owner, heavy[0], heavy[1], STATUS_OF[str(status)], *rest, heavy[3], heavy[2], max_attempts))


def pack(events: Sequence[EncodedEvent]) -> bytes:
    """Events as alternating lines; neither a type nor strict JSON holds a line feed."""
    return b"\n".join([line for type_, data in events for line in (type_.encode(), data)])


def unpack(blob: bytes, skip: int = 0) -> list[EncodedEvent]:
    """The reverse of ``pack``, but for the first ``skip`` events."""
    if skip <= 0:
        lines = blob.split(b"\n")
    else:  # whoever comes back misses the end of what may be large
        left = blob.count(b"\n") + 1 - 2 * skip
        lines = blob.rsplit(b"\n", left)[1:] if left > 0 else []
    return list(map(_make_event, zip(map(bytes.decode, lines[0::2]), lines[1::2], strict=True)))


def batch_behind(run_id: str, first: int, blob: bytes, after: int) -> Batch:
    """The events of a row that begins at ``first``, but for those up to the index ``after``; empty if that is all."""
    return Batch(run_id, max(first, after + 1), unpack(blob, after + 1 - first))
