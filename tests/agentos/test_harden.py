"""What ``harden`` replaces, that what was valid stays as it was, and that all of it can be taken back."""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from agno.agent import Agent
from agno.db.sqlite import AsyncSqliteDb, SqliteDb
from agno.db.utils import CustomJSONEncoder
from agno.models.message import Message
from agno.models.response import ToolExecution
from agno.os import AgentOS, managers, utils
from agno.run.agent import RunCompletedEvent, RunContentEvent, RunOutput, ToolCallCompletedEvent
from agno.run.base import BaseRunOutputEvent
from agno.run.team import TeamRunOutput
from agno.run.workflow import StepCompletedEvent, StepOutputEvent, WorkflowCompletedEvent, WorkflowRunOutput
from agno.session.agent import AgentSession
from agno.team import Team
from agno.workflow import Step, StepOutput, Workflow
from hypothesis import given, strategies as st
from sqlalchemy import create_engine, text

from agno_resumable.agentos.hardening import Hardening, HardeningWarning, cleaning, formatters, harden
from agno_resumable.agentos.hardening.rows_json import SafeSerializer
from agno_resumable.kinds import EncodedEvent
from agno_resumable.sse import encode_event, format_sse_event

from .hostile import VALUES, FoundEvent, strict

agents_router: Any = sys.modules["agno.os.routers.agents.router"]
_ORIGINALS = (utils.format_sse_event, utils.format_sse_event_with_index)
_TO_DICTS = {
    cls: vars(cls).get("to_dict")
    for cls in (BaseRunOutputEvent, RunOutput, TeamRunOutput, WorkflowRunOutput, StepOutput, ToolExecution, Message)
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SqliteDb]:
    db = SqliteDb(db_file=str(tmp_path / "agno.db"))
    yield db
    db.db_engine.dispose()


@pytest.fixture
def hardened() -> Iterator[Hardening]:
    with harden() as hardening:
        yield hardening


def _active(hardening: Hardening) -> bool:
    return hardening.active  # a function, as mypy believes that an attribute stays what it was


def _row(db: SqliteDb, run: Any, session_id: str = "s-1") -> Any:
    """Store a session with the run, and give the stored run's JSON."""
    session = AgentSession(session_id=session_id, agent_id="a", created_at=1, runs=[run])
    db.upsert_session(session)
    if hasattr(db, "upsert_run"):
        db.upsert_run(run, session_id=session_id)
    found = db.get_session(session_id, "agent")  # type: ignore[arg-type]
    assert isinstance(found, AgentSession)
    assert found.runs
    return found.runs[0]


# ---------------------------------------------------------------- explicit, idempotent, reversible


def test_the_formatters_are_replaced_wherever_they_are_held_and_put_back() -> None:
    method = managers.WebSocketHandler.format_sse_event
    with harden() as hardening:
        assert _active(hardening)
        assert utils.format_sse_event is formatters.format_sse_event
        assert utils.format_sse_event_with_index is formatters.format_sse_event_with_index
        assert agents_router.format_sse_event is formatters.format_sse_event
        assert managers.WebSocketHandler.format_sse_event is method
    assert not _active(hardening)
    assert (utils.format_sse_event, utils.format_sse_event_with_index) == _ORIGINALS
    assert agents_router.format_sse_event is _ORIGINALS[0]
    assert {cls: vars(cls).get("to_dict") for cls in _TO_DICTS} == _TO_DICTS
    assert "encode" not in vars(CustomJSONEncoder)
    assert "__deepcopy__" not in vars(RunOutput)


def test_a_module_that_has_imported_the_replacement_gets_agnos_own_back() -> None:
    late = ModuleType("agno.late")
    sys.modules["agno.late"] = late
    try:
        with harden():
            late.format = utils.format_sse_event  # type: ignore[attr-defined]
        assert late.format is _ORIGINALS[0]
    finally:
        del sys.modules["agno.late"]


def test_hardening_again_adds_databases_and_wraps_nothing_twice(db: SqliteDb, tmp_path: Path) -> None:
    other = SqliteDb(db_file=str(tmp_path / "other.db"))
    before = db.db_engine.dialect._json_serializer
    others = other.db_engine.dialect._json_serializer
    try:
        with harden(db) as first:
            serializer, to_dict = db.db_engine.dialect._json_serializer, RunOutput.to_dict
            assert harden(db, other) is first
            assert db.db_engine.dialect._json_serializer is serializer
            assert RunOutput.to_dict is to_dict
            assert first.dbs == [db, other]
            assert other.db_engine.dialect._json_serializer is not others
        assert db.db_engine.dialect._json_serializer is before
        assert other.db_engine.dialect._json_serializer is others
        first.undo()  # of no effect
        second = harden()
        second.undo()
        assert second is not first
    finally:
        other.db_engine.dispose()


