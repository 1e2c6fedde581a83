"""Against the installed agno: every class of events of the three families, by agno's own JSON wherever it is valid."""

from __future__ import annotations

import dataclasses
import importlib
import json
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest
from agno.media import Audio, File, Image, Video
from agno.metrics import ModelMetrics, RunMetrics, ToolCallMetrics
from agno.models.message import Citations, Message, MessageReferences, UrlCitation
from agno.models.response import ToolExecution
from agno.reasoning.step import ReasoningStep
from agno.run import agent as agent_events, team as team_events, workflow as workflow_events
from agno.run.base import BaseRunOutputEvent
from agno.run.requirement import RunRequirement
from agno.session.summary import SessionSummary
from agno.workflow.types import StepOutput, WorkflowMetrics
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel

from agno_resumable.sse import Identity, cancelled_event, completed_event, encode_event, error_event, format_sse_event
from agno_resumable.sse.plans import Shape, agno_fields, plans

from .sse_support import same_json, single_frame, strict_json


def event_classes() -> list[type[Any]]:
    found: dict[type[Any], None] = {}

    def walk(cls: type[Any]) -> None:
        if cls.__module__.startswith("agno.") and "event" in getattr(cls, "__dataclass_fields__", {}):
            found[cls] = None
        for below in cls.__subclasses__():
            walk(below)

    walk(BaseRunOutputEvent)
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


CLASSES = event_classes()


class Colour(str, Enum):
    RED = "red"


class Shade(Enum):
    DARK = (0, 0)
    LIGHT = "light"


class Level(IntEnum):
    HIGH = 3


class Text(str):
    pass


class Real(float):
    pass


class Unknown:
    def __str__(self) -> str:
        return "an unknown object"


class Answer(BaseModel):
    text: str
    score: float | None = None


@dataclasses.dataclass
class Place:
    name: str
    at: Any = None


Point = namedtuple("Point", "x y")  # as users still have them

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["", "a\nb", "\u2028\u2029\u0085", "\ud800", "x\udfff\ud83d\ude00", "\0\x1b", '"}{"', "data: x\n\n"]
    )
)
odd = st.sampled_from(
    [
        Colour.RED,
        Shade.DARK,
        Shade.LIGHT,
        Level.HIGH,
        Text("sub"),
        Real(1.5),
        Real("nan"),
        Unknown(),
        Unknown,
        Answer(text="t"),
        Place("p", Place("q")),
        Point(1, "y"),
        Decimal("1.50"),
        UUID(int=7),
        datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        date(2024, 1, 2),
        time(3, 4),
        timedelta(seconds=5),
        b"bytes",
        {1},
        frozenset(),
        range(3),
        1 + 2j,
        OrderedDict(a=1),
        Counter("aa"),
        defaultdict(list, b=[1]),
        {1: "int", 2.5: "float", None: "none", False: "bool"},
        {float("nan"): 1},
        {Colour.RED: 1, Level.HIGH: 2},
        {(1, 2): "tuple"},
        {b"bytes": 1},
    ]
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | odd,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=6,
)
mappings = st.dictionaries(st.text(max_size=4), values, max_size=3)
names = st.text(max_size=8) | st.sampled_from(["id-1", "ü"])

