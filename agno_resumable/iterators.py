"""Whatever a source returned, as one kind of iterator: async, closed when it is left, sync ones in a thread."""

from __future__ import annotations

import contextvars
import inspect
import queue
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

import anyio

from .log.signals import loop_caller

__all__ = ["events_of"]


async def events_of(source: Any) -> AsyncIterator[Any]:
    """Whatever a component or callable returned, as an async iterator; closed when this one is."""
    if inspect.isawaitable(source):
        source = await source
    if hasattr(source, "__aiter__"):
        iterator = source.__aiter__()
        try:
            async for event in iterator:
                yield event
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes, Mapping)):
        async for event in _from_thread(iter(source)):
            yield event
    else:
        raise TypeError(
            f"The source returned {type(source).__name__}, which is no iterator of events: stream it (stream=True)."
        )


_EXHAUSTED = Exception("the iterator has ended")


class _Thread:
    """A sync iterator in a thread of its own, with a bounded queue of what it gave."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=256)
        self._call = loop_caller()
        self._stop = threading.Event()
        self._context = contextvars.copy_context()
        self.ready = anyio.Event()
        self.thread = threading.Thread(
            target=self._context.run, args=(self._main,), name="agno-resumable-source", daemon=True
        )

    def take(self) -> list[tuple[Any, BaseException | None]]:
        """All that is there, without waiting."""
        taken = []
        try:
            while True:
                taken.append(self._queue.get_nowait())
        except queue.Empty:
            return taken

    def stop(self) -> None:
        """Have the thread end at its next event; Python cannot end it inside one."""
        self._stop.set()
        self.take()

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            for event in self._iterator:
                if not self._give((event, None)):
                    break
            else:
                error = _EXHAUSTED
        except Exception as raised:  # raised again in the event loop, where the run is
            error = raised
        except BaseException as raised:  # SystemExit and its like would end the event loop, and every run with it
            error = RuntimeError(f"The source raised {type(raised).__name__}: {raised}")
            error.__cause__ = raised
        finally:
            close = getattr(self._iterator, "close", None)
            if close is not None and self._stop.is_set():
                close()
        if error is not None:
            self._give((None, error))

    def _give(self, item: tuple[Any, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.5)  # back-pressure; now and then a look whether anybody still reads
            except queue.Full:
                continue
            self._call(lambda: self.ready.set())
            return True
        return False


async def _from_thread(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    source = _Thread(iterator)
    source.thread.start()
    try:
        while True:
            source.ready = anyio.Event()
            items = source.take()
            for event, error in items:
                if error is _EXHAUSTED:
                    return
                if error is not None:
                    raise error
                yield event
            if not items:
                await source.ready.wait()
    finally:
        source.stop()
