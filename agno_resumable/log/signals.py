"""Waking those who wait for a run: one shared event per run and kind, made when somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

import anyio

__all__ = ["Signals", "loop_caller"]


class _Signal:
    __slots__ = ("event", "waiters")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.waiters = 0


class Signals:
    """Waiters by key. ``set`` wakes all that wait at that moment; whoever comes later waits for the next."""

    def __init__(self) -> None:
        self._signals: dict[str, _Signal] = {}

    @property
    def waiters(self) -> int:
        """How many tasks wait at this moment."""
        return sum(signal.waiters for signal in self._signals.values())

    @property
    def keys(self) -> Collection[str]:
        """What somebody waits for."""
        return self._signals.keys()

    def set(self, key: str) -> None:
        """Wake all that wait for ``key``."""
        signal = self._signals.pop(key, None)
        if signal is not None:
            signal.event.set()

    def set_all(self) -> None:
        """Wake everybody: the log closes."""
        for key in list(self._signals):
            self.set(key)

    async def wait(self, key: str, timeout: float, registered: Callable[[], object] | None = None) -> None:
        """Wait for ``set(key)``, at most ``timeout`` seconds. No await lies between the call and the registration.

        ``registered`` is called behind it: another thread that it wakes finds the waiter.
        """
        signal = self._signals.get(key)
        if signal is None:
            signal = self._signals[key] = _Signal()
        signal.waiters += 1
        if registered is not None:
            registered()
        try:
            with anyio.move_on_after(timeout):
                await signal.event.wait()
        finally:
            signal.waiters -= 1
            if not signal.waiters and self._signals.get(key) is signal:
                del self._signals[key]


def loop_caller() -> Callable[[Callable[[], object]], None]:
    """A function that has a callback run in the event loop of the caller, callable from any thread.

    It drops the callback without a word when that loop has ended: nobody is left to be told.
    """
    try:
        schedule: Callable[[Callable[[], object]], object] = asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # only on trio, which is then imported already

        schedule = trio.lowlevel.current_trio_token().run_sync_soon

    def call(callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # asyncio: the loop is closed; trio's RunFinishedError is a RuntimeError too
            schedule(callback)

    return call
