"""Where a run's events come from: agno's components, or any callable, behind one face."""

from __future__ import annotations

import contextvars
import inspect
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from .errors import ResumableError
from .log.signals import loop_caller
from .model import Family, RunStatus

__all__ = ["AgnoSource", "CallableSource", "Ending", "Source", "make_source"]

_ENDINGS: Mapping[Family, Mapping[str, RunStatus]] = {
    family: {
        prefix + "Completed": RunStatus.COMPLETED,
        prefix + "Error": RunStatus.ERROR,
        prefix + "Cancelled": RunStatus.CANCELLED,
        prefix + "Paused": RunStatus.PAUSED,
    }
    for family, prefix in ((Family.AGENT, "Run"), (Family.TEAM, "TeamRun"), (Family.WORKFLOW, "Workflow"))
}


class Source(Protocol):
    """What a run is made of."""

    family: Family
    component_id: str
    component_name: str | None
    speaks_agno: bool
    """Whether it is a component of agno: it says how it ends, and a paused run of it can be continued."""

    def start(
        self, input: Any, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """Begin the run; gives an async iterator of events."""
        ...

    def resume(
        self, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """Continue a paused run; gives an async iterator of events."""
        ...

    async def cancel(self, run_id: str) -> bool:
        """Ask the run to cancel itself; False if it cannot be asked."""
        ...


def make_source(
    component: Any, *, family: Family | None = None, component_id: str | None = None
) -> AgnoSource | CallableSource:
    """Wrap an agno agent, team or workflow, a remote one, or a callable.

    Raises:
        TypeError: It is neither.
        ResumableError: A component without an id and a name, so that its runs could not be found again.
    """
    if hasattr(component, "arun"):
        return AgnoSource(component, family=family, component_id=component_id)
    if callable(component):
        return CallableSource(component, family=family, component_id=component_id)
    raise TypeError(
        f"{type(component).__name__} is no source of events: give an agno Agent, Team or Workflow, or a callable "
        "that takes the input and returns an iterator of events."
    )


def _family(component: object) -> Family:
    # By name, because agno takes half a second to import and may not be needed at all.
    for cls in type(component).__mro__:
        for family in (Family.TEAM, Family.WORKFLOW, Family.AGENT):
            if cls.__module__.startswith("agno.") and cls.__name__ in (
                family.name.title(),
                f"Remote{family.name.title()}",
            ):
                return family
    return Family.AGENT


class AgnoSource:
    """An agno component: its own ``arun``, its own cancellation."""

    speaks_agno = True

    def __init__(self, component: Any, *, family: Family | None = None, component_id: str | None = None) -> None:
        self.component = component
        self.family: Family = family or _family(component)
        self.component_name: str | None = getattr(component, "name", None)
        id_ = component_id or getattr(component, "id", None) or _id_from_name(self.component_name)
        if not id_:
            raise ResumableError(
                f"This {self.family.value} has neither an id nor a name: give it one, or pass component_id=…, so that "
                "its runs can be found again after a restart."
            )
        self.component_id: str = id_

    def start(
        self, input: Any, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        arguments = {"stream": True, "stream_events": True, **options}
        return _events(
            self.component.arun(input=input, run_id=run_id, session_id=session_id, user_id=user_id, **arguments)
        )

    def resume(
        self, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        arguments = {"stream": True, "stream_events": True, **options}
        if self.family is not Family.WORKFLOW:  # a workflow finds the user in its session
            arguments["user_id"] = user_id
        return _events(self.component.acontinue_run(run_id=run_id, session_id=session_id, **arguments))

    async def cancel(self, run_id: str) -> bool:
        cancel = getattr(self.component, "acancel_run", None)
        if cancel is None:
            return False
        return bool(await cancel(run_id))


class CallableSource:
    """Any callable ``(input, …) -> events``. It gets ``run_id``, ``session_id`` and ``user_id`` if it names them."""

    speaks_agno = False

    def __init__(
        self, function: Callable[..., Any], *, family: Family | None = None, component_id: str | None = None
    ) -> None:
        self.function = function
        self.family: Family = family or Family.AGENT
        self.component_name: str | None = getattr(function, "__name__", None)
        id_ = component_id or _id_from_name(self.component_name) or _id_from_name(type(function).__name__)
        self.component_id: str = (id_ or "source").strip("<>")
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # a builtin without a signature
            parameters = ()  # type: ignore[assignment]
        self._takes = {parameter.name for parameter in parameters}
        self._takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    def start(
        self, input: Any, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        known = {"run_id": run_id, "session_id": session_id, "user_id": user_id}
        given = {name: value for name, value in known.items() if self._takes_all or name in self._takes}
        return _events(self.function(input, **given, **options))

    def resume(
        self, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        raise ResumableError("A run of a plain callable cannot be continued: start a new one.", run_id=run_id)

    async def cancel(self, run_id: str) -> bool:
        return False


def _id_from_name(name: str | None) -> str | None:
    return name.lower().replace(" ", "-").replace("_", "-") if name else None  # as agno makes ids from names


async def _events(source: Any) -> AsyncIterator[Any]:
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


class Ending:
    """Tells which event ends a run, and how, from the events of its stream.

    Only the run's own top-level event ends it: members complete inside a team's stream, agents and nested workflows
    inside a workflow's. Of agno's Cancelled and then Completed the first counts. A callable may run components under
    run ids of their own; what the last of them said is then how the run ended, once the iterator ends.
    """

    def __init__(self, run_id: str, family: Family) -> None:
        self._run_id = run_id
        self._names = _ENDINGS[family]
        self._others: dict[str, RunStatus] = {}
        self._last = RunStatus.COMPLETED

    @property
    def at_exhaustion(self) -> RunStatus:
        """How the run ended, if its iterator ended without an event that says so."""
        return self._last

    def of(self, type_: str, event: Any) -> RunStatus | None:
        """The status that this event gives the run, or ``None``."""
        status = self._names.get(type_)
        if status is None:
            return None
        if _name(event) not in self._names:
            return None  # an event that could not be said: its error frame stands in its place, and the run goes on
        if _read(event, "nested_depth") or _read(event, "parent_run_id") or _read(event, "workflow_run_id"):
            return None
        run_id = _read(event, "run_id")
        if run_id is None or run_id == self._run_id:
            return status
        self._last = self._others.setdefault(str(run_id), status)
        return None


def _name(event: Any) -> str:
    name = _read(event, "event")
    return str(getattr(name, "value", name))


def _read(event: Any, name: str) -> Any:
    try:
        return event.get(name) if isinstance(event, Mapping) else getattr(event, name, None)
    except Exception:  # an event may be anybody's object; one that cannot be read says nothing
        return None
