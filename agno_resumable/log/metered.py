"""A log that tells an observer of each call: for the metrics of whoever runs it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import NamedTuple, TypeVar

from typing_extensions import ParamSpec, Self

from ..model import Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus
from .protocol import Claim, EventLog

__all__ = ["LogCall", "MeteredEventLog"]

P = ParamSpec("P")
T = TypeVar("T")

logger: logging.Logger = logging.getLogger("agno_resumable.log")


class LogCall(NamedTuple):
    """One call of a log, over."""

    operation: str
    """The method's name, such as ``"append"``; ``"open"`` and ``"close"`` for the context."""
    seconds: float
    """From the call to its end. ``wait``, ``wait_cancel`` and ``intents`` wait on purpose, for what is yet to come."""
    events: int = 0
    """What an ``append`` has stored, or a ``read`` has found; 0 where it failed."""
    size: int = 0
    """The JSON of these events, in bytes."""
    error: type[BaseException] | None = None
    """What the call raised. What is no ``Exception`` is the event loop's cancellation, and not a failure."""


class MeteredEventLog:
    """An ``EventLog`` that hands every call on to another, and tells an observer when it is over.

    In everything else it is the log that it is given: it is opened and closed with it, and has its ``stats()``.
    Use it wherever that log would be used, and not beside it: calls of the inner log are not told.

    Args:
        log: The log.
        observer: Called in the event loop behind each call, in the order in which they end, before the caller goes on:
            it has to be quick, and cannot be asynchronous. What it raises is logged the first time, and nobody else
            is told of it.
    """

    def __init__(self, log: EventLog, observer: Callable[[LogCall], None]) -> None:
        self.inner: EventLog = log
        """The log, for what only its backend has."""
        self._observer = observer
        self._observer_failed = False

    def __repr__(self) -> str:
        return f"MeteredEventLog({self.inner!r})"

    @property
    def durability(self) -> Durability:
        return self.inner.durability

    @property
    def is_open(self) -> bool:
        return self.inner.is_open

    def stats(self) -> Mapping[str, int]:
        """Those of the log."""
        return self.inner.stats()

    def _tell(self, call: LogCall) -> None:
        try:
            self._observer(call)
        except Exception:  # metrics are worth less than events
            if not self._observer_failed:
                logger.exception("the observer of a log failed; it is called on, and this is not logged again")
            self._observer_failed = True

    async def _observed(
        self, operation: str, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        start = perf_counter()
        try:
            result = await call(*args, **kwargs)
        except BaseException as error:  # a cancellation too: the call is over
            self._tell(LogCall(operation, perf_counter() - start, error=type(error)))
            raise
        self._tell(LogCall(operation, perf_counter() - start))
        return result

    async def __aenter__(self) -> Self:
        await self._observed("open", self.inner.__aenter__)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._observed("close", self.inner.__aexit__, exc_type, exc, tb)

    # ---------------------------------------------------------------- events

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        start = perf_counter()
        try:
            index = await self.inner.append(run_id, generation, events, status=status, transcript=transcript)
        except BaseException as error:
            self._tell(LogCall("append", perf_counter() - start, error=type(error)))
            raise
        seconds = perf_counter() - start
        # counted only now, when the log has found that they are what they should be
        self._tell(LogCall("append", seconds, len(events), sum([len(data) for _, data in events])))
        return index

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        start = perf_counter()
        try:
            page = await self.inner.read(run_id, after, limit=limit, max_bytes=max_bytes)
        except BaseException as error:
            self._tell(LogCall("read", perf_counter() - start, error=type(error)))
            raise
        seconds = perf_counter() - start
        events = size = 0
        for batch in page.batches:
            events += len(batch)
            size += batch.size
        self._tell(LogCall("read", seconds, events, size))
        return page

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        await self._observed("wait", self.inner.wait, run_id, version, timeout=timeout)

    async def trim(self, run_id: str, *, before: int) -> None:
        await self._observed("trim", self.inner.trim, run_id, before=before)

    # ---------------------------------------------------------------- runs

    async def create(self, run: NewRun, *, lease: float) -> Run:
        return await self._observed("create", self.inner.create, run, lease=lease)

    async def get(self, run_id: str) -> Run:
        return await self._observed("get", self.inner.get, run_id)

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        return await self._observed(
            "claim", self.inner.claim, run_id, lease=lease, generation=generation, floor=floor, reopen=reopen
        )

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        return await self._observed("renew", self.inner.renew, claims, lease=lease)

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        return await self._observed("expire", self.inner.expire, lease=lease, serves=serves, patience=patience)

    async def delete(self, run_id: str) -> None:
        await self._observed("delete", self.inner.delete, run_id)

    async def prune(self, *, finished_before: float) -> int:
        return await self._observed("prune", self.inner.prune, finished_before=finished_before)

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
        return await self._observed(
            "list",
            self.inner.list,
            component_id=component_id,
            session_id=session_id,
            user_id=user_id,
            status=status,
            limit=limit,
            before=before,
        )

    async def now(self) -> float:
        return await self._observed("now", self.inner.now)

    # ---------------------------------------------------------------- cancelling

    async def request_cancel(self, run_id: str) -> Run:
        return await self._observed("request_cancel", self.inner.request_cancel, run_id)

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        return await self._observed("wait_cancel", self.inner.wait_cancel, run_id, timeout=timeout)

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        await self._observed("intend_cancel", self.inner.intend_cancel, run_id, ttl=ttl)

    async def drop_intent(self, run_id: str) -> None:
        await self._observed("drop_intent", self.inner.drop_intent, run_id)

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        return await self._observed("intents", self.inner.intents, version, timeout=timeout, limit=limit)
