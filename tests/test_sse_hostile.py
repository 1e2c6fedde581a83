"""Acceptance 6 of the core: 100,000 hostile events, none of which raises, or gives anything but one strict frame.

``AGNO_RESUMABLE_HOSTILE`` sets how many; without it 5,000 are tried, and 500 with ``AGNO_RESUMABLE_SHORT``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag
from pathlib import PurePosixPath
from random import Random
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import ANY, MagicMock
from uuid import UUID

import pytest
from agno.models.response import ToolExecution
from agno.run import agent, team, workflow
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel, ConfigDict

from agno_resumable.sse import Decoder, encode_event, format_sse_event

from .sse_support import single_frame, strict_json

_PER_EXAMPLE = 20
_COUNT = int(os.environ.get("AGNO_RESUMABLE_HOSTILE") or ("500" if os.environ.get("AGNO_RESUMABLE_SHORT") else "5000"))


class Panic(BaseException):
    pass


ERRORS: list[type[BaseException]] = [ValueError, TypeError, KeyError, RecursionError, MemoryError, StopIteration, Panic]


class Traps:
    """Raises at whichever method is chosen."""

    def __init__(self, random: Random) -> None:
        object.__setattr__(self, "_trap", random.choice(["str", "getattr", "to_dict", "class", "bool", "none"]))
        object.__setattr__(self, "_error", random.choice(ERRORS))

    def _spring(self, name: str) -> None:
        if object.__getattribute__(self, "_trap") == name:
            raise object.__getattribute__(self, "_error")("sprung \ud800\n\n")

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "_spring")("class" if name == "__class__" else "getattr")
        return object.__getattribute__(self, name)

    def __str__(self) -> str:
        self._spring("str")
        return "data: forged\n\nevent: Forged\u2028"

    __repr__ = __str__

    def __bool__(self) -> bool:
        self._spring("bool")
        return True

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 7

    def to_dict(self) -> Any:
        self._spring("to_dict")
        return {"event": "Trap\r\n", "self": self.__dict__}


class Number(IntEnum):
    ONE = 1


class Flags(IntFlag):
    A = 1
    B = 2


class Odd(Enum):
    TUPLE = (1, 2)
    LOCK = threading.Lock()
    SURROGATE = "\ud800"
    NAN = float("nan")


class Text(str):
    def __str__(self) -> str:
        raise ValueError

    def __hash__(self) -> int:
        return str.__hash__(self)

    isprintable = isascii = encode = strip = None  # type: ignore[assignment]


class Mapping(dict[Any, Any]):
    def items(self) -> Any:
        return [("a", 1), ("a", float("nan")), (2, Odd.NAN)]


class Broken(dict[Any, Any]):
    def items(self) -> Any:
        return [1, 2]


class Sequence(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield 1
        raise ValueError("sprung")


class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    event: Any = "Model"
    value: Any = None


@dataclass
class Data:
    event: Any = "Data"
    value: Any = None


def generator() -> Iterator[int]:
    yield 1


TEXTS = [
    "",
    "RunContent",
    "A\n\ndata: {}\n\n",
    "A\r\nid: 9",
    "\u2028",
    "\u2029x",
    "\u0085",
    "\ud800",
    "\udfff\ud800",
    "\ud83d\ude00",
    "\0",
    "\x1b[2J",
    '"}',
    "}{",
    "\ufeff",
    "\u200b\u202e",
    "x" * 3000,
    "é€😀",
    ":",
    " ",
    "event_index",
    "run_id",
]
NUMBERS = [0, -1, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 10**5000, 0.0, -0.0, 1e308, 5e-324]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
LEAVES: list[Callable[[Random], Any]] = [
    lambda random: random.choice(TEXTS),
    lambda random: random.choice(TEXTS) + random.choice(TEXTS),
    lambda random: chr(
        random.choice([random.randrange(0x300), random.randrange(0xD700, 0xE100), random.randrange(0x110000)])
    ),
    lambda random: random.choice(NUMBERS),
    lambda random: random.choice(NOT_FINITE),
    lambda random: random.choice([None, True, False, ..., NotImplemented, object, Odd, Traps, ANY]),
    lambda random: random.choice([*Odd, *Number, Flags.A | Flags.B, Text("sub\n"), Decimal("NaN"), UUID(int=1)]),
    lambda random: random.choice(
        [b"\xff\n", bytearray(b"x"), memoryview(b"x"), {1}, frozenset("a"), range(3), slice(1)]
    ),
    lambda random: random.choice(
        [threading.Lock(), threading.RLock(), generator(), SimpleNamespace(a=1), PurePosixPath("a")]
    ),
    lambda random: random.choice(
        [print, lambda: 1, ValueError("\ud800"), MagicMock(), UserDict(a=1), MappingProxyType({})]
    ),
    Traps,
]
KEYS: list[Callable[[Random], Any]] = [
    lambda random: random.choice(TEXTS),
    lambda random: random.choice(["event", "type", "content", "run_id", "event_index", "a", "b"]),
    lambda random: random.choice(
        [1, 1.5, True, None, float("nan"), -0.0, Number.ONE, Odd.TUPLE, (1, 2), b"k", Text("k")]
    ),
]


def circular(random: Random) -> Any:
    value: Any = random.choice([[1], {"a": 1}, Data()])
    if isinstance(value, list):
        value.append(value)
    elif isinstance(value, dict):
        value["self"] = [value]
    else:
        value.value = {"self": value}
    return value


def deep(random: Random) -> Any:
    value: Any = 1
    for _ in range(random.choice([50, 199, 254, 300, 5000])):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def hostile_value(random: Random, depth: int = 0) -> Any:
    kind = random.random()
    if depth > 3 or kind < 0.55:
        return random.choice(LEAVES)(random)
    if kind < 0.70:
        return hostile_dict(random, depth + 1)
    if kind < 0.80:
        return [hostile_value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind < 0.84:
        return (hostile_value(random, depth + 1), 2)
    if kind < 0.87:
        return Data(hostile_value(random, depth + 1), hostile_value(random, depth + 1))
    if kind < 0.90:
        return Model(value=hostile_value(random, depth + 1))
    if kind < 0.92:
        return random.choice(
            [Mapping(a=1), Broken(a=1), Sequence([1, 2]), OrderedDict(a=1), Counter("aab"), defaultdict(list)]
        )
    if kind < 0.93:
        return circular(random)
    if kind < 0.935:
        return deep(random)
    if kind < 0.97:
        return ToolExecution(tool_args=hostile_dict(random, depth + 1), result=random.choice(LEAVES)(random))
    text = random.choice(TEXTS)
    return type("Made\n\u2028", (), {"__str__": lambda self: text, "event": "made"})()


def hostile_dict(random: Random, depth: int) -> dict[Any, Any]:
    result = {}
    for _ in range(random.randrange(5)):
        result[random.choice(KEYS)(random)] = hostile_value(random, depth)
    return result


CLASSES: list[type[Any]] = [
    cls
    for module in (agent, team, workflow)
    for cls in vars(module).values()
    if isinstance(cls, type) and cls.__module__ == module.__name__ and hasattr(cls, "to_json") and "event" in vars(cls)
]


def hostile_event(random: Random) -> Any:
    kind = random.random()
    if kind < 0.5:
        cls = random.choice(CLASSES)
        event = cls()
        for _ in range(random.randrange(1, 4)):
            setattr(event, random.choice(list(cls.__dataclass_fields__)), hostile_value(random))
        if random.random() < 0.3:
            event.event_index = random.choice([3, 3, 3, hostile_value(random)])
        if random.random() < 0.2:
            setattr(event, random.choice(["extra", "to_dict", "to_json", "__class_getitem__"]), hostile_value(random))
        if random.random() < 0.1:
            vars(event).pop(random.choice(list(vars(event))))
        return event
    if kind < 0.75:
        return hostile_dict(random, 0)
    if kind < 0.80:
        cls = make_dataclass("Hostile", [("event", Any), ("value", Any)], slots=random.random() < 0.5)
        return cls(hostile_value(random), hostile_value(random))
    if kind < 0.83:
        custom: Any = agent.CustomEvent
        return custom(**{key: hostile_value(random) for key in ("a", "event", "content")})
    if kind < 0.85:
        return agent.RunContentEvent(run_id="r", content=random.choice(TEXTS), created_at=1)
    return hostile_value(random)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")  # such as pydantic's on what it is made to serialize
@pytest.mark.slow
@settings(max_examples=max(1, _COUNT // _PER_EXAMPLE))
@given(seed=st.integers(0, 2**64))
def test_no_hostile_event_raises_or_forges_a_frame(seed: int) -> None:
    random = Random(seed)
    decoder = Decoder()
    for _ in range(_PER_EXAMPLE):
        event = hostile_event(random)
        family = random.choice([None, "agent", "team", "workflow"])
        index = random.choice([None, 0, 17])
        frame = format_sse_event(event, index, random.choice([None, "run-1"]), family=family)
        name, parsed = single_frame(frame)
        assert [(found.event, found.data) for found in decoder.feed(frame.encode())] == [
            (name, frame.splitlines()[1][6:])
        ]
        if index is not None:
            assert parsed["event_index"] == index
        if parsed.get("error_type") == "serialization_error" and family:
            assert name == {"agent": "RunError", "team": "TeamRunError", "workflow": "WorkflowError"}[family]

        stored_name, data = encode_event(event, family=family, run_id="run-1")
        stored = strict_json(data)
        assert isinstance(stored, dict)
        assert stored
        assert "event_index" not in stored
        if stored.get("event") == parsed.get("event"):  # not so where an iterator was used up, or a copy's address told
            assert stored_name == name
        assert strict_json(data[:-1] + b',"event_index":3}')["event_index"] == 3
        assert len(data.decode().splitlines()) == 1
