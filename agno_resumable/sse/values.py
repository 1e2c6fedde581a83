"""From whatever an event holds to one line of strict JSON in UTF-8.

Two ways lead there. A *plain* value, built of exact ``dict``, ``list``, ``tuple``, ``str``, ``int``, ``float``,
``bool`` and ``None`` with string keys, goes straight to orjson. Anything else is first brought to plain values by
``normalise``, with the results that agno has from the standard library's encoder and its own fallback: subclasses of
the plain types as their plain value, named tuples as arrays, scalar keys as text, dates in ISO format, an Enum as its
value if that is a scalar and otherwise as its name, everything else as its ``str``. Where agno's result would not be
JSON, or not UTF-8, this one is: NaN and the infinities become null, lone surrogates U+FFFD.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from types import AsyncGeneratorType, CoroutineType, GeneratorType, NoneType
from typing import Any

__all__ = [
    "MAX_DEPTH",
    "SCALARS",
    "as_agno",
    "as_agno_but_live",
    "class_name",
    "clean_text",
    "escape_separators",
    "is_control_flow",
    "is_plain",
    "json_object",
    "normalise",
]

SCALARS = frozenset({str, int, float, bool, NoneType})
"""The types that orjson and agno write alike, apart from what only ``json_object`` can see in the value itself."""

MAX_DEPTH = 1000
"""The deepest nesting that is written. orjson, and so most readers of a log, parses no more than 1,024 levels."""

_PLAIN_DEPTH = 200  # orjson writes 254 levels; deeper values take the slow way, which can
_DOUBLE_MAX = sys.float_info.max


def is_plain(value: Any, depth: int = _PLAIN_DEPTH) -> bool:
    """Whether ``value`` holds exact plain types only, at most ``depth`` levels of them. A cycle is not plain."""
    kind = type(value)
    if kind in SCALARS:
        return True
    if depth <= 0:
        return False
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or (type(item) not in SCALARS and not is_plain(item, depth - 1)):
                return False
        return True
    if kind is list or kind is tuple:
        for item in value:  # noqa: SIM110  # a generator would cost twice the frames
            if type(item) not in SCALARS and not is_plain(item, depth - 1):
                return False
        return True
    return False


def json_object(fields: dict[str, Any]) -> bytes:
    """Write an object of plain values, such as ``normalise`` gives, as one line of strict JSON in UTF-8.

    Raises:
        ValueError: An integer of more digits than Python is willing to write.
    """
    try:
        data = _dumps(fields)
    except TypeError:
        # Plain, and yet beyond orjson: integers over 64 bits, more than 254 levels, lone surrogates.
        from json import dumps

        clean = normalise(fields, as_agno)
        data = dumps(clean, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return data if data.isascii() else escape_separators(data)


def _load_orjson(value: object) -> bytes:
    # orjson takes most of the time that this package would cost to import, so it is loaded with the first event.
    global _dumps
    from orjson import dumps

    _dumps = dumps
    return dumps(value)


_dumps: Callable[[Any], bytes] = _load_orjson


def escape_separators(data: bytes) -> bytes:
    """Escape U+2028, U+2029 and U+0085 in JSON.

    They are legal there, but str.splitlines() ends a line at each of them, and agno's own client reads with that.
    """
    if b"\xe2\x80" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    if b"\xc2\x85" in data:
        data = data.replace(b"\xc2\x85", b"\\u0085")
    return data


def normalise(value: Any, default: Callable[[object], object], depth: int = 0) -> Any:
    """Bring ``value`` to exact plain types, finite numbers and valid text.

    ``default`` is asked for each object that JSON has no type for, and its answer normalised in turn.

    Raises:
        TypeError: A key that is no scalar.
        ValueError: More than ``MAX_DEPTH`` levels; a cycle is endless nesting.
        Exception: Whatever a value's own methods raise.
    """
    # By type(), never isinstance(): that would ask the value's own __class__.
    kind = type(value)
    if kind is str:
        return value if value.isascii() else clean_text(value)
    if value is None or kind is int or kind is bool:
        return value
    if kind is float:
        return value if -_DOUBLE_MAX <= value <= _DOUBLE_MAX else None
    if depth >= MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels of nesting, or a circular reference")
    if issubclass(kind, dict):
        fields: dict[str, Any] = {}
        for key, item in value.items():
            fields[key if type(key) is str and key.isascii() else _key(key)] = normalise(item, default, depth + 1)
        return fields
    if issubclass(kind, (list, tuple)):
        items = []
        for item in value:
            items.append(normalise(item, default, depth + 1))  # a comprehension costs a frame a level
        return items
    # The unbound methods give the plain value itself, whatever a subclass has made of them.
    if issubclass(kind, str):
        return clean_text(str.__str__(value))
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return normalise(float.__float__(value), default, depth)
    return normalise(default(value), default, depth + 1)


def _key(key: Any) -> str:
    kind = type(key)
    if issubclass(kind, str):
        return clean_text(str.__str__(key))
    if key is True:
        return "true"
    if key is False:
        return "false"
    if key is None:
        return "null"
    if issubclass(kind, int):
        return int.__repr__(key)
    if issubclass(kind, float):
        number = float.__float__(key)
        if number != number:
            return "NaN"
        if not -_DOUBLE_MAX <= number <= _DOUBLE_MAX:
            return "Infinity" if number > 0 else "-Infinity"
        return float.__repr__(number)
    raise TypeError(f"keys must be str, int, float, bool or None, not {class_name(key)}")


def clean_text(text: str) -> str:
    """``text`` as UTF-8 can hold it: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def as_agno(value: Any) -> object:
    """What agno writes for an object that JSON has no type for."""
    import datetime

    kind = type(value)
    if issubclass(kind, (datetime.date, datetime.time)):
        return value.isoformat()
    if issubclass(kind, Enum):
        content = value.value
        scalar = issubclass(type(content), (str, int, float, bool, NoneType))
        return content if scalar else value.name
    text = str(value)
    return text if type(text) is str else str.__str__(text)


def as_agno_but_live(value: object) -> object:
    """As ``as_agno``, but refuse what can only be there by mistake: locks, generators and coroutines.

    In agno's own events the copy that agno makes refuses them; events of other making are not copied.
    """
    if issubclass(type(value), _live_types()):
        raise TypeError(f"cannot serialize a {class_name(value)}")
    return as_agno(value)


def _live_types() -> tuple[type, ...]:
    import _thread

    return (GeneratorType, CoroutineType, AsyncGeneratorType, _thread.LockType, _thread.RLock)


def is_control_flow(error: BaseException) -> bool:
    """Whether ``error`` ends the program, or the task, rather than tells of the value: such errors pass through.

    Everything else that a value's methods raise concerns the value, even where it is no ``Exception``: a panic in an
    extension written in Rust is not, for one.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        return True
    # asyncio.CancelledError, trio.Cancelled and those of greenlets, by name: none of them may be imported for this.
    names = {"CancelledError", "Cancelled", "GreenletExit", "Timeout"}
    return any(kind.__name__ in names for kind in type(error).__mro__)


def class_name(value: object) -> str:
    """The name of the value's class, with its module unless that is ``builtins``: printable, at most 200 characters."""
    try:
        kind = type(value)
        module, name = getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)
        if not (isinstance(module, str) and isinstance(name, str)):
            return "object"
        full = name if module == "builtins" else f"{module}.{name}"
        return "".join([c if c.isprintable() else "\ufffd" for c in full[:200]])
    except BaseException as error:  # a metaclass may answer anything
        if is_control_flow(error):
            raise
        return "object"
