"""From the URL that an application has for its database to what libpq takes."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from ..errors import UnsupportedLogURL

__all__ = ["split_url"]

_SCHEMES = ("postgres", "postgresql")

# What SQLAlchemy gives its drivers and libpq does not know. asyncpg has a word of its own for sslmode.
_OF_OTHER_DRIVERS = frozenset(
    {"async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func", "statement_cache_size"}
)
_SSL = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
_NAMES = ("schema", "prefix")
_FLAGS = ("create", "listen", "prepare")


def split_url(url: str) -> tuple[str, dict[str, Any]]:
    """The URL as libpq reads it, and the options that are this library's: schema, prefix, create, listen, prepare.

    ``postgresql+psycopg://``, ``postgresql+asyncpg://``, ``postgresql+psycopg2://`` and ``postgres://`` are the same
    as ``postgresql://``: a log has its own driver.

    Raises:
        UnsupportedLogURL: It is no URL of PostgreSQL, or an option is neither on nor off. Passwords are not repeated.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UnsupportedLogURL("This is no URL: write 'postgresql://user:password@host/database'.") from None
    if parts.scheme.partition("+")[0] not in _SCHEMES:
        raise UnsupportedLogURL("A PostgreSQL log takes a URL such as 'postgresql://user:password@host/database'.")
    own: dict[str, Any] = {}
    theirs: list[tuple[str, str]] = []
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key in _NAMES:
            own[key] = value or (None if key == "schema" else "")
        elif key in _FLAGS:
            own[key] = _flag(key, value)
        elif key == "ssl":
            theirs.append(("sslmode", _SSL.get(value.lower(), value)))
        elif key not in _OF_OTHER_DRIVERS:
            theirs.append((key, value))
    query = urlencode(theirs, quote_via=quote)
    where = f"{parts.netloc}{parts.path}".replace(" ", "%20")  # SQLAlchemy leaves it in a password
    return f"postgresql://{where}{'?' + query if query else ''}", own


def _flag(name: str, value: str) -> bool:
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off"):
        return False
    raise UnsupportedLogURL(f"Write {name}=true or {name}=false in the URL, not {name}={value[:80]!r}.")
