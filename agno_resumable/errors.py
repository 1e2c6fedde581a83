"""Every error this library raises on purpose.

Each names the run it concerns, where there is one, and carries what a program needs as typed
attributes, so that nobody has to parse a message.
"""

from __future__ import annotations

__all__ = [
    "AgnoUnsupported",
    "CursorInvalid",
    "Draining",
    "EventTooLarge",
    "LogClosed",
    "LogUnavailable",
    "ResumableError",
    "RunExists",
    "RunFinished",
    "RunIdInvalid",
    "RunNotFound",
    "SchemaTooNew",
    "StaleGeneration",
    "StreamBroken",
    "UnsupportedLogURL",
]


class ResumableError(Exception):
    """The root of every error of this library.

    Attributes:
        run_id: The run concerned, or ``None`` where the error concerns no single run.
    """

    def __init__(self, message: str, *, run_id: str | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunNotFound(ResumableError):
    """No such run: never created, deleted, pruned, or owned by somebody else."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"Run {run_id!r} is not in this log: check the id, and whether retention has removed the run.",
            run_id=run_id,
        )


class RunExists(ResumableError):
    """``create`` was given a run id, or an idempotency key, that is taken.

    Attributes:
        run_id: The run that exists; after an idempotency conflict, the run that the first request made.
        idempotency_key: The key in conflict, or ``None`` if the run id itself was taken.
    """

    def __init__(self, run_id: str, *, idempotency_key: str | None = None) -> None:
        what = "was already started under this idempotency key" if idempotency_key is not None else "exists already"
        super().__init__(f"Run {run_id!r} {what}: read it instead of starting it again.", run_id=run_id)
        self.idempotency_key = idempotency_key


class RunFinished(ResumableError):
    """The run has its terminal state; nothing may follow it.

    Attributes:
        status: The terminal status, as its string value.
    """

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f"Run {run_id!r} has finished as {status}: start a new run.", run_id=run_id)
        self.status = status


class StaleGeneration(ResumableError):
    """The caller's generation is behind the run's: another producer has taken over. Stop producing.

    Attributes:
        given: The generation of the caller.
        current: The generation of the run.
    """

    def __init__(self, run_id: str, given: int, current: int) -> None:
        super().__init__(
            f"Run {run_id!r} is at generation {current}; a producer of generation {given} may not write any more.",
            run_id=run_id,
        )
        self.given = given
        self.current = current


class EventTooLarge(ResumableError):
    """One event is larger than the log takes. Nothing of the batch was stored.

    Attributes:
        size: The event's JSON, in bytes.
        limit: The largest that the log takes, in bytes.
    """

    def __init__(self, run_id: str, size: int, limit: int) -> None:
        super().__init__(
            f"An event of run {run_id!r} has {size} bytes of JSON; the log takes {limit}. "
            "Put large content into storage of its own and its address into the event, or raise max_event_bytes.",
            run_id=run_id,
        )
        self.size = size
        self.limit = limit


class LogUnavailable(ResumableError):
    """The store did not answer; the driver's error is the ``__cause__``.

    Attributes:
        outcome_unknown: True if a write may or may not have been stored.
    """

    def __init__(self, message: str, *, run_id: str | None = None, outcome_unknown: bool = False) -> None:
        super().__init__(message, run_id=run_id)
        self.outcome_unknown = outcome_unknown


class LogClosed(LogUnavailable):
    """The log is not open: use it inside ``async with log``."""

    def __init__(self, message: str = "The log is not open: enter it first, with 'async with log'.") -> None:
        super().__init__(message)


class SchemaTooNew(ResumableError):
    """The store was written by a newer version of this library; nothing was changed.

    Attributes:
        found: The schema version in the store.
        supported: The newest one that this version knows.
    """

    def __init__(self, where: str, found: int, supported: int) -> None:
        super().__init__(
            f"{where} has schema version {found}; this version of agno-resumable knows up to {supported}. "
            "Upgrade agno-resumable, or point it to another store."
        )
        self.found = found
        self.supported = supported


class Draining(ResumableError):
    """The process is about to stop and starts no more runs: send the request to another replica, or again later."""

    def __init__(self) -> None:
        super().__init__("This process is shutting down and starts no more runs: try again.")


class StreamBroken(ResumableError):
    """A response was ended without its end on purpose, so that its client knows that there is more and comes back.

    Raised out of a POST stream at drain or when the store fails. The server closes the connection.
    """


class UnsupportedLogURL(ResumableError, ValueError):
    """``open_log`` was given a URL that names no backend it knows."""


class RunIdInvalid(ResumableError, ValueError):
    """A run id that could not stand in a URL, a header or an SSE field."""


class CursorInvalid(ResumableError, ValueError):
    """A cursor that is neither an index nor ``run_id:index`` of the run asked for."""


class AgnoUnsupported(ResumableError):
    """The agno that is installed has no place for this piece, or none is installed. The message names the version."""
