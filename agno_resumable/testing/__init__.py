"""The contract suite for event logs: whoever writes a backend can hold it against the protocol.

It needs no test framework and runs in any event loop that anyio knows::

    anyio.run(check_event_log, MyEventLog)

With pytest, one test per clause::

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", event_log_checks(), ids=lambda check: check.name)
    async def test_contract(check: Check) -> None:
        await check.run(MyEventLog)
"""

from __future__ import annotations

from collections.abc import Sequence

from . import appending, cancelling, intents, leases, reading, runs, sharing, waiting
from .contract import Check, LimitedFactory, LogFactory, ReopenFactory, checks_of

__all__ = ["Check", "LimitedFactory", "LogFactory", "ReopenFactory", "check_event_log", "event_log_checks"]


def event_log_checks() -> Sequence[Check]:
    """Every check of the suite, in the order in which ``check_event_log`` runs them."""
    modules = (runs, appending, reading, waiting, leases, intents, cancelling, sharing)
    return [check for module in modules for check in checks_of(module)]


async def check_event_log(
    factory: LogFactory,
    *,
    reopen: ReopenFactory | None = None,
    limited: LimitedFactory | None = None,
    patience: float = 10.0,
) -> Sequence[str]:
    """Hold a backend against the ``EventLog`` protocol, clause by clause.

    Args:
        factory: Gives a log on fresh storage: the log itself, or a context manager that yields it. Called once per
            check. Storage must outlive the log, where ``reopen`` is given; removing it is the caller's business.
        reopen: Given a log of ``factory``, which may be closed by then, opens the same storage a second time. Leave
            it out for a log that lives and dies with its object: what concerns other processes is then not checked.
        limited: Gives a log on fresh storage with the ``max_run_bytes`` and ``max_event_bytes`` it is called with.
            Leave it out for a log without such limits.
        patience: How long anything that should happen soon may take before it counts as never, in seconds.

    Returns:
        The names of the checks that were run.

    Raises:
        AssertionError: The log breaks a clause. The message names the clause and quotes what was seen.
    """
    given = {None: factory, "reopen": reopen, "limited": limited}
    checks = [check for check in event_log_checks() if given[check.needs] is not None]
    for check in checks:
        await check.run(factory, reopen=reopen, limited=limited, patience=patience)
    return [check.name for check in checks]
