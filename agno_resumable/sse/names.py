"""Event names: what may stand behind ``event:`` in a frame."""

from __future__ import annotations

from enum import Enum
from typing import Any

from .values import clean_text

__all__ = ["event_name", "known_names"]

_MAX_NAME = 200
known_names: set[str] = set()
"""Names that are known to be clean; not more than 1,024 of them."""


def event_name(value: Any) -> str:
    """The SSE name for an event's own: an Enum's value, ``message`` for what is no text, is empty or unreadable.

    What would end the line, or the line for some reader, and everything else that is not printable becomes U+FFFD.
    More than 200 characters are cut.
    """
    if type(value) is str:
        if value in known_names:
            return value
    elif issubclass(type(value), Enum):
        content = value._value_  # every Enum member has it, and no subclass computes it
        if not issubclass(type(content), str):
            return "message"
        value = str.__str__(content)
    elif issubclass(type(value), str):
        value = str.__str__(value)
    else:
        return "message"
    name: str = value
    if not value.isprintable():
        name = "".join([c if c.isprintable() else "\ufffd" for c in clean_text(value[:_MAX_NAME])])
    # A reader takes one space off the front, some take all.
    name = name[:_MAX_NAME].strip()
    if not name:
        return "message"
    if name == value and len(known_names) < 1024:
        known_names.add(name)
    return name
