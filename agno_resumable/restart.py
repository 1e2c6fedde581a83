"""What stands in the log where a run was taken over and begun anew: what came before it counts no more.

It is an event like any other, and not said beside the log: so it has its place among the indices, every reader gets it
at that place once, however late, and it is stored in one step with the first events behind it.
"""

from __future__ import annotations

from typing import Any

import orjson

from .model import EncodedEvent, Run

__all__ = ["RESTARTED", "is_restart", "restarted_event"]

RESTARTED = "restarted"
"""The type of the event. In lower case, as control frames are: a reader that filters by type gets it too."""


def restarted_event(run: Run) -> EncodedEvent:
    """The event with which the newest attempt of ``run`` begins: ``run_id``, ``attempt`` and ``first_index``.

    ``first_index`` is that of the attempt's first event, which is the one behind this.
    """
    said = {"event": RESTARTED, "run_id": run.run_id, "attempt": run.attempts, "first_index": run.next_index + 1}
    return EncodedEvent(RESTARTED, orjson.dumps(said))


def is_restart(data: Any) -> bool:
    """Whether this is the JSON of such an event: a callable may have one of the same name."""
    return isinstance(data, dict) and isinstance(data.get("attempt"), int) and isinstance(data.get("first_index"), int)
