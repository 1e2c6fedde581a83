"""redis-py's errors, where it is installed. Everything else of it is imported when a log is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import LogUnavailable

__all__ = [
    "AskError",
    "AuthenticationError",
    "BusyLoadingError",
    "MovedError",
    "NoScriptError",
    "ReadOnlyError",
    "RedisError",
    "ResponseError",
    "Word",
    "pack",
    "require_driver",
]

_missing: ImportError | None = None

try:
    from redis.exceptions import (
        AskError,
        AuthenticationError,
        BusyLoadingError,
        MovedError,
        NoScriptError,
        ReadOnlyError,
        RedisError,
        ResponseError,
    )
except ImportError as _error:
    _missing = _error

if not TYPE_CHECKING and _missing is not None:

    class RedisError(Exception):
        """Stands for all of them; nothing raises it."""

    AskError = AuthenticationError = BusyLoadingError = MovedError = RedisError
    NoScriptError = ReadOnlyError = ResponseError = RedisError


Word = bytes | str | int | float
"""A part of a command."""


try:
    import hiredis
except ImportError:
    hiredis = None  # type: ignore[assignment]


def _pack(command: tuple[Word, ...]) -> bytes:
    """A command as it is sent."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


# redis-py's own takes as long for the many words of a script's call as all the rest of sending it
pack: Callable[[tuple[Word, ...]], bytes] = getattr(hiredis, "pack_command", _pack)


def require_driver() -> None:
    """Say what is missing.

    Raises:
        LogUnavailable: redis-py is not installed.
    """
    if _missing is not None:
        raise LogUnavailable(
            f"A Redis log needs redis-py ({_missing}): pip install 'agno-resumable[redis]'"
        ) from _missing
