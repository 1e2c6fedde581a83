"""The log in PostgreSQL, shared by every process that reaches the database: any replica, any crash.

One statement at a time commits what all runs of the process have appended in the meantime (group commit), and reads
that come together go together. psycopg 3 drives it, on asyncio: ``pip install 'agno-resumable[postgres]'``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from ..errors import LogClosed, LogUnavailable, RunNotFound
from ..model import Durability, EncodedEvent, Intents, NewRun, Page, Run, RunStatus
from .checks import MAX_EVENT_BYTES, MAX_RUN_BYTES, check_events, check_intended, check_new_run
from .postgres_url import split_url
from .protocol import Claim
from .watch import cancel_seen

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from .postgres_session import PostgresSession

__all__ = ["PostgresEventLog"]


class PostgresEventLog:
    """An ``EventLog`` in PostgreSQL 13 or newer.

    Args:
        database: A URL, with SQLAlchemy's ``+driver`` or without, or a ``psycopg_pool.AsyncConnectionPool`` that is
            open while the log is, and stays its owner's to close. With a URL the log opens up to ``connections`` + 2
            connections, with a pool only the two that listen and that notify. The URL's query may also give
            ``schema``, ``prefix``, ``create``, ``listen`` and ``prepare``, which then go before the arguments.
        schema: Where the tables are; ``None`` for wherever the role's ``search_path`` leads.
        prefix: What the names of the tables begin with.
        create: Make the tables where they are missing, and bring those of an older version up to date. Without it,
            or for a role that may not, ``agno-resumable migrate`` does it.
        listen: Hear of other processes' commits by LISTEN and tell them by NOTIFY. Without it (behind PgBouncer in
            transaction mode) they are looked for every ``poll_interval``.
        prepare: Use prepared statements. Not behind a PgBouncer that does not know them.
        connections: How many statements may be under way at the same time, one of them a write.
        poll_interval: How often, in seconds, the commits of other processes are looked for while nobody tells of
            them.
        timeout: How long, in seconds, one statement may take before its connection is given up.
        max_run_bytes: The JSON of one run's events, in bytes, beyond which the oldest are trimmed.
        max_event_bytes: The JSON of the largest single event, in bytes.
        hot_bytes: The JSON of the newest events that is kept in memory for local readers, in bytes.

    Raises:
        LogUnavailable: psycopg is not installed.
        UnsupportedLogURL: ``database`` is no URL of PostgreSQL.
        ValueError: A schema or a prefix that could not stand in a statement.
    """

    def __init__(
        self,
        database: str | AsyncConnectionPool[Any],
        *,
        schema: str | None = "agno_resumable",
        prefix: str = "",
        create: bool = True,
        listen: bool = True,
        prepare: bool = True,
        connections: int = 4,
        poll_interval: float = 0.05,
        timeout: float = 30.0,
        max_run_bytes: int = MAX_RUN_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
        hot_bytes: int = 67_108_864,
    ) -> None:
        try:
            from .postgres_open import Opening
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("agno_resumable"):
                raise
            raise LogUnavailable(
                f"A PostgreSQL log needs psycopg ({error}): pip install 'agno-resumable[postgres]'"
            ) from error
        if connections < 2:
            raise ValueError("A PostgreSQL log needs two connections at least: one writes and one reads.")
        named: dict[str, Any] = {}
        if isinstance(database, str):
            database, named = split_url(database)
        told: dict[str, Any] = {"schema": schema, "prefix": prefix, "create": create, "listen": listen}
        self._opening = Opening(
            database,
            **{**told, "prepare": prepare, **named},
            connections=connections,
            poll_interval=poll_interval,
            timeout=timeout,
            hot_bytes=hot_bytes,
            max_run_bytes=max_run_bytes,
        )
        self._max_event_bytes = max_event_bytes
        self._opened: PostgresSession | None = None
        self._entering = False

    def __repr__(self) -> str:
        return f"PostgresEventLog({self._opening.where!r})"

    @property
    def durability(self) -> Durability:
        """What an acknowledged append survives, by the server's ``synchronous_commit`` and ``fsync``.

        With ``synchronous_commit`` off, a crash of the database server may take the newest events too.
        """
        return self._session.durability

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def is_listening(self) -> bool:
        """Whether changes by other processes are told to this one now; otherwise it looks for them."""
        return self._opened is not None and self._opened.is_listening

    @property
    def _session(self) -> PostgresSession:
        if self._opened is None:
            raise LogClosed
        return self._opened

    async def migrate(self, *, grant: str | None = None) -> tuple[int, int]:
        """Make the tables or bring them up to date, without opening the log; return the versions before and after.

        Args:
            grant: A role that shall be able to use the log without owning its tables.

        Raises:
            LogUnavailable, SchemaTooNew: They could not be; the message says what is missing.
        """
        return await self._opening.migrate(grant)

    def migration(self, *, grant: str | None = None) -> str:
        """The SQL that makes the tables in a database where there are none, in one transaction."""
        return self._opening.migration(grant)

    async def __aenter__(self) -> Self:
        if self._opened is not None or self._entering:
            raise LogClosed("This log is open already: enter it once and share it.")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise LogUnavailable("PostgresEventLog works on asyncio only, as its driver does.") from None
        self._entering = True
        try:
            self._opened = await self._opening.open()
        finally:
            self._entering = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        session, self._opened = self._opened, None  # from here on every call raises LogClosed
        if session is not None:
            await session.close()

    def stats(self) -> Mapping[str, int]:
        """See ``EventLog.stats``; also ``hot_bytes``, the JSON held in memory, and ``listening``, 1 or 0."""
        session = self._opened
        return {
            "commits": session.commits.commits if session else 0,
            "appends": session.appends if session else 0,
            "events": session.events if session else 0,
            "waiters": session.watch.waiters + session.intents.waiters if session else 0,
            "hot_bytes": session.watch.hot.size if session else 0,
            "listening": int(self.is_listening),
        }

    # ---------------------------------------------------------------- writes

    async def create(self, run: NewRun, *, lease: float) -> Run:
        check_new_run(run)
        for name in ("component_id", "session_id", "user_id", "idempotency_key"):
            if "\0" in (getattr(run, name) or ""):
                raise ValueError(f"The {name} of run {run.run_id!r} holds NUL, which PostgreSQL cannot keep.")
        session = self._session
        return await session.create(run, lease)

    async def claim(
        self,
        run_id: str,
        *,
        lease: float,
        generation: int | None = None,
        floor: int | None = None,
        reopen: bool = False,
    ) -> Run:
        return await self._session.claim(_known(run_id), lease, generation, floor, reopen)

    async def append(
        self,
        run_id: str,
        generation: int,
        events: Sequence[EncodedEvent],
        *,
        status: RunStatus | None = None,
        transcript: bytes | None = None,
    ) -> int:
        session = self._session
        size = check_events(run_id, events, self._max_event_bytes)
        return await session.append(_known(run_id), generation, events, size, status, transcript)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> Sequence[str]:
        session = self._session
        known = [claim for claim in claims if _storable(claim[0])]
        lost = [run_id for run_id, _ in claims if not _storable(run_id)]
        return [*lost, *await session.renew(known, lease)] if known else lost

    async def request_cancel(self, run_id: str) -> Run:
        return await self._session.request_cancel(_known(run_id))

    async def intend_cancel(self, run_id: str, *, ttl: float) -> None:
        check_intended(run_id)
        await self._session.intend_cancel(run_id, ttl)

    async def drop_intent(self, run_id: str) -> None:
        session = self._session
        if _storable(run_id):
            await session.drop_intent(run_id)

    async def trim(self, run_id: str, *, before: int) -> None:
        await self._session.trim(_known(run_id), before)

    async def delete(self, run_id: str) -> None:
        session = self._session
        if _storable(run_id):
            await session.delete(run_id)

    async def prune(self, *, finished_before: float) -> int:
        pruned = 0
        while removed := await self._session.prune(finished_before):
            pruned += len(removed)
        return pruned

    async def expire(self, *, lease: float, serves: Sequence[str] = (), patience: float = 0.0) -> Sequence[Run]:
        return await self._session.expire(lease, [name for name in serves if _storable(name)], patience)

    # ---------------------------------------------------------------- reads

    async def now(self) -> float:
        return await self._session.now()

    async def get(self, run_id: str) -> Run:
        return await self._session.get(_known(run_id))

    async def read(self, run_id: str, after: int = -1, *, limit: int = 1024, max_bytes: int = 262_144) -> Page:
        session = self._session
        page = session.watch.hot.read(run_id, after, limit, max_bytes)
        if page is None:
            page = await session.read(_known(run_id), after, limit, max_bytes)
        return page

    async def wait(self, run_id: str, version: int, *, timeout: float) -> None:
        session = self._session
        if not _storable(run_id):
            return  # it is gone, as it never was
        await session.watch.wait(run_id, version, timeout, session.follower.nudge)

    async def wait_cancel(self, run_id: str, *, timeout: float) -> bool:
        async def wait(version: int, left: float) -> None:
            session = self._session
            await session.watch.wait_cancel(run_id, version, left, session.follower.nudge)

        return await cancel_seen(partial(self.read, run_id, limit=0), wait, timeout)

    async def intents(self, version: int = -1, *, timeout: float = 0.0, limit: int = 10_000) -> Intents:
        session = self._session
        found = await session.read_intents(limit)
        if found.version == version and timeout > 0:
            await session.intents.wait(version, timeout, session.follower.nudge)
            found = await self._session.read_intents(limit)
        return found

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
        session = self._session
        given = {
            "component_id": component_id,
            "session_id": session_id,
            "user_id": user_id,
            "status": status.value if status is not None else None,
        }
        filters = [(column, value) for column, value in given.items() if value is not None]
        if not all(_storable(value) for _, value in filters):
            return []  # no run can have it
        return await session.list(filters, limit, before)


def _storable(text: str) -> bool:
    """Whether PostgreSQL could keep it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _known(run_id: str) -> str:
    """The id, which may be anything that somebody wrote into a URL, if there can be such a run.

    Raises:
        RunNotFound: There cannot.
    """
    if not _storable(run_id):
        raise RunNotFound(run_id)
    return run_id
