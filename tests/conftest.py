"""What every test may rely on. The names of the environment variables are those that ``.ci/run`` sets."""

from __future__ import annotations

import gc
import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

from .postgres_server import postgres as postgres  # a fixture of every test
from .redis_server import redis_cluster as redis_cluster, redis_server as redis_server

# agno reports each run to its makers' servers unless told not to, and reads this when a component is initialised
os.environ["AGNO_TELEMETRY"] = "false"

# A shared machine makes any deadline per example flaky, and a slow one makes generation look unhealthy.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", settings.get_profile("default"), max_examples=20)

_SHORT = bool(os.environ.get("AGNO_RESUMABLE_SHORT"))
settings.load_profile("short" if _SHORT else "default")

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_finish() -> None:
    """What was imported stays: no collection has to look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def short() -> bool:
    """Whether ``AGNO_RESUMABLE_SHORT`` asks for small numbers while developing; never so in ``.ci/run``."""
    return _SHORT


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The Chromium of this machine: ``AGNO_RESUMABLE_CHROMIUM``, or the first found on the path.

    Without one, the test is skipped, and fails where ``AGNO_RESUMABLE_REQUIRE_BROWSER`` is set.
    """
    found = os.environ.get("AGNO_RESUMABLE_CHROMIUM") or next(filter(None, map(shutil.which, _CHROMIUM_NAMES)), None)
    if found:
        return found
    message = f"no browser: none of {', '.join(_CHROMIUM_NAMES)} is on the path, and AGNO_RESUMABLE_CHROMIUM is not set"
    if os.environ.get("AGNO_RESUMABLE_REQUIRE_BROWSER"):
        pytest.fail(message)
    pytest.skip(message)
