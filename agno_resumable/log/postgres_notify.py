"""Telling other processes what has changed, and hearing it from them: ids of runs on one channel, and nothing else.

A ``NOTIFY`` takes a lock of the whole database when it commits, so it never goes with an append: it follows, on a
connection of its own, for all that has changed since the last one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import anyio
import psycopg

from ..errors import LogUnavailable
from .postgres_link import Connection, Connector, discard, patience
from .postgres_values import fetch

__all__ = ["EVERYTHING", "INTENTS", "Listener", "Notifier", "payloads"]

EVERYTHING = "*"
"""Said instead of names where there are too many."""

INTENTS = "!"
"""Said when the cancel intents have changed. Neither word can be the id of a run."""

_PAYLOAD_BYTES = 7_999  # PostgreSQL takes less than 8,000
_PAYLOADS = 4
# Between two notifications more changes gather, the longer the more there are; the first after a pause goes at once.
_PACE, _CROWDED_PACE, _CROWD = 0.002, 0.01, 16
_RETRY = (0.05, 2.0)
_STATEMENT = 5.0  # how long one may take before its connection is given up

logger: logging.Logger = logging.getLogger("agno_resumable.log.postgres")


def payloads(words: Iterable[str]) -> list[str]:
    """The words in as few payloads as they fit, or ``EVERYTHING`` if those are too many."""
    filled: list[list[str]] = []
    room = -1
    for word in words:
        room -= len(word) + 1
        if room < 0:
            if len(filled) == _PAYLOADS:
                return [EVERYTHING]
            filled.append([])
            room = _PAYLOAD_BYTES - len(word)
        filled[-1].append(word)
    return [",".join(part) for part in filled]


async def _run(conn: Connection, statement: str, parameters: Sequence[object] = ()) -> None:
    with patience(conn, _STATEMENT):
        await fetch(conn, statement, parameters)


class Notifier:
    """Says what this process has changed.

    Args:
        connect: Opens its connection.
        channel: What others listen to.
        busy: See ``Tasks``: a statement is done to its end, as psycopg would ask the server to cancel what is over in a
            moment anyway.
    """

    def __init__(self, connect: Connector, channel: str, busy: Callable[[], AbstractContextManager[None]]) -> None:
        self.pid: int | None = None
        """The server process of its connection, by which a listener knows its own process's words."""
        self._connect = connect
        self._channel = channel
        self._busy = busy
        self._words: dict[str, None] = {}
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._failing = False

    def tell(self, words: Iterable[str]) -> None:
        """Say these words with the next notification."""
        if not self._words:
            self._more.set()
            self._idle.clear()
        if len(self._words) > 2_000:  # nobody takes them at this moment, and there will be too many to name
            self._words = {EVERYTHING: None}
        else:
            self._words.update(dict.fromkeys(words))

    async def drained(self, timeout: float = 0.5) -> None:
        """Wait until all is said, but not for long: others look for themselves too."""
        with anyio.move_on_after(timeout):
            await self._idle.wait()

    async def run(self) -> None:
        """Say what there is to say, until cancelled."""
        conn: Connection | None = None
        delay = _RETRY[0]
        try:
            while True:
                if not self._words:
                    self._idle.set()
                    self._more.clear()
                    await self._more.wait()
                words, self._words = self._words, {}
                try:
                    if conn is None:
                        conn = await self._connect()  # no job: a server that is away holds up nobody who closes
                        # what is told is stored already: nothing of this has to be on a disk
                        with self._busy():
                            await _run(conn, "SET synchronous_commit = off")
                        self.pid = conn.info.backend_pid
                    with self._busy():
                        for payload in payloads(words):
                            await _run(conn, "SELECT pg_notify(%s, %s)", (self._channel, payload))
                    delay = _RETRY[0]
                    self._failing = False
                    await anyio.sleep(_CROWDED_PACE if len(words) > _CROWD else _PACE)
                except (LogUnavailable, psycopg.Error) as error:
                    if not self._failing:
                        logger.warning(
                            "could not tell other processes of changes",
                            extra={"error_type": type(error.__cause__ or error).__name__},
                        )
                    self._failing = True
                    self._words = {EVERYTHING: None}
                    if conn is not None:
                        await discard(conn)
                        conn = None
                    await anyio.sleep(delay)
                    delay = min(delay * 2, _RETRY[1])
        finally:
            if conn is not None:
                await discard(conn)


class Listener:
    """Hears what other processes have changed.

    Args:
        connect: Opens its connection.
        channel: What to listen to.
        own: Whose words to leave out.
        heard: Called with the words of other processes.
        found: Called when the channel is listened to, from which moment on nothing is missed; also after each loss.
    """

    def __init__(
        self,
        connect: Connector,
        channel: str,
        own: Notifier,
        *,
        heard: Callable[[Sequence[str]], None],
        found: Callable[[], None],
    ) -> None:
        self.is_listening: bool = False
        self._connect = connect
        self._channel = channel
        self._own = own
        self._heard = heard
        self._found = found

    async def run(self) -> None:
        """Listen, until cancelled; a connection that is lost is made anew."""
        delay = _RETRY[0]
        failing = False
        while True:
            conn: Connection | None = None
            try:
                conn = await self._connect()
                with anyio.CancelScope(shield=True):
                    await _run(conn, f'LISTEN "{self._channel}"')
                self.is_listening = True
                self._found()
                delay = _RETRY[0]
                failing = False
                async for notification in conn.notifies():
                    if notification.pid != self._own.pid:
                        self._heard(notification.payload.split(","))
            except (LogUnavailable, psycopg.Error) as error:
                if not failing:
                    logger.warning(
                        "lost the connection that hears of changes; looking for them instead",
                        extra={"error_type": type(error.__cause__ or error).__name__},
                    )
                failing = True
            finally:
                self.is_listening = False
                if conn is not None:
                    await discard(conn)
            await anyio.sleep(delay)
            delay = min(delay * 2, _RETRY[1])
