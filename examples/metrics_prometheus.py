"""The log's metrics for Prometheus, at ``/metrics``.

Run it with ``uvicorn examples.metrics_prometheus:app`` and try::

    curl -N -d message=hello http://localhost:8000/agents/writer/runs
    curl http://localhost:8000/metrics
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from agno.agent import Agent
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agno_resumable import EventLog, LogCall, MeteredEventLog, open_log, resumable_routes
from agno_resumable.demo.scripted import ScriptedModel

# These wait for what is yet to come: how long they took says nothing of the store
WAITING = ("wait", "wait_cancel", "intents")


class LogMetrics(Collector):
    """An observer of calls, and a collector that asks the log for its counters when Prometheus comes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.log: EventLog | None = None
        self.seconds = Histogram(
            "agno_log_seconds",
            "How long calls of the event log took.",
            ["operation"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            registry=registry,
        )
        self.events = Counter("agno_log_events", "Events stored and read.", ["operation"], registry=registry)
        self.bytes = Counter("agno_log_bytes", "The JSON of these events.", ["operation"], registry=registry)
        self.errors = Counter("agno_log_errors", "Calls that failed.", ["operation", "error"], registry=registry)
        registry.register(self)

    def __call__(self, call: LogCall) -> None:
        """Count a call that is over."""
        if call.error is not None:
            if issubclass(call.error, Exception):  # and not the cancellation of a reader that has left
                self.errors.labels(call.operation, call.error.__name__).inc()
            return
        if call.operation not in WAITING:
            self.seconds.labels(call.operation).observe(call.seconds)
        if call.events:
            self.events.labels(call.operation).inc(call.events)
            self.bytes.labels(call.operation).inc(call.size)

    def collect(self) -> Iterator[Metric]:
        """The counters of ``log.stats()``. They begin at 0 with each opening, so they are gauges here."""
        for name, value in (self.log.stats() if self.log else {}).items():
            yield GaugeMetricFamily(f"agno_log_stats_{name}", f"log.stats()[{name!r}]", value=value)
        yield GaugeMetricFamily("agno_runs_active", "Runs produced by this process.", value=stream.stats()["active"])
        yield GaugeMetricFamily("agno_readers", "Who follows them here.", value=stream.stats()["readers"])


registry = CollectorRegistry()  # or prometheus_client.REGISTRY, which has the process's own metrics too
metrics = LogMetrics(registry)
log = metrics.log = MeteredEventLog(open_log(os.environ.get("LOG_URL", "sqlite:///runs.db")), metrics)


async def scrape(request: Request) -> Response:
    """What Prometheus reads. Each process has metrics of its own: give each a port, or an instance label."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


# A model that plays a script; put your own in its place.
writer = Agent(id="writer", model=ScriptedModel(script=["Once ", "upon ", "a ", "time"], delay=0.01), telemetry=False)
routes = resumable_routes(log=log, agents=[writer])
(stream,) = routes.streams
app = Starlette(routes=[Route("/metrics", scrape), *routes], lifespan=routes.lifespan)
