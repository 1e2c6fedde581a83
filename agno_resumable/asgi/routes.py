"""Routes in the URL shape of AgentOS, so that its clients work unchanged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from ..dialects.agno import AgnoResume, not_found
from ..errors import ResumableError, RunNotFound
from ..log.open import open_log
from ..log.protocol import EventLog
from ..model import Family, Run, RunStatus, check_run_id
from ..stream import ResumableStream
from .auth import Access, Authorize, Owner
from .forms import read_body, read_run_request
from .response import STREAM_HEADERS, EventStreamResponse
from .serve import error_response, events_response, idempotency_key, location, start_response, visible_run

__all__ = ["ResumableRoutes", "component_routes", "resumable_routes", "run_to_dict"]

MAX_BODY_BYTES = 33_554_432
Endpoint = Callable[[Request], Awaitable[Response]]


class ResumableRoutes(list[BaseRoute]):
    """The routes of several components on one log: a plain list of Starlette routes, and their lifespan.

    ``Starlette(routes=routes, lifespan=routes.lifespan)``. The lifespan is not needed for runs to outlive their
    connections; with it the log is closed and active runs are ended honestly when the server stops.
    """

    def __init__(self, routes: Sequence[BaseRoute], streams: Sequence[ResumableStream]) -> None:
        super().__init__(routes)
        self.streams = streams

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Open what the routes need, and drain at the end."""
        async with AsyncExitStack() as stack:
            for stream in self.streams:
                await stack.enter_async_context(stream)
            yield


def resumable_routes(
    *,
    log: EventLog | str,
    agents: Sequence[Any] = (),
    teams: Sequence[Any] = (),
    workflows: Sequence[Any] = (),
    authorize: Authorize | None = None,
    owner: Owner | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    **options: Any,
) -> ResumableRoutes:
    """Routes for agents, teams and workflows, all on one log.

    ``GET /agents|teams|workflows`` lists the components; the routes of each stand below ``/{kind}/{id}``, see
    ``ResumableStream.routes``. ``docs/wire.md`` describes each.

    Args:
        log: A log, or the URL of one (see ``open_log``).
        agents, teams, workflows: agno components, callables, or ``ResumableStream``s made before.
        authorize: Decides whether a request may touch a run (``None`` instead of the run: may start and list runs).
        owner: Names the user of a request; the authenticated user by default.
        max_body_bytes: The largest body of a request, in bytes.
        options: For each ``ResumableStream``: ``lease``, ``retention``, ``drain_grace`` and so on.
    """
    if isinstance(log, str) and log.startswith("memory"):
        log = open_log(log)  # one for all of the components
    routes: list[BaseRoute] = []
    streams: list[ResumableStream] = []
    kinds = (("agents", Family.AGENT, agents), ("teams", Family.TEAM, teams), ("workflows", Family.WORKFLOW, workflows))
    for kind, family, components in kinds:
        made = [
            component
            if isinstance(component, ResumableStream)
            else ResumableStream(component, log=log, family=family, **options)
            for component in components
        ]
        ids = [stream.component_id for stream in made]
        if len(set(ids)) < len(ids):
            raise ValueError(f"Two of the {kind} have the same id: {', '.join(sorted(ids))}. Give each its own.")
        routes.append(Route(f"/{kind}", _listing(made)))
        for stream in made:
            routes.append(
                Mount(
                    f"/{kind}/{stream.component_id}",
                    routes=component_routes(stream, authorize=authorize, owner=owner, max_body_bytes=max_body_bytes),
                )
            )
        streams += made
    return ResumableRoutes(routes, streams)


def _listing(streams: Sequence[ResumableStream]) -> Endpoint:
    components = [{"id": stream.component_id, "name": stream.source.component_name} for stream in streams]

    async def listing(request: Request) -> Response:
        return JSONResponse(components)

    return listing


