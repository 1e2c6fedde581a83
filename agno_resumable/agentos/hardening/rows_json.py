"""JSON for agno's rows that a database always takes and a client can always read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ...sse.values import is_control_flow
from .cleaning import described, is_live, plain
from .places import Places, missing

__all__ = ["SafeSerializer", "engine_of", "is_strict", "replace_encoder", "replace_serializer"]

# An escaped surrogate without its other half.
_LONE = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")


def is_strict(text: str) -> bool:
    """Whether what Python's encoder has written is certainly JSON, and certainly Unicode; text may deceive it."""
    if "NaN" in text or "Infinity" in text:
        return False
    if ("\\ud" in text or "\\uD" in text) and ("\\\\u" in text or _LONE.search(text) is not None):
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class SafeSerializer:
    """A JSON serializer that writes what ``original`` writes where that is JSON, and something for everything else.

    Args:
        original: Gives JSON as ``str`` or, as some do, as ``bytes``.
    """

    def __init__(self, original: Callable[[Any], Any]) -> None:
        self.original: Callable[[Any], Any] = original

    def __call__(self, value: Any) -> Any:
        """``value`` as strict JSON. Nothing that a value is, or does, makes it raise."""
        try:
            text = self.original(value)
            if is_strict(text if type(text) is str else text.decode()):
                return text
        except BaseException as error:  # a value's own methods may raise anything
            if is_control_flow(error):
                raise
        clean = plain(value, self._leaf)
        try:
            return self.original(clean)
        except Exception:  # an encoder for 64 bits only, say
            return json.dumps(clean, allow_nan=False)

    def _leaf(self, value: Any) -> Any:
        """What the original says of an object that JSON has no type for, if it says anything; otherwise its ``str``."""
        if is_live(value):
            return described(value)
        try:
            return json.loads(self.original(value))
        except BaseException as error:
            if is_control_flow(error):
                raise
        to_dict = getattr(type(value), "to_dict", None)
        if callable(to_dict) and str(getattr(to_dict, "__module__", "")).startswith("agno."):
            try:
                return to_dict(value)
            except BaseException as error:
                if is_control_flow(error):
                    raise
        return described(value)


def engine_of(db: Any) -> Any:
    """The (synchronous) SQLAlchemy engine of one of agno's databases; ``None`` if it has none."""
    engine = getattr(db, "db_engine", None)
    engine = getattr(engine, "sync_engine", engine)
    return engine if hasattr(getattr(engine, "dialect", None), "_json_serializer") else None


def replace_serializer(places: Places, engine: Any) -> None:
    """Put a safe serializer in the place of the engine's own, or of SQLAlchemy's default."""
    dialect = engine.dialect
    original = dialect._json_serializer
    if isinstance(original, SafeSerializer):
        return
    safe = SafeSerializer(original or json.dumps)
    places.then(lambda: _forget(engine))
    places.set(dialect, "_json_serializer", safe)
    if hasattr(type(dialect), "_psycopg_Jsonb"):
        # psycopg writes JSON itself, with what its connections were given when they were made
        from psycopg.types.json import Json, Jsonb

        places.set(dialect, "_psycopg_Json", partial(Json, dumps=safe))
        places.set(dialect, "_psycopg_Jsonb", partial(Jsonb, dumps=safe))
    _forget(engine)


def _forget(engine: Any) -> None:
    """Have statements compiled again: those of before have taken the serializer that was there."""
    memos: Any = getattr(engine.dialect, "_type_memos", {})
    memos.clear()
    engine.clear_compiled_cache()


def replace_encoder(places: Places) -> None:
    """Make agno's own JSON encoder safe, which its engines have from 3.0 on, and its SQLite databases since ever."""
    try:
        from agno.db.utils import CustomJSONEncoder as Encoder
    except ImportError as error:
        missing(f"agno.db.utils.CustomJSONEncoder is not there ({error})")
        return
    if "encode" in vars(Encoder):
        if not isinstance(getattr(Encoder.encode, "safe", None), bool):
            missing("agno.db.utils.CustomJSONEncoder has an encode of its own")
        return

    def encode(self: Any, o: Any) -> str:
        text: str = SafeSerializer(partial(json.JSONEncoder.encode, self))(o)
        return text

    encode.safe = True  # type: ignore[attr-defined]
    places.set(Encoder, "encode", encode)
