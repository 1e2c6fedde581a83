"""Where a run's events come from: agno's components, or any callable, behind one face."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from .errors import ResumableError
from .iterators import events_of
from .kinds import Family

__all__ = ["AgnoSource", "CallableSource", "Source", "make_source"]


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
        return events_of(
            self.component.arun(input=input, run_id=run_id, session_id=session_id, user_id=user_id, **arguments)
        )

    def resume(
        self, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        arguments = {"stream": True, "stream_events": True, **options}
        if self.family is not Family.WORKFLOW:  # a workflow finds the user in its session
            arguments["user_id"] = user_id
        return events_of(self.component.acontinue_run(run_id=run_id, session_id=session_id, **arguments))

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
        return events_of(self.function(input, **given, **options))

    def resume(
        self, *, run_id: str, session_id: str | None, user_id: str | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        raise ResumableError("A run of a plain callable cannot be continued: start a new one.", run_id=run_id)

    async def cancel(self, run_id: str) -> bool:
        return False


def _id_from_name(name: str | None) -> str | None:
    return name.lower().replace(" ", "-").replace("_", "-") if name else None  # as agno makes ids from names
