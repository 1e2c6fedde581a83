"""AgentOS on a log: its event stream, its cancellation, a bridge in front of it, and events that cannot break it.

``make_resumable(agent_os)`` is all of it in one line; each piece can be used alone.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; without the import of typing
if TYPE_CHECKING:
    from .bridge import AgentOSBridge
    from .cancellation import LogCancellationManager
    from .events import LogEventStream
    from .hardening import Hardening, harden
    from .install import make_resumable

__all__ = ["AgentOSBridge", "Hardening", "LogCancellationManager", "LogEventStream", "harden", "make_resumable"]

_MODULES = {
    "AgentOSBridge": ".bridge",
    "Hardening": ".hardening",
    "LogCancellationManager": ".cancellation",
    "LogEventStream": ".events",
    "harden": ".hardening",
    "make_resumable": ".install",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(module, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