def test_only_the_outermost_with_undoes() -> None:
    with harden() as outer:
        with harden() as inner:
            assert inner is outer
        assert _active(outer)
    assert not _active(outer)


def test_what_somebody_else_has_set_since_is_left_to_them() -> None:
    def own(self: Any) -> dict[str, Any]:
        return {}

    original = StepOutput.to_dict
    try:
        with harden():
            StepOutput.to_dict = own  # type: ignore[method-assign]
        assert vars(StepOutput)["to_dict"] is own
    finally:
        StepOutput.to_dict = original  # type: ignore[method-assign]


def test_the_databases_of_an_agentos_and_of_components_in_components_are_found(tmp_path: Path) -> None:
    dbs = [SqliteDb(db_file=str(tmp_path / f"{number}.db")) for number in range(4)]
    member = Agent(id="member", db=dbs[0], telemetry=False)
    team = Team(id="team", members=[member], db=dbs[1], telemetry=False)
    workflow = Workflow(id="flow", steps=[Step(name="one", team=team)], db=dbs[2], telemetry=False)
    try:
        with harden(AgentOS(workflows=[workflow], db=dbs[3], telemetry=False)) as hardening:
            assert sorted(map(id, hardening.dbs)) == sorted(map(id, dbs))
    finally:
        for one in dbs:
            one.db_engine.dispose()


def test_what_is_no_database_is_refused_before_anything_is_replaced() -> None:
    with pytest.raises(TypeError, match="not str"):
        harden("sqlite:///agno.db")
    assert utils.format_sse_event is _ORIGINALS[0]


def test_what_a_newer_agno_has_moved_is_said_and_the_rest_is_hardened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(utils, "format_sse_event")
    monkeypatch.setattr(utils, "format_sse_event_with_index", lambda event, *, index: "")
    monkeypatch.delattr("agno.run.agent.RunInput.to_dict")
    with pytest.warns(HardeningWarning) as warned, harden():
        assert hasattr(RunOutput.to_dict, "hardened")
    said = "\n".join(str(one.message) for one in warned)
    assert "format_sse_event is not" in said
    assert "format_sse_event_with_index is not" in said
    assert "RunInput.to_dict is not there" in said


# ---------------------------------------------------------------- frames


def _events() -> list[Any]:
    tool = ToolExecution(
        tool_call_id="c", tool_name="look", tool_args={"a": [1, {"b": None}]}, result="x", created_at=1
    )
    output = StepOutput(content={"a": 1}, step_name="one")
    return [
        RunContentEvent(created_at=1, run_id="r", content="word ünï \U0001f600"),
        RunCompletedEvent(created_at=1, run_id="r", content={"deep": [1, 2.5, None]}),
        ToolCallCompletedEvent(created_at=1, run_id="r", tool=tool),
        StepCompletedEvent(created_at=1, run_id="r", step_response=output),
        StepOutputEvent(created_at=1, run_id="r", step_output=output),
        WorkflowCompletedEvent(created_at=1, run_id="r", step_results=[output]),
        FoundEvent(value={"when": UUID(int=1), "many": (1, 2)}),
    ]


@pytest.mark.parametrize("event", _events(), ids=lambda event: type(event).__name__)
def test_frames_and_dicts_of_valid_events_are_as_agnos(event: Any) -> None:
    frames = [_ORIGINALS[0](event), _ORIGINALS[1](event, 7, "r-1")]
    told = event.to_dict()
    with harden():
        hardened = [utils.format_sse_event(event), utils.format_sse_event_with_index(event, 7, "r-1")]
        assert event.to_dict() == told
    for ours, theirs in zip(hardened, frames, strict=True):
        assert ours.partition("\n")[0] == theirs.partition("\n")[0]
        assert json.loads(ours.split("\ndata: ", 1)[1]) == json.loads(theirs.split("\ndata: ", 1)[1])


def test_what_the_log_has_just_encoded_is_not_encoded_again(
    monkeypatch: pytest.MonkeyPatch, hardened: Hardening
) -> None:
    event = RunContentEvent(created_at=1, run_id="r", content="word")
    taken: list[tuple[object, int]] = []
    stream = ModuleType(formatters._EVENTS)

    def last_encoded(asked: object, index: int) -> EncodedEvent | None:
        taken.append((asked, index))
        return encode_event(event) if asked is event and index == 3 else None

    stream.last_encoded = last_encoded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, formatters._EVENTS, stream)
    again = format_sse_event(event, 3, "r")
    monkeypatch.setattr(formatters, "format_frame", lambda *args: "encoded again")
    assert utils.format_sse_event_with_index(event, 3, "r") == again
    assert utils.format_sse_event_with_index(event, 4, "r") == "encoded again"
    event.event_index = 3
    assert utils.format_sse_event(event) == again
    assert taken == [(event, 3), (event, 4), (event, 3)]


