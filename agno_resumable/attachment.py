"""How a part of an application comes to the log, and to what looks after its runs."""

from __future__ import annotations

import anyio

from .log.open import open_log
from .log.protocol import EventLog
from .shutdown import current_drain
from .supervisor import Policy, Supervisor

__all__ = ["Attachment"]


class Attachment:
    """One user of a log in this process.

    Args:
        log: A log, or the URL of one. What is not open yet is opened with the first use and closed with the last
            ``detach`` of all that share it.
        policy: How runs are looked after, where this is the first user of the log in the process.

    Raises:
        ValueError: The URL names no log.
    """

    def __init__(self, log: EventLog | str, policy: Policy) -> None:
        if isinstance(log, str):
            opened = open_log(log)  # a bad URL is told here and not at the first request
            log = opened if log.startswith("memory") else log  # by its URL all parts of the process share it
        self._log = log
        self.policy: Policy = policy
        self._supervisor: Supervisor | None = None
        self._attends = False
        self._starting: anyio.Lock | None = None

    async def supervisor(self) -> Supervisor:
        """The owner of the tasks, started at the first call.

        Raises:
            LogUnavailable: The log could not be opened.
        """
        if self._supervisor is None or self._supervisor.ended:
            self._starting = self._starting or anyio.Lock()
            async with self._starting:
                if self._supervisor is None or self._supervisor.ended:
                    self._supervisor = await Supervisor.acquire(self._log, self.policy)
        return self._supervisor

    @property
    def active(self) -> int:
        """How many runs are produced beside this log in this process; 0 before the first use."""
        return 0 if self._supervisor is None or self._supervisor.ended else self._supervisor.active

    async def log(self) -> EventLog:
        """The log, open."""
        return (await self.supervisor()).log

    async def attend(self) -> None:
        """Attach for as long as the server lives: whoever calls this will detach when it stops."""
        supervisor = await self.supervisor()
        supervisor.attend()
        self._attends = True
        current_drain().listen()

    async def detach(self) -> None:
        """Give the active runs of this process their grace, where this was the last user, and close what was opened."""
        supervisor, self._supervisor = self._supervisor, None
        attends, self._attends = self._attends, False
        if supervisor is not None:
            await supervisor.release(attending=attends)
