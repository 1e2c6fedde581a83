"""All records of one cycle, and what a test has to know of them to choose its moment."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from .records import (
    Acknowledged,
    Began,
    Delivered,
    Doubted,
    Ended,
    Failed,
    Finished,
    Held,
    Lost,
    Missed,
    Opened,
    Record,
    Refused,
    Rested,
    Said,
)

__all__ = ["Journal", "Stuck"]


class Stuck(Exception):
    """What a test waited for has not come."""


class Journal:
    """Keeps records, and wakes whoever waits for one.

    Args:
        patience: How long, in seconds, anything may take. A machine may be as slow as it likes below that.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._changed = anyio.Event()
        self.clear()

    def clear(self) -> None:
        """Begin the next cycle."""
        self.records: list[Record] = []
        self.next_index: dict[str, int] = {}
        """By run: behind the last event that a writer was told to be stored."""
        self.generation: dict[str, int] = {}
        """By run: the highest that anybody was given."""
        self.producing: set[tuple[str, str, int]] = set()
        """Worker, run and generation of each production that goes on."""
        self.cursors: dict[str, int] = {}
        """By line: what the client would come back with."""
        self.ended: set[str] = set()
        """The lines that were told the end."""
        self.rested: set[str] = set()
        """The lines that were told of a pause."""
        self.troubles: dict[str, int] = {}
        """By run: how many appends were refused or in doubt."""
        self.said: dict[tuple[str, str], int] = {}
        """By worker and word: how often it has answered so."""
        self._failed = False

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)
        if isinstance(record, Acknowledged):
            behind = record.first + len(record.events)
            self.next_index[record.run] = max(behind, self.next_index.get(record.run, 0))
        elif isinstance(record, Held):
            self.generation[record.run] = max(record.generation, self.generation.get(record.run, 0))
        elif isinstance(record, Began):
            self.producing.add((record.worker, record.run, record.generation))
        elif isinstance(record, (Lost, Finished)):
            self.producing.discard((record.worker, record.run, record.generation))
        elif isinstance(record, Opened):
            self.cursors[record.line] = record.after
        elif isinstance(record, Delivered) and record.frames:
            self.cursors[record.line] = record.frames[-1][0]
        elif isinstance(record, Missed):
            self.cursors[record.line] = record.first_available - 1
        elif isinstance(record, Rested):
            self.rested.add(record.line)
        elif isinstance(record, Ended):
            self.ended.add(record.line)
        elif isinstance(record, (Doubted, Refused)):
            self.troubles[record.run] = self.troubles.get(record.run, 0) + 1
        elif isinstance(record, Said):
            self.said[record.worker, record.what] = self.said.get((record.worker, record.what), 0) + 1
        elif isinstance(record, Failed):
            self._failed = True
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def forget(self, worker: str) -> None:
        """The worker is dead, and will not say how its productions ended."""
        self.producing = {each for each in self.producing if each[0] != worker}

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition is true.

        Raises:
            Stuck: It has not come about within the patience, or a worker has failed.
        """
        with anyio.move_on_after(self._patience):
            while not condition():
                if self._failed:
                    raise Stuck(f"a worker failed before {what}")
                await self._changed.wait()
            return
        raise Stuck(f"waited {self._patience} s until {what}")
