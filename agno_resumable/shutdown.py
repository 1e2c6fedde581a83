"""Drain: the time between the stop signal and the end of the process.

Servers end open streams late or never: uvicorn waits for them for ever, or cancels them after the lifespan's
shutdown. So the stop signals are heard here, in front of the server's own handlers, which are called as before; only
that a SIGTERM waits for active runs where no lifespan would. A server without one ends its process as soon as the last
connection is closed (uvicorn by raising the signal once more, behind which no code runs).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from anyio.lowlevel import RunVar

from .log.signals import loop_caller

__all__ = ["Drain", "current_drain", "drain"]

Handler = Callable[[int, FrameType | None], Any] | int | None


class Drain:
    """The drain of one event loop: it begins once, and tells everybody who asked to be told."""

    def __init__(self) -> None:
        self.begun: bool = False
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._chained: dict[int, tuple[Handler, Handler]] = {}
        self._delays: dict[object, Callable[[bool], bool]] = {}
        self._terminated = False
        self._delayed: list[tuple[bool, Callable[[], object]]] = []
        self._limits: list[threading.Timer] = []
        self.longest_delay: float = 10.0
        """Seconds after which a delayed signal passes whatever is still to be done; raised by who needs longer."""
        self._call = loop_caller()

    def begin(self) -> None:
        """Begin: streams say goodbye, runs get their grace. In the event loop; again is no error."""
        if self.begun:
            return
        self.begun = True
        for callback in list(self._callbacks.values()):
            callback()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called when the drain begins; returns what takes that back."""
        token = object()
        self._callbacks[token] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(token, None)

        return unsubscribe

    def delay(self, needed: Callable[[bool], bool]) -> Callable[[], None]:
        """Keep the first SIGTERM from whoever heard it before, until ``settle`` is called and ``needed`` says no more.

        ``needed`` is given whether nobody heard it before, so that handing it on ends the process at once. It is asked
        inside a signal handler. Returns what takes the delay back.
        """
        token = object()
        self._delays[token] = needed

        def withdraw() -> None:
            self._delays.pop(token, None)
            self.settle()

        return withdraw

    def settle(self) -> None:
        """What delayed a signal may be over: hand on what nothing delays any more."""
        delayed, self._delayed = self._delayed, []
        for fatal, hand_on in delayed:
            if self._is_delayed(fatal):
                self._delayed.append((fatal, hand_on))
            else:
                self._call(hand_on)  # outside of any task: it may raise KeyboardInterrupt or SystemExit
        while self._limits and not self._delayed:
            self._limits.pop().cancel()

    def _is_delayed(self, fatal: bool) -> bool:
        return any(needed(fatal) for needed in list(self._delays.values()))

    def listen(self) -> None:
        """Hear SIGTERM and SIGINT, and hand them on to whoever heard them before. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            earlier = signal.getsignal(number)
            known = self._chained.get(number)
            if earlier is None or (known is not None and earlier is known[0]):
                continue  # not from Python, so it cannot be handed on; or heard already
            handler = self._handler(earlier)
            signal.signal(number, handler)
            self._chained[number] = (handler, earlier)

    def unlisten(self) -> None:
        """Give the signals back, where nobody has taken them in between."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, (handler, earlier) in self._chained.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, earlier)
        self._chained.clear()
        while self._limits:
            self._limits.pop().cancel()

    def _limit_delay(self, number: int) -> None:
        """Send the signal again when the delay has lasted too long: an event loop that is blocked settles nothing."""

        def insist() -> None:
            chained = self._chained.get(number)
            if self._delayed and chained is not None and signal.getsignal(number) is chained[0]:
                os.kill(os.getpid(), number)

        timer = threading.Timer(self.longest_delay, insist)
        timer.daemon = True
        timer.start()
        self._limits.append(timer)

    def _handler(self, earlier: Handler) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self._call(self.begin)

            def hand_on() -> None:
                if callable(earlier):
                    earlier(number, frame)
                elif earlier == signal.SIG_DFL:
                    signal.signal(number, signal.SIG_DFL)
                    signal.raise_signal(number)

            # Only the first, so that a second signal gets through whatever happens; and not SIGINT, whose sender waits
            fatal = earlier == signal.SIG_DFL
            if number == signal.SIGTERM and not self._terminated and self._is_delayed(fatal):
                self._delayed.append((fatal, hand_on))
                self._limit_delay(number)
            else:
                hand_on()
            self._terminated = self._terminated or number == signal.SIGTERM

        return handle


_drain: RunVar[Drain] = RunVar("agno_resumable_drain")


def current_drain() -> Drain:
    """The drain of the running event loop."""
    try:
        return _drain.get()
    except LookupError:
        begun = Drain()
        _drain.set(begun)
        return begun


def drain() -> None:
    """Begin the drain of this event loop by hand: for a server that hears no signal, or a rolling restart of one's own.

    Every open stream ends with a ``disconnecting`` frame, new runs are refused, and the active ones get their grace.
    """
    current_drain().begin()
