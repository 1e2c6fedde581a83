"""What the installed agno has no place for is not collected."""

from __future__ import annotations

from agno_resumable.agentos.versions import agno_version

# With agno 2 there are the serializer, harden() and the bridge; the rest raises AgnoUnsupported, which is tested
collect_ignore_glob: list[str] = []
if agno_version() < (3, 0, 0):
    collect_ignore_glob += ["test_agentos_*.py", "test_cancellation*.py", "test_events.py", "test_install.py"]
    collect_ignore_glob += ["test_bridge.py", "test_bridge_lifespan.py"]  # with a log; test_bridge_agno2.py is without
