"""How the Redis log lies in the server: its keys, and a run's fields.

A log is divided into partitions, each with a hash tag of its own, so that a Redis Cluster spreads them over its shards
and all that one run touches, its place in every list included, lies in one slot and changes in one script. A run's
partition follows from its id. A tag for each run would spread finer, but the lists, the leases and the wake-ups would
then lie elsewhere than the runs, and a crash between two scripts could part them.

=============================  ==========  =========================================================================
``{p:0}:run:<run>``            hash        the run, but for what is heavy; see ``FIELDS``
``{p:0}:events:<run>``         stream      what one append stored, as an entry: the id is ``<index behind the last
                                           event>-<number of events>``, its one field the bytes of JSON before it,
                                           the value the events, as ``pack`` writes them
``{p:0}:payload:<run>``        hash        input, metadata, options, transcript
``{p:0}:leases``               sorted set  active runs by the end of their lease
``{p:0}:ends``                 sorted set  finished runs by their end
``{p:0}:all``                  sorted set  runs by creation; likewise ``status:<status>``, ``session:<id>``,
                                           ``user:<id>`` and ``component:<id>``
``{p:0}:key:<hash>``           string      an owner's idempotency key: the run, and when it was reserved
``{p:0}:wake``                 stream      what has changed, for all processes, with the events where they are small;
                                           entries are counted in ``seq``
``{p:0}:intents``              sorted set  cancel intents by their end, counted in ``intended``; in partition 0
``{p}:meta``                   hash        the version of this layout, and the number of partitions
=============================  ==========  =========================================================================

Times are microseconds since the epoch by the server's clock.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Sequence

from ..model import Family, Run, RunStatus, make_run
from .rows import FAMILY_OF, STATUS_OF

__all__ = ["FIELDS", "LAYOUT_VERSION", "STATUSES", "Keys", "microseconds", "run_from_row"]

LAYOUT_VERSION = 1

STATUSES: tuple[str, ...] = tuple(status.value for status in RunStatus)
"""In the order in which the scripts are given the status lists."""

FIELDS: tuple[str, ...] = ("f", "c", "s", "u", "k", "st", "fi", "nx", "g", "a", "v", "cr", "up", "fn", "le", "ca", "ma")
"""A run's fields in the order in which the scripts return them: family, component, session, user, idempotency key,
status, first and next index, generation, attempts, version, when it was created, updated, finished, when its lease
ends and when a cancel was requested, and the most attempts. A field that is not there is ``None``."""


class Keys:
    """The names of a log's keys.

    Args:
        prefix: What all of them begin with, inside the braces of their hash tag.
        partitions: How many there are.
    """

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix: str = prefix
        self.partitions: int = partitions
        self._tags = [f"{{{prefix}:{number}}}:" for number in range(partitions)]
        self.wakes: list[str] = [f"{tag}wake" for tag in self._tags]
        # what nearly every script gets, in its order
        self._changes = [(f"{tag}seq", f"{tag}wake") for tag in self._tags]
        self._appends = [
            (*changes, f"{tag}leases", f"{tag}ends", f"{tag}status:PENDING", f"{tag}status:RUNNING")
            for tag, changes in zip(self._tags, self._changes, strict=True)
        ]
        self._statuses = [tuple(f"{tag}status:{status}" for status in STATUSES) for tag in self._tags]

    @staticmethod
    def meta(prefix: str) -> str:
        """Where a log says how it is laid out; before the number of partitions is known."""
        return f"{{{prefix}}}:meta"

    def partition(self, run_id: str) -> int:
        """The partition of a run."""
        return binascii.crc32(run_id.encode()) % self.partitions if self.partitions > 1 else 0

    def name(self, partition: int, name: str) -> str:
        """A key of a whole partition."""
        return self._tags[partition] + name

    def run(self, partition: int, run_id: str) -> str:
        """The run's hash."""
        return f"{self._tags[partition]}run:{run_id}"

    def stored(self, partition: int, run_id: str) -> tuple[str, str, str]:
        """The run's hash, its events, and its payload."""
        tag = self._tags[partition]
        return (f"{tag}run:{run_id}", f"{tag}events:{run_id}", f"{tag}payload:{run_id}")

    def changes(self, partition: int) -> tuple[str, str]:
        """The counter of wake-ups, and the wake-ups."""
        return self._changes[partition]

    def appends(self, partition: int) -> tuple[str, ...]:
        """Wake-ups, leases, ends, and the lists of pending and of running runs."""
        return self._appends[partition]

    def statuses(self, partition: int) -> tuple[str, ...]:
        """The list of each status, in the order of ``STATUSES``."""
        return self._statuses[partition]

    def lists(
        self, partition: int, *, session_id: str | None, user_id: str | None, component_id: str | None
    ) -> list[str]:
        """The lists that hold a run by what does not change, narrowest first."""
        tag = self._tags[partition]
        given = (("session", session_id), ("user", user_id), ("component", component_id))
        return [f"{tag}{kind}:{value}" for kind, value in given if value is not None]

    def idempotency(self, user_id: str | None, key: str) -> tuple[int, str]:
        """The partition and the name of an owner's idempotency key. Neither stands in it: both may be secrets."""
        owner = "-" if user_id is None else f"+{len(user_id)}:{user_id}"
        digest = hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
        partition = int(digest[:8], 16) % self.partitions
        return partition, f"{self._tags[partition]}key:{digest[:40]}"


def run_from_row(
    run_id: str, row: Sequence[bytes | None], heavy: Sequence[bytes | None] = (None, None, None, None)
) -> Run:
    """A run from the values of ``FIELDS``, and from its input, metadata, options and transcript."""
    family, component, session, user, key, status, first, next_, generation, attempts, version, *times, most = row
    created, updated, finished, lease, cancel = [None if time is None else int(time) / 1e6 for time in times]
    fields = (
        run_id,
        FAMILY_OF[family.decode()] if family is not None else Family.AGENT,
        *[None if name is None else name.decode() for name in (component, session, user, key)],
        heavy[0],
        heavy[1],
        STATUS_OF[(status or b"").decode()],
        *[int(number or 0) for number in (first, next_, generation, attempts, version)],
        created,
        updated,
        finished,
        lease,
        cancel,
        heavy[3],
        heavy[2],
        int(most or 1),
    )
    return make_run(fields)


def microseconds(seconds: float) -> int:
    """A time, or a length of time, as the scripts count them."""
    return round(min(max(seconds, -1e9), 4e9) * 1e6)
