"""Statements and their parameters: arrays in PostgreSQL's binary form, made without a call per element."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import Any, ClassVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.adapt import Dumper
from psycopg.pq import ExecStatus, Format
from psycopg.rows import tuple_row

__all__ = ["Byteas", "Int8s", "Texts", "fetch"]

_BYTEA, _INT8, _TEXT = 17, 20, 25
_BYTEA_ARRAY, _INT8_ARRAY, _TEXT_ARRAY = 1001, 1016, 1009


class Int8s(list[int]):
    """A parameter of the type ``int8[]``. A list of its own kind has another type whenever its numbers grow."""


class Texts(list[str]):
    """A parameter of the type ``text[]``."""


class Byteas(list[bytes]):
    """A parameter of the type ``bytea[]``."""


def _array(element: int, body: bytes, count: int) -> bytes:
    """The binary form of a one-dimensional array without NULL, as ``array_recv`` of PostgreSQL reads it."""
    return pack(">iiIii", 1, 0, element, count, 1) + body if count else pack(">iiI", 0, 0, element)


class _ArrayDumper(Dumper):
    format = Format.BINARY


class _Int8sDumper(_ArrayDumper):
    oid: ClassVar[int] = _INT8_ARRAY  # type: ignore[misc]

    def dump(self, obj: Int8s) -> bytes:
        pairs = [part for value in obj for part in (8, value)]
        return _array(_INT8, pack(">" + "iq" * len(obj), *pairs), len(obj))


class _ByteasDumper(_ArrayDumper):
    oid: ClassVar[int] = _BYTEA_ARRAY  # type: ignore[misc]

    def dump(self, obj: Byteas) -> bytes:
        parts = [part for value in obj for part in (len(value).to_bytes(4, "big"), value)]
        return _array(_BYTEA, b"".join(parts), len(obj))


class _TextsDumper(_ArrayDumper):
    oid: ClassVar[int] = _TEXT_ARRAY  # type: ignore[misc]

    def dump(self, obj: Texts) -> bytes:
        parts = [part for value in map(str.encode, obj) for part in (len(value).to_bytes(4, "big"), value)]
        return _array(_TEXT, b"".join(parts), len(obj))


def register(conn: AsyncConnection[Any]) -> None:
    """Teach a connection these three types, and no others."""
    for cls, dumper in ((Int8s, _Int8sDumper), (Byteas, _ByteasDumper), (Texts, _TextsDumper)):
        conn.adapters.register_dumper(cls, dumper)


async def fetch(conn: AsyncConnection[Any], statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Run one statement, whatever the connection's own cursors and rows are like, and give its rows."""
    cursor: AsyncCursor[tuple[Any, ...]] = AsyncCursor(conn, row_factory=tuple_row)
    # without parameters a statement goes as it is, and `%` in it stands for itself
    await cursor.execute(statement.encode(), parameters or None, binary=True)
    result = cursor.pgresult  # and not its description, which makes an object of every column
    return await cursor.fetchall() if result is not None and result.status == ExecStatus.TUPLES_OK else []
