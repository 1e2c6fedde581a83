"""The examples do what the documentation says they do."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from agno_resumable.sse import Decoder, Frame

from .support import PATIENCE, server_thread


@contextmanager
def example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setenv("LOG_URL", f"sqlite:///{tmp_path / 'runs.db'}")
    module = importlib.reload(importlib.import_module(f"examples.{name}"))
    with (
        server_thread(module.app) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE) as client,
    ):
        yield client


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