def test_an_error_frame_that_stands_for_an_event_keeps_its_own_name(
    monkeypatch: pytest.MonkeyPatch, hardened: Hardening
) -> None:
    class Unspeakable:
        event = "Spoken"
        run_id = "r"

        def to_dict(self) -> dict[str, Any]:
            raise ValueError("no")

    event = Unspeakable()
    stream = ModuleType(formatters._EVENTS)
    stream.last_encoded = lambda asked, index: encode_event(asked)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, formatters._EVENTS, stream)
    frame = utils.format_sse_event_with_index(event, 3, "r")  # type: ignore[arg-type]
    name, _, data = frame.partition("\ndata: ")
    assert name == "event: RunError"
    assert strict(data)["event_index"] == 3


def test_a_stamped_index_is_in_the_frame_of_every_family_where_the_log_is_in_use(
    monkeypatch: pytest.MonkeyPatch, hardened: Hardening
) -> None:
    event = StepOutputEvent(created_at=1, run_id="r", step_output=StepOutput(content="x"))
    event.event_index = 5
    monkeypatch.setitem(sys.modules, formatters._EVENTS, ModuleType(formatters._EVENTS))
    assert strict(utils.format_sse_event(event).split("\ndata: ", 1)[1])["event_index"] == 5


# ---------------------------------------------------------------- rows


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.booleans(), inner),
    max_leaves=20,
)


@given(_json)
def test_the_serializer_gives_what_the_original_gives_for_what_is_json(value: Any) -> None:
    # hypothesis' text has no surrogates by default
    assert SafeSerializer(json.dumps)(value) == json.dumps(value)


@given(
    st.recursive(
        st.floats()
        | st.text(st.characters(exclude_categories=()))
        | st.binary()
        | st.builds(object)
        | st.complex_numbers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.tuples(st.integers()) | st.floats(), inner),
        max_leaves=20,
    )
)
def test_the_serializer_gives_strict_json_for_anything(value: Any) -> None:
    strict(SafeSerializer(json.dumps)(value))
    strict(SafeSerializer(lambda value: json.dumps(value, ensure_ascii=False).encode())(value))


class _Colour(Enum):
    RED = "red"


class _Raises:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), None),
        ([float("inf"), 1], [None, 1]),
        ("a\ud800b", "a\ufffdb"),
        ("\\ud83d\ude00", "\\ud83d\ufffd"),  # an escaped backslash is not half of a pair
        ("say NaN and Infinity \U0001f600", "say NaN and Infinity \U0001f600"),
        ({(1, 2): b"x"}, {"(1, 2)": "b'x'"}),
        ({1: _Colour.RED, None: {1}}, {"1": "red", "null": "{1}"}),
        (VALUES["circular list"](), [1, cleaning.CIRCULAR]),
        (VALUES["circular dict"](), {"a": 1, "itself": {"b": [cleaning.CIRCULAR]}}),
        (_Raises(), f"<{__name__}._Raises>"),
        ({"kept": UUID(int=0), "bad": float("nan")}, {"kept": str(UUID(int=0)), "bad": None}),
        (2**70, 2**70),
    ],
)
def test_what_is_no_json_becomes_something_that_says_so(value: Any, written: Any, hardened: Hardening) -> None:
    assert strict(json.dumps(value, cls=CustomJSONEncoder)) == written
    assert strict(SafeSerializer(json.dumps)(value)) == written


def test_nesting_beyond_every_parser_is_cut(hardened: Hardening) -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert cleaning.TOO_DEEP in SafeSerializer(json.dumps)(value)


def test_what_agnos_encoder_knows_is_written_as_it_does_beside_what_it_does_not(hardened: Hardening) -> None:
    message = Message(role="user", content="hello", id="m-1", created_at=1)
    known = json.loads(json.dumps(message, cls=CustomJSONEncoder))
    assert strict(json.dumps({"known": message, "bad": {1, 2}}, cls=CustomJSONEncoder)) == {
        "known": known,
        "bad": "{1, 2}",
    }


def test_an_engine_that_has_run_statements_before_takes_the_new_serializer_and_gives_it_back(db: SqliteDb) -> None:
    run = RunOutput(run_id="r-1", agent_id="a", session_state={"value": 1}, created_at=1)
    assert _row(db, run).session_state == {"value": 1}
    run.session_state = {"value": {1}}
    with harden(db):
        assert _row(db, run).session_state == {"value": "{1}"}
    with pytest.raises(Exception, match="set is not JSON serializable"):
        _row(db, run)


