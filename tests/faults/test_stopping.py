"""What becomes of runs and signals when an event loop ends that has no lifespan."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agno_resumable import ResumableStream
from agno_resumable.shutdown import Drain

from ..support import PATIENCE, ROOT
from .support import stored


# What anyio wraps is left without its first step where asyncio.run cancels the wrapper before that
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("events", [0, 1, 3, 50, 51, 52, 700, 5000])
def test_a_run_has_its_end_when_asyncio_run_cancels_every_task(tmp_path: Path, events: int) -> None:
    async def talk(input: str) -> AsyncIterator[str]:
        for number in range(1_000_000):
            if number >= events:
                await asyncio.sleep(60)
            yield f"{input} {number}"

    async def main() -> str:
        stream = ResumableStream(talk, log=f"sqlite:///{tmp_path / 'runs.db'}")
        run = await stream.start("word")
        if events > 1:
            async for event in stream.events(run.run_id):
                if event.index >= events - 3:  # while the last of them are being stored
                    break
        return run.run_id  # without aclose()

    run_id = asyncio.run(main())
    status, history = asyncio.run(stored(tmp_path / "runs.db", run_id))
    assert status == "CANCELLED"
    assert history.events[-1].type == "RunCancelled"
    said = [seen.data["content"] for seen in history.events[:-1]]
    assert said == [f"word {number}" for number in range(len(said))]
    assert len(said) >= events - 2
    gc.collect()  # so that what asyncio leaves in cycles is told here, and not in the middle of another test


@contextmanager
def _hearing(number: signal.Signals) -> Iterator[list[int]]:
    heard: list[int] = []
    before = signal.signal(number, lambda given, frame: heard.append(given))
    try:
        yield heard
    finally:
        signal.signal(number, before)


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_first_sigterm_waits_for_what_has_to_rest_and_is_then_handed_on() -> None:
    async def main(heard: list[int]) -> None:
        drain = Drain()
        resting = True
        withdraw = drain.delay(lambda fatal: resting)
        drain.listen()
        signal.raise_signal(signal.SIGTERM)
        await _turns()
        assert drain.begun
        assert heard == []
        drain.settle()
        await _turns()
        assert heard == []
        resting = False
        drain.settle()
        await _turns()
        assert heard == [signal.SIGTERM]
        withdraw()
        drain.unlisten()

    with _hearing(signal.SIGTERM) as heard:
        asyncio.run(main(heard))


def test_a_second_sigterm_gets_through_at_once() -> None:
    async def main(heard: list[int]) -> None:
        drain = Drain()
        drain.delay(lambda fatal: True)
        drain.listen()
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        limits = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        assert limits
        drain.unlisten()
        for limit in limits:  # who listens no more must not signal the process later on
            limit.join(PATIENCE)
        assert heard == [signal.SIGTERM]

    with _hearing(signal.SIGTERM) as heard:
        asyncio.run(main(heard))


def test_sigint_waits_for_nothing() -> None:
    async def main(heard: list[int]) -> None:
        drain = Drain()
        drain.delay(lambda fatal: True)
        drain.listen()
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT]
        await _turns()
        assert drain.begun
        drain.unlisten()

    with _hearing(signal.SIGINT) as heard:
        asyncio.run(main(heard))


def test_a_delay_that_is_withdrawn_hands_the_signal_on() -> None:
    async def main(heard: list[int]) -> None:
        drain = Drain()
        withdraw = drain.delay(lambda fatal: True)
        drain.listen()
        signal.raise_signal(signal.SIGTERM)
        withdraw()
        await _turns()
        assert heard == [signal.SIGTERM]
        drain.unlisten()

    with _hearing(signal.SIGTERM) as heard:
        asyncio.run(main(heard))


BLOCKED = """
import asyncio, time
from agno_resumable import ResumableStream
from agno_resumable.shutdown import current_drain

async def block(input):
    yield "before"
    print("blocked", flush=True)
    while True:  # Python code that never gives the event loop a turn
        time.monotonic()

async def main():
    stream = ResumableStream(block, log="memory:")
    run = await stream.start("x")
    current_drain().longest_delay = 0.5
    await stream.wait(run.run_id)

asyncio.run(main())
"""


def test_a_sigterm_gets_through_a_blocked_event_loop() -> None:
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"blocked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
