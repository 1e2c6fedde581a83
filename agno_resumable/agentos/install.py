"""``make_resumable``: all of it, in one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..errors import UnsupportedLogURL
from ..log.protocol import EventLog
from ..model import Run
from .bridge import AgentOSBridge
from .hardening import harden
from .rows import Rows
from .versions import require_agno

__all__ = ["log_url_of", "make_resumable"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")


def make_resumable(
    agent_os: Any,
    log: EventLog | str | None = None,
    *,
    promote_inline: bool = True,
    lease: float = 15.0,
    sweep_interval: float = 5.0,
    retention: float | None = 86_400.0,
    cancel_grace: float = 1.0,
    heartbeat: float = 15.0,
    max_age: float = 300.0,
    send_timeout: float = 30.0,
    retry_ms: int = 3000,
) -> AgentOSBridge:
    """Make the runs of an AgentOS resumable, and return the application to serve in the place of ``get_app()``.

    It sets agno's event stream and cancellation manager (both are the process's own: the last to set them wins),
    hardens agno's serializers, and puts the bridge in front of ``agent_os.get_app()``, which is ``.app`` of what is
    returned.

    Args:
        agent_os: The AgentOS, with its components.
        log: A log, or the URL of one (see ``open_log``). By default what ``log_url_of`` makes of the database.
        promote_inline: Run streaming runs in the background where the client does not say, so that they outlive it.
        lease: Seconds that a process is believed alive without renewing. Its runs are ended with their family's error
            frame within ``lease + sweep_interval`` of its death, and their rows with them.
        sweep_interval: Seconds between two looks for such runs.
        retention: Seconds that the events of finished runs are kept; ``None`` keeps them.
        cancel_grace: Seconds after which a cancelled run that does not notice is cancelled hard.
        heartbeat: Seconds of silence after which a stream gets a heartbeat.
        max_age: Seconds that a GET stream lives before its client is told to come again, ± 20 %.
        send_timeout: Seconds that one ``send`` may be blocked by a client that does not read.
        retry_ms: The largest delay, in milliseconds, that EventSource is told to reconnect with.

    Raises:
        AgnoUnsupported: agno is older than 3.0.
        UnsupportedLogURL: No log was given, and the database gives none.
    """
    require_agno((3, 0), "make_resumable")
    from agno.os.event_streams import set_event_stream
    from agno.run.cancel import set_cancellation_manager

    from .cancellation import LogCancellationManager
    from .events import LogEventStream

    stream = LogEventStream(
        log_url_of(agent_os) if log is None else log, lease=lease, sweep_interval=sweep_interval, retention=retention
    )

    async def settle(run: Run) -> None:
        await Rows(agent_os, await stream.log()).settle(run)

    stream.on_lost(settle)
    cancellation = LogCancellationManager(stream, grace=cancel_grace)
    set_event_stream(stream)
    set_cancellation_manager(cancellation)
    harden(agent_os)
    return AgentOSBridge(
        agent_os.get_app(),
        agent_os=agent_os,
        stream=stream,
        cancellation=cancellation,
        promote_inline=promote_inline,
        heartbeat=heartbeat,
        max_age=max_age,
        send_timeout=send_timeout,
        retry_ms=retry_ms,
    )


def log_url_of(agent_os: Any) -> str:
    """The URL of the log that belongs to the database of an AgentOS, or of its first component that has one.

    With SQLite the log is a file of its own beside the database, ``agno.db`` and ``agno.events.db``: one writes while
    the other does. With another engine it is the database itself.

    Raises:
        UnsupportedLogURL: There is no database, or it lies in memory, or no log knows its engine.
    """
    components = [
        component for name in ("agents", "teams", "workflows") for component in (getattr(agent_os, name, None) or ())
    ]
    for owner in (agent_os, *components):
        db = getattr(owner, "db", None)
        engine = getattr(db, "db_engine", None)
        if engine is None:
            continue
        url = engine.url
        if url.get_backend_name() != "sqlite":
            return str(url.render_as_string(hide_password=False))
        if not url.database or url.database == ":memory:":
            continue
        path = Path(url.database).absolute()
        return f"sqlite:///{path.with_name(f'{path.stem}.events{path.suffix}')}"
    raise UnsupportedLogURL(
        "The AgentOS has no database that a log could lie beside: give one, make_resumable(agent_os, "
        "log='sqlite:///runs.db'), or log='memory:' for development."
    )
