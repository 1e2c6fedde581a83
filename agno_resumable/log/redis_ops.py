"""What the Redis log does, as plans: generators that yield commands and get their replies, without any I/O.

Each command is atomic by itself. Where an operation needs several, a crash between them leaves only what the next look
at it mends: a key reserved for a run that never came, a run in a list that has expired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from ..errors import LogUnavailable, RunFinished, RunNotFound, StaleGeneration
from ..model import EncodedEvent, Run, RunStatus
from . import redis_queries as queries, redis_script as codes, redis_scripts as scripts
from .protocol import Claim
from .redis_keys import microseconds, run_from_row
from .redis_link import Command, Plan, evaluate
from .redis_writer import Writer, all_keys, tag_of
from .rows import pack

__all__ = [
    "Appended",
    "append",
    "claim",
    "drop_intent",
    "expire",
    "heal",
    "intend_cancel",
    "renew",
    "request_cancel",
    "trim",
]

_STEP = 128  # runs in one script, or in one round of a sweep
_LEFT = 3  # of OVERTAKE: somebody else may run it again


class Appended(NamedTuple):
    """An append as stored: the run after it, and its first new index."""

    run: Run
    first: int


def _refused(run_id: str, reply: Sequence[Any], generation: int = 0) -> NoReturn:
    code = reply[0]
    if code == codes.STALE:
        raise StaleGeneration(run_id, generation, int(reply[1]))
    if code == codes.FINISHED:
        raise RunFinished(run_id, reply[1].decode())
    if code == codes.LATE:
        raise LogUnavailable("This came over a connection that has been replaced.", run_id=run_id)
    raise RunNotFound(run_id)


def _whole(run_id: str, reply: Sequence[Any]) -> Run:
    return run_from_row(run_id, reply[1], reply[2:6])


def claim(
    writer: Writer, run_id: str, lease: float, generation: int | None, floor: int | None, reopen: bool
) -> Plan[Run]:
    keys = writer.keys
    partition = keys.partition(run_id)
    (reply,) = yield [
        evaluate(
            scripts.CLAIM,
            tag_of(keys, partition),
            all_keys(keys, partition, run_id, None, None, None)[:13],
            writer.tag,
            run_id,
            microseconds(lease),
            "" if generation is None else generation,
            "" if floor is None else floor,
            1 if reopen else 0,
        )
    ]
    if reply[0]:
        _refused(run_id, reply, generation or 0)
    return _whole(run_id, reply)


def append(
    writer: Writer,
    run_id: str,
    generation: int,
    parts: Sequence[Sequence[EncodedEvent]],
    status: RunStatus | None,
    transcript: bytes | None,
    max_run_bytes: int,
    ttl: float | None,
) -> Plan[Appended]:
    keys = writer.keys
    partition = keys.partition(run_id)
    names: tuple[str, ...] = (*keys.stored(partition, run_id), *keys.appends(partition))
    if status is not None:
        names = (*names, *keys.statuses(partition)[2:])
    args: list[bytes | str | int] = [
        writer.origin,
        writer.connection,
        run_id,
        generation,
        "" if status is None else status.value,
        0 if transcript is None else 1,
        transcript or b"",
        max_run_bytes,
        0 if ttl is None else max(1, round(ttl * 1000)),
    ]
    total = 0
    for part in parts:
        total += len(part)
        args += (len(part), sum([len(data) for _, data in part]), pack(part))
    (reply,) = yield [evaluate(scripts.APPEND, tag_of(keys, partition), names, *args)]
    if reply[0]:
        _refused(run_id, reply, generation)
    run = run_from_row(run_id, reply[1])
    return Appended(run, run.next_index - total)


def request_cancel(writer: Writer, run_id: str) -> Plan[Run]:
    keys = writer.keys
    partition = keys.partition(run_id)
    run, _, payload = keys.stored(partition, run_id)
    names = [run, payload, *keys.changes(partition)]
    (reply,) = yield [evaluate(scripts.CANCEL, tag_of(keys, partition), names, writer.tag, run_id)]
    if reply[0]:
        _refused(run_id, reply)
    return _whole(run_id, reply)


def trim(writer: Writer, run_id: str, before: int) -> Plan[Run]:
    return (yield from _cut(scripts.TRIM, writer, run_id, before))


def heal(writer: Writer, run_id: str, index: int) -> Plan[Run]:
    """The event at ``index`` has been lost: what is left behind it becomes the run's first."""
    return (yield from _cut(scripts.HEAL, writer, run_id, index))


