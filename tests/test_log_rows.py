"""How events lie in a row, and what a reader that comes back takes out of it."""

from __future__ import annotations

import json

from hypothesis import given, strategies as st

from agno_resumable.log.checks import chunks
from agno_resumable.log.rows import batch_behind, pack, unpack
from agno_resumable.model import Batch, EncodedEvent

EVENTS = st.lists(
    st.builds(
        lambda type_, data: EncodedEvent(type_, json.dumps(data, ensure_ascii=False).encode()),
        st.sampled_from(["RunContent", "Ünïcode", "Custom"]),
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")), min_size=1
        ),
    ),
    min_size=1,
    max_size=20,
)


@given(EVENTS, st.integers(-3, 25))
def test_what_is_skipped_is_left_out_and_the_rest_comes_as_it_was_stored(events: list[EncodedEvent], skip: int) -> None:
    assert unpack(pack(events), skip) == events[max(skip, 0) :]
    assert all(type(event) is EncodedEvent for event in unpack(pack(events), skip))


@given(EVENTS, st.integers(0, 1_000_000), st.integers(-3, 25))
def test_a_batch_behind_a_cursor_is_the_whole_one_cut_there(
    events: list[EncodedEvent], first: int, behind: int
) -> None:
    after = first - 1 + behind
    batch = batch_behind("run", first, pack(events), after)
    assert list(batch) == list(Batch("run", first, events).slice(after))
    assert bool(batch) == (behind < len(events))


@given(EVENTS, st.integers(1, 5), st.integers(1, 200))
def test_parts_hold_all_events_in_order_and_only_one_that_is_too_large_alone(
    events: list[EncodedEvent], most: int, most_bytes: int
) -> None:
    parts = chunks(events, sum(len(event.data) for event in events), most=most, most_bytes=most_bytes)
    assert [event for part in parts for event in part] == events
    for part in parts:
        assert 1 <= len(part) <= most
        assert len(part) == 1 or sum(len(event.data) for event in part) <= most_bytes
