"""Which agno is there, and what is said where it is too old."""

from __future__ import annotations

import agno
import pytest

from agno_resumable import AgnoUnsupported, agentos
from agno_resumable.agentos import versions


def test_the_installed_version_is_read() -> None:
    major, minor, patch = versions.agno_version()
    assert agno.__version__.startswith(f"{major}.{minor}.{patch}") if hasattr(agno, "__version__") else major >= 2


@pytest.mark.parametrize("installed", ["2.6.22", "2.9.0", "2.10rc1"])
def test_an_older_agno_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr(versions, "version", lambda name: installed)
    with pytest.raises(AgnoUnsupported, match=rf"LogEventStream needs agno 3\.0 .*{installed[:4]}"):
        versions.require_agno((3, 0), "LogEventStream")


@pytest.mark.parametrize("installed", ["3.0.0", "3.1.10", "4.0"])
def test_a_newer_one_passes(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr(versions, "version", lambda name: installed)
    versions.require_agno((3, 0), "LogEventStream")


@pytest.mark.skipif(versions.agno_version() >= (3, 0, 0), reason="agno has event streams")
def test_what_needs_agno_3_says_so() -> None:
    with pytest.raises(AgnoUnsupported, match=r"LogEventStream needs agno 3\.0"):
        _ = agentos.LogEventStream
    with pytest.raises(AgnoUnsupported, match=r"make_resumable needs agno 3\.0"):
        agentos.make_resumable(object())
