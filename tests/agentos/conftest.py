"""What the installed agno has no place for is not collected."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

from agno_resumable.agentos.versions import agno_version

# With agno 2 there are the serializer, harden() and the bridge; the rest raises AgnoUnsupported, which is tested
collect_ignore_glob: list[str] = []
if agno_version() < (3, 0, 0):
    collect_ignore_glob += ["test_agentos_*.py", "test_cancellation*.py", "test_events.py", "test_install.py"]
    collect_ignore_glob += ["test_bridge.py", "test_bridge_lifespan.py"]  # with a log; test_bridge_agno2.py is without


@pytest.fixture(autouse=True)
def no_socket_outlives_its_test() -> Iterator[None]:
    """A client that leaves without a word, or is cut off with its event loop, leaves its socket to the collector: it is
    collected here, so that the warning does not come in the middle of another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    gc.freeze()  # what is left is the application's own, and is not looked through again after each of a thousand tests
