"""Frames as they come out of agno: found in the bytes, read as little as possible, and given an id."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from ..sse import MAX_FRAME_BYTES

__all__ = ["FrameSplitter", "Piece", "event_index", "event_name", "is_comment", "payload", "with_id"]

_END = re.compile(rb"\n\n|\r\n\r\n|\r\r")
_KEY = b'"event_index":'
# The brace that closes the whole object stands right behind the number, so the key is the object's own
_LAST_KEY = re.compile(rb"\s*(-?\d{1,15})\}\r?\n")


class Piece(bytes):
    """A part of a frame that is larger than the cap."""

    __slots__ = ()


class FrameSplitter:
    """Bytes in, whole frames out, each with its blank line: wherever the bytes are cut.

    A frame that comes in several chunks and grows beyond ``max_frame_bytes`` is given out in ``Piece``s as it comes.
    One that comes in one chunk is in memory anyway.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = max_frame_bytes
        self._rest = bytearray()
        self._searched = 0  # no frame ends in this many bytes of the rest
        self._in_piece = False

    @property
    def midway(self) -> bool:
        """Whether the last piece given out has not ended its frame: nothing may be sent in between."""
        return self._in_piece

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes, and return the frames that they complete."""
        if not self._rest and not self._in_piece and chunk.find(b"\n\n") == len(chunk) - 2 >= 0 and b"\r" not in chunk:
            return [chunk]  # nearly always: agno sends each frame by itself
        self._rest += chunk
        frames: list[bytes] = []
        start = 0
        while found := _END.search(self._rest, max(start, self._searched)):
            frame = bytes(self._rest[start : found.end()])
            frames.append(Piece(frame) if self._in_piece else frame)
            self._in_piece = False
            start = self._searched = found.end()
        del self._rest[:start]
        self._searched = max(0, len(self._rest) - 3)
        if self._searched and (self._in_piece or len(self._rest) > self._limit):
            # What may be the beginning of the frame's end stays
            frames.append(Piece(self._rest[: self._searched]))
            del self._rest[: self._searched]
            self._searched = 0
            self._in_piece = True
        return frames

    def rest(self) -> bytes:
        """What has come of a frame that has not ended."""
        return bytes(self._rest)


def event_name(frame: bytes) -> str:
    """The name in the frame's first line, as agno writes it; ``""`` if it has none."""
    if not frame.startswith(b"event: "):
        return ""
    return frame[7 : frame.find(b"\n")].decode("utf-8", "replace").rstrip("\r")


def is_comment(frame: bytes) -> bool:
    """Whether the frame has nothing but comments in it."""
    return frame.startswith(b":") and all(line[:1] in (b":", b"") for line in frame.splitlines())


def event_index(frame: bytes) -> int | None:
    """The ``event_index`` in the frame's JSON, or ``None``."""
    at = frame.rfind(_KEY)
    if at < 0:
        return None
    last = _LAST_KEY.match(frame, at + len(_KEY))
    if last:
        return int(last[1])
    found = (payload(frame) or {}).get("event_index")
    return found if type(found) is int else None


def payload(frame: bytes) -> dict[str, Any] | None:
    """The frame's JSON object, or ``None`` if it has none."""
    data = b"\n".join([line[5:] for line in frame.splitlines() if line.startswith(b"data:")])
    try:
        value = orjson.loads(data)
    except ValueError:
        try:
            value = json.loads(data)  # agno writes NaN, and lone surrogates
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def with_id(frame: bytes, run_id: str, index: int) -> bytes:
    """The frame with an ``id:`` as its last line; as it is if it has one."""
    if b"\nid:" in frame or frame.startswith(b"id:"):
        return frame
    body = frame[:-1] if frame.endswith(b"\n\n") else frame.rstrip(b"\r\n") + b"\n"
    return b"%bid: %b:%d\n\n" % (body, run_id.encode(), index)
