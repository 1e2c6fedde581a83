"""The examples do what the documentation says they do."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agno_resumable.agentos.versions import agno_version
from agno_resumable.sse import Decoder, Frame

from .support import PATIENCE, server_thread


@contextmanager
def example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setenv("LOG_URL", f"sqlite:///{tmp_path / 'runs.db'}")
    module = importlib.reload(importlib.import_module(f"examples.{name}"))
    with served(module.app) as client:
        yield client


@contextmanager
def served(app: Any) -> Iterator[httpx.Client]:
    with (
        server_thread(app) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.fixture
def agno_as_it_was() -> Iterator[None]:
    """What ``make_resumable`` sets belongs to the process."""
    from agno.os import event_streams
    from agno.run import cancel

    from agno_resumable.agentos import harden

    stream, manager = event_streams.get_event_stream(), cancel.get_cancellation_manager()
    yield
    event_streams.set_event_stream(stream)
    cancel.set_cancellation_manager(manager)
    harden().undo()


def frames(body: bytes) -> list[Frame]:
    return Decoder().feed(body)


def test_a_route_of_your_own_streams_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with example("own_route", tmp_path, monkeypatch) as client:
        answer = client.post("/story", params={"topic": "rivers"})
        run_id = answer.headers["x-run-id"]
        whole = frames(answer.content)
        assert [frame.event for frame in whole][-2:] == ["RunCompleted", "end"]
        resumed = client.get(f"/story/{run_id}/events", headers={"Last-Event-ID": f"{run_id}:3"})
        assert [frame.data for frame in frames(resumed.content)] == [frame.data for frame in whole[4:]]
        last = whole[-2].id
        assert last is not None
        assert client.get(f"/story/{run_id}/events", headers={"Last-Event-ID": last}).status_code == 204


def test_a_callable_of_your_own_is_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with example("pipeline", tmp_path, monkeypatch) as client:
        answer = client.post("/answers/runs", data={"message": "What is it?"})
        events = [frame.event for frame in frames(answer.content)]
        assert events[0] == "Searching"
        assert events[-2:] == ["RunCompleted", "end"]
        run = client.get(f"/answers/runs/{answer.headers['x-run-id']}").json()
        assert (run["status"], run["content"]) == ("COMPLETED", "Forty-two.")


def test_prometheus_reads_what_the_log_has_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with example("metrics_prometheus", tmp_path, monkeypatch) as client:
        answer = client.post("/agents/writer/runs", data={"message": "hello"})
        events = len(frames(answer.content)) - 1  # the last says that this was the end
        assert client.get(f"/agents/writer/runs/{'0' * 36}").status_code == 404
        scraped = client.get("/metrics")
    assert scraped.headers["content-type"].startswith("text/plain")
    found = dict(re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", scraped.text, re.MULTILINE))
    assert float(found['agno_log_events_total{operation="append"}']) == events
    assert float(found["agno_log_stats_events"]) == events
    assert float(found['agno_log_bytes_total{operation="append"}']) > 100 * events
    appends = float(found['agno_log_seconds_count{operation="append"}'])
    assert 1 <= appends <= events
    assert float(found["agno_log_stats_appends"]) == appends
    assert float(found['agno_log_seconds_bucket{le="+Inf",operation="append"}']) == appends
    assert float(found['agno_log_errors_total{error="RunNotFound",operation="read"}']) == 1
    assert float(found["agno_readers"]) == 0
    assert not [name for name in found if name.startswith("agno_log_seconds") and '"wait' in name]


def test_opentelemetry_is_told_what_the_log_has_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_URL", f"sqlite:///{tmp_path / 'unused.db'}")
    make_app = importlib.import_module("examples.metrics_opentelemetry").make_app
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with served(make_app(f"sqlite:///{tmp_path / 'runs.db'}", provider.get_meter("test"))) as client:
        events = len(frames(client.post("/agents/writer/runs", data={"message": "hello"}).content)) - 1
        assert client.get(f"/agents/writer/runs/{'0' * 36}").status_code == 404
        data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    found: dict[tuple[str, ...], Any] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            key = (metric.name, *map(str, (point.attributes or {}).values()))
            found[key] = point
    assert found["agno.log.events", "append"].value == events
    assert found["agno.log.io", "append"].value > 100 * events
    assert found["agno.log.stats", "events"].value == events
    assert found["agno.log.duration", "append"].count == found["agno.log.stats", "appends"].value
    assert found["agno.log.duration", "read", "RunNotFound"].count == 1


@pytest.mark.parametrize(
    ("path", "ending"),
    [
        ("/agents/writer", "RunCompleted"),
        ("/teams/editors", "TeamRunCompleted"),
        ("/workflows/press", "WorkflowCompleted"),
    ],
)
def test_each_family_streams_to_its_own_end(
    path: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with example("agents", tmp_path, monkeypatch) as client:
        answer = client.post(f"{path}/runs", json={"message": "hello"})
        assert [frame.event for frame in frames(answer.content)][-2:] == [ending, "end"]
        run = client.get(f"{path}/runs/{answer.headers['x-run-id']}").json()
        assert run["status"] == "COMPLETED"


@pytest.mark.skipif(agno_version() < (3, 0, 0), reason="make_resumable needs agno 3.0")
@pytest.mark.usefixtures("agno_as_it_was")
@pytest.mark.parametrize(
    ("path", "ending"),
    [
        ("/agents/story", "RunCompleted"),
        ("/teams/editors", "TeamRunCompleted"),
        ("/workflows/press", "WorkflowCompleted"),
    ],
)
def test_one_line_makes_an_agentos_resumable(
    path: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_FILE", str(tmp_path / "agno.db"))
    with example("agentos_app", tmp_path, monkeypatch) as client:
        # The client says nothing of the background, and leaves after the first frames
        decoder, seen = Decoder(), list[Frame]()
        with client.stream("POST", f"{path}/runs", data={"message": "hello", "session_id": "s1"}) as answer:
            run_id = answer.headers["x-run-id"]
            for chunk in answer.iter_bytes():
                seen += decoder.feed(chunk)
                if len(seen) >= 2:
                    break
        cursor = str(seen[-1].id)
        events = f"{path}/runs/{run_id}/events"
        rest = frames(client.get(events, params={"session_id": "s1"}, headers={"Last-Event-ID": cursor}).content)
        assert [frame.event for frame in rest][-2:] == [ending, "end"]
        ids = [frame.id for frame in (*seen, *rest[:-1])]
        assert ids == [f"{run_id}:{index}" for index in range(len(ids))]
        at_its_end = client.get(events, params={"session_id": "s1"}, headers={"Last-Event-ID": str(ids[-1])})
        assert at_its_end.status_code == 204
