"""agno's frames in the bridge: found wherever they are cut, and numbered by their own index alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from agno_resumable.agentos.splitting import (
    FrameSplitter,
    Piece,
    event_index,
    event_name,
    is_comment,
    payload,
    with_id,
)
from agno_resumable.sse import Decoder


def frame(data: dict[str, Any], *, end: str = "\n", event: str = "RunContent") -> bytes:
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return f"event: {event}{end}data: {text}{end}{end}".encode()


@given(st.data())
def test_frames_are_found_wherever_the_bytes_are_cut(data: st.DataObject) -> None:
    frames = data.draw(
        st.lists(
            st.one_of(
                st.builds(
                    frame,
                    st.fixed_dictionaries({"content": st.text(max_size=20), "event_index": st.integers(0, 10**6)}),
                    end=st.sampled_from(["\n", "\n", "\r\n"]),
                ),
                st.just(b": keepalive\n\n"),
            ),
            max_size=8,
        )
    )
    body = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    splitter = FrameSplitter()
    found: list[bytes] = []
    for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True):
        found += splitter.feed(body[start:stop])
    assert found == frames
    assert not splitter.midway
    assert splitter.rest() == b""


@given(st.integers(1, 40), st.integers(0, 400))
def test_a_frame_beyond_the_cap_passes_in_pieces_and_the_next_one_is_whole_again(chunk: int, size: int) -> None:
    large, small = frame({"content": "x" * size}), frame({"event_index": 3})
    body = large + small
    splitter = FrameSplitter(max_frame_bytes=100)
    found: list[bytes] = []
    for start in range(0, len(body), chunk):
        found += splitter.feed(body[start : start + chunk])
        assert len(splitter.rest()) <= 100 + chunk
    assert b"".join(found) == body
    whole = [one for one in found if type(one) is not Piece]
    assert whole[-1] == small
    assert (large in whole) == (len(large) <= 100 or len(whole) == 2)


@pytest.mark.parametrize(
    ("data", "index"),
    [
        ({"content": "a", "event_index": 17}, 17),
        ({"event_index": 17, "content": "a"}, 17),
        ({"content": "a", "event_index": 17, "run_id": "r"}, 17),
        ({"event_index": -1}, -1),
        ({"content": "a"}, None),
        ({"content": '"event_index":4'}, None),
        ({"tool": {"event_index": 4}}, None),
        ({"tool": {"event_index": 4}, "event_index": 5}, 5),
        ({"event_index": 5, "tool": {"event_index": 4}}, 5),
        ({"event_index": "5"}, None),
        ({"event_index": None}, None),
        ({"event_index": True}, None),
        ({"value": float("nan"), "event_index": 6, "run_id": "r"}, 6),
    ],
)
def test_an_index_is_the_events_own(data: dict[str, Any], index: int | None) -> None:
    assert event_index(frame(data)) == index


def test_an_id_is_the_frames_last_line() -> None:
    assert with_id(frame({"a": 1}), "run", 4) == b'event: RunContent\ndata: {"a":1}\nid: run:4\n\n'
    decoded = Decoder().feed(with_id(frame({"a": 1}, end="\r\n"), "run", 4))
    assert [(one.event, one.data, one.id) for one in decoded] == [("RunContent", '{"a":1}', "run:4")]
    numbered = b'event: RunContent\ndata: {"a":1}\nid: other:9\n\n'
    assert with_id(numbered, "run", 4) == numbered


def test_a_frame_is_read_as_agno_writes_it() -> None:
    one = frame({"run_id": "r"}, event="TeamRunStarted")
    assert event_name(one) == "TeamRunStarted"
    assert payload(one) == {"run_id": "r"}
    assert payload(b"event: x\ndata: nothing\n\n") is None
    assert payload(b"event: x\ndata: [1]\n\n") is None
    assert not is_comment(one)
    assert is_comment(b": keepalive\n\n")
    assert not is_comment(b": a\ndata: {}\n\n")
    assert event_name(b": keepalive\n\n") == ""