tool_timing = st.builds(
    ToolCallMetrics,
    start_time=st.none() | st.just(0.0),
    end_time=st.none() | st.floats(0, 9),
    duration=st.none() | st.floats(0, 9),
)
tools = st.builds(
    ToolExecution,
    tool_call_id=st.none() | names,
    tool_name=st.none() | names,
    tool_args=st.none() | mappings,
    tool_call_error=st.none() | st.booleans(),
    result=st.none() | names,
    metrics=st.none() | tool_timing,
    created_at=st.just(1_700_000_000),
)
model_metrics = st.builds(
    ModelMetrics, id=names, provider=names, input_tokens=st.integers(0, 3), cost=st.none() | st.just(0.0)
)
run_metrics = st.builds(
    RunMetrics,
    input_tokens=st.integers(0, 2),
    output_tokens=st.integers(0, 2),
    duration=st.none() | st.floats(0, 9),
    cost=st.none() | st.just(0.0),
    details=st.none()
    | st.dictionaries(st.sampled_from(["model", "memory_model"]), st.lists(model_metrics, max_size=2), max_size=2),
    additional_metrics=st.none() | mappings,
)
messages = st.builds(Message, role=st.just("user"), content=names, id=st.just("m"), created_at=st.just(1_700_000_000))
image = st.builds(Image, url=st.just("https://example.com/i.png"), id=st.just("i")) | st.builds(
    Image, content=st.just(b"\x89PNG"), id=st.just("i")
)
step_outputs = st.builds(
    StepOutput, step_name=names, content=names | mappings | st.just(Answer(text="t")), success=st.booleans()
)
# by what the annotation names; the first that fits
PARTS: list[tuple[str, st.SearchStrategy[Any]]] = [
    ("ToolExecution", tools),
    (
        "RunRequirement",
        st.builds(RunRequirement, tool_execution=tools, id=st.just("q"), created_at=st.just(datetime(2024, 1, 1))),
    ),
    ("MessageReferences", st.builds(MessageReferences, query=names)),
    ("Message", messages),
    ("ReasoningStep", st.builds(ReasoningStep, title=names, confidence=st.none() | st.floats(0, 1))),
    ("Citations", st.builds(Citations, urls=st.none() | st.just([UrlCitation(url="https://example.com")])) | mappings),
    ("Image", image),
    ("Video", st.builds(Video, url=st.just("https://example.com/v.mp4"), id=st.just("v"))),
    ("Audio", st.builds(Audio, content=st.just(b"RIFF"), id=st.just("a"))),
    ("File", st.builds(File, url=st.just("https://example.com/f.pdf"), id=st.just("f"))),
    ("SessionSummary", st.builds(SessionSummary, summary=names)),
    ("TeamRunInput", st.builds(team_events.TeamRunInput, input_content=names)),
    ("RunInput", st.builds(agent_events.RunInput, input_content=names)),
    ("TaskData", st.builds(getattr(team_events, "TaskData", dict))),
    ("WorkflowMetrics", st.just(WorkflowMetrics(steps={}, duration=1.5))),
    ("RunMetrics", run_metrics),
    ("RunOutput", st.builds(agent_events.RunOutput, content=names, created_at=st.just(1_700_000_000))),
    ("Dict", mappings),
    ("bool", st.booleans()),
    ("int", st.integers(0, 2**40)),
    ("float", st.floats()),
]
# by name, where agno has only Any at run time
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "event": st.sampled_from(["", "A\nB", "x\u2028y", Colour.RED]) | names,
    "metrics": run_metrics,
    "session_summary": st.builds(SessionSummary, summary=names),
    "step_output": step_outputs,
    "step_response": step_outputs | names,
    "step_results": st.lists(step_outputs | names, max_size=2),
    "iteration_results": st.lists(step_outputs, max_size=2),
    "all_results": st.lists(st.lists(step_outputs, max_size=2), max_size=2),
    "step_index": st.none() | st.integers(0, 9) | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    "content": values,
    "memories": st.lists(values, max_size=2),
    "run_output": st.none(),
}


def field_values(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    annotation = str(field.type)
    if field.name in BY_NAME:
        return BY_NAME[field.name]
    for word, part in PARTS:
        if word in annotation:
            return st.lists(part, max_size=2) if "List[" in annotation and word != "Dict" else part
    if "List[" in annotation:
        return st.lists(values, max_size=2)
    return names if "str" in annotation else values


def events(cls: type[Any]) -> st.SearchStrategy[Any]:
    @st.composite
    def build(draw: st.DrawFn) -> Any:
        fields = {field.name: field for field in dataclasses.fields(cls)}
        chosen = draw(st.sets(st.sampled_from(sorted(fields)), max_size=5) | st.just(set(fields)))
        event = object.__new__(cls)
        for field in fields.values():  # as a dataclass fills them, also in CustomEvent, which does not
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            setattr(event, field.name, default)
        event.created_at = 1_700_000_000
        for name in sorted(chosen):
            setattr(event, name, draw(field_values(fields[name])))
        if draw(st.booleans()):
            event.event_index = draw(st.integers(0, 99))
        return event

    return build()


def agno_json(event: Any) -> Any:
    """What agno writes, parsed; ``None`` where it raises or its text is not valid JSON in UTF-8."""
    try:
        return strict_json(event.to_json(separators=(",", ":"), indent=None))
    except Exception:
        return None


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    # agno logs every failure of its own
    caplog.set_level("CRITICAL")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}")
