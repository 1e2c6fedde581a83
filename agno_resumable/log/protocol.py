"""The ``EventLog`` protocol. Its docstrings are the specification; ``agno_resumable.testing`` checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from typing_extensions import Self

from ..model import Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus

__all__ = ["Claim", "EventLog"]

Claim = tuple[str, int]
"""A run id and the generation under which a producer holds it."""


@runtime_checkable
class EventLog(Protocol):
    """Where events live: append-only, fenced, ordered.

    A log is an async context manager, entered once, and belongs to the event loop it was entered in. Every method
    may raise ``LogUnavailable`` when the store does not answer and ``LogClosed`` outside the context. Cancelling a
    call never corrupts the log, never loses another caller's events and never leaves a half-written batch: a
    cancelled write is stored wholly or not at all, and the caller does not learn which.

    Two calls that follow one another in one process see each other: an append that returned is in the next read.
    Another process sees it at once, or within its polling interval where it has read the run before.
    """

    @property
    def durability(self) -> Durability:
        """What an acknowledged append survives, read from the store's own settings at opening."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether the log is inside its context, in whichever event loop."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    async def create(self, run: NewRun, *, lease: float) -> Run:
        """Create a PENDING run at generation 1, held by the caller for ``lease`` seconds.

        Raises:
            RunExists: The run id is taken, or the owner has used the idempotency key; ``RunExists.run_id`` is the
                run that exists.
            RunIdInvalid: The run id could not stand in a URL or an SSE field.
            ValueError: A name is no valid Unicode.
        """
        ...

    async def get(self, run_id: str) -> Run:
        """Read the run with everything it carries, ``input``, ``metadata`` and ``transcript`` included.

        Raises:
            RunNotFound: There is no such run.
        """
        ...

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        """Take the run over: raise its generation, hold it for ``lease`` seconds, count an attempt.

        Without ``generation`` it is raised by one. With it, the run gets exactly that generation, which must be
        above the current one; of two that claim with the same generation only the first succeeds. The run becomes
        RUNNING if it was PAUSED, and a pending cancel request stays.

        With ``floor`` the next event gets at least that index. Where ``next_index`` is lower, what is stored is
        dropped and the run goes on at ``first_index == next_index == floor``: the indices between are never used,
        readers behind get a gap, and one whose cursor is ``floor - 1`` has missed nothing. A higher ``next_index``
        stays. It is for a producer that knows of indices from elsewhere, which the log has lost or never had.

        With ``reopen`` a run that ended in ERROR is taken up again: it is RUNNING, without the end, the transcript and
        the cancel request that it had. agno continues a run whose process was lost, under the same id.

        Raises:
            RunNotFound: There is no such run.
            RunFinished: Nothing may follow. COMPLETED and CANCELLED are for good.
            StaleGeneration: ``generation`` is not above the current one.
        """
        ...

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        """Store events and, with them in the same atomic step, a status; return the next index.

        The fence, the events, the status and the transcript are one atomic step. Events get the next dense indices
        in the order given; of two appends by one caller the first to be called is stored first. A finished status
        sets ``finished_at``; it and PAUSED end the lease. What is PAUSED becomes active again by ``claim``, which
        gives it a lease, and not by a status. An append without events or status is allowed and only
        checks the fence. A PENDING run that gets events becomes RUNNING.

        When the call returns, the events are as durable as ``durability`` says, and every reader can see them.
        A run that grew past the log's ``max_run_bytes`` loses its oldest events (``first_index`` moves).

        Raises:
            RunNotFound, RunFinished, StaleGeneration: Nothing was stored.
            EventTooLarge: One event is over the log's ``max_event_bytes``; nothing was stored.
            ValueError: An event's type or data could not stand in a frame; nothing was stored.
            LogUnavailable: ``outcome_unknown`` tells whether the events may have been stored all the same.
        """
        ...

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        """Read the run and up to ``limit`` events behind the cursor ``after``, of one consistent moment.

        The page begins at ``max(after + 1, run.first_index)`` and is dense. It stops at ``limit`` events, and before
        the event with which it would pass ``max_bytes`` of JSON, but never before its first. It is empty only when
        there is nothing behind the cursor: a page that is not empty may end before the run's last event for reasons
        of the log's own. The page's run comes without ``input``, ``metadata`` and ``transcript``; ``limit=0`` reads
        only the run. Of a run that this process does not append to, that is what the newest commit in any process
        left; of one that it does, what others do (a cancel request, a takeover) shows within the polling interval.

        Raises:
            RunNotFound: There is no such run.
        """
        ...

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        """Return when the run's ``version`` may have passed ``version``, when it is gone, or after ``timeout`` seconds.

        It may return early; a caller reads again. It never misses: a change committed in this process at any time
        after the version was read ends the wait, and a change of another process ends it within the log's polling
        interval.
        """
        ...

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        """Return True as soon as any process has requested a cancel of the run, False after ``timeout`` seconds.

        True also when the run does not exist (any more): a producer that asks has nothing left to produce for.
        """
        ...

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        """Extend the leases of all claims to ``lease`` seconds from now, in one round trip.

        Returns the run ids that are lost: gone, finished, or claimed by a later generation. A lease that ran out
        and was not taken over is extended like any other. A resting run has no lease and is reported lost.
        """
        ...

    async def request_cancel(self, run_id: str) -> Run:
        """Ask whoever produces the run to cancel it; return the run with ``cancel_requested_at`` set.

        Of several requests the first time stays. A finished run is returned unchanged.

        Raises:
            RunNotFound: There is no such run.
        """
        ...

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        """Tell every process that the run shall be cancelled wherever it is, for ``ttl`` seconds by the store's clock.

        The log need not know the run: it may belong to somebody else, or begin only later, and it need not have the
        form of a run id of this log. A later intent for the same run makes the time longer, never shorter. Intents
        have nothing to do with ``request_cancel``, and neither creates the other.

        Raises:
            RunIdInvalid: The id is empty, longer than 256 characters, or holds NUL or what is no Unicode.
        """
        ...

    async def drop_intent(self, run_id: str) -> None:
        """Take the intent for this run back; dropping what is not there is no error and changes nothing."""
        ...

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        """Read all live intents: at once if their version is not ``version``, else when it changes or at the timeout.

        The version is raised by every ``intend_cancel`` and by every ``drop_intent`` that removed one, and by nothing
        else: an intent whose time has run out leaves without a word, and is never returned. A call may return early,
        with the same version; the intents are in any case those of the moment at which it returns. It never misses:
        a change committed in this process since ``version`` was read ends the wait at once, and one of another
        process within the log's polling interval.

        Of more than ``limit`` those that live longest are read.
        """
        ...

    async def list(
        self,
        *,
        component_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
        before: float | None = None,
    ) -> Sequence[Run]:
        """Runs that fit every filter given, newest first, created before ``before``; at most ``limit``.

        The runs are listed without their ``input``, ``metadata`` and ``transcript``.
        """
        ...

    async def trim(self, run_id: str, *, before: int) -> None:
        """Drop events with an index under ``before``; readers behind it get a gap. Indices are never reused.

        ``before`` past the end drops all. A smaller one than the current first index changes nothing.

        Raises:
            RunNotFound: There is no such run.
        """
        ...

    async def delete(self, run_id: str) -> None:
        """Remove the run and its events; removing what is not there is no error. A producer gets ``RunNotFound``."""
        ...

    async def prune(self, *, finished_before: float) -> int:
        """Delete finished runs whose ``finished_at`` is before that time by the store's clock; return how many.

        Intents whose time has run out go too, and are not counted.
        """
        ...

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        """Claim every active run whose lease ran out, so that the caller finishes it; each goes to one caller only.

        The runs come back at their raised generation, held for ``lease`` seconds; if the caller dies too, they
        expire again. They come without ``input``, ``metadata``, ``options`` and ``transcript``.

        A run that has had fewer attempts than its ``max_attempts`` may be run again. For ``patience`` seconds from
        the end of its lease it is left to those who can do that: to callers whose ``serves`` names its component, as
        ``"<family>:<component_id>"``.
        """
        ...

    async def now(self) -> float:
        """The store's clock, in seconds since the epoch: what leases and retention are measured by."""
        ...

    def stats(self) -> Mapping[str, int]:
        """Counters of this process since opening: at least ``commits``, ``appends``, ``events`` and ``waiters``."""
        ...
