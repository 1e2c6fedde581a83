"""Values that cannot be copied, serialized or stored, brought to ones that can.

Two ways: ``plain`` gives what JSON can say, and nothing else; ``tamed`` replaces only what agno's own ``to_dict``
stumbles over, so that everything else comes out of it as always.
"""

from __future__ import annotations

import _thread
import copy
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from ...sse.values import SCALARS, as_agno, class_name, clean_text, is_control_flow

__all__ = ["CIRCULAR", "TOO_DEEP", "Stated", "described", "is_harmless", "is_live", "plain", "stated", "tamed"]

CIRCULAR = "<circular reference>"
"""Stands where a value would contain itself."""

TOO_DEEP = "<nested too deeply>"

_MAX_DEPTH = 250  # of what is cleaned; each level takes two frames of the interpreter's thousand
_DOUBLE_MAX = sys.float_info.max
_LIVE = (GeneratorType, CoroutineType, AsyncGeneratorType, _thread.LockType, _thread.RLock)


class Stated:
    """In the place of an object whose own ``to_dict`` raises."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What can be said of the object."""
        return self._fields


def is_live(value: object) -> bool:
    """Whether ``value`` can only be where data is by mistake: locks, generators, coroutines."""
    return issubclass(type(value), _LIVE)


def described(value: object) -> str:
    """``str(value)``, as agno writes what JSON has no type for; the class's name, if that raises."""
    try:
        text = as_agno(value)
        return clean_text(text if type(text) is str else str(text))
    except BaseException as error:
        if is_control_flow(error):
            raise
        return f"<{class_name(value)}>"


def key_of(key: Any) -> Any:
    """A key as JSON can have it: scalars as they are, anything else described."""
    kind = type(key)
    if kind is str:
        return key if key.isascii() else clean_text(key)
    if kind in SCALARS:
        return key
    if issubclass(kind, str):
        return clean_text(str.__str__(key))
    return key if issubclass(kind, (int, float)) else described(key)


def plain(value: Any, leaf: Callable[[Any], Any], path: frozenset[int] = frozenset()) -> Any:
    """``value`` in exact plain types, finite numbers and valid text, which any JSON encoder writes alike.

    ``leaf`` is asked for what JSON has no type for, and its answer brought to plain types in turn. Nothing raises
    but what ``leaf`` does.
    """
    kind = type(value)
    if kind is str:
        return value if value.isascii() else clean_text(value)
    if value is None or kind is int or kind is bool:
        return value
    if kind is float:
        return value if -_DOUBLE_MAX <= value <= _DOUBLE_MAX else None
    if issubclass(kind, str):
        return clean_text(str.__str__(value))
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return plain(float.__float__(value), leaf)
    if id(value) in path:
        return CIRCULAR
    if len(path) >= _MAX_DEPTH:
        return TOO_DEEP
    path |= {id(value)}
    if issubclass(kind, dict):
        return {key_of(key): plain(item, leaf, path) for key, item in _items(value)}
    if issubclass(kind, (list, tuple)):
        return [plain(item, leaf, path) for item in _elements(value)]
    return plain(leaf(value), leaf, path)


def is_harmless(value: Any, path: frozenset[int] = frozenset()) -> bool:
    """Whether ``value``, as far as it is lists, tuples and dicts, holds neither itself nor anything live."""
    kind = type(value)
    if kind in SCALARS:
        return True
    if kind is dict or kind is list or kind is tuple:
        if id(value) in path or len(path) >= _MAX_DEPTH:
            return False
        path |= {id(value)}
        for item in value.values() if kind is dict else value:  # a generator would cost twice
            if type(item) not in SCALARS and not is_harmless(item, path):
                return False
        return True
    return not is_live(value)


def tamed(value: Any, path: frozenset[int] = frozenset(), *, thorough: bool) -> Any:
    """``value`` without what holds itself, what is live and keys that are no scalars; the same object if it has none.

    ``thorough`` tries every other object too, and puts what cannot be copied, or told, in words.
    """
    kind = type(value)
    if kind in SCALARS:
        return value
    if issubclass(kind, (dict, list, tuple)):
        if id(value) in path:
            return CIRCULAR
        if len(path) >= _MAX_DEPTH:
            return TOO_DEEP
        path |= {id(value)}
        if issubclass(kind, dict):
            pairs = _items(value)
            tame = {key_of(key): tamed(item, path, thorough=thorough) for key, item in pairs}
            same = len(tame) == len(pairs) and all(
                known is key and tame[known] is item for known, (key, item) in zip(tame, pairs, strict=False)
            )
            return value if same and (kind is dict or not thorough) else tame
        items = _elements(value)
        clean = [tamed(item, path, thorough=thorough) for item in items]
        same = all(new is old for new, old in zip(clean, items, strict=False))
        return value if same and (kind in (list, tuple) or not thorough) else clean
    if type(value) is Stated:
        return value if thorough else value.to_dict()
    if is_live(value):
        return described(value)
    return _tried(value, path) if thorough else value


def _tried(value: Any, path: frozenset[int]) -> Any:
    """``value``, if agno's ways of telling it work; otherwise something for which they do."""
    cls = type(value)
    if hasattr(getattr(cls, "to_dict", None), "hardened"):
        return value  # it cannot raise, and may lead through everything there is
    try:
        bool(value)  # which agno asks of a content, and an array refuses
        if callable(getattr(cls, "to_dict", None)):
            value.to_dict()
        elif hasattr(cls, "model_dump"):
            value.model_dump(exclude_none=True, mode="json")
        elif hasattr(cls, "__dataclass_fields__"):
            asdict(value)
        else:
            copy.deepcopy(value)
        return value
    except BaseException as error:  # a user's own class may raise anything
        if is_control_flow(error):
            raise
    if id(value) in path:
        return CIRCULAR
    held = getattr(value, "__dict__", None)
    if hasattr(cls, "to_dict") and type(held) is dict:
        return Stated(stated(held, path | {id(value)}))
    if (hasattr(cls, "model_dump") or hasattr(cls, "__dataclass_fields__")) and type(held) is dict:
        return stated(held, path | {id(value)})
    return described(value)


def stated(held: dict[str, Any], path: frozenset[int] = frozenset()) -> dict[str, Any]:
    """The fields of an object in plain types, without those that are ``None``."""
    fields: dict[str, Any] = {}
    for name, value in held.items():
        if value is not None:
            fields[name] = plain(value, _told, path)
    return fields


def _told(value: Any) -> Any:
    """An object as its own ``to_dict`` has it, if it has one that works; otherwise described."""
    if callable(getattr(type(value), "to_dict", None)):
        try:
            told = value.to_dict()
            if issubclass(type(told), dict):
                return told
        except BaseException as error:
            if is_control_flow(error):
                raise
    return described(value)


def _items(value: Any) -> list[tuple[Any, Any]]:
    try:
        return [(key, item) for key, item in value.items()]
    except BaseException as error:  # a subclass may do anything there
        if is_control_flow(error):
            raise
        return list(dict.items(value))


def _elements(value: Any) -> list[Any]:
    try:
        return list(value)
    except BaseException as error:
        if is_control_flow(error):
            raise
        base = list if issubclass(type(value), list) else tuple
        return list(base.__iter__(value))
