"""The few form fields that matter here, read from a body that streams past.

They are read as Starlette's form parser reads them, with the parsers that it uses: what is seen here must be what agno
sees, or a field could be smuggled past.
"""

from __future__ import annotations

import codecs
from typing import Protocol
from urllib.parse import unquote_plus

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, QuerystringParser, parse_options_header
from starlette.datastructures import Headers

__all__ = ["FILE", "OVERLONG", "WATCHED", "FieldReader", "MultipartReader", "UrlencodedReader", "reader_for"]

WATCHED: frozenset[str] = frozenset({"background", "run_id", "session_id", "stream", "user_id"})
FILE = "<file>"
"""The value of a field that came as a file; no id and no flag looks like it."""
OVERLONG = "<overlong>"
"""The value of a field that is longer than any that would be accepted."""

_MAX_NAME = 64  # the longest watched name has 10 characters, 30 if all of them are percent-encoded
_MAX_VALUE = 4_096  # bytes as they are sent
_MAX_HEADER = 65_536
_MAX_FIELDS = 1_000  # as Starlette


class FieldReader(Protocol):
    """Reads a body as it streams past.

    Attributes:
        values: The last value of each watched field, as a form would give it.
        broken: The body is none that a form parser takes; what it would have said is not known.
        complete: The end of the form has been seen.
    """

    values: dict[str, str]
    broken: bool
    complete: bool

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """Take the next bytes of the body; return those that may go on.

        Some may be held back, until ``last``.
        """
        ...

    def append(self, name: str, value: str) -> bytes:
        """The bytes that must follow what ``feed`` has returned so far, so that the form has one more field.

        Empty where that is not possible. Only once, and only when the form is complete.
        """
        ...


def reader_for(headers: Headers) -> FieldReader | None:
    """The reader for a body with these headers; ``None`` for one that is no form."""
    content_type, parameters = parse_options_header(headers.get("content-type"))
    if content_type == b"application/x-www-form-urlencoded":
        return UrlencodedReader()
    if content_type == b"multipart/form-data" and b"boundary" in parameters:
        try:
            return MultipartReader(parameters[b"boundary"], parameters.get(b"charset", b"utf-8").decode("latin-1"))
        except FormParserError:  # a boundary that is too long
            return None
    return None


class UrlencodedReader:
    """``application/x-www-form-urlencoded``. Holds nothing back: the last message of the body is its end."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.broken: bool = False
        self.complete: bool = False
        self._count = 0
        self._name = bytearray()
        self._value = bytearray()
        self._parser = QuerystringParser(
            {
                "on_field_start": self._start,
                "on_field_name": self._on_name,
                "on_field_data": self._on_data,
                "on_field_end": self._end,
            }
        )

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        if self.broken or self.complete:
            return data
        try:
            self._parser.write(data)
            if last:
                self._parser.finalize()
                self.complete = True
        except FormParserError:
            self.broken = True
        return data

    def append(self, name: str, value: str) -> bytes:
        if self.broken or not self.complete or not 0 < self._count < _MAX_FIELDS:
            return b""
        return f"&{name}={value}".encode()

    def _start(self) -> None:
        self._name.clear()
        self._value.clear()

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        _keep(self._name, data, start, end, _MAX_NAME)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        _keep(self._value, data, start, end, _MAX_VALUE)

    def _end(self) -> None:
        self._count += 1
        name = unquote_plus(self._name.decode("latin-1")) if len(self._name) <= _MAX_NAME else ""
        if name in WATCHED:
            value = unquote_plus(self._value.decode("latin-1"))
            self.values[name] = value if len(self._value) <= _MAX_VALUE else OVERLONG


class MultipartReader:
    """``multipart/form-data``. Holds back as much as the closing boundary is long, so that a part fits before it."""

    def __init__(self, boundary: bytes, charset: str) -> None:
        self.values: dict[str, str] = {}
        self.broken: bool = False
        self.complete: bool = False
        try:
            self._codec = codecs.lookup(charset).name
        except LookupError:
            self._codec = "latin-1"
        self._boundary = boundary
        self._closing = b"\r\n--" + boundary + b"--"
        self._held = b""
        self._parts = 0
        self._fields = 0
        self._name: str = ""
        self._is_file = False
        self._value = bytearray()
        self._header = bytearray()
        self._header_value = bytearray()
        self._disposition: bytes | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_header_field": self._on_header,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        if self.broken or self.complete:
            return self._release(data)
        unread = self._held + data
        read = len(self._held)
        try:
            # The parser does not say where in the chunk the form ended. Every place that could be it is therefore the
            # end of what it is given at once.
            at = unread.find(self._closing)
            while at >= 0:
                end = max(read, at + len(self._closing))
                if self._completes(unread[read:end]):
                    self._held = unread[at:]
                    return unread[:at]
                at, read = unread.find(self._closing, at + 1), end
            self._parser.write(unread[read:])
        except FormParserError:
            self.broken = True
        if self.broken or self.complete or last:
            self._held = b""
            return unread
        keep = len(self._closing)
        self._held = unread[-keep:]
        return unread[:-keep]

    def append(self, name: str, value: str) -> bytes:
        if self.broken or not self._held or not self._parts or self._fields >= _MAX_FIELDS:
            return b""
        part = f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'
        if not _is_ascii_in(self._codec, name + value):
            return b""
        return b"\r\n--" + self._boundary + b"\r\n" + part.encode()

    def _completes(self, data: bytes) -> bool:
        self._parser.write(data)
        return self.complete

    def _release(self, data: bytes) -> bytes:
        held, self._held = self._held, b""
        return held + data

    def _begin(self) -> None:
        self._name, self._is_file, self._disposition = "", False, None
        self._value.clear()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        _keep(self._header, data, start, end, _MAX_HEADER)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        _keep(self._header_value, data, start, end, _MAX_HEADER)

    def _on_header_end(self) -> None:
        if max(len(self._header), len(self._header_value)) > _MAX_HEADER:
            self.values["run_id"] = OVERLONG  # it might be one, and a parser without limits would read it
            raise FormParserError("A header of a part is too long to be watched.")
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FormParserError("A part has no name.")
        self._name = self._decode(options[b"name"])
        self._is_file = b"filename" in options
        self._parts += 1
        self._fields += not self._is_file

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name in WATCHED and not self._is_file:
            _keep(self._value, data, start, end, _MAX_VALUE)

    def _end(self) -> None:
        if self._name not in WATCHED:
            return
        if self._is_file:
            self.values[self._name] = FILE
        else:
            self.values[self._name] = self._decode(bytes(self._value)) if len(self._value) <= _MAX_VALUE else OVERLONG

    def _on_end(self) -> None:
        self.complete = True

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode(self._codec)
        except (UnicodeError, LookupError):
            return data.decode("latin-1")


def _keep(into: bytearray, data: bytes, start: int, end: int, limit: int) -> None:
    """Add to a buffer up to one byte over its limit, which tells that there was more."""
    into += data[start : min(end, start + limit + 1 - len(into))]


def _is_ascii_in(codec: str, text: str) -> bool:
    try:
        return text.encode(codec) == text.encode("ascii")
    except LookupError:  # a codec that is not for text, for which form parsers take Latin-1
        return True
    except UnicodeError:
        return False
