"""The decoder: the rules of the HTML standard, wherever the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from agno_resumable.errors import ResumableError
from agno_resumable.sse import Decoder, Frame, FrameTooLarge, encode_event, format_sse_event

from .sse_support import reference_frames

PIECES = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\r\r",
    b"\r\n\r\n",
    b"data",
    b"data:",
    b"data: ",
    b"data:  two spaces",
    b"event:",
    b"event: A",
    b"event",
    b"id",
    b"id:",
    b"id: 7",
    b"id: a\0b",
    b"retry: 10",
    b"retry: -5",
    b"retry: 1.5",
    b"retry:",
    b"retry: \xd9\xa3",
    b": comment",
    b":",
    b"dat",
    b"Data: x",
    b" data: x",
    b"\xef\xbb\xbf",
    b"\xef",
    b"\xbb",
    "é€😀".encode(),
    b"\xe2\x82",
    b"\xff",
    "\u2028\u2029\u0085\x0b\x0c\x1c".encode(),
    b"\0",
    b"x:y",
]
streams = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=40).map(b"".join)


def decode(stream: bytes, cuts: list[int] | None = None) -> tuple[list[Frame], Decoder]:
    decoder = Decoder()
    frames: list[Frame] = []
    places = sorted({0, len(stream), *(cuts or [])})
    for start, stop in pairwise(places):
        frames += decoder.feed(stream[start:stop])
    return frames, decoder


@given(stream=streams, data=st.data())
def test_frames_are_those_of_the_standard_wherever_the_stream_is_cut(stream: bytes, data: st.DataObject) -> None:
    expected, last_event_id = reference_frames(stream)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    for frames, decoder in (decode(stream), decode(stream, cuts), decode(stream, list(range(len(stream))))):
        assert [(f.event, f.data, f.id or "", f.retry) for f in frames] == [tuple(f) for f in expected]
        assert (decoder.last_event_id or "") == last_event_id


@given(st.lists(st.tuples(st.text(), st.none() | st.integers(0, 10**9)), min_size=1, max_size=20), st.data())
def test_what_the_encoder_writes_the_decoder_reads(events: list[tuple[str, int | None]], data: st.DataObject) -> None:
    written = [format_sse_event({"event": f"E{i}", "content": text}, index) for i, (text, index) in enumerate(events)]
    stream = "".join(written).encode()
    frames, _ = decode(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    assert [f"event: {frame.event}\ndata: {frame.data}\n\n" for frame in frames] == written


def test_a_native_frame_keeps_its_id() -> None:
    from agno_resumable.model import render_frames

    events = [encode_event({"event": "A", "content": "\u2028"}), encode_event("b")]
    frames, decoder = decode(b"retry: 2317\n\n" + render_frames("run", 6, events))
    assert [(frame.event, frame.id) for frame in frames] == [("A", "run:6"), ("message", "run:7")]
    assert decoder.last_event_id == "run:7"
    assert decoder.retry == 2317


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(b"data: a\n\n", [Frame("message", "a", None, None)], id="data only"),
        pytest.param(b"data\n\n", [Frame("message", "", None, None)], id="a field name alone is an empty line of data"),
        pytest.param(b"data:\ndata:\n\n", [Frame("message", "\n", None, None)], id="two empty lines of data"),
        pytest.param(b"event: A\n\ndata: b\n\n", [Frame("message", "b", None, None)], id="a name without data is lost"),
        pytest.param(b": hb\n\n: hb\n\n", [], id="comments give no frame"),
        pytest.param(b"data: a\n", [], id="a block without its blank line is dropped"),
        pytest.param(
            b"data: a\r\rdata: b\r\n\r\n", [Frame("message", "a", None, None), Frame("message", "b", None, None)]
        ),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [Frame("message", "a", None, None)], id="a byte order mark first"),
        pytest.param(b"\n\xef\xbb\xbfdata: a\n\n", [], id="a byte order mark later is part of a name"),
        pytest.param(b"data: \xe2\x82\n\n", [Frame("message", "\ufffd", None, None)], id="half a character"),
        pytest.param(b"data: a\nretry: 5\n\n", [Frame("message", "a", None, 5)], id="retry"),
        pytest.param(b"data: a\nretry: -5\n\n", [Frame("message", "a", None, None)], id="retry is digits only"),
        pytest.param(
            b"retry: " + b"9" * 5000 + b"\ndata: a\n\n", [Frame("message", "a", None, None)], id="endless retry"
        ),
        pytest.param(
            b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
            [Frame("message", "a", "1", None), Frame("message", "b", "1", None), Frame("message", "c", "", None)],
            id="an id holds until it is taken back",
        ),
        pytest.param(
            b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n",
            [Frame("message", "a", "1", None), Frame("message", "b", "1", None)],
        ),
    ],
)
def test_blocks(stream: bytes, expected: list[Frame]) -> None:
    assert decode(stream)[0] == expected
    assert decode(stream, list(range(len(stream))))[0] == expected


def test_an_id_moves_at_the_blank_line_and_not_before() -> None:
    decoder = Decoder()
    ids = []
    for chunk in (b"id: 1\ndata: a\n", b"\n", b"id: 2\n", b"\n"):  # the second block has no data, and gives no frame
        decoder.feed(chunk)
        ids.append(decoder.last_event_id)
    assert ids == [None, "1", "1", "2"]


def test_a_carriage_return_ends_its_line_at_once() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: a\r\r") == [Frame("message", "a", None, None)]
    assert decoder.feed(b"\ndata: b\n\n") == [Frame("message", "b", None, None)]


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: 0123456789\n\n", id="one line"),
        pytest.param(b"data: 01\ndata: 23\ndata: 4\n\n", id="many lines"),
        pytest.param(b": 01234567890123\n\n", id="a comment"),
        pytest.param(b"data: no end 0123", id="a line without an end"),
        pytest.param(b"data: 012\nunknown: 45678\n\n", id="another line beside the data"),
    ],
)
def test_a_frame_beyond_the_cap_is_refused_wherever_it_is_cut(stream: bytes, step: int) -> None:
    decoder = Decoder(max_frame_bytes=15)
    frames: list[Frame] = []
    whole = b"data: small\n\n" + stream

    def feed() -> None:
        for start in range(0, len(whole), step):
            frames.extend(decoder.feed(whole[start : start + step]))

    with pytest.raises(FrameTooLarge) as raised:
        feed()
    assert [frame.data for frame in frames + raised.value.frames] == ["small"]
    assert raised.value.limit == 15
    assert isinstance(raised.value, ResumableError)
    with pytest.raises(FrameTooLarge):
        decoder.feed(b"\n\n")


def test_a_frame_of_exactly_the_cap_is_taken_and_comments_between_frames_do_not_add_up() -> None:
    decoder = Decoder(max_frame_bytes=12)
    for _ in range(10):
        assert decoder.feed(b": heartbeat\n") == []
    assert decoder.feed(b"data: 012345\n\n") == [Frame("message", "012345", None, None)]


def test_a_cap_below_one_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="max_frame_bytes"):
        Decoder(max_frame_bytes=0)


def test_a_large_frame_in_tiny_pieces_is_copied_a_bounded_number_of_times() -> None:
    class Counted(bytearray):
        copied = 0

        def __bytes__(self) -> bytes:
            Counted.copied += len(self)
            return bytes(memoryview(self))

    decoder = Decoder()
    decoder.feed(b"\n")
    decoder._rest = Counted()
    stream = b"data: " + b"x" * 200_000 + b"\n\n"
    frames = [frame for at in range(len(stream)) for frame in decoder.feed(stream[at : at + 1])]
    assert [len(frame.data) for frame in frames] == [200_000]
    assert Counted.copied <= len(stream)
