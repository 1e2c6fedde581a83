"""Clients behind the balancer: each starts a run, reads it over as many connections as it takes, and starts the next.

They know one address and nothing of replicas. What they do about a failure is what ``docs/replicas.md`` asks of a
client: come back with ``Last-Event-ID``, and repeat a POST with its ``Idempotency-Key``.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

from ..faults.checker import History
from ..faults.support import Connection, Reader
from .app import PATH, talk

__all__ = ["Crowd", "Kind", "Story"]

Kind = Literal["long", "short", "cancelled"]
"""A run that goes on until the kills are over, one that is soon over, and one that goes on until it is cancelled."""

# What a balancer says while it finds nobody behind it, and a replica that is about to stop
_COME_AGAIN = frozenset({502, 503, 504})
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass
class Story:
    """One run, and the client that reads it."""

    client: int
    kind: Kind
    message: str
    reader: Reader
    done: bool = False
    """Whether the client was told that nothing is left."""
    left: bool = False
    """Whether it reads no more."""

    @property
    def run_id(self) -> str:
        return self.reader.history.run_id

    @property
    def history(self) -> History:
        return self.reader.history


@dataclass
class Crowd:
    """All clients of a test, and what happened to them.

    Args:
        port: The balancer's.
        directory: Where the gates are.
        seed: Of all that is chosen.
        words, pause: How long a long run speaks before it waits for the end of the kills.
    """

    port: int
    directory: Path
    seed: int
    words: int = 60
    pause: float = 0.1
    stories: list[Story] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    over: bool = False

    def reading(self) -> int:
        """How many clients have had something to read."""
        return len({story.client for story in self.stories if story.history.events})

    def finish(self) -> None:
        """The kills are over: long runs may end, and nobody starts another."""
        self.over = True
        self._gate.touch()

    @property
    def _gate(self) -> Path:
        return self.directory / "over"

    async def client(self, number: int) -> None:
        """One client: of four, two have a long run, one has short ones, and one has its runs cancelled."""
        chosen = random.Random(f"{self.seed} {number}")
        while not self.over:
            kind: Kind = ("long", "long", "short", "cancelled")[number % 4]
            story = await self._start(number, kind, chosen)
            if kind == "cancelled":
                await asyncio.gather(self._cancel(story, chosen), self._read(story, chosen))
            else:
                await self._read(story, chosen)
            await asyncio.sleep(chosen.uniform(0.0, 1.0))

    async def _start(self, number: int, kind: Kind, chosen: random.Random) -> Story:
        message = {
            "long": talk(self.words, self.pause * chosen.uniform(0.5, 2.0), self._gate),
            "short": talk(chosen.randrange(5, 40), 0.05),
            "cancelled": talk(self.words, self.pause, self.directory / "never"),
        }[kind]
        streaming = chosen.random() < 0.5  # by the POST whose answer is the stream, or in the background
        fields = {"message": message} if streaming else {"message": message, "stream": "false", "background": "true"}
        headers = {"Idempotency-Key": f"{number} {chosen.random()}"}
        while True:
            connection = await self._post("/runs", fields, headers)
            run_id = connection.answer.headers["x-run-id"]
            story = Story(number, kind, message, Reader(History(run_id), "agent"))
            if not streaming:
                body = b"".join([chunk async for chunk in connection.body()])
                if not connection.answer.clean:
                    continue
                if json.loads(body)["run_id"] != run_id:
                    self.violations.append(f"{run_id}: its start was answered by {body!r}")
            else:
                story.reader.connection = connection
            self.stories.append(story)
            return story

    async def _read(self, story: Story, chosen: random.Random) -> None:
        """Read what the start has answered, if that was a stream, and come back until nothing is left."""
        reader = story.reader
        try:
            if reader.connection is not None:
                await reader.receive()
                self.counts["streams by POST"] += 1
                if reader.clean and not reader.history.ended:
                    # To a client that posts, a clean end says that this was all
                    self.violations.append(f"{story.run_id}: a POST ended cleanly, at {reader.history.cursor}")
            while not story.done and await self._come_back(story):
                if not reader.history.ended:
                    await asyncio.sleep(chosen.uniform(0.02, 0.4))
        finally:
            story.left = True
            reader.progress.set()

    async def _come_back(self, story: Story) -> bool:
        """One connection with the cursor; returns whether there may be another."""
        try:
            status = await story.reader.get(self.port)
        except OSError:
            self.counts["refused"] += 1
            return True
        if status == 200:
            assert story.reader.connection is not None
            if "content-length" in story.reader.connection.answer.headers:
                self.counts["told by nginx to come again"] += 1
            else:
                self.counts["reconnects"] += len(story.reader.statuses) > 1
            return True
        if status == 204:  # also where the end was told: a client that has not understood it gets this
            story.done = True
        elif status not in _COME_AGAIN:
            self.violations.append(f"{story.run_id}: a reader got {status}")
            return False
        return True

    async def _cancel(self, story: Story, chosen: random.Random) -> None:
        wanted = chosen.randrange(0, self.words // 2)  # it says no more than its words
        while story.history.cursor < wanted and not story.left:
            story.reader.progress.clear()
            await story.reader.progress.wait()
        while not story.left:
            connection = await self._post(f"/runs/{story.run_id}/cancel", {}, {})
            body = b"".join([chunk async for chunk in connection.body()])
            if connection.answer.clean:
                self.counts["cancels"] += 1
                run = json.loads(body)
                if run["cancel_requested_at"] is None and run["finished_at"] is None:
                    self.violations.append(f"{story.run_id}: a cancel was answered by {body!r}")
                return

    async def _post(self, path: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> Connection:
        """Post until it is answered; the body of the answer is still to be read."""
        body = urlencode(fields).encode()
        while True:
            try:
                connection = await Connection.open(
                    self.port, "POST", PATH + path, headers={**_FORM, **headers}, body=body
                )
            except OSError:
                self.counts["refused"] += 1
            else:
                if connection.answer.status in (200, 202):
                    return connection
                connection.close()
                if connection.answer.status not in _COME_AGAIN:
                    self.violations.append(f"POST {path} got {connection.answer.status}")
                    raise AssertionError(self.violations[-1])
            await asyncio.sleep(0.2)