def _cut(script: codes.Script, writer: Writer, run_id: str, index: int) -> Plan[Run]:
    keys = writer.keys
    partition = keys.partition(run_id)
    names = [*keys.stored(partition, run_id)[:2], *keys.changes(partition)]
    (reply,) = yield [evaluate(script, tag_of(keys, partition), names, writer.tag, run_id, index)]
    if reply[0]:
        _refused(run_id, reply)
    return run_from_row(run_id, reply[1])


def renew(writer: Writer, claims: Sequence[Claim], lease: float) -> Plan[list[str]]:
    keys = writer.keys
    shares: dict[int, list[Claim]] = {}
    for claimed in claims:
        shares.setdefault(keys.partition(claimed[0]), []).append(claimed)
    steps = [
        (partition, share[start : start + _STEP])
        for partition, share in shares.items()
        for start in range(0, len(share), _STEP)
    ]
    replies = yield [
        evaluate(
            queries.RENEW,
            tag_of(keys, partition),
            [keys.name(partition, "leases"), *[keys.run(partition, run_id) for run_id, _ in step]],
            microseconds(lease),
            *[value for claimed in step for value in claimed],
        )
        for partition, step in steps
    ]
    lost = {step[number] for (_, step), reply in zip(steps, replies, strict=True) for number in reply[1:]}
    return [claimed[0] for claimed in claims if tuple(claimed) in lost]


def expire(writer: Writer, lease: float, serves: Sequence[str], patience: float) -> Plan[list[Run]]:
    keys = writer.keys
    taken: list[Run] = []
    behind = dict.fromkeys(range(keys.partitions), 0)  # how many are left to others, and stay at the list's head
    while behind:
        due = yield [
            evaluate(queries.DUE, tag_of(keys, partition), [keys.name(partition, "leases")], left, _STEP)
            for partition, left in behind.items()
        ]
        run_ids = [run_id.decode() for reply in due for run_id in reply[1]]
        replies = yield [_overtake(writer, run_id, lease, serves, patience) for run_id in run_ids]
        more: dict[int, int] = {}
        for (partition, left), reply in zip(list(behind.items()), due, strict=True):
            if len(reply[1]) == _STEP:
                more[partition] = left
        for run_id, reply in zip(run_ids, replies, strict=True):
            if reply[0] == 0:
                taken.append(run_from_row(run_id, reply[1]))
            elif reply[0] == _LEFT and (partition := keys.partition(run_id)) in more:
                more[partition] += 1
        behind = more
    return taken


def _overtake(writer: Writer, run_id: str, lease: float, serves: Sequence[str], patience: float) -> Command:
    keys = writer.keys
    partition = keys.partition(run_id)
    names = [keys.run(partition, run_id), *keys.changes(partition), keys.name(partition, "leases")]
    return evaluate(
        scripts.OVERTAKE,
        tag_of(keys, partition),
        names,
        writer.tag,
        run_id,
        microseconds(lease),
        microseconds(patience),
        *serves,
    )


def intend_cancel(writer: Writer, run_id: str, ttl: float) -> Plan[int]:
    return (yield from _intend(writer, run_id, microseconds(ttl)))


def drop_intent(writer: Writer, run_id: str) -> Plan[int]:
    return (yield from _intend(writer, run_id, ""))


def _intend(writer: Writer, run_id: str, ttl: int | str) -> Plan[int]:
    keys = writer.keys
    names = [keys.name(0, "intents"), keys.name(0, "intended"), *keys.changes(0)]
    (reply,) = yield [evaluate(queries.INTEND, tag_of(keys, 0), names, writer.tag, run_id, ttl)]
    return int(reply[1])