@settings(max_examples=settings().max_examples // 4)
@given(data=st.data())
def test_every_event_class_is_written_as_agno_writes_it(cls: type[Any], data: st.DataObject) -> None:
    event = data.draw(events(cls))
    expected = agno_json(event)
    # the first of a shape goes agno's way, the second the short one, and the third, a delta, takes the template
    for _ in range(3):
        name, parsed = single_frame(format_sse_event(event))
        _, with_both = single_frame(format_sse_event(event, 7, "injected"))
        stored = strict_json(encode_event(event).data)
        assert "event_index" not in stored
        if expected is None:
            continue
        assert same_json(parsed, expected)
        assert same_json(with_both, {"run_id": "injected", **expected, "event_index": 7})
        assert same_json(stored, {key: value for key, value in expected.items() if key != "event_index"})
        assert name == encode_event(event).type
        if isinstance(expected.get("event"), str) and expected["event"].isprintable() and expected["event"].strip():
            assert name == expected["event"].strip()


def test_all_three_families_are_among_the_classes() -> None:
    modules = Counter(cls.__module__ for cls in CLASSES)
    assert min(modules[f"agno.run.{family}"] for family in ("agent", "team", "workflow")) > 20


@pytest.mark.parametrize("cls", [agent_events.RunContentEvent, team_events.RunContentEvent])
def test_deltas_of_a_run_differ_only_where_they_do(cls: type[Any]) -> None:
    def deltas() -> Iterator[Any]:
        for text in ["a", "b\u2028", "", "\ud800", "c\n\n", None, "d", 5, "e", {"x": 1}, "f"]:
            yield cls(run_id="r", content=text, created_at=1)
            yield cls(run_id="r", content=text, created_at=2)
            yield cls(run_id="other", content=text, created_at=2, nested_depth=True)
            yield cls(run_id="other", content=text, created_at=2, nested_depth=1)
            yield cls(run_id="other", content=text, created_at=2, nested_depth=1, step_id="s")
            moved = cls(run_id="r", content=text, created_at=2, session_id="s", step_name="n")
            session_id = moved.__dict__.pop("session_id")
            moved.session_id = session_id
            yield moved

    for event in list(deltas()) * 3:
        expected = agno_json(event)
        if expected is None:
            expected = json.loads(event.to_json(), strict=False)
            expected["content"] = "\ufffd"
        assert same_json(single_frame(format_sse_event(event))[1], expected)
        assert same_json(single_frame(format_sse_event(event, 3))[1], {**expected, "event_index": 3})
        assert same_json(strict_json(encode_event(event).data), expected)


def test_events_of_scalars_take_the_short_way_from_the_second_on() -> None:
    for cls in CLASSES:
        if cls.__name__ == "CustomEvent":
            continue
        event = cls()
        for _ in range(2):
            format_sse_event(event)
        plan = plans[cls]
        assert plan is not None, cls
        assert Shape.SHORT in plan.shapes.values(), cls


def test_a_tool_and_metrics_take_the_short_way_too() -> None:
    tool = ToolExecution(tool_name="t", tool_args={"a": [1]}, metrics=ToolCallMetrics(duration=0.5, start_time=0.0))
    metrics = RunMetrics(input_tokens=3, details={"model": [ModelMetrics(id="m", input_tokens=3)]})
    for event in (agent_events.ToolCallCompletedEvent(tool=tool), agent_events.RunCompletedEvent(metrics=metrics)):
        expected = agno_json(event)
        for _ in range(3):
            assert same_json(single_frame(format_sse_event(event))[1], expected)
        collected = agno_fields(event)
        assert collected is not None
        assert collected[1]


def test_a_to_dict_that_is_replaced_later_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    event = agent_events.RunContentEvent(run_id="r", content="secret")
    for _ in range(3):
        assert "secret" in format_sse_event(event)
    monkeypatch.setattr(BaseRunOutputEvent, "to_dict", lambda self: {"event": self.event, "content": "***"})
    assert single_frame(format_sse_event(event)) == ("RunContent", {"event": "RunContent", "content": "***"})


def test_attributes_that_are_no_fields_do_not_leak() -> None:
    event = agent_events.RunContentEvent(run_id="r", content="a")
    format_sse_event(event)
    vars(event)["secret"] = "s"
    for _ in range(2):
        assert same_json(single_frame(format_sse_event(event))[1], agno_json(event))


def test_a_subclass_with_its_own_to_dict_is_asked() -> None:
    @dataclasses.dataclass
    class Mine(agent_events.CustomEvent):
        detail: str = "d"

        def to_dict(self) -> dict[str, Any]:
            return {"detail": self.detail, "lock": Unknown()}

    assert single_frame(format_sse_event(Mine())) == ("CustomEvent", {"detail": "d", "lock": "an unknown object"})


def test_a_custom_event_of_fields_is_written_as_agno_does_and_a_bare_one_at_all() -> None:
    @dataclasses.dataclass
    class Progress(agent_events.CustomEvent):
        done: int = 0
        total: int | None = None

    event = Progress(done=3)
    for _ in range(3):
        assert same_json(single_frame(format_sse_event(event))[1], agno_json(event))

    custom: Any = agent_events.CustomEvent
    bare = custom(done=3, nothing=None)
    assert agno_json(bare) is None
    name, parsed = single_frame(format_sse_event(bare, run_id="r"))
    assert name == "CustomEvent"
    assert (parsed["done"], parsed["run_id"], "nothing" in parsed) == (3, "r", False)


def without_time(data: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = strict_json(data)
    assert type(parsed.pop("created_at")) is int
    return parsed


def own_event(family: str, kind: str, **values: Any) -> dict[str, Any]:
    module = importlib.import_module(f"agno.run.{family}")
    cls = getattr(module, f"{'Workflow' if family == 'workflow' else 'Run'}{kind}Event")
    result: dict[str, Any] = json.loads(cls(**values).to_json())
    del result["created_at"]
    return result


@pytest.mark.parametrize("family", ["agent", "team", "workflow"])
def test_the_librarys_own_events_are_shaped_as_agnos(family: str) -> None:
    text = "error" if family == "workflow" else "content"
    known: dict[str, Any] = {"run_id": "r", "session_id": "s", f"{family}_id": "c", f"{family}_name": "C"}
    identity = Identity(run_id="r", session_id="s", component_id="c", component_name="C")

    name, data = error_event(family, "no", error_type="t", identity=identity)
    expected = own_event(family, "Error", **known, **{text: "no"}, error_type="t")
    assert (name, without_time(data)) == (expected["event"], expected)

    name, data = cancelled_event(family, "why", identity=identity)
    expected = own_event(family, "Cancelled", **known, reason="why")
    assert (name, without_time(data)) == (expected["event"], expected)

    name, data = completed_event(family, identity=identity, content="done")
    expected = own_event(family, "Completed", **known, content="done")
    assert (name, without_time(data)) == (expected["event"], expected)

    name, data = completed_event(family, identity=Identity())
    expected = own_event(family, "Completed")
    assert (name, without_time(data)) == (expected["event"], expected)


@pytest.mark.parametrize("family", ["agent", "team"])
def test_an_error_inside_a_workflow_says_where(family: str) -> None:
    values: dict[str, Any] = {
        "parent_run_id": "p",
        "workflow_id": "w",
        "workflow_run_id": "wr",
        "step_id": "si",
        "step_name": "sn",
        "step_index": 2,
        "nested_depth": 1,
    }
    name, data = error_event(family, "no", error_type="t", identity=Identity(**values))
    expected = own_event(family, "Error", **values, content="no", error_type="t")
    assert (name, without_time(data)) == (expected["event"], expected)


BAD: list[tuple[type[Any], str]] = [
    (agent_events.RunContentEvent, "RunError"),
    (team_events.RunContentEvent, "TeamRunError"),
    (workflow_events.WorkflowCompletedEvent, "WorkflowError"),
    (workflow_events.StepCompletedEvent, "WorkflowError"),
]


@pytest.mark.parametrize(("cls", "error"), BAD, ids=lambda value: getattr(value, "__module__", value))
def test_an_event_that_agno_cannot_copy_becomes_the_error_of_its_family(cls: type[Any], error: str) -> None:
    event = cls(run_id="r", session_id="s", content=threading.Lock())
    name, parsed = single_frame(format_sse_event(event, 4))
    assert name == parsed["event"] == error
    assert (parsed["run_id"], parsed["session_id"], parsed["event_index"]) == ("r", "s", 4)
    assert parsed["error_type"] == "serialization_error"
    text = parsed["error" if error == "WorkflowError" else "content"]
    assert cls.__name__ in text
    assert "TypeError" in text
    assert parsed["additional_data"]["event_type"] == event.event


def test_a_members_bad_event_in_a_teams_stream_is_the_teams_error() -> None:
    event = agent_events.RunContentEvent(
        agent_id="member", agent_name="M", run_id="mr", parent_run_id="tr", session_id="s", content=threading.Lock()
    )
    name, parsed = single_frame(format_sse_event(event, family="team"))
    assert name == "TeamRunError"
    assert (parsed["run_id"], parsed["parent_run_id"], parsed["session_id"]) == ("mr", "tr", "s")
    assert set(parsed) <= set(team_events.RunErrorEvent.__dataclass_fields__)


def test_a_steps_bad_event_in_a_workflows_stream_is_the_workflows_error() -> None:
    event = agent_events.RunContentEvent(
        run_id="ar", workflow_id="w", workflow_run_id="wr", step_id="st", nested_depth=0, content=threading.Lock()
    )
    parsed = strict_json(encode_event(event, family="workflow").data)
    assert (parsed["event"], parsed["workflow_id"], parsed["run_id"], parsed["step_id"]) == (
        "WorkflowError",
        "w",
        "wr",
        "st",
    )
    assert set(parsed) <= set(workflow_events.WorkflowErrorEvent.__dataclass_fields__)


def test_the_stamped_index_stands_in_the_error_frame() -> None:
    event = agent_events.RunContentEvent(content=threading.Lock())
    event.event_index = 12
    assert single_frame(format_sse_event(event))[1]["event_index"] == 12
    assert "event_index" not in strict_json(encode_event(event).data)
