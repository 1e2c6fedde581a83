"""Runs, events, batches, pages and cursors: the words of the library."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from agno_resumable.errors import CursorInvalid, ResumableError, RunIdInvalid
from agno_resumable.model import (
    Batch,
    Durability,
    EncodedEvent,
    Event,
    Family,
    Page,
    Run,
    RunStatus,
    changed_run,
    check_run_id,
    make_run,
    parse_cursor,
    render_frames,
)

RUN = Run(
    run_id="run",
    family=Family.AGENT,
    component_id=None,
    session_id=None,
    user_id=None,
    idempotency_key=None,
    input=b'{"secret":1}',
    metadata=b'{"secret":2}',
    status=RunStatus.RUNNING,
    first_index=0,
    next_index=0,
    generation=1,
    attempts=1,
    version=1,
    created_at=0.0,
    updated_at=0.0,
    transcript=b'{"secret":3}',
)


def numbered(count: int) -> list[EncodedEvent]:
    return [EncodedEvent(f"Type{number}", f'{{"n":{number}}}'.encode()) for number in range(count)]


# ------------------------------------------------------------------------------------------------------------ run ids

ALLOWED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~@+=-"


@given(st.text(ALLOWED, min_size=1, max_size=51).filter(lambda run_id: run_id not in (".", "..")))
def test_a_run_id_of_allowed_characters_is_returned(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@given(st.text(ALLOWED, max_size=50), st.characters(exclude_characters=ALLOWED), st.text(ALLOWED, max_size=50))
def test_a_run_id_with_any_other_character_is_refused(before: str, other: str, behind: str) -> None:
    with pytest.raises(RunIdInvalid):
        check_run_id(before + other + behind)


@pytest.mark.parametrize("run_id", ["", ".", "..", "x" * 52, "a\n", "a\n\n", "a:1", "a/b", "a{b}", "a b", "ä", "a\x00"])
def test_a_run_id_that_could_not_stand_in_a_url_or_a_field_is_refused(run_id: str) -> None:
    with pytest.raises(RunIdInvalid) as caught:
        check_run_id(run_id)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ResumableError)


@pytest.mark.parametrize("run_id", [None, 7, b"run", ["run"]])
def test_what_is_no_text_is_no_run_id(run_id: object) -> None:
    with pytest.raises(RunIdInvalid):
        check_run_id(run_id)  # type: ignore[arg-type]  # it comes from a request, and may be anything


def test_a_refused_run_id_is_not_repeated_at_any_length_and_forges_no_line() -> None:
    with pytest.raises(RunIdInvalid) as caught:
        check_run_id("\nevent: forged\n" * 10_000)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_the_longest_id_field_fits_into_64_bytes() -> None:
    assert len(f"{check_run_id('x' * 51)}:{10**12 - 1}") == 64


# ------------------------------------------------------------------------------------------------------------ cursors


@pytest.mark.parametrize(
    ("cursor", "index"),
    [
        ("", -1),
        ("   ", -1),
        ("-1", -1),
        ("0", 0),
        ("17", 17),
        ("007", 7),
        ("run:17", 17),
        ("run:-1", -1),
        (" run:17 ", 17),
        ("999999999999", 999_999_999_999),
        ("run:0, run:1", 1),
        ("run:0,run:1", 1),
        ("other:5, run:1", 1),
        ("nonsense, 3", 3),
        ("run:3,", 3),
    ],
)
def test_a_cursor_is_read(cursor: str, index: int) -> None:
    assert parse_cursor(cursor, "run") == index


@pytest.mark.parametrize(
    "cursor",
    [
        "-2",
        "+1",
        "1.0",
        "1e3",
        "x",
        "run",
        "run:",
        ":5",
        "run:x",
        "run:1:2",
        "other:5",
        "Run:5",
        "run:0, other:1",
        "1000000000000",
        "9" * 4097,
        "\u0661",  # a digit, but no ASCII one
        "1\n2",
        "run:1\x00",
    ],
)
def test_what_is_no_cursor_of_this_run_is_refused(cursor: str) -> None:
    with pytest.raises(CursorInvalid) as caught:
        parse_cursor(cursor, "run")
    assert caught.value.run_id == "run"
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@given(st.text(ALLOWED, min_size=1, max_size=51), st.integers(-1, 10**12 - 1))
def test_the_id_of_a_frame_is_a_cursor_of_its_run(run_id: str, index: int) -> None:
    assert parse_cursor(f"{run_id}:{index}", run_id) == index
    assert parse_cursor(str(index), run_id) == index
    with pytest.raises(CursorInvalid):
        parse_cursor(f"{run_id}:{index}", f"{run_id}x")


@given(st.text())
def test_whatever_comes_as_a_cursor_is_read_or_refused(cursor: str) -> None:
    try:
        index = parse_cursor(cursor, "run")
    except CursorInvalid:
        return
    assert -1 <= index < 10**12


# ------------------------------------------------------------------------------------------------------------ batches


def test_a_batch_numbers_its_events() -> None:
    batch = Batch("run", 5, numbered(3))
    assert list(batch) == [Event(5 + n, f"Type{n}", f'{{"n":{n}}}'.encode()) for n in range(3)]
    assert (len(batch), batch.first, batch.last, batch.size) == (3, 5, 7, 21)


def test_an_empty_batch_ends_before_it_begins() -> None:
    batch = Batch("run", 5, [])
    assert (len(batch), batch.last, batch.size, batch.frames, list(batch)) == (0, 4, 0, b"", [])


@given(st.integers(0, 100), st.integers(1, 20), st.integers(-1, 130), st.none() | st.integers(0, 30))
def test_a_slice_is_what_stands_behind_the_cursor(first: int, count: int, after: int, limit: int | None) -> None:
    batch = Batch("run", first, numbered(count))
    part = batch.slice(after, limit)
    wanted = [event for event in batch if event.index > after]
    assert list(part) == (wanted if limit is None else wanted[:limit])
    assert part.run_id == "run"
    if len(part):
        assert part.first == wanted[0].index
    if len(part) == count:
        assert part is batch  # so that the readers of a process share its frames


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_joined_batches_are_one(sizes: list[int], rendered: bool) -> None:
    events = numbered(sum(sizes))
    batches = []
    first = 0
    for size in sizes:
        batches.append(Batch("run", 7 + first, events[first : first + size]))
        first += size
    whole = Batch("run", 7, events)
    if rendered:
        assert [batch.frames for batch in batches]
    joined = Batch.join(batches)
    assert list(joined) == list(whole)
    assert (joined.first, joined.last, joined.size, joined.frames) == (7, whole.last, whole.size, whole.frames)
    assert len(sizes) > 1 or joined is batches[0]


def test_frames_are_rendered_once() -> None:
    batch = Batch("run", 0, numbered(3))
    assert batch.frames is batch.frames


def test_a_frame_has_the_index_in_its_data_and_its_id_last() -> None:
    events = [EncodedEvent("RunContent", '{"text":"é"}'.encode()), EncodedEvent("données", b'{"":0}')]
    assert (
        render_frames("a~b@c", 41, events)
        == (
            'event: RunContent\ndata: {"text":"é","event_index":41}\nid: a~b@c:41\n\n'
            'event: données\ndata: {"":0,"event_index":42}\nid: a~b@c:42\n\n'
        ).encode()
    )


json_values = st.none() | st.integers() | st.text() | st.lists(st.booleans())
json_objects = st.dictionaries(st.text(), json_values, min_size=1, max_size=4)


@given(st.integers(0, 10**12 - 1), st.lists(json_objects, min_size=1, max_size=5))
def test_the_data_of_a_frame_is_the_object_and_its_index(first: int, objects: list[dict[str, object]]) -> None:
    events = [EncodedEvent("Type", json.dumps(one).encode()) for one in objects]
    blocks = render_frames("run", first, events).decode().split("\n\n")
    assert blocks.pop() == ""
    for index, (block, one) in enumerate(zip(blocks, objects, strict=True), first):
        event, data, id_ = block.split("\n")
        assert (event, id_) == ("event: Type", f"id: run:{index}")
        assert json.loads(data.removeprefix("data: ")) == {**one, "event_index": index}


# ------------------------------------------------------------------------------------------------------ runs and pages


def test_the_last_index_of_a_run_is_a_readers_cursor_at_its_end() -> None:
    assert RUN.last_index == -1
    assert replace(RUN, next_index=3).last_index == 2


def test_a_run_does_not_show_what_its_user_said() -> None:
    assert "secret" not in repr(RUN)


def test_a_page_is_the_events_of_its_batches() -> None:
    page = Page(RUN, [Batch("run", 2, numbered(2)), Batch("run", 4, numbered(1))])
    assert [event.index for event in page.events] == [2, 3, 4]
    assert page.last == 4
    assert Page(RUN, []).events == []
    assert Page(RUN, []).last is None


def test_every_status_is_active_resting_or_finished() -> None:
    assert [status for status in RunStatus if status.active] == [RunStatus.PENDING, RunStatus.RUNNING]
    assert [status for status in RunStatus if status.finished] == [
        RunStatus.COMPLETED,
        RunStatus.ERROR,
        RunStatus.CANCELLED,
    ]
    assert not RunStatus.PAUSED.active
    assert not RunStatus.PAUSED.finished


def test_the_values_are_those_of_agno_and_of_the_wire() -> None:
    run_base = pytest.importorskip("agno.run.base")
    agnos = {status.value for status in run_base.RunStatus}
    assert {status.value for status in RunStatus} <= agnos
    assert [family.value for family in Family] == ["agent", "team", "workflow"]
    assert [durability.value for durability in Durability] == ["nothing", "process-crash", "power-loss"]


def test_a_run_made_from_values_and_a_changed_one_are_as_the_constructor_makes_them() -> None:
    made = make_run([getattr(RUN, name) for name in Run.__dataclass_fields__])
    assert made == RUN
    assert repr(made) == repr(RUN)
    assert hash(made) == hash(RUN)
    changes = {"status": RunStatus.PAUSED, "next_index": 9, "version": 3}
    assert changed_run(RUN, **changes) == replace(RUN, **changes)  # type: ignore[arg-type]
    assert made == RUN
    with pytest.raises(ValueError, match="shorter"):
        make_run(["run"])
