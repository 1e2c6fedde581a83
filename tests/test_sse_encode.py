"""What the serializer makes of events that are not agno's, and of values that no serializer likes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel, RootModel

from agno_resumable.model import EncodedEvent, Family
from agno_resumable.sse import encode_event, format_sse_event

from .sse_support import same_json, single_frame, strict_json

ERRORS = {"agent": "RunError", "team": "TeamRunError", "workflow": "WorkflowError"}


def encoded(event: Any, **arguments: Any) -> tuple[str, Any]:
    """Encode both ways, and return the name and the object, which must be the same."""
    name, data = encode_event(event, **arguments)
    stored = strict_json(data)
    assert b"\n" not in data
    assert b"\r" not in data
    assert data.endswith(b"}")
    # the log puts the index in before the last brace
    assert strict_json(data[:-1] + b',"event_index":5}') == {**stored, "event_index": 5}
    assert single_frame(format_sse_event(event, 5, **arguments)) == (name, {**stored, "event_index": 5})
    return name, stored


def is_error(event: Any, **arguments: Any) -> dict[str, Any]:
    name, parsed = encoded(event, **arguments)
    assert parsed["event"] == name
    assert name in ERRORS.values()
    assert parsed["error_type"] == "serialization_error"
    result: dict[str, Any] = parsed
    return result


class Kind(str, Enum):
    STARTED = "Started"


class Plain(Enum):
    STARTED = "Started"
    TUPLE = (1, 2)
    NUMBER = 5


class Model(BaseModel):
    event: str = "Modelled"
    value: int | None = None


@dataclass
class Inner:
    a: int
    b: Any = None


@dataclass
class Data:
    inner: Inner
    event: str | None = "Data"


class WithToDict:
    def __init__(self, result: Any) -> None:
        self.result = result

    def to_dict(self) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("event", "name", "expected"),
    [
        pytest.param({"event": "E", "a": None}, "E", {"event": "E", "a": None}, id="a dict keeps its nulls"),
        pytest.param({"type": "T"}, "T", {"type": "T"}, id="a type stands in for a missing event"),
        pytest.param({"event": "", "type": "T"}, "T", {"event": "", "type": "T"}, id="and for an empty one"),
        pytest.param({"event": 5}, "message", {"event": 5}, id="a name is text"),
        pytest.param({"event": Kind.STARTED}, "Started", {"event": "Started"}, id="a name from a text Enum"),
        pytest.param({"event": Plain.STARTED}, "Started", {"event": "Started"}, id="a name from an Enum"),
        pytest.param({"event": Plain.TUPLE}, "TUPLE", {"event": "TUPLE"}, id="an Enum without a scalar is its name"),
        pytest.param({"a": 1}, "message", {"a": 1}, id="no name at all"),
        pytest.param({}, "message", {"event": "message"}, id="never an empty object"),
        pytest.param({"event_index": 3}, "message", {"event": "message"}, id="nor one emptied"),
        pytest.param("text", "message", {"event": "message", "content": "text"}, id="text"),
        pytest.param(None, "message", {"event": "message", "content": None}, id="nothing"),
        pytest.param([1, (2, 3)], "message", {"event": "message", "content": [1, [2, 3]]}, id="a list"),
        pytest.param(True, "message", {"event": "message", "content": True}, id="a bool"),
        pytest.param(2**70, "message", {"event": "message", "content": 2**70}, id="an integer over 64 bits"),
        pytest.param(Plain.NUMBER, "message", {"event": "message", "content": 5}, id="an Enum"),
        pytest.param(Model(), "Modelled", {"event": "Modelled", "value": None}, id="a pydantic model"),
        pytest.param(RootModel[list[int]]([1]), "message", {"event": "message", "content": [1]}, id="a root model"),
        pytest.param(Data(Inner(1)), "Data", {"event": "Data", "inner": {"a": 1, "b": None}}, id="a dataclass"),
        pytest.param(
            Data(Inner(1), None), "message", {"event": None, "inner": {"a": 1, "b": None}}, id="without a name"
        ),
        pytest.param(WithToDict({"event": "W"}), "W", {"event": "W"}, id="an object with to_dict"),
        pytest.param(WithToDict([1]), "message", {"event": "message", "content": [1]}, id="whose to_dict gives a list"),
        pytest.param(
            datetime(2024, 1, 2), "message", {"event": "message", "content": "2024-01-02T00:00:00"}, id="a date"
        ),
    ],
)
def test_events_of_other_making(event: Any, name: str, expected: Any) -> None:
    found = encoded(event)
    assert found[0] == name
    assert same_json(found[1], expected)


def test_an_encoded_event_is_what_the_log_takes() -> None:
    event = encode_event("x")
    assert isinstance(event, EncodedEvent)
    assert isinstance(event.type, str)
    assert isinstance(event.data, bytes)


def test_the_run_id_goes_in_only_where_there_is_none() -> None:
    assert encoded({"a": 1}, run_id="r")[1] == {"a": 1, "run_id": "r"}
    assert encoded({"run_id": "own"}, run_id="r")[1] == {"run_id": "own"}
    assert encoded("x", run_id="r")[1]["run_id"] == "r"
    assert encoded({}, run_id="r")[1] == {"run_id": "r"}


def test_the_index_is_kept_in_a_frame_unless_given_and_never_stored() -> None:
    event = {"event": "E", "event_index": 3}
    assert single_frame(format_sse_event(event)) == ("E", event)
    assert single_frame(format_sse_event(event, 8)) == ("E", {"event": "E", "event_index": 8})
    assert strict_json(encode_event(event).data) == {"event": "E"}
    assert event == {"event": "E", "event_index": 3}  # the caller's own is not touched


def test_numbers_that_json_does_not_know_become_null() -> None:
    values = [float("nan"), float("inf"), -float("inf"), 1.5]
    assert encoded({"v": values, "d": Inner})[1]["v"] == [None, None, None, 1.5]
    assert encoded({"v": values})[1] == {"v": [None, None, None, 1.5]}


def test_lone_surrogates_become_the_replacement_character_and_pairs_are_joined() -> None:
    assert encoded({"\ud800": "a\udfffb", "n": Plain.NUMBER, "p": "\ud83d\ude00"})[1] == {
        "\ufffd": "a\ufffdb",
        "n": 5,
        "p": "😀",
    }
    assert encoded({"a": "\ud800"})[1] == {"a": "\ufffd"}
    assert encoded({"a": 1}, run_id="\ud800")[1] == {"a": 1, "run_id": "\ufffd"}


def test_keys_that_become_the_same_text_stand_once() -> None:
    surrogates = {chr(0xD800): 3, chr(0xDFFF): 4}
    assert encoded({1: "a", "1": "b", "x": {True: 1, "true": 2, **surrogates}})[1] == {
        "1": "b",
        "x": {"true": 2, "\ufffd": 4},
    }


def test_characters_that_end_a_line_for_some_reader_are_escaped() -> None:
    text = "a\u2028b\u2029c\u0085d\x0b\x0c\x1c\r\n"
    for event in ({"event": "E", text: text}, {"event": "E", text: text, "odd": Plain.NUMBER}, text):
        data = encode_event(event).data.decode()
        assert len(data.splitlines()) == 1
        assert text in str(strict_json(data)) or text in strict_json(data).values()


@pytest.mark.parametrize(
    "name",
    [
        "A\nB",
        "A\r\ndata: {}\n\n",
        "\n\n",
        "A\u2028B",
        "\u0085",
        "\x00",
        " ",
        "\u200b",
        "\ud800",
        "x" * 5000,
        " A",
        "A:B",
        ":",
    ],
)
def test_a_name_cannot_forge_a_line(name: str) -> None:
    found, parsed = encoded({"event": name, "odd": Plain.NUMBER})
    assert found
    assert found.isprintable()
    assert found == found.strip()
    assert len(found) <= 200
    assert single_frame(format_sse_event({"event": name}))[0] == found
    if name.isprintable() and "\ud800" not in name:
        assert parsed["event"] == name


@given(st.text())
def test_any_text_is_one_frame_as_a_name_and_as_content(text: str) -> None:
    single_frame(format_sse_event({"event": text, "content": text}))
    single_frame(format_sse_event({"type": text, text: text}))


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error

    to_dict = __str__


class HostileAttributes:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def to_dict(self) -> Any:
        raise AssertionError("unreachable")


class HostileMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")

    @property
    def __mro__(cls) -> Any:
        raise RuntimeError("no bases")

    def __hash__(cls) -> int:
        raise RuntimeError("no hash")

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("no equality")


class OfHostileMeta(metaclass=HostileMeta):
    pass


class Panic(BaseException):
    """As an extension written in Rust raises it."""


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def circular() -> Any:
    value: dict[str, Any] = {"event": "E"}
    value["self"] = [value]
    return value


def circular_dataclass() -> Any:
    value = Inner(1)
    value.b = value
    return value


async def coroutine() -> None:
    pass


BAD = {
    "a tuple key": lambda: {(1, 2): 3},
    "a bytes key": lambda: {"a": {b"k": 1}},
    "an object as a key": lambda: {object(): 1},
    "a circular dict": circular,
    "a circular dataclass": circular_dataclass,
    "100,000 levels": lambda: deep(100_000),
    "a str that raises": lambda: {"a": Raises(ValueError("no"))},
    "a to_dict that raises": lambda: Raises(ValueError("no")),
    "a to_dict that panics": lambda: Raises(Panic("no")),
    "an error that cannot be told": lambda: Raises(UnspeakableError()),
    "a lock": lambda: {"a": threading.Lock()},
    "a reentrant lock": lambda: {"a": [threading.RLock()]},
    "a lock itself": threading.Lock,
    "a generator": lambda: {"a": (i for i in range(3))},
    "attributes that raise": HostileAttributes,
    "a hostile metaclass": OfHostileMeta,
    "5,000 digits": lambda: {"a": 10**5000},
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("family", ["agent", "team", "workflow", Family.TEAM])
def test_what_cannot_be_written_becomes_the_error_frame_of_the_stream(make: Any, family: str) -> None:
    parsed = is_error(make(), family=family, run_id="r")
    assert parsed["event"] == ERRORS[Family(family).value]
    assert parsed["run_id"] == "r"
    assert parsed["additional_data"]["cause"]


def test_a_coroutine_is_refused() -> None:
    made = coroutine()
    is_error({"a": made})
    made.close()


@pytest.mark.parametrize("levels", [100, 252, 260, 500])
def test_deep_nesting_is_written(levels: int) -> None:
    parsed = encoded({"event": "E", "a": deep(levels)})[1]["a"]
    for _ in range(levels):
        (parsed,) = parsed
    assert parsed == []


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError(), GeneratorExit()],
    ids=lambda e: type(e).__name__,
)
def test_what_ends_the_program_or_the_task_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        encode_event(Raises(error))
    with pytest.raises(type(error)):
        format_sse_event({"a": Raises(error)})


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event": "TeamRunContent"}, "TeamRunError"),
        ({"event": "WorkflowStarted"}, "WorkflowError"),
        ({"event": "StepStarted"}, "WorkflowError"),
        ({"event": "ReasoningStep"}, "RunError"),
        ({"event": "RunContent"}, "RunError"),
        ({}, "RunError"),
    ],
)
def test_without_a_family_the_name_decides(event: dict[Any, Any], expected: str) -> None:
    assert is_error({**event, "bad": threading.Lock()})["event"] == expected


def test_an_unknown_family_does_not_cost_the_frame() -> None:
    assert is_error({"event": "TeamX", "bad": threading.Lock()}, family="no such family")["event"] == "TeamRunError"


def test_identity_is_read_as_far_as_it_can_be() -> None:
    class Partly:
        run_id = "own"
        team_id = "t\ud800"
        team_name = 5

        @property
        def session_id(self) -> str:
            raise Panic("unreadable")

        def to_dict(self) -> Any:
            raise ValueError("no")

    parsed = is_error(Partly(), family="team", run_id="given")
    assert (parsed["run_id"], parsed["team_id"], parsed["team_name"]) == ("own", "t\ufffd", "")
    assert "session_id" not in parsed


def test_a_failure_is_logged_with_its_class_and_cause_and_without_the_payload(caplog: pytest.LogCaptureFixture) -> None:
    class Secretive:
        event = "Told\n"

        def to_dict(self) -> Any:
            raise ValueError("the secret")

    with caplog.at_level(logging.ERROR, logger="agno_resumable.sse"):
        encode_event(Secretive(), run_id="r")
    (record,) = caplog.records
    assert record.name == "agno_resumable.sse"
    assert "secret" not in record.getMessage()
    assert record.exc_info is None
    fields = vars(record)
    assert (fields["run_id"], fields["event_type"], fields["cause"]) == ("r", "Told\ufffd", "ValueError")
    assert fields["event_class"].endswith("Secretive")


def test_subclasses_of_plain_types_are_written_as_plain_values() -> None:
    class Text(str):
        def __str__(self) -> str:
            raise RuntimeError

        def isascii(self) -> bool:
            raise RuntimeError

        __repr__ = __str__
        encode = None  # type: ignore[assignment]

    class Count(int):
        def __int__(self) -> int:
            raise RuntimeError

    class Pretender:
        @property
        def __class__(self) -> Any:
            return dict

        @__class__.setter
        def __class__(self, value: Any) -> None:
            raise RuntimeError

        def __str__(self) -> str:
            return "pretender"

    pair = namedtuple("pair", "a b")  # as users still have them
    assert encoded({"a": Text("x"), Text("k"): Count(5), "p": Pretender(), "n": pair(1, 2)})[1] == {
        "a": "x",
        "k": 5,
        "p": "pretender",
        "n": [1, 2],
    }


def test_a_name_is_cleaned_the_same_way_a_thousand_names_later() -> None:
    for i in range(3000):
        assert encode_event({"event": f"Name{i}"}).type == f"Name{i}"
    assert encode_event({"event": "A\nB"}).type == "A\ufffdB"


def test_numpy_values_are_written_as_agno_writes_them() -> None:
    numpy = pytest.importorskip("numpy")
    assert encoded({"a": numpy.array([1, 2]), "f": numpy.float64(1.5), "i": numpy.int64(3)})[1] == {
        "a": "[1 2]",
        "f": 1.5,
        "i": "3",
    }


def test_a_value_that_changes_while_it_is_read_gives_an_error_frame() -> None:
    class Growing(dict[str, Any]):
        def items(self) -> Iterator[Any]:  # type: ignore[override]
            yield "a", 1
            raise RuntimeError("dictionary changed size during iteration")

    is_error(Growing())
