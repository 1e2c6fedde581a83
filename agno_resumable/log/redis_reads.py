"""What the Redis log reads, as plans; see ``redis_ops``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import RunNotFound
from ..model import Batch, Intents, Run, RunStatus
from . import redis_queries as queries
from .redis_keys import Keys, microseconds, run_from_row
from .redis_link import Command, Plan, evaluate
from .rows import batch_behind

__all__ = ["Found", "get", "intents", "list_runs", "now", "read", "states"]

_SCAN = 2_000  # members of a list that one script looks at, so that a long list holds nobody else up


class Found(NamedTuple):
    """What a read gives: the run, batches that hold at least the page, and the index of what has been lost, or -1."""

    run: Run
    batches: Sequence[Batch]
    lost: int


def get(keys: Keys, run_id: str) -> Plan[Run]:
    partition = keys.partition(run_id)
    run, _, payload = keys.stored(partition, run_id)
    (reply,) = yield [evaluate(queries.GET, keys.name(partition, ""), [run, payload])]
    if reply[0]:
        raise RunNotFound(run_id)
    return run_from_row(run_id, reply[1], reply[2:6])


def read(keys: Keys, run_id: str, after: int, limit: int, max_bytes: int) -> Plan[Found]:
    partition = keys.partition(run_id)
    names = keys.stored(partition, run_id)[:2]
    (reply,) = yield [evaluate(queries.READ, keys.name(partition, ""), names, after, max(limit, 0), max(max_bytes, 1))]
    if reply[0]:
        raise RunNotFound(run_id)
    _, row, entries, lost = reply
    batches = []
    for position in range(0, len(entries), 2):
        last, _, count = entries[position].partition(b"-")
        batches.append(batch_behind(run_id, int(last) - int(count), entries[position + 1], after))
    return Found(run_from_row(run_id, row), batches, lost)


def states(keys: Keys, run_ids: Sequence[str]) -> Plan[dict[str, tuple[int, bool]]]:
    """Of the runs of these ids that exist: the version, and whether a cancel was requested."""
    commands = []
    for run_id in run_ids:
        partition = keys.partition(run_id)
        commands.append(Command(keys.name(partition, ""), ("HMGET", keys.run(partition, run_id), "v", "ca")))
    replies = yield commands
    return {
        run_id: (int(version), cancel is not None)
        for run_id, (version, cancel) in zip(run_ids, replies, strict=True)
        if version is not None
    }


def list_runs(
    keys: Keys, filters: Mapping[str, str | None], status: RunStatus | None, limit: int, before: float | None
) -> Plan[list[Run]]:
    """The newest runs of every partition, merged. Lists are mended on the way: they may hold runs that are gone."""
    if limit <= 0:
        return []
    highest = "+inf" if before is None else f"({microseconds(before)}"
    scores = dict.fromkeys(range(keys.partitions), highest)
    found: dict[str, Run] = {}
    while scores:
        commands = []
        for partition, score in scores.items():
            names = keys.lists(
                partition,
                session_id=filters["session_id"],
                user_id=filters["user_id"],
                component_id=filters["component_id"],
            )
            if status is not None:
                names.append(keys.name(partition, f"status:{status.value}"))
            names = names or [keys.name(partition, "all")]
            tag = keys.name(partition, "")
            commands.append(evaluate(queries.LIST, tag, names, score, limit, _SCAN, f"{tag}run:"))
        replies = yield commands
        forgotten = []
        for (partition, command), reply in zip(list(zip(scores, commands, strict=True)), replies, strict=True):
            _, rows, gone, more, score = reply
            for position in range(0, len(rows), 2):
                run_id = rows[position].decode()
                found[run_id] = run_from_row(run_id, rows[position + 1])
            for member in gone:
                run_id = member.decode()
                names = [keys.run(partition, run_id), str(command.args[3])]
                forgotten.append(evaluate(queries.FORGET, command.tag, names, run_id))
            if more and len(rows) // 2 < limit and score.decode() != scores[partition]:
                scores[partition] = score.decode()
            else:
                del scores[partition]
        yield forgotten
    return sorted(found.values(), key=lambda run: run.created_at, reverse=True)[:limit]


def intents(keys: Keys, limit: int) -> Plan[Intents]:
    names = [keys.name(0, "intents"), keys.name(0, "intended")]
    (reply,) = yield [evaluate(queries.INTENTS, keys.name(0, ""), names, max(limit, 0))]
    return Intents(int(reply[1]), [run_id.decode() for run_id in reply[2]])


def now(keys: Keys) -> Plan[float]:
    ((seconds, microseconds_),) = yield [Command(keys.name(0, ""), ("TIME",))]
    return int(seconds) + int(microseconds_) / 1e6