def component_routes(
    stream: ResumableStream,
    *,
    authorize: Authorize | None = None,
    owner: Owner | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> list[BaseRoute]:
    """The routes of one component, below ``/{kind}/{id}``."""
    endpoints = _Endpoints(stream, Access(authorize, owner), max_body_bytes)
    return [
        Route("/runs", _guarded(endpoints.start), methods=["POST"]),
        Route("/runs", _guarded(endpoints.list), methods=["GET"]),
        Route("/runs/{run_id}", _guarded(endpoints.get), methods=["GET"]),
        Route("/runs/{run_id}/events", _guarded(endpoints.events), methods=["GET"]),
        Route("/runs/{run_id}/resume", _guarded(endpoints.resume), methods=["POST"]),
        Route("/runs/{run_id}/cancel", _guarded(endpoints.cancel), methods=["POST"]),
        Route("/runs/{run_id}/continue", _guarded(endpoints.go_on), methods=["POST"]),
    ]


def _guarded(endpoint: Endpoint) -> Endpoint:
    """Errors of ours, and bad input, as JSON: whatever the application does with exceptions."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ResumableError as error:
            return error_response(error)
        except HTTPException as error:
            return JSONResponse({"detail": error.detail}, error.status_code, {"Cache-Control": "no-store"})

    return guarded


class _Endpoints:
    def __init__(self, stream: ResumableStream, access: Access, max_body_bytes: int) -> None:
        self._stream = stream
        self._access = access
        self._max_body_bytes = max_body_bytes

    async def start(self, request: Request) -> Response:
        await self._check_may_start(request)
        asked = await read_run_request(request, self._max_body_bytes)
        user_id = self._access.owner(request) if self._access.protected(request) else asked.user_id
        options = {"session_id": asked.session_id, "user_id": user_id, **asked.options}
        if asked.stream:
            return await start_response(self._stream, request, asked.message, access=self._access, **options)
        run = await self._stream.start(asked.message, idempotency_key=idempotency_key(request), **options)
        headers = {"Cache-Control": "no-store", **location(request, run.run_id)}
        if asked.background:
            accepted = {"run_id": run.run_id, "job_id": run.run_id, "session_id": run.session_id}
            return JSONResponse({**accepted, "status": run.status.value}, 202, headers)
        run = await self._stream.wait(run.run_id)
        return JSONResponse(await self._described(run), 200, headers)

    async def list(self, request: Request) -> Response:
        await self._check_may_start(request)
        query = request.query_params
        status = None
        if query.get("status"):
            try:
                status = RunStatus(query["status"].upper())
            except ValueError:
                raise HTTPException(422, f"status is one of {', '.join(s.value for s in RunStatus)}.") from None
        limit = query.get("limit", "100")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:6]) <= 1000:
            raise HTTPException(422, "limit is a number from 1 to 1000.")
        log = await self._stream.log()
        runs = await log.list(
            component_id=self._stream.component_id,
            session_id=query.get("session_id") or None,
            user_id=self._access.owner(request) if self._access.protected(request) else query.get("user_id") or None,
            status=status,
            limit=int(limit),
        )
        visible = [
            run_to_dict(run)
            for run in runs
            if run.family is self._stream.family and await self._access.allows(request, run)
        ]
        return JSONResponse(visible, headers={"Cache-Control": "no-store"})

    async def get(self, request: Request) -> Response:
        run = await self._visible(request)
        return JSONResponse(await self._described(run), headers={"Cache-Control": "no-store"})

    async def events(self, request: Request) -> Response:
        return await events_response(self._stream, request, request.path_params["run_id"], access=self._access)

    async def resume(self, request: Request) -> Response:
        fields = await read_body(request, self._max_body_bytes)
        run_id = request.path_params["run_id"]
        index = fields.get("last_event_index")
        requested = None
        if index not in (None, ""):
            try:
                requested = int(str(index))
            except ValueError:
                raise HTTPException(422, "last_event_index must be a whole number.") from None
            if requested >= 10**12:  # no log is that long, and no store takes any number
                raise HTTPException(422, "last_event_index is larger than any index.")
        try:
            run = await self._visible(request)
            log = await self._stream.log()
        except RunNotFound:
            return Response(not_found(run_id), 200, STREAM_HEADERS, "text/event-stream")
        return EventStreamResponse(
            log,
            run_id,
            -1 if requested is None else max(requested, -1),
            persistent=False,
            dialect=AgnoResume(requested),
            run=run,
            reading=self._stream.readers.reading(run_id),
        )

    async def cancel(self, request: Request) -> Response:
        run = await self._visible(request)
        run = await self._stream.cancel(run.run_id)
        return JSONResponse(run_to_dict(run), headers={"Cache-Control": "no-store"})

    async def go_on(self, request: Request) -> Response:
        """Continue a paused run; the answers to what it asked come in ``tools``, as AgentOS takes them."""
        run = await self._visible(request)
        fields = await read_body(request, self._max_body_bytes)
        options: dict[str, Any] = {}
        if fields.get("tools"):
            tools = fields["tools"]
            try:
                tools = json.loads(tools) if isinstance(tools, str) else tools
                from agno.models.response import ToolExecution
                from agno.run.requirement import RunRequirement

                # Both, as AgentOS: agno 3 hears the requirements alone
                options["updated_tools"] = answers = [ToolExecution.from_dict(tool) for tool in tools]
                options["requirements"] = [RunRequirement(tool_execution=answer) for answer in answers]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise HTTPException(422, f"The field 'tools' must be a JSON array of tools: {error}.") from error
        await self._stream.continue_run(run.run_id, **options)
        headers = {**location(request, run.run_id), "Location": request.url.path.rpartition("/")[0] + "/events"}
        return EventStreamResponse(
            await self._stream.log(),
            run.run_id,
            run.last_index,
            persistent=False,
            headers=headers,
            reading=self._stream.readers.reading(run.run_id),
        )

    async def _visible(self, request: Request) -> Run:
        run_id = request.path_params["run_id"]
        try:
            check_run_id(run_id)
        except ResumableError:
            raise RunNotFound(run_id) from None
        return await visible_run(self._stream, request, run_id, self._access)

    async def _check_may_start(self, request: Request) -> None:
        if not await self._access.allows(request, None):
            raise HTTPException(403, "You may not start or list runs here.")

    async def _described(self, run: Run) -> dict[str, Any]:
        transcript = await self._stream.transcript(run.run_id)
        run = await self._stream.get(run.run_id)
        return {**run_to_dict(run), "content": transcript.get("content"), "transcript": transcript}


_COMPONENT = {Family.AGENT: "agent_id", Family.TEAM: "team_id", Family.WORKFLOW: "workflow_id"}


def run_to_dict(run: Run) -> dict[str, Any]:
    """A run as JSON values, without its input and owner's key."""
    return {
        "run_id": run.run_id,
        _COMPONENT[run.family]: run.component_id,
        "session_id": run.session_id,
        "user_id": run.user_id,
        "status": run.status.value,
        "first_event_index": run.first_index,
        "last_event_index": run.last_index,
        "attempts": run.attempts,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "finished_at": run.finished_at,
        "cancel_requested_at": run.cancel_requested_at,
    }
