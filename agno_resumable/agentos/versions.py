"""Which agno is installed, and what needs which."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from ..errors import AgnoUnsupported

__all__ = ["agno_version", "require_agno"]


def agno_version() -> tuple[int, int, int]:
    """The version of the agno that is installed, as far as it is numbers: ``(3, 1, 10)``.

    Raises:
        AgnoUnsupported: There is none.
    """
    try:
        installed = version("agno")
    except PackageNotFoundError:
        raise AgnoUnsupported("agno is not installed: pip install 'agno[os]'.") from None
    numbers = [int(number) for number in re.findall(r"\d+", installed)[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def require_agno(needed: tuple[int, int], what: str) -> None:
    """Raise ``AgnoUnsupported`` if the installed agno is older than ``what`` needs."""
    installed = agno_version()
    if installed[:2] < needed:
        raise AgnoUnsupported(
            f"{what} needs agno {needed[0]}.{needed[1]} or newer, and {'.'.join(map(str, installed))} is installed: "
            f"pip install 'agno>={needed[0]}.{needed[1]}'. What older ones have no place for: see docs/agentos.md."
        )
