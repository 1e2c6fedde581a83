"""``LogCancellationManager``: agno's cancellation on a log, so that a run stops wherever it executes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from agno.exceptions import RunCancelledException
from agno.run.cancellation_management.base import BaseRunCancellationManager
from typing_extensions import Self

from ..attachment import Attachment
from ..errors import RunIdInvalid
from ..log.checks import check_intended
from ..log.protocol import EventLog
from ..supervisor import Policy
from .executing import Executing
from .hard_cancel import HardCancel
from .intent_link import IntentLink
from .intents import IntentBook
from .ownership import RUN_OF_REQUEST, request_owner

__all__ = ["LogCancellationManager"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")

_PATIENCE = 10.0  # seconds that a thread waits for the log


@runtime_checkable
class OpensLog(Protocol):
    """Whoever has a log and opens it, such as ``LogEventStream``."""

    async def log(self) -> EventLog: ...


class LogCancellationManager(BaseRunCancellationManager):
    """Cancels agno's runs in every process of a log: ``set_cancellation_manager(LogCancellationManager(log))``.

    A cancel is stored in the log, with a time to live, whether the log knows the run or not: inline runs, those with
    ``stream=false``, members of teams and runs that have yet to start are cancelled as well. Polls are answered from
    memory, which a watcher keeps up to date: at once for this process's cancels, within the log's polling interval
    for those of others. With a team or workflow its members are cancelled too.

    A run that does not poll, because its model or a tool is silent, is cancelled hard: ``grace`` seconds after its
    cancel was seen here, the task that has polled for it is cancelled, if it is still inside of this run. agno then
    stores the run as CANCELLED, but emits no terminal event: ``LogEventStream`` and ``AgentOSBridge`` add it. A
    thread cannot be cancelled: a synchronous tool runs on to its end while its run is over, and a synchronous run
    stops at its next poll.

    It works from its first use in a running event loop, and its watcher ends with that loop; as an async context
    manager it says at once if the log cannot be opened, and ends orderly.

    Args:
        log: A log, the URL of one (see ``open_log``), or a ``LogEventStream``, whose log is then used. What is not
            open yet is opened here.
        ttl: Seconds that a cancel is remembered for a run that does not end, such as one that never starts.
        grace: Seconds that a cancelled run has to end by itself before it is cancelled hard; ``None`` never does it.

    Raises:
        UnsupportedLogURL: The URL names no log.
    """

    def __init__(self, log: EventLog | str | OpensLog, *, ttl: float = 3600.0, grace: float | None = 1.0) -> None:
        self._attachment: Attachment | None = None
        if isinstance(log, OpensLog):
            self._open = log.log
        else:
            # Retention is the business of whoever stores runs: of two users of a log, the first one's policy holds.
            self._attachment = Attachment(log, Policy(retention=None))
            self._open = self._attachment.log
        self._ttl = ttl
        self._book = IntentBook(ttl)
        self._executing = Executing()
        self._hard = None if grace is None else HardCancel(self._executing, self.is_cancelled, grace)
        self._starting = threading.Lock()
        self._link: IntentLink | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"LogCancellationManager(runs={len(self._executing.runs)}, cancelled={len(self._book.live)})"

    # ---------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        self._closed = False
        if self._attachment is not None:
            await self._attachment.attend()
        await self._open()
        self._linked()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watcher and let go of the log. What this process knows by then still answers polls."""
        self._closed = True
        link, self._link = self._link, None
        if self._hard is not None:
            self._hard.stop()
        if link is not None and link.alive:
            await link.stop()
        if self._attachment is not None:
            await self._attachment.detach()

    def _linked(self) -> IntentLink | None:
        """The link to the log, started here if a loop runs and none works elsewhere."""
        link = self._link
        if (link is not None and link.alive) or self._closed:
            return link
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return None
        with self._starting:
            if self._link is None or not self._link.alive:
                self._link = IntentLink(self._book, self._open, ttl=self._ttl, seen=self._seen)
            return self._link

    # ---------------------------------------------------------------- runs of this process

    def register_run(self, run_id: str) -> None:
        """A run begins in this process; a cancel that came before it holds."""
        self._executing.register(run_id)
        owner = request_owner.get()
        if owner is not None and isinstance(owner.state, dict):
            owner.state.setdefault(RUN_OF_REQUEST, run_id)  # the outermost: its members come after it
        self._linked()

    async def aregister_run(self, run_id: str) -> None:
        """See ``register_run``."""
        self.register_run(run_id)

    def cleanup_run(self, run_id: str) -> None:
        """The run has ended in this process: it is forgotten, and so is its cancel, so that it may be continued."""
        link = self._forget(run_id)
        if link is not None:
            link.start_from_anywhere(lambda: link.drop(run_id))

    async def acleanup_run(self, run_id: str) -> None:
        """See ``cleanup_run``; returns when the log has been told, where it has to be and answers within a second."""
        link = self._forget(run_id)
        if link is not None:
            if link.loop is asyncio.get_running_loop():
                await asyncio.wait({link.start(link.drop(run_id))}, timeout=1.0)
            else:
                link.start_from_anywhere(lambda: link.drop(run_id))

    def _forget(self, run_id: str) -> IntentLink | None:
        """Forget the run; returns the link if the log has to be told."""
        self._executing.forget(run_id, cancelled=self.is_cancelled(run_id))
        link = self._linked()
        if not self._book.forget(run_id):
            return None
        if link is None:
            self._book.failed(run_id)
        return link

    # ---------------------------------------------------------------- polls

    def is_cancelled(self, run_id: str) -> bool:
        """Whether the run shall stop, as far as this process knows."""
        return run_id in self._book.live or run_id in self._executing.cascaded

    async def ais_cancelled(self, run_id: str) -> bool:
        """See ``is_cancelled``."""
        return self.is_cancelled(run_id)

    def was_cancelled(self, run_id: str) -> bool:
        """Whether the run shall stop, or has ended in this process after it was cancelled.

        The last few thousand are remembered, each until it is registered again.
        """
        return self.is_cancelled(run_id) or self._executing.has_ended_cancelled(run_id)

    def raise_if_cancelled(self, run_id: str) -> None:
        """Raise agno's ``RunCancelledException`` if the run shall stop; remember the task that asks."""
        run = self._executing.runs.get(run_id)
        task = None if run is None else self._executing.polls(run)
        if run_id in self._book.live or run_id in self._executing.cascaded:
            if run is not None and task is not None:
                run.stopped.add(task)
            raise RunCancelledException(f"Run {run_id} was cancelled")

    async def araise_if_cancelled(self, run_id: str) -> None:
        """See ``raise_if_cancelled``."""
        self.raise_if_cancelled(run_id)

    def get_active_runs(self) -> dict[str, bool]:
        """The runs that execute in this process, and all that were cancelled; and whether each was cancelled."""
        with self._executing.lock:
            running = list(self._executing.runs)
        return {run_id: self.is_cancelled(run_id) for run_id in running} | dict.fromkeys(self._book.live, True)

    async def aget_active_runs(self) -> dict[str, bool]:
        """See ``get_active_runs``."""
        return self.get_active_runs()

    # ---------------------------------------------------------------- members

    def register_member_run(self, team_run_id: str, member_run_id: str) -> None:
        """A member's run belongs to a run, and is cancelled with it."""
        self._executing.add_member(team_run_id, member_run_id)
        if self.is_cancelled(team_run_id):
            self._stop([team_run_id])

    async def aregister_member_run(self, team_run_id: str, member_run_id: str) -> None:
        """See ``register_member_run``."""
        self.register_member_run(team_run_id, member_run_id)

    def get_member_run_ids(self, team_run_id: str) -> set[str]:
        """The members of a run, as far as they were started in this process."""
        return self._executing.members_of(team_run_id)

    async def aget_member_run_ids(self, team_run_id: str) -> set[str]:
        """See ``get_member_run_ids``."""
        return self.get_member_run_ids(team_run_id)

    def cleanup_member_runs(self, team_run_id: str) -> None:
        """The run is over, and with it what its members were."""
        self._executing.drop_members(team_run_id)

    async def acleanup_member_runs(self, team_run_id: str) -> None:
        """See ``cleanup_member_runs``."""
        self.cleanup_member_runs(team_run_id)

    # ---------------------------------------------------------------- cancelling

    def cancel_run(self, run_id: str) -> bool:
        """Cancel the run wherever it executes; returns whether it is known to be active.

        In a thread it returns when the log has been told; in an event loop's own thread it cannot wait, and a
        failure only shows in the log. Where no event loop runs, the cancel is remembered in this process, and stored
        when one does.

        Raises:
            LogUnavailable: It was cancelled in this process, but the log could not be told yet.
        """
        here = run_id in self._executing.runs
        if not self._mark(run_id):
            return here
        link = self._linked()
        if link is None or not link.alive:
            self._book.failed(run_id)
            logger.warning("a cancelled run is only known to this process yet", extra={"run_id": run_id})
            return here
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return link.call_from_thread(link.intend(run_id, runs_here=here), _PATIENCE) or here
        link.start_from_anywhere(lambda: link.intend(run_id, runs_here=here))
        return here

    async def acancel_run(self, run_id: str) -> bool:
        """Cancel the run wherever it executes; returns whether it is known to be active.

        Raises:
            LogUnavailable: It was cancelled in this process, but the log could not be told yet.
        """
        here = run_id in self._executing.runs
        if not self._mark(run_id):
            return here
        link = self._linked()
        if link is None:  # closed: the process is at its end
            return here
        return await link.call(link.intend(run_id, runs_here=here)) or here

    def _mark(self, run_id: str) -> bool:
        """Cancel the run in this process; returns whether the log has to be told."""
        if run_id in self._executing.cascaded and run_id in self._executing.runs:
            return False  # a member that executes here, and was cancelled with its team
        try:
            check_intended(run_id)
        except RunIdInvalid:
            logger.debug("no run can have the id that was cancelled")
            return False
        self._book.mark(run_id)
        self._stop([run_id])
        return True

    def _seen(self, run_ids: Sequence[str]) -> None:
        """Another process has cancelled these runs."""
        self._stop(run_ids)

    def _stop(self, run_ids: Sequence[str]) -> None:
        """Cancel the members of these runs too, and see to it that what executes here ends."""
        executing = self._executing.cascade(run_ids)
        if executing and self._hard is not None:
            link = self._linked()
            if link is not None and link.alive:
                for run_id in executing:
                    link.loop.call_soon_threadsafe(self._hard.watch, run_id)