def test_an_engine_of_the_users_own_is_hardened_too(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    db = SqliteDb(db_engine=engine)
    try:
        with harden(db):
            run = RunOutput(run_id="r-1", agent_id="a", session_state={"value": float("nan")}, created_at=1)
            assert _row(db, run).session_state == {"value": None}
        assert engine.dialect._json_serializer is None
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
    finally:
        engine.dispose()


def test_the_engine_behind_an_asynchronous_one_is_hardened(tmp_path: Path) -> None:
    db = AsyncSqliteDb(db_file=str(tmp_path / "agno.db"))
    with harden(db):
        assert isinstance(db.db_engine.sync_engine.dialect._json_serializer, SafeSerializer)
    db.db_engine.sync_engine.dispose(close=False)


# ---------------------------------------------------------------- to_dict and copies


@pytest.mark.parametrize("name", sorted(VALUES))
def test_to_dict_replaces_the_hostile_value_alone(name: str, hardened: Hardening) -> None:
    event = FoundEvent(value={"bad": VALUES[name](), "good": 1})
    event.run_id = "r"
    told = event.to_dict()
    assert told["run_id"] == "r"
    assert told["value"]["good"] == 1
    run = RunOutput(run_id="r", session_state={"bad": VALUES[name]()}, events=[event], metadata={"m": VALUES[name]()})
    told = run.to_dict()
    assert told["status"] == "RUNNING"
    assert told["events"][0]["value"]["good"] == 1
    strict(json.dumps(told, cls=CustomJSONEncoder))
    output = StepOutput(content=VALUES[name](), step_name="one")
    whole = WorkflowRunOutput(run_id="w", step_results=[output], step_executor_runs=[run], content=VALUES[name]())
    told = whole.to_dict()
    assert told["step_results"][0]["step_name"] == "one"
    assert told["step_executor_runs"][0]["run_id"] == "r"
    strict(json.dumps(told, cls=CustomJSONEncoder))
    tool = ToolExecution(tool_name="look", tool_args={"x": VALUES[name]()}, result="y").to_dict()
    assert tool["result"] == "y"
    strict(json.dumps(tool, cls=CustomJSONEncoder))


def test_objects_that_hold_each_other_are_told_once(hardened: Hardening) -> None:
    run = RunOutput(run_id="r", content=threading.Lock())
    run.events = [FoundEvent(value=run)]
    assert run.to_dict()["events"][0]["event"] == "CustomEvent"
    strict(json.dumps(run.to_dict(), cls=CustomJSONEncoder))


def test_classes_of_the_users_own_that_refuse_everything_are_put_in_words(hardened: Hardening) -> None:
    @dataclass
    class Refuses:
        lock: Any
        good: int = 1

        def __bool__(self) -> bool:
            raise ValueError("ambiguous")

    class Own(FoundEvent):
        def to_dict(self) -> dict[str, Any]:
            raise ValueError("no")

    counts: defaultdict[str, Any] = defaultdict(list, {"a": [1]})
    run = RunOutput(run_id="r", content=Refuses(threading.Lock()), session_state={"counts": counts})
    run.events = [Own(value=1)]
    told = run.to_dict()
    assert told["content"]["good"] == 1
    assert told["session_state"] == {"counts": {"a": [1]}}
    assert told["events"][0]["value"] == 1
    strict(json.dumps(told, cls=CustomJSONEncoder))


def test_copies_are_as_deep_as_ever_and_share_what_cannot_be_copied(hardened: Hardening) -> None:
    lock = threading.Lock()
    event = FoundEvent(value={"lock": lock, "list": [1]})
    run = RunOutput(run_id="r", events=[event, event], session_state={"lock": lock, "list": [1]})
    copied = copy.deepcopy(run)
    assert copied.run_id == "r"
    assert copied.session_state is not None
    assert copied.session_state is not run.session_state
    assert copied.session_state["lock"] is lock
    assert copied.session_state["list"] is not run.session_state["list"]  # type: ignore[index]
    assert copied.events is not None
    assert copied.events[0] is copied.events[1] is not event
    assert copied.events[0].value["list"] == [1]  # type: ignore[union-attr]
    assert copied.events[0].value["list"] is not event.value["list"]  # type: ignore[union-attr]


def test_copies_of_what_can_be_copied_are_equal_to_those_without_hardening() -> None:
    run = RunOutput(
        run_id="r", events=_events(), session_state={"a": [1]}, messages=[Message(role="user", content="x")]
    )
    plain = copy.deepcopy(run)
    with harden():
        assert copy.deepcopy(run) == plain
