"""Waking those who wait for a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

import anyio

__all__ = ["Signals", "loop_caller"]

# The longest that an event loop is asked to wait; a wait may end early.
_LONGEST = 86_400.0


class Signals:
    """Waiters by key. ``set`` wakes all that wait at that moment; whoever comes later waits for the next."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[object, Callable[[], None]]] = {}

    @property
    def waiters(self) -> int:
        """How many tasks wait at this moment."""
        return sum(map(len, self._waiting.values()))

    @property
    def keys(self) -> Collection[str]:
        """What somebody waits for."""
        return self._waiting.keys()

    def set(self, key: str) -> None:
        """Wake all that wait for ``key``."""
        for wake in self._waiting.pop(key, {}).values():
            wake()

    def set_all(self) -> None:
        """Wake everybody: the log closes."""
        for key in list(self._waiting):
            self.set(key)

    async def wait(self, key: str, timeout: float, registered: Callable[[], object] | None = None) -> None:
        """Wait for ``set(key)``, at most ``timeout`` seconds. No await lies between the call and the registration.

        ``registered`` is called behind it: another thread that it wakes finds the waiter.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio
            await self._wait_anywhere(key, timeout, registered)
            return
        # A future and a timer, for a third of what an event in a cancel scope costs: each event costs each of its
        # readers one of them
        waiter = loop.create_future()

        def wake() -> None:
            if not waiter.done():  # by the other, or cancelled with its task
                waiter.set_result(None)

        self._waiting.setdefault(key, {})[waiter] = wake
        timer = loop.call_later(min(timeout, _LONGEST), wake)
        try:
            if registered is not None:
                registered()
            await waiter
        finally:
            timer.cancel()
            self._leave(key, waiter)

    async def _wait_anywhere(self, key: str, timeout: float, registered: Callable[[], object] | None) -> None:
        waiter = anyio.Event()
        self._waiting.setdefault(key, {})[waiter] = waiter.set
        try:
            if registered is not None:
                registered()
            with anyio.move_on_after(timeout):
                await waiter.wait()
        finally:
            self._leave(key, waiter)

    def _leave(self, key: str, waiter: object) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and waiting.pop(waiter, None) is not None and not waiting:
            del self._waiting[key]


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
