"""A killed server loses nothing that a client has received, and its runs get their end."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from .kill import kill_cycles, kill_one_of_two
from .support import integrity, long_form

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_kill_9_loses_no_acknowledged_event_and_every_run_gets_its_end(tmp_path: Path) -> None:
    report = await kill_cycles(tmp_path, cycles=50 if long_form() else 5, seed=20)
    print(report.summary())
    assert report.violations == []
    assert report.counts["interrupted runs"] == 3 * report.counts["kills"] == (150 if long_form() else 15)
    assert report.counts["acknowledged events"] > 10 * report.counts["interrupted runs"]


async def test_a_surviving_worker_ends_the_runs_of_a_killed_one_within_lease_and_sweep(tmp_path: Path) -> None:
    report = await kill_one_of_two(tmp_path, seed=4)
    print(report.summary())
    assert report.violations == []
    assert report.counts["interrupted runs"] == 3


async def test_a_store_that_forgets_what_it_acknowledged_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeded fault: after each kill the newest chunk of every active run is gone, as if it had not been synced."""

    def forgetting(path: Path) -> str:
        with sqlite3.connect(path) as db:
            newest = (
                "SELECT run.id, max(chunk.first_index) FROM chunk JOIN run ON chunk.run = run.id"
                " WHERE finished_at IS NULL GROUP BY run.id"
            )
            for run, first in db.execute(newest).fetchall():
                db.execute("DELETE FROM chunk WHERE run = ? AND first_index = ?", (run, first))
                db.execute("UPDATE run SET next_index = ? WHERE id = ?", (first, run))
        db.close()
        return integrity(path)

    monkeypatch.setattr("tests.faults.kill.integrity", forgetting)
    found: list[str] = []
    for seed in range(3, 7):  # what is forgotten may be what the killed server had not sent to anybody yet
        (tmp_path / f"{seed}").mkdir()
        found += (await kill_cycles(tmp_path / f"{seed}", cycles=1, seed=seed)).violations
        if found:
            break
    assert any("lost" in violation or "differs" in violation or "gap" in violation for violation in found), found


def test_the_integrity_check_finds_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (a TEXT)")
        db.execute("CREATE INDEX i ON t (a)")
        db.executemany("INSERT INTO t VALUES (?)", [(str(number) * 50,) for number in range(500)])
    db.close()
    assert integrity(path) == "ok"
    broken = tmp_path / "b.db"
    shutil.copy(path, broken)
    with broken.open("r+b") as file:
        file.seek(3 * 4096 + 2000)
        file.write(b"\x00" * 1500)
    try:
        found = integrity(broken)
    except sqlite3.DatabaseError:
        return
    assert found != "ok"
