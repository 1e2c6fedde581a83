"""The checker finds what is wrong, so that a fault test that passes says something."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable

import pytest

from .checker import History, Seen, check_run

RUN = "run-1"


def _seen(index: int, type_: str, **fields: object) -> Seen:
    data = json.dumps({"event": type_, "run_id": RUN, **fields, "event_index": index})
    return Seen(index, type_, f"event: {type_}\ndata: {data}\nid: {RUN}:{index}".encode())


def _good() -> tuple[History, list[History]]:
    events = [_seen(0, "RunStarted"), *[_seen(index, "RunContent", content="é" * index) for index in range(1, 9)]]
    events.insert(4, _seen(4, "RunCompleted", parent_run_id="outer"))  # a member's end is not the run's
    events = [_seen(index, seen.type, **_own(seen)) for index, seen in enumerate(events)]
    events.append(_seen(len(events), "RunCompleted"))
    end: tuple[str, dict[str, object]] = ("end", {"status": "COMPLETED", "last_event_index": len(events) - 1})
    replay = History(RUN, -1, events, [end])
    left = History(RUN, -1, events[:6], [("disconnecting", {"reason": "drain"})])
    late = History(RUN, 3, events[4:], [end])
    return replay, [left, late]


def _own(seen: Seen) -> dict[str, object]:
    return {name: value for name, value in seen.data.items() if name in ("content", "parent_run_id")}


def _check(replay: History, histories: list[History], status: str = "COMPLETED") -> list[str]:
    return check_run(replay, histories, family="agent", status=status)


def test_a_run_with_nothing_wrong_passes() -> None:
    assert _check(*_good()) == []


def _lose_one(replay: History, clients: list[History], at: int) -> None:
    del clients[1].events[at % (len(clients[1].events) - 1)]


def _repeat_one(replay: History, clients: list[History], at: int) -> None:
    clients[0].events.append(clients[0].events[at % len(clients[0].events)])


def _swap_two(replay: History, clients: list[History], at: int) -> None:
    events = clients[0].events
    at %= len(events) - 1
    events[at], events[at + 1] = events[at + 1], events[at]


def _change_a_byte(replay: History, clients: list[History], at: int) -> None:
    seen = clients[0].events[at % len(clients[0].events)]
    clients[0].events[seen.index] = Seen(seen.index, seen.type, seen.frame.replace(b"run-1", b"run-2", 1))


def _lose_the_tail(replay: History, clients: list[History], at: int) -> None:
    # What a store does that acknowledges before it has written: the run is shorter than what a client has
    replay.events[3:] = [_seen(3, "RunCompleted")]
    replay.controls[0][1]["last_event_index"] = 3
    clients[1].events, clients[1].controls = [], []


def _end_twice(replay: History, clients: list[History], at: int) -> None:
    replay.events.append(_seen(len(replay.events), "RunError"))
    replay.controls[0][1]["last_event_index"] = len(replay.events) - 1
    clients[1].events.append(replay.events[-1])
    clients[1].controls = copy.deepcopy(replay.controls)


def _go_on_after_the_end(replay: History, clients: list[History], at: int) -> None:
    replay.events.append(_seen(len(replay.events), "RunContent"))
    replay.controls[0][1]["last_event_index"] = len(replay.events) - 1
    del clients[1:]


def _end_never(replay: History, clients: list[History], at: int) -> None:
    replay.events.pop()
    replay.controls[0][1]["last_event_index"] = len(replay.events) - 1
    del clients[1:]


def _end_as_another_status(replay: History, clients: list[History], at: int) -> None:
    replay.controls[0][1]["status"] = "ERROR"
    del clients[1:]


def _end_in_another_family(replay: History, clients: list[History], at: int) -> None:
    replay.events[-1] = _seen(replay.cursor, "TeamRunCompleted")
    del clients[1:]


def _tell_a_gap(replay: History, clients: list[History], at: int) -> None:
    clients[0].controls.insert(0, ("gap", {"requested": 0, "first_available": 1}))


def _tell_the_end_early(replay: History, clients: list[History], at: int) -> None:
    clients[1].events.pop()


def _tell_the_end_twice(replay: History, clients: list[History], at: int) -> None:
    clients[1].controls *= 2


def _number_the_json_otherwise(replay: History, clients: list[History], at: int) -> None:
    at %= len(replay.events)
    wrong = replay.events[at].frame.replace(b'"event_index": %d' % at, b'"event_index": %d' % (at + 1))
    for history in (replay, *clients):
        history.events = [Seen(s.index, s.type, wrong) if s.index == at else s for s in history.events]


MUTATIONS = [value for name, value in list(globals().items()) if name.startswith("_") and callable(value)]
MUTATIONS = [m for m in MUTATIONS if m.__code__.co_varnames[:3] == ("replay", "clients", "at")]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__.strip("_"))
@pytest.mark.parametrize("seed", range(5))
def test_every_seeded_mutant_is_caught(mutation: Callable[[History, list[History], int], None], seed: int) -> None:
    replay, clients = copy.deepcopy(_good())
    mutation(replay, clients, random.Random(seed).randrange(1000))
    assert _check(replay, clients)


def test_the_mutants_are_as_many_as_were_written() -> None:
    assert len(MUTATIONS) == 14


def test_a_run_that_is_still_active_does_not_pass() -> None:
    replay, clients = _good()
    assert _check(replay, clients, "RUNNING")
