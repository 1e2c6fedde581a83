"""A process in which runs execute: ``python -m tests.agentos.cancellation_worker DIRECTORY FAMILY KIND:WHAT:RUN_ID …``.

One after another: it says ``ready`` when a run is in the middle of what a test wants to cancel (or has not begun), and
at its end the status of its row, and whether any cancel is left.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agno.db.sqlite import SqliteDb
from agno.run.cancel import set_cancellation_manager

from agno_resumable.agentos import LogCancellationManager

from ..support import eventually
from .cancelling import Case, row_status, until_idle


async def play(db: SqliteDb, manager: LogCancellationManager, family: str, kind: str, what: str, run_id: str) -> None:
    case = Case(family, kind, what if what != "unstarted" else "talking", db=db, run_id=run_id)
    if what == "unstarted":
        print("ready", run_id, flush=True)
        await eventually(lambda: manager.is_cancelled(run_id))
    task = asyncio.create_task(case.play())
    if what != "unstarted":
        await case.reached.wait()
        if kind == "detached":
            await asyncio.wait({task})  # only now agno has told the run's id
        print("ready", case.run_id, flush=True)
    await asyncio.wait({task})
    await until_idle(manager)
    print(await row_status(db, case), "clean" if not manager.get_active_runs() else "unclean", flush=True)


async def main(directory: str, family: str, *cases: str) -> None:
    db = SqliteDb(db_file=str(Path(directory, "agno.db")))
    async with LogCancellationManager(f"sqlite:///{directory}/runs.db") as manager:
        set_cancellation_manager(manager)
        for case in cases:
            await play(db, manager, family, *case.split(":"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
