"""What is replaced, and how it is put back."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["HardeningWarning", "Places", "missing"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos.hardening")


class HardeningWarning(UserWarning):
    """Something of agno's is not where it was, and is left as it is."""


def missing(what: str) -> None:
    """Say that ``what`` could not be hardened: as a log record, and as a warning."""
    text = f"{what}; it is not hardened. A newer agno-resumable may know where it is."
    logger.warning("%s", text)
    warnings.warn(text, HardeningWarning, stacklevel=4)


class Places:
    """Attributes that were set, in their order, with what puts each of them back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module, a class or an object."""
        absent = object()
        before = vars(owner).get(name, absent)
        setattr(owner, name, value)

        def undo() -> None:
            if vars(owner).get(name, absent) is not value:
                return  # somebody else has set it since
            if before is absent:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(undo)

    def everywhere(self, original: Any, value: Any) -> None:
        """Put ``value`` wherever a loaded module of agno's holds the very object ``original``."""
        _exchange(original, value)
        # also in the modules that are loaded later and import it from where it is replaced
        self._undo.append(lambda: _exchange(value, original))

    def then(self, undo: Callable[[], None]) -> None:
        """Have ``undo`` called as well, in its turn."""
        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back, the last first."""
        while self._undo:
            self._undo.pop()()


def _exchange(old: Any, new: Any) -> None:
    for name, module in list(sys.modules.items()):
        if (name == "agno" or name.startswith("agno.")) and isinstance(module, ModuleType):
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)
