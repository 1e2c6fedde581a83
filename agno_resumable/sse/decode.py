"""The other direction: an event stream's bytes to frames, by the rules of the HTML standard (9.2.6, "Interpreting an
event stream").
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ResumableError

__all__ = ["MAX_FRAME_BYTES", "Decoder", "Frame", "FrameTooLarge"]

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""The default cap on one frame."""

_BOM = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS = 15  # milliseconds: 31,000 years; Python refuses to read numbers beyond some thousand digits


class Frame(NamedTuple):
    """One event of a stream.

    Attributes:
        event: The event's name, ``message`` if the frame has none.
        data: The lines of its data, joined by line feeds.
        id: The last event id as of this frame: its own, or else that of the latest frame that had one; ``None`` if
            no frame had one yet, and ``""`` after one that took it back.
        retry: The reconnection time that this frame sets, in milliseconds, or ``None``.
    """

    event: str
    data: str
    id: str | None
    retry: int | None


class FrameTooLarge(ResumableError):
    """A frame, or a line, grew beyond the cap. The decoder is of no use any more: close the connection.

    Attributes:
        limit: The cap, in bytes.
        frames: The frames that were complete before, in the bytes of this same call.
    """

    def __init__(self, limit: int, frames: list[Frame]) -> None:
        super().__init__(
            f"A frame of the event stream has more than {limit} bytes: raise max_frame_bytes, or check whether this "
            "is an event stream at all."
        )
        self.limit = limit
        self.frames = frames


class Decoder:
    """A strict, incremental decoder: bytes in, whole frames out, wherever the bytes are cut.

    Lines end in CR, LF or CRLF; a byte order mark counts at the very start only; invalid UTF-8 becomes U+FFFD; an id
    with NUL and a retry that is not all digits are ignored; a block without data gives no frame, though its id and
    retry count; what stands behind the last blank line at the end of the stream is dropped with the decoder. Each
    byte is looked at a bounded number of times, however small the pieces.

    Args:
        max_frame_bytes: The most that one frame may hold: its data lines together with any one further line, in
            bytes, without line ends.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        if max_frame_bytes < 1:
            raise ValueError(f"max_frame_bytes is {max_frame_bytes}; it must be at least 1.")
        self._limit = max_frame_bytes
        self._failed = False
        self._started = False  # whether a byte order mark can no longer come
        self._after_cr = False  # whether a line feed would belong to a carriage return that has ended its line
        self._rest = bytearray()  # the line that has not ended
        self._data: list[bytes] = []
        self._data_size = 0
        self._event = b""
        self._id: str | None = None
        self._frame_retry: int | None = None
        self._last_event_id: str | None = None
        self._retry: int | None = None

    @property
    def last_event_id(self) -> str | None:
        """What a client would send as ``Last-Event-ID`` now; ``None`` before the first id.

        It moves at the blank line that ends a block, with data or without, and not before.
        """
        return self._last_event_id

    @property
    def retry(self) -> int | None:
        """The latest reconnection time, in milliseconds; ``None`` before the first."""
        return self._retry

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes of the stream, and return the frames that they complete.

        Raises:
            FrameTooLarge: A frame has more than ``max_frame_bytes``. Its ``frames`` hold what was complete before.
        """
        if self._failed:
            raise FrameTooLarge(self._limit, [])
        if not self._started:
            self._rest += chunk
            if len(self._rest) < 3 and _BOM.startswith(self._rest):
                return []
            self._started = True
            chunk = bytes(self._rest.removeprefix(_BOM))
            self._rest.clear()
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        frames: list[Frame] = []
        if b"\n" in chunk or b"\r" in chunk:
            if self._rest:
                chunk = bytes(self._rest) + chunk
                self._rest.clear()
            # bytes.splitlines() knows CR, LF and CRLF and no other, unlike str.splitlines().
            lines = chunk.splitlines()
            if chunk.endswith(b"\r"):
                self._after_cr = True
            elif not chunk.endswith(b"\n"):
                self._rest += lines.pop()
            for line in lines:
                if not line:
                    self._end_block(frames)
                    continue
                if self._data_size + len(line) > self._limit:
                    self._fail(frames)
                self._take(line)
        else:
            self._rest += chunk
        if self._data_size + len(self._rest) > self._limit:
            self._fail(frames)
        return frames

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._data_size += len(line)
        elif name == b"event":
            self._event = value
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value.lstrip(b"0")) <= _MAX_RETRY_DIGITS:
            self._frame_retry = self._retry = int(value)

    def _end_block(self, frames: list[Frame]) -> None:
        self._last_event_id = self._id
        if self._data:
            frames.append(
                Frame(
                    self._event.decode("utf-8", "replace") or "message",
                    b"\n".join(self._data).decode("utf-8", "replace"),
                    self._id,
                    self._frame_retry,
                )
            )
            self._data = []
            self._data_size = 0
        self._event = b""
        self._frame_retry = None

    def _fail(self, frames: list[Frame]) -> None:
        self._failed = True
        self._rest = bytearray()
        self._data = []
        raise FrameTooLarge(self._limit, frames)
