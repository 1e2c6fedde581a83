"""The log's metrics for OpenTelemetry: a histogram and counters of its calls, and gauges of its own counters.

Your application sets its ``MeterProvider`` as it does anyway, or ``opentelemetry-instrument`` does it::

    opentelemetry-instrument --metrics_exporter console uvicorn examples.metrics_opentelemetry:app
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from agno.agent import Agent
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from starlette.applications import Starlette

from agno_resumable import EventLog, LogCall, MeteredEventLog, open_log, resumable_routes
from agno_resumable.demo.scripted import ScriptedModel

# These wait for what is yet to come: how long they took says nothing of the store
WAITING = ("wait", "wait_cancel", "intents")


def observer(meter: Meter) -> Callable[[LogCall], None]:
    """What a ``MeteredEventLog`` tells of its calls."""
    seconds = meter.create_histogram("agno.log.duration", "s", "How long calls of the event log took.")
    events = meter.create_counter("agno.log.events", "{event}", "Events stored and read.")
    size = meter.create_counter("agno.log.io", "By", "The JSON of these events.")

    def observe(call: LogCall) -> None:
        attributes = {"operation": call.operation}
        if call.events:
            events.add(call.events, attributes)
            size.add(call.size, attributes)
        if call.error is not None:
            if not issubclass(call.error, Exception):
                return  # the cancellation of a reader that has left
            attributes["error.type"] = call.error.__name__
        if call.operation not in WAITING:
            seconds.record(call.seconds, attributes)

    return observe


def watch(meter: Meter, log: EventLog) -> None:
    """Gauges of ``log.stats()``, asked for at each export."""

    def stats(options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, {"counter": name}) for name, value in log.stats().items()]

    meter.create_observable_gauge("agno.log.stats", [stats], description="log.stats() of this process")


def make_app(url: str, meter: Meter) -> Starlette:
    """An application whose log is metered."""
    log = MeteredEventLog(open_log(url), observer(meter))
    watch(meter, log)
    # A model that plays a script; put your own in its place.
    model = ScriptedModel(script=["Once ", "upon ", "a ", "time"], delay=0.01)
    routes = resumable_routes(log=log, agents=[Agent(id="writer", model=model, telemetry=False)])
    return Starlette(routes=routes, lifespan=routes.lifespan)


# Of the provider that is set in this process, also if that happens later
app = make_app(os.environ.get("LOG_URL", "sqlite:///runs.db"), metrics.get_meter("agno_resumable"))
