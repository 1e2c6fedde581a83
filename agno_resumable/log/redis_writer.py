"""What all writing plans of the Redis log need: who writes, and which keys a run may stand in."""

from __future__ import annotations

from .redis_keys import FIELDS, Keys
from .redis_link import Command

__all__ = ["Writer", "all_keys", "peek", "tag_of"]


class Writer:
    """Who writes: what all plans need.

    Args:
        origin: Names this opening of the log.
    """

    def __init__(self, keys: Keys, origin: str) -> None:
        self.keys: Keys = keys
        self.origin: str = origin
        self.connection: int = 1
        """Raised whenever a connection is lost: what was on its way there, and arrives late, is refused."""

    @property
    def tag(self) -> str:
        """Who tells of a change in the wake-ups."""
        return f"{self.origin}.{self.connection}"


def tag_of(keys: Keys, partition: int) -> str:
    """The hash tag of a partition."""
    return keys.name(partition, "")


def all_keys(
    keys: Keys, partition: int, run_id: str, session: str | None, user: str | None, component: str | None
) -> list[str]:
    """All keys that one run may stand in, but for its idempotency key."""
    return [
        *keys.stored(partition, run_id),
        *keys.changes(partition),
        keys.name(partition, "leases"),
        keys.name(partition, "ends"),
        *keys.statuses(partition),
        keys.name(partition, "all"),
        *keys.lists(partition, session_id=session, user_id=user, component_id=component),
    ]


def peek(keys: Keys, run_id: str) -> Command:
    """Read a run's ``FIELDS``, and when its key was reserved."""
    partition = keys.partition(run_id)
    return Command(tag_of(keys, partition), ("HMGET", keys.run(partition, run_id), *FIELDS, "kt"))
