"""How a run comes into the Redis log, with its key, and leaves it with all that it had: as plans.

An idempotency key lies where its hash leads, which in a Cluster may be another slot than the run's. Then it is reserved
before the run is created, and a reservation whose run is not there after a while is anybody's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RunExists
from ..model import NewRun, Run
from . import redis_life_scripts as scripts
from .redis_keys import microseconds, run_from_row
from .redis_link import Command, Plan, evaluate
from .redis_writer import Writer, all_keys, peek, tag_of

__all__ = ["create", "delete", "prune"]

# A key that was reserved for a run which is not there: its creation may be under way for this long, in microseconds.
_RESERVED_FOR = 10_000_000


def create(writer: Writer, run: NewRun, lease: float) -> Plan[Run]:
    """Create the run; its key is reserved in the same step where it lies in the same slot, else before."""
    keys, run_id, key = writer.keys, run.run_id, run.idempotency_key
    partition = keys.partition(run_id)
    at, name = (partition, "") if key is None else keys.idempotency(run.user_id, key)
    reserved = b""
    if key is not None and at != partition:
        reserved = yield from _reserve(writer, run, at, name)
    takes_over = b""
    while True:
        (reply,) = yield [_create(writer, run, lease, name if at == partition else "", takes_over, reserved)]
        if reply[0] == 0:
            return run_from_row(run_id, reply[1], (run.input, run.metadata, run.options, None))
        if reply[0] != 2:
            if reserved:
                yield [evaluate(scripts.RELEASE, tag_of(keys, at), [name], reserved + b" " + run_id.encode())]
            raise RunExists(run_id)
        takes_over = reply[1]
        yield from _check_holder(writer, run, takes_over)


def _create(writer: Writer, run: NewRun, lease: float, name: str, takes_over: bytes, reserved: bytes) -> Command:
    keys, run_id = writer.keys, run.run_id
    partition = keys.partition(run_id)
    fields: list[str | bytes | int] = ["f", run.family.value]
    if run.max_attempts != 1:
        fields += ["ma", run.max_attempts]
    for field, value in (
        ("c", run.component_id),
        ("s", run.session_id),
        ("u", run.user_id),
        ("k", run.idempotency_key),
    ):
        if value is not None:
            fields += [field, value]
    return evaluate(
        scripts.CREATE,
        tag_of(keys, partition),
        [
            *all_keys(keys, partition, run_id, run.session_id, run.user_id, run.component_id),
            *([name] if name else []),
        ],
        writer.tag,
        run_id,
        microseconds(lease),
        1 if name else 0,
        takes_over,
        reserved,
        0 if run.input is None else 1,
        run.input or b"",
        0 if run.metadata is None else 1,
        run.metadata or b"",
        0 if run.options is None else 1,
        run.options or b"",
        *fields,
    )


def _reserve(writer: Writer, run: NewRun, at: int, name: str) -> Plan[bytes]:
    """Reserve the key in another slot than the run's; return when."""
    keys, run_id = writer.keys, run.run_id
    (peeked,) = yield [peek(keys, run_id)]
    if peeked[5] is not None:
        raise RunExists(run_id)
    takes_over = b""
    while True:
        (reply,) = yield [evaluate(scripts.RESERVE, tag_of(keys, at), [name], run_id, takes_over)]
        if reply[0] == 0:
            when: bytes = reply[1]
            return when
        takes_over = reply[1]
        since = int(takes_over.partition(b" ")[0])
        yield from _check_holder(writer, run, takes_over, young=int(reply[2]) - since < _RESERVED_FOR)


def _check_holder(writer: Writer, run: NewRun, held: bytes, young: bool = False) -> Plan[None]:
    """Raise ``RunExists`` if the run that the key is held for is there, or may be about to come."""
    holder = held.partition(b" ")[2].decode()
    (found,) = yield [peek(writer.keys, holder)]
    if found[5] is not None:
        theirs = [None if value is None else value.decode() for value in (found[3], found[4])]
        if theirs == [run.user_id, run.idempotency_key]:
            raise RunExists(holder, idempotency_key=run.idempotency_key)
    elif young:
        raise RunExists(holder, idempotency_key=run.idempotency_key)


def delete(writer: Writer, run_id: str) -> Plan[list[str]]:
    (row,) = yield [peek(writer.keys, run_id)]
    return (yield from _remove(writer, [(run_id, row)], None))


def prune(writer: Writer, finished_before: float, step: int) -> Plan[tuple[list[str], bool]]:
    """Delete up to ``step`` runs of each partition, and say whether there may be more."""
    keys = writer.keys
    before = microseconds(finished_before)
    found = yield [
        Command(
            tag_of(keys, partition),
            ("ZRANGEBYSCORE", keys.name(partition, "ends"), "-inf", f"({before}", "LIMIT", 0, step),
        )
        for partition in range(keys.partitions)
    ]
    run_ids = [run_id.decode() for share in found for run_id in share]
    rows = yield [peek(keys, run_id) for run_id in run_ids]
    removed = yield from _remove(writer, list(zip(run_ids, rows, strict=True)), before)
    return removed, any(len(share) == step for share in found)


def _remove(
    writer: Writer, todo: Sequence[tuple[str, Sequence[bytes | None]]], finished_before: int | None
) -> Plan[list[str]]:
    """Remove runs that look like this; those that were made anew meanwhile are looked at again."""
    keys = writer.keys
    removed: list[str] = []
    while todo:
        replies = yield [_removal(writer, run_id, row, finished_before) for run_id, row in todo]
        released: list[Command] = []
        anew: list[str] = []
        for (run_id, row), reply in zip(todo, replies, strict=True):
            if reply[0] == 0:
                removed.append(run_id)
                at, name, value = _key_of(writer, run_id, row)
                if name and at != keys.partition(run_id):
                    released.append(evaluate(scripts.RELEASE, tag_of(keys, at), [name], value))
            elif reply[0] == 2:
                anew.append(run_id)
        replies = yield [*[peek(keys, run_id) for run_id in anew], *released]
        todo = list(zip(anew, replies, strict=False))
    return removed


def _removal(writer: Writer, run_id: str, row: Sequence[bytes | None], finished_before: int | None) -> Command:
    keys = writer.keys
    partition = keys.partition(run_id)
    names = [None if name is None else name.decode() for name in (row[2], row[3], row[1])]
    at, name, value = _key_of(writer, run_id, row)
    local = bool(name) and at == partition
    return evaluate(
        scripts.REMOVE,
        tag_of(keys, partition),
        [*all_keys(keys, partition, run_id, *names), *([name] if local else [])],
        writer.tag,
        run_id,
        row[11] or b"",
        "" if finished_before is None else finished_before,
        value if local else b"",
    )


def _key_of(writer: Writer, run_id: str, row: Sequence[bytes | None]) -> tuple[int, str, bytes]:
    """Where the run's idempotency key lies and what it holds; an empty name where there is none."""
    key, reserved = row[4], row[17]
    if key is None or reserved is None:
        return 0, "", b""
    at, name = writer.keys.idempotency(None if row[3] is None else row[3].decode(), key.decode())
    return at, name, reserved + b" " + run_id.encode()
