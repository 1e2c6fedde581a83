"""The long form: ``python -m tests.replicas --backend postgres --duration 120 --runs 50 --every 3 --policy restart``.

It starts the store, two replicas and a balancer, all its own, and ends with 1 where a reader holds anything but
exactly the log, or a run has not the end that it ought to have.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..postgres_server import serve
from ..redis_server import RedisServer
from .balancer import NGINX
from .scenario import Plan, play


@contextmanager
def store(backend: str, directory: Path) -> Iterator[str]:
    """The URL of a log that nobody has used."""
    if backend == "sqlite":
        yield f"sqlite:///{directory / 'runs.db'}"
    elif backend == "redis":
        with RedisServer() as server:
            yield server.url
    else:
        yield from (server.url for server in serve())


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.replicas", description=__doc__)
    parser.add_argument("--backend", choices=["postgres", "sqlite", "redis"], default="postgres")
    parser.add_argument("--duration", type=float, default=120.0, help="for how many seconds replicas are killed")
    parser.add_argument("--runs", type=int, default=50, help="how many are active at a time")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two kills")
    parser.add_argument("--policy", choices=["restart", "error"], default="restart", help="on_producer_lost")
    parser.add_argument("--balancer", choices=["tcp", "nginx"], default="tcp")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.balancer == "nginx" and NGINX is None:
        parser.error("there is no nginx")
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="agno-resumable-replicas-") as directory,
        store(options.backend, Path(directory)) as url,
    ):
        plan = Plan(url, options.runs, options.duration, options.every, options.policy, options.balancer, options.seed)
        outcome = asyncio.run(play(plan, Path(directory)))
    print(*outcome.violations[:100], sep="\n", file=sys.stderr)
    print(outcome.summary())
    print(f"{len(outcome.violations)} violations; {time.monotonic() - begun:.0f} s")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
