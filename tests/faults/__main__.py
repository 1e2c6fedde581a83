"""``python -m tests.faults``: faults of the store, as many cycles as you have time for."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from .store.campaign import Report, campaign, faults_of, private_backend
from .store.injecting import FAULTS
from .store.workers import Nursery

_BACKENDS = ("sqlite", "postgres", "redis")


def _say(text: str) -> None:
    print(text, flush=True)


async def _run(options: argparse.Namespace) -> list[Report]:
    reports = []
    kinds = _BACKENDS if options.backend == "all" else (options.backend,)
    with Nursery() as nursery, tempfile.TemporaryDirectory(prefix="agno-resumable-faults-") as directory:
        for kind in kinds:
            chosen = [fault for fault in faults_of(kind) if options.fault in ("all", fault.name)]
            with private_backend(kind, Path(directory)) as backend:
                for fault in chosen:
                    report = await campaign(
                        backend,
                        fault,
                        nursery,
                        cycles=options.cycles,
                        seed=options.seed,
                        duration=options.duration,
                        patience=options.patience,
                        said=_say,
                        keep=options.keep,
                    )
                    _say(str(report))
                    reports.append(report)
    return reports


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--backend", choices=(*_BACKENDS, "all"), default="all")
    parser.add_argument("--fault", choices=(*FAULTS, "all"), default="all")
    parser.add_argument("--cycles", type=int, default=25, help="of each fault")
    parser.add_argument("--duration", type=float, help="seconds after which no cycle of a fault begins any more")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that anything may take")
    parser.add_argument("--keep", type=Path, help="a directory for the records of the cycles with violations")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped and files removed
    reports = asyncio.run(_run(options))
    broken = [report for report in reports if report.violations]
    for report in broken:
        again = f"--backend {report.backend} --fault {report.fault} --cycles {options.cycles} --seed {report.seed}"
        _say(f"violated in the cycles {report.failed_cycles}; again: python -m tests.faults {again}")
    return 1 if broken or not reports else 0


if __name__ == "__main__":
    raise SystemExit(main())
